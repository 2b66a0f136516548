"""A single float row times a coded weight: a product on the codes, which are never decoded into memory."""

import functools
import math
import typing
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jqz._values import Coded, Lazy, Levels, Value, as_levels
from jqz._walk import Equation, Rule
from jqz.lowerings import row

#: Weights of fewer values are decoded: they stay in the cache.
VALUES = 2**16


def _dot(eqn: Equation, *operands: Value) -> Sequence[jax.Array] | None:
    # codes that were moved may lie in memory in another order, which XLA reads slowly
    sides = [side for side, v in enumerate(operands) if isinstance(v, Coded)]
    if len(sides) != 1 or isinstance(operands[1 - sides[0]], Lazy):
        return None
    x, weight = operands[1 - sides[0]], operands[sides[0]]
    contracted, batched = eqn.params["dimension_numbers"]
    pairs = sorted(zip(contracted[sides[0]], contracted[1 - sides[0]], strict=True))
    leading, axes = len(pairs), [axis for _, axis in pairs]
    single = x.size == math.prod(x.shape[i] for i in axes)
    if not single or batched[0] or [i for i, _ in pairs] != list(range(leading)) or weight.ndim == leading:
        return None
    typed = x.dtype == weight.dtype == eqn.avals[0].dtype == jnp.float32
    levels = as_levels(weight) if typed and math.prod(weight.shape) >= VALUES else None
    if levels is None or levels.scale.dtype != jnp.float32 or len(levels.casts) > 1:
        return None
    free = range(leading, levels.ndim)
    length, groups = math.prod(levels.shape[:leading]), levels.scale.shape[0]
    inside = levels.varies_along(range(1, leading))  # groups that are not consecutive rows
    if inside or set(levels.grouped_axes) & set(free) or not row.suits(length, groups):
        return None
    terms = jnp.transpose(x, [*axes, *(i for i in range(x.ndim) if i not in axes)]).reshape(length)
    return [_times(terms, weight, levels, leading).reshape(eqn.avals[0].shape)]


class _Plane(typing.NamedTuple):
    """Reads ``multiple * (level + offset)`` from what is stored."""

    read: row.Plane
    multiple: int = 1
    offset: int = 0


def _times(x: jax.Array, weight: Coded, levels: Levels, leading: int) -> jax.Array:
    length, groups, outs = len(x), levels.scale.shape[0], levels.shape[leading:]
    scale = jnp.broadcast_to(levels.scale.reshape(groups, *levels.scale.shape[leading:]), (groups, *outs))
    stored, planes = _planes(weight, levels)
    count, unit = len(planes), stored.shape[-1]
    spare = count * unit - outs[-1]
    wide = jnp.pad(scale, [(0, 0)] * len(outs) + [(0, spare)]).reshape(groups, *outs[:-1], count, unit)
    by_plane = jnp.moveaxis(wide, -2, 1).reshape(groups, count, -1)
    by_plane = by_plane / np.array([[[plane.multiple] for plane in planes]], x.dtype)
    rows = row.times(x, stored.reshape(length, -1), [plane.read for plane in planes], by_plane)
    y = jnp.concatenate([part.reshape(*outs[:-1], unit) for part in rows], -1)
    y = jax.lax.slice_in_dim(y, 0, outs[-1], axis=-1)
    zero_point = np.repeat([plane.offset for plane in planes], unit)[: outs[-1]].astype(x.dtype)
    if levels.zero_point is None and not zero_point.any():
        return y
    zero_point = jnp.broadcast_to(zero_point, scale.shape)
    if levels.zero_point is not None:
        own = levels.zero_point.reshape(groups, *levels.zero_point.shape[leading:])
        zero_point = zero_point + jnp.broadcast_to(own, scale.shape).astype(x.dtype)
    return y - jnp.tensordot(x.reshape(groups, -1).sum(1), zero_point * scale, 1)


def _planes(weight: Coded, levels: Levels) -> tuple[jax.Array, list[_Plane]]:
    """What is stored, and how to read levels from it."""
    q = weight.tensor
    affine, bits, signed = (
        q.scheme.affine(q.grid),
        q.scheme.bits,
        jnp.issubdtype(q.scheme.code_dtype, jnp.signedinteger),
    )
    if affine is None or q.length is None or 8 % bits:
        return levels.levels, [_Plane(lambda stored: stored)]
    same = jnp.zeros((), q.scheme.code_dtype)
    plane = _in_place if affine.levels(same) is same else functools.partial(_shifted, affine.levels)
    return q.payload, [plane(bits * i, bits, signed) for i in range(8 // bits)]


def _in_place(shift: int, bits: int, signed: bool) -> _Plane:
    """Codes that are levels stay where they are in a byte: there are no vector shifts of bytes."""
    mask = np.uint8((2**bits - 1) << shift)
    if signed and shift + bits == 8:  # the sign is where it belongs
        return _Plane(lambda stored: jax.lax.bitcast_convert_type(stored & mask, jnp.int8), 2**shift)
    half = 2 ** (bits - 1) if signed else 0
    return _Plane(lambda stored: (stored ^ np.uint8(half << shift)) & mask, 2**shift, half)


def _shifted(levels: Callable[[jax.Array], jax.Array], shift: int, bits: int, signed: bool) -> _Plane:
    def read(stored: jax.Array) -> jax.Array:
        high = stored.astype(jnp.int32) << (32 - bits - shift)
        codes = high >> (32 - bits) if signed else jax.lax.shift_right_logical(high, 32 - bits)
        return levels(codes.astype(jnp.int8 if signed else jnp.uint8))

    return _Plane(read)


RULES: dict[str, Rule] = {"dot_general": _dot}
