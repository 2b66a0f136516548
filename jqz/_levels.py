"""Values that are entries of a sorted table: nearest entry, and back.

A table has its levels along the last axis, after the axes of a grid, or is one table for all
values. Both directions are a fixed number of selects and gathers a value, without a loop over levels.
"""

import math

import jax
import jax.numpy as jnp

from jqz._granularity import Granularity

#: So many candidates are chosen among by selects, which XLA's CPU backend vectorizes; more are gathered.
_SELECTED = 8


def midpoints(levels: jax.Array) -> jax.Array:
    """The largest value that goes to the lower of each two neighbours, along the last axis.

    Between two adjacent floating numbers that is the lower, so that a level is always nearest to itself.

    >>> midpoints(jnp.array([-1.0, 0.0, 0.5])).tolist()
    [-0.5, 0.25]
    """
    lower, upper = levels[..., :-1], levels[..., 1:]
    # the sum of two large levels of one sign may overflow, and the difference where the signs differ;
    # halving both first does not help, since XLA factors the half out again
    apart = (lower < 0) != (upper < 0)
    middle = jnp.where(apart, (lower + upper) * 0.5, lower + (upper - lower) * 0.5)
    return jnp.where(middle < upper, middle, lower)


def nearest(x: jax.Array, levels: jax.Array, granularity: Granularity | None = None) -> jax.Array:
    """The index of the nearest level, uint8; halfway between two, the lower; of equal ones, the first.

    A binary search: one comparison a bit of the index.

    Args:
      x: values in the dtype of the levels.
      levels: in rising order along the last axis, 1 to 256 of them; (n,), or (*grid, n) with a granularity.
      granularity: which values share a table.

    >>> nearest(jnp.array([-2.0, 0.2, 0.25, 0.3]), jnp.array([-1.0, 0.0, 0.5])).tolist()
    [0, 1, 1, 2]
    """
    bits = (levels.shape[-1] - 1).bit_length()
    # of equal levels the first is taken: the others begin where the next larger one does
    same = levels[..., :-1] == levels[..., 1:]
    middles = jax.lax.cummin(jnp.where(same, jnp.inf, midpoints(levels)), axis=levels.ndim - 1, reverse=True)
    missing = 2**bits - 1 - middles.shape[-1]
    middles = jnp.pad(middles, [(0, 0)] * (middles.ndim - 1) + [(0, missing)], constant_values=jnp.inf)
    code, found = jnp.zeros(x.shape, jnp.int32), []
    for place in reversed(range(bits)):
        step = 1 << place
        if 1 << len(found) <= _SELECTED:
            # the midpoints that this comparison may need, narrowed by the bits found so far, lowest first
            middle = _columns(middles, range(step - 1, 2**bits - 1, 2 * step), x.shape, granularity)
            for bit in reversed(found):
                middle = [jnp.where(bit, high, low) for low, high in zip(middle[::2], middle[1::2], strict=True)]
            middle = middle[0]
        else:
            middle = _gather(middles, code + (step - 1), granularity)
        found.append(x > middle)
        code = code + found[-1].astype(jnp.int32) * step
    return code.astype(jnp.uint8)


def lookup(codes: jax.Array, levels: jax.Array, granularity: Granularity | None = None) -> jax.Array:
    """The levels that codes stand for; codes beyond the table mean its last entry.

    >>> lookup(jnp.array([0, 2, 1], jnp.uint8), jnp.array([-1.0, 0.0, 0.5])).tolist()
    [-1.0, 0.5, 0.0]
    """
    return _gather(levels, jnp.minimum(codes.astype(jnp.int32), levels.shape[-1] - 1), granularity)


def _columns(
    table: jax.Array, indices: range, shape: tuple[int, ...], granularity: Granularity | None
) -> list[jax.Array]:
    columns = tuple(table[..., index] for index in indices)
    if granularity is None:
        return list(columns)
    if math.prod(table.shape[:-1]) != 1:
        # read in place, columns are strided, which keeps XLA's CPU backend from vectorizing: 18 times slower
        columns = jax.lax.optimization_barrier(columns)
    return [granularity.expand(column, shape) for column in columns]


def _gather(table: jax.Array, index: jax.Array, granularity: Granularity | None) -> jax.Array:
    grid, length = table.shape[:-1], table.shape[-1]
    if granularity is not None and math.prod(grid) != 1:
        start = jnp.arange(0, math.prod(grid) * length, length, dtype=jnp.int32).reshape(grid)
        index = index + granularity.expand(start, index.shape)
    # the index is within bounds by construction, and a gather that checks is slower
    return jnp.asarray(table).reshape(-1).at[index].get(mode="promise_in_bounds")
