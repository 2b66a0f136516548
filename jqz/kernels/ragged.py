"""Mixtures of experts: a ragged dot, each run of rows by the weights of its expert."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jqz._activations import Inputs, coder, fits_int32, meet, obstacle, total
from jqz._rescaling import Requant
from jqz._values import Levels, Value, as_levels, decode
from jqz._walk import Equation, Rule


def rules(inputs: Inputs, requant: Requant | None = None) -> dict[str, Rule]:
    """The rule table for integer ragged dots, given the schemes of the activations."""
    code = coder(requant)

    def dot(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        met = meet(eqn, operands[:2], inputs)
        if met is None or met.scheme is None:
            return None
        weight, x, sizes = as_levels(met.against(code)), met.rounded(code), decode(operands[2])
        if weight is None or x is None or met.side != 0 or not _integral(eqn, x, weight):  # the same rounding, in float
            eqn.say(how="rounded float", why=obstacle(met, weight, x))
            return [eqn.on(*met.both_in_float(code), sizes)]
        eqn.say(how="int8", why="static range" if met.grid is not None else "dynamic range")
        return [_ragged_dot(x, weight, sizes).astype(eqn.avals[0].dtype)]

    return {"ragged_dot_general": dot}


def _integral(eqn: Equation, x: Levels, w: Levels) -> bool:
    """Whether it is rows (m, k) by experts (g, k, n), and scales and zero points factor out of the sums."""
    dims = eqn.params["ragged_dot_dimension_numbers"]
    (contract, batch) = dims.dot_dimension_numbers
    plain = (
        x.ndim == 2
        and w.ndim == 3
        and tuple(map(tuple, contract)) == ((1,), (1,))
        and not any(batch)
        and tuple(dims.lhs_ragged_dimensions) == (0,)
        and tuple(dims.rhs_group_dimensions) == (0,)
        and eqn.params["group_offset"] is None
    )
    return (
        plain
        and x.limit <= 128
        and not x.varies_along([1])
        and not w.varies_along([1])
        and fits_int32(x.shape[1], x, w)
    )


def _ragged_dot(x: Levels, w: Levels, sizes: jax.Array) -> jax.Array:
    """sum((a - za) sa (b - zb) sb) of every row a and the weights b of its expert, as in ``jqz.kernels.dot``."""
    x, w = x.ungrouped([0]), w.ungrouped([0, 2])
    ends = jnp.cumsum(sizes)
    place = jnp.arange(x.shape[0], dtype=ends.dtype)
    expert = jnp.minimum(jnp.searchsorted(ends, place, side="right"), w.shape[0] - 1)
    taken = (place < ends[-1])[:, None]  # rows behind the last run are zeros

    def of_row(grid: jax.Array) -> jax.Array:
        """A grid array (g, 1, n) as each row meets it: (m, n)."""
        return grid[0] if grid.shape[0] == 1 else grid[expert, 0]

    acc = jax.lax.ragged_dot(x.levels, w.levels, sizes, preferred_element_type=jnp.int32)
    zero = jnp.int32(0)
    if x.zero_point is not None:
        acc = acc - jnp.where(taken, x.zero_point * of_row(total(w.levels, (1,))), zero)
    if w.zero_point is not None:
        acc = acc - jnp.where(taken, of_row(w.zero_point) * total(x.levels, (1,)), zero)
    if x.zero_point is not None and w.zero_point is not None:
        acc = acc + jnp.where(taken, x.shape[1] * x.zero_point * of_row(w.zero_point), zero)
    dtype = np.promote_types(x.scale.dtype, w.scale.dtype)
    return acc.astype(dtype) * (x.scale.astype(dtype) * of_row(w.scale).astype(dtype))
