"""Integer dot_general: a coded weight meets an activation that is coded on its way in."""

import dataclasses
import math
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jqz._activations import Inputs, coder, fits_int32, halves, meet, obstacle, total
from jqz._pending import Scaled, product, together
from jqz._rescaling import Requant
from jqz._values import Levels, Value, as_levels, decode
from jqz._walk import Equation, Rule
from jqz.lowerings.dot import dot as lowered_dot

Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Dims:
    """The axes of both operands: contracted, batched, and what is left."""

    contract: tuple[Axes, Axes]
    batch: tuple[Axes, Axes]

    def free(self, side: int, ndim: int) -> Axes:
        taken = {*self.contract[side], *self.batch[side]}
        return tuple(i for i in range(ndim) if i not in taken)

    def numbers(self) -> typing.Any:
        return self.contract, self.batch


def rules(inputs: Inputs, requant: Requant | None = None) -> dict[str, Rule]:
    """The rule table for integer dots, given the schemes of the activations.

    With ``requant``, results on static grids wait to be rescaled by it.
    """
    code = coder(requant)

    def dot(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        met = meet(eqn, operands, inputs)
        if met is None or met.scheme is None:
            return None
        weight, x = as_levels(met.against(code)), met.rounded(code)
        result = None
        if weight is not None and x is not None:
            (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
            dims = Dims((tuple(lc), tuple(rc)), (tuple(lb), tuple(rb)))
            results = [dot_levels(*met.ordered(part, weight), dims) for part in halves(x)]
            products = [part for part in results if isinstance(part, Scaled)]
            result = results[0] if len(results) == 1 else together(*products) if len(products) == 2 else None
        if result is None:  # the same rounding, in float
            eqn.say(how="rounded float", why=obstacle(met, weight, x))
            return [eqn.on(*met.both_in_float(code))]
        why = "static range" if met.grid is not None else "dynamic range"
        eqn.say(how="int8" if x is None or x.limit <= 128 else "int16", why=why)
        waits = requant is not None and met.grid is not None and eqn.avals[0].dtype == jnp.float32
        return [result if isinstance(result, Scaled) and waits else decode(result).astype(eqn.avals[0].dtype)]

    return {"dot_general": dot}


def dot_levels(lhs: Levels, rhs: Levels, dims: Dims) -> jax.Array | Scaled | None:
    """The float dot of two coded operands by integer arithmetic, or None where their grids do not allow it.

    sum((a - za) sa (b - zb) sb) = sa sb (sum(a b) - za sum(b) - zb sum(a) + n za zb), where scales and zero
    points do not change along a contracted axis. Where the scales of one axis change by groups, each group is
    a dot of its own and the groups are added in float.
    """
    lhs, rhs = (v.ungrouped(set(range(v.ndim)) - set(axes)) for v, axes in zip((lhs, rhs), dims.contract, strict=True))
    varying = [
        k
        for k, axes in enumerate(zip(*dims.contract, strict=True))
        if any(v.varies_along([axis]) for v, axis in zip((lhs, rhs), axes, strict=True))
    ]
    if not varying:
        return _ungrouped_dot(lhs, rhs, dims)
    if len(varying) > 1:
        return None
    axes = tuple(dims.contract[side][varying[0]] for side in (0, 1))
    counts = {v.scale.shape[axis] for v, axis in zip((lhs, rhs), axes, strict=True)} - {1}
    length = lhs.shape[axes[0]]
    if len(counts) > 1 or counts == {length}:
        return None  # a scale for every summed term: nothing is left to do in integers
    groups = counts.pop()
    lhs, rhs = (_split(v, axis, groups) for v, axis in zip((lhs, rhs), axes, strict=True))
    contract, batch = [], []
    for side, axis in enumerate(axes):
        contract.append(tuple(i + (i >= axis) for i in dims.contract[side]))
        batch.append((axis, *(i + (i > axis) for i in dims.batch[side])))
    grouped = _ungrouped_dot(lhs, rhs, Dims((contract[0], contract[1]), (batch[0], batch[1])))
    return None if grouped is None else jnp.sum(grouped.decode(), axis=0)


def _split(v: Levels, axis: int, groups: int) -> Levels:
    """Splits an axis into (group, member); a grid array gets (group, 1)."""

    def grid(g: jax.Array) -> jax.Array:
        return jnp.expand_dims(g, axis + 1)

    levels = v.levels.reshape(*v.shape[:axis], groups, v.shape[axis] // groups, *v.shape[axis + 1 :])
    zero_point = None if v.zero_point is None else grid(v.zero_point)
    return dataclasses.replace(v, levels=levels, scale=grid(v.scale), zero_point=zero_point)


def _ungrouped_dot(lhs: Levels, rhs: Levels, dims: Dims) -> Scaled | None:
    ranks = lhs.ndim, rhs.ndim
    terms = math.prod(lhs.shape[i] for i in dims.contract[0])
    if not fits_int32(terms, lhs, rhs):
        return None

    def place(grid: jax.Array, side: int) -> jax.Array:
        """An operand's grid array, of length 1 on contracted axes, laid out to meet the result."""
        batch, free = dims.batch[side], dims.free(side, ranks[side])
        others = len(dims.free(1 - side, ranks[1 - side]))
        kept = jnp.transpose(grid, (*batch, *free, *dims.contract[side]))
        shape = kept.shape[: len(batch)], kept.shape[len(batch) : len(batch) + len(free)]
        ones = (1,) * others
        return kept.reshape((*shape[0], *shape[1], *ones) if side == 0 else (*shape[0], *ones, *shape[1]))

    def sums(v: Levels, side: int) -> jax.Array:
        return place(total(v.levels, dims.contract[side]), side)

    acc = _accumulate(lhs.levels, rhs.levels, dims)
    za, zb = lhs.zero_point, rhs.zero_point
    if za is not None:
        acc = acc - place(za, 0) * sums(rhs, 1)
    if zb is not None:
        acc = acc - place(zb, 1) * sums(lhs, 0)
    if za is not None and zb is not None:
        acc = acc + terms * place(za, 0) * place(zb, 1)
    dtype = np.promote_types(lhs.scale.dtype, rhs.scale.dtype)
    return product(acc, (place(lhs.scale, 0).astype(dtype), place(rhs.scale, 1).astype(dtype)), dtype)


def _accumulate(lhs: jax.Array, rhs: jax.Array, dims: Dims) -> jax.Array:
    """int8 x int8 -> int32."""
    return lowered_dot(lhs, rhs, dims.numbers())
