"""Primitives that only move values: codes move, and stay codes."""

import math
import typing
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jqz._interpret import Equation, Rule
from jqz._values import Lazy, Levels, Value, Weight, as_levels

Move = Callable[[jax.Array], jax.Array]


def _move(value: Value, levels: Move, grid: Move) -> list[Value] | None:
    """Moves a weight, or its levels and its grid; declines where it has no integer levels."""
    if isinstance(value, Weight):
        return [Weight(levels(value.value), value.path)]
    coded = as_levels(value)
    if coded is None:
        return None
    zero_point = None if coded.zero_point is None else grid(coded.zero_point)
    return [Levels(levels(coded.levels), grid(coded.scale), zero_point, coded.dtype, coded.limit, coded.path)]


def _ungrouped(value: Value, axes: typing.Iterable[int] | None = None) -> bool:
    """Whether the grid has length 1 or the full length along these axes (all of them if left out)."""
    if isinstance(value, Weight):
        return True
    coded = as_levels(value)
    return coded is not None and not (set(coded.grouped_axes) & set(range(coded.ndim) if axes is None else axes))


def _convert(eqn: Equation, value: Value) -> Sequence[Value] | None:
    dtype = eqn.params["new_dtype"]
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    if isinstance(value, Weight):
        return [Weight(eqn.on(value), value.path)]
    # a narrower type rounds what was decoded, which codes cannot show
    if jnp.finfo(dtype).nmant < jnp.finfo(value.dtype).nmant:
        return None
    if isinstance(value, Levels):
        return [Levels(value.levels, value.scale, value.zero_point, dtype, value.limit, value.path)]
    return None if value.dtype != dtype else [value]


def _pass(eqn: Equation, value: Value) -> Sequence[Value]:
    return [Weight(eqn.on(value), value.path) if isinstance(value, Weight) else value]


def _barrier(eqn: Equation, *values: Value) -> Sequence[Value]:
    """Coded operands need no barrier; the arrays keep theirs."""
    plain = [i for i, v in enumerate(values) if not isinstance(v, Lazy)]
    out = list(values)
    if plain:
        for i, v in zip(plain, jax.lax.optimization_barrier([values[i] for i in plain]), strict=True):
            out[i] = v
    return out


def _transpose(eqn: Equation, value: Value) -> Sequence[Value] | None:
    order = eqn.params["permutation"]
    return _move(value, lambda a: jnp.transpose(a, order), lambda g: jnp.transpose(g, order))


def _squeeze(eqn: Equation, value: Value) -> Sequence[Value] | None:
    axes = eqn.params["dimensions"]
    return _move(value, lambda a: jax.lax.squeeze(a, axes), lambda g: jax.lax.squeeze(g, axes))


def _reshape(eqn: Equation, value: Value) -> Sequence[Value] | None:
    sizes = tuple(eqn.params["new_sizes"])
    if eqn.params.get("dimensions") is not None:
        return None
    if isinstance(value, Weight):
        return _move(value, lambda a: a.reshape(sizes), lambda g: g)
    coded = as_levels(value)
    if coded is None or coded.grouped_axes:
        return None
    shape = _reshaped_grid(coded.shape, sizes, coded.scale.shape)
    return None if shape is None else _move(coded, lambda a: a.reshape(sizes), lambda g: g.reshape(shape))


def _reshaped_grid(old: tuple[int, ...], new: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, ...] | None:
    """The grid's shape after a reshape, or None where its entries would no longer line up with axes.

    Axes are matched in shortest runs of equal product; inside a run the grid must be shared by all
    values, or have an entry for each.
    """
    if 0 in old:
        return None
    out: list[int] = []
    i = j = 0
    while i < len(old) or j < len(new):
        i0, j0, a, b = i, j, math.prod(old[i : i + 1]), math.prod(new[j : j + 1])
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
            else:
                b, j = b * new[j], j + 1
        if math.prod(grid[i0:i]) == 1:
            out += [1] * (j - j0)
        elif grid[i0:i] == old[i0:i]:
            out += new[j0:j]
        else:
            return None
    return tuple(out)


def _broadcast(eqn: Equation, value: Value) -> Sequence[Value] | None:
    shape, axes = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    if isinstance(value, Weight) or not _ungrouped(value):
        return None

    def grid(g: jax.Array) -> jax.Array:
        wide = [1] * len(shape)
        for axis, n in zip(axes, g.shape, strict=True):
            wide[axis] = n
        return g.reshape(wide)

    return _move(value, lambda a: jax.lax.broadcast_in_dim(a, shape, axes), grid)


def _slice(eqn: Equation, value: Value) -> Sequence[Value] | None:
    start, limit, strides = (eqn.params[k] for k in ("start_indices", "limit_indices", "strides"))
    if not _ungrouped(value):
        return None

    def cut(a: jax.Array, full: tuple[int, ...]) -> jax.Array:
        keep = [n == m for n, m in zip(a.shape, full, strict=True)]
        return jax.lax.slice(
            a,
            [s if k else 0 for s, k in zip(start, keep, strict=True)],
            [e if k else 1 for e, k in zip(limit, keep, strict=True)],
            None if strides is None else [t if k else 1 for t, k in zip(strides, keep, strict=True)],
        )

    return _move(value, lambda a: cut(a, value.shape), lambda g: cut(g, value.shape))


def _dynamic_slice(eqn: Equation, value: Value, *starts: Value) -> Sequence[Value] | None:
    sizes = eqn.params["slice_sizes"]
    if not isinstance(value, Lazy) or any(isinstance(s, Lazy) for s in starts) or not _ungrouped(value):
        return None

    def cut(a: jax.Array, full: tuple[int, ...]) -> jax.Array:
        keep = [n == m for n, m in zip(a.shape, full, strict=True)]
        zero = np.zeros((), np.int32)
        return jax.lax.dynamic_slice(
            a,
            [s if k else zero.astype(jnp.result_type(s)) for s, k in zip(starts, keep, strict=True)],
            [n if k else 1 for n, k in zip(sizes, keep, strict=True)],
        )

    return _move(value, lambda a: cut(a, value.shape), lambda g: cut(g, value.shape))


def _reverse(eqn: Equation, value: Value) -> Sequence[Value] | None:
    axes = eqn.params["dimensions"]
    if not _ungrouped(value, axes):
        return None
    return _move(value, lambda a: jax.lax.rev(a, axes), lambda g: jax.lax.rev(g, axes))


RULES: dict[str, Rule] = {
    "convert_element_type": _convert,
    "copy": _pass,
    "copy_p": _pass,
    "sharding_constraint": _pass,
    "stop_gradient": _pass,
    "optimization_barrier": _barrier,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "rev": _reverse,
}
