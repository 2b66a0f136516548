"""Primitives that only move values: codes move, and stay codes.

Where a grid cannot follow, the weight moves decoded. It keeps its path either way, so what meets it
later is treated alike for every scheme, and in training as in inference.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jqz._values import Coded, Lazy, Levels, Value, Weight, as_levels, decode, is_weight
from jqz._walk import Equation, Rule

Move = Callable[[jax.Array], jax.Array]


def _move(value: Lazy, move: Move, grid_move: Callable[[Levels], Move | None]) -> list[Value] | None:
    """Moves levels, and their grid as ``grid_move`` says; None, or no levels at all, moves decoded values."""
    if not isinstance(value, Weight | Coded | Levels):
        return None
    coded = as_levels(value)
    grid = None if coded is None else grid_move(coded)
    if coded is None or grid is None:
        moved: Lazy = Weight(move(value.decode()), value.path)
    else:
        zero_point = None if coded.zero_point is None else grid(coded.zero_point)
        moved = dataclasses.replace(coded, levels=move(coded.levels), scale=grid(coded.scale), zero_point=zero_point)
    return [moved if is_weight(value) else decode(moved)]  # what is read of a cache is no weight


def _convert(eqn: Equation, value: Lazy) -> Sequence[Value] | None:
    dtype = eqn.params["new_dtype"]
    if not is_weight(value) or not jnp.issubdtype(dtype, jnp.floating):
        return None
    if isinstance(value, Coded | Levels):
        return [value if dtype == value.dtype else dataclasses.replace(value, casts=(*value.casts, dtype))]
    return [dataclasses.replace(typing.cast(Weight, value), value=eqn.on(value))]


def _pass(eqn: Equation, value: Lazy) -> Sequence[Value]:
    return [dataclasses.replace(value, value=eqn.on(value)) if isinstance(value, Weight) else value]


def _each(eqn: Equation, value: Lazy) -> Sequence[Value]:
    """Says something of the array that holds for codes and grid alike, such as that it differs between devices."""
    return [jax.tree.map(lambda leaf: eqn.bind(leaf)[0], value)]


def _barrier(eqn: Equation, *values: Value) -> Sequence[Value]:
    """Coded operands need no barrier; the arrays keep theirs."""
    plain = [i for i, v in enumerate(values) if not isinstance(v, Lazy)]
    out = list(values)
    if plain:
        for i, v in zip(plain, jax.lax.optimization_barrier([values[i] for i in plain]), strict=True):
            out[i] = v
    return out


def _transpose(eqn: Equation, value: Lazy) -> Sequence[Value] | None:
    def move(a: jax.Array) -> jax.Array:
        return jnp.transpose(a, eqn.params["permutation"])

    if isinstance(value, Weight) and value.order is not None and len(value.order) == value.ndim:
        order = tuple(value.order[axis] for axis in eqn.params["permutation"])
        return [dataclasses.replace(value, value=move(value.value), order=order)]
    return _move(value, move, lambda coded: move)


def _squeeze(eqn: Equation, value: Lazy) -> Sequence[Value] | None:
    def move(a: jax.Array) -> jax.Array:
        return jax.lax.squeeze(a, eqn.params["dimensions"])

    return _move(value, move, lambda coded: move)


def _reverse(eqn: Equation, value: Lazy) -> Sequence[Value] | None:
    def move(a: jax.Array) -> jax.Array:
        return jax.lax.rev(a, eqn.params["dimensions"])

    return _move(value, move, lambda coded: move)  # equal groups swap places whole


def _reshape(eqn: Equation, value: Lazy) -> Sequence[Value] | None:
    sizes, order = tuple(eqn.params["new_sizes"]), eqn.params.get("dimensions")

    def grid(coded: Levels) -> Move | None:
        shape = None if order is not None else _reshaped_grid(coded.shape, sizes, coded.scale.shape)
        return None if shape is None else lambda g: g.reshape(shape)

    return _move(value, lambda a: jax.lax.reshape(a, sizes, order), grid)


def _reshaped_grid(old: tuple[int, ...], new: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, ...] | None:
    """The grid's shape after a reshape, or None where its entries would no longer be equal parts of axes.

    Axes are matched in shortest runs of equal product. In a run the entries must serve equal parts of the
    values in order, and the new axes must divide, or be divided by, such a part.
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
        part = _part(old[i0:i], grid[i0:i])
        entries = None if part is None else _entries(new[j0:j], part)
        if entries is None:
            return None
        out += entries
    return tuple(out)


def _part(shape: tuple[int, ...], grid: tuple[int, ...]) -> int | None:
    """How many consecutive values share an entry, or None where those that share one are not consecutive."""
    part, whole = 1, True  # whether an entry spans all the axes to the right
    for n, entries in zip(reversed(shape), reversed(grid), strict=True):
        if n == 1:
            continue
        if not whole and entries != n:
            return None
        if whole:
            part *= n // entries
            whole = entries == 1
    return part


def _entries(shape: tuple[int, ...], part: int) -> list[int] | None:
    """Entries along each axis where every ``part`` consecutive values share one."""
    out: list[int] = []
    for n in reversed(shape):
        if part % n == 0:
            out.append(1)
            part //= n
        elif n % part == 0:
            out.append(n // part)
            part = 1
        else:
            return None
    return out[::-1]


def _broadcast(eqn: Equation, value: Lazy) -> Sequence[Value] | None:
    shape, axes = eqn.params["shape"], eqn.params["broadcast_dimensions"]

    def grid(g: jax.Array) -> jax.Array:
        wide = [1] * len(shape)
        for axis, n in zip(axes, g.shape, strict=True):
            wide[axis] = n
        return g.reshape(wide)

    return _move(value, lambda a: jax.lax.broadcast_in_dim(a, shape, axes), lambda coded: grid)


def _slice(eqn: Equation, value: Lazy) -> Sequence[Value] | None:
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(start)

    def grid(coded: Levels) -> Move | None:
        cuts = list(map(_cut_grid, coded.shape, coded.scale.shape, start, limit, strides))
        return None if None in cuts else lambda g: jax.lax.slice(g, *zip(*cuts, strict=True)) if cuts else g

    return _move(value, lambda a: jax.lax.slice(a, start, limit, strides), grid)


def _cut_grid(n: int, entries: int, start: int, limit: int, stride: int) -> tuple[int, int, int] | None:
    """Where to cut an axis of a grid if values are cut so; None where groups would become unequal."""
    if entries == 1 or start == limit:
        return 0, 1, 1
    part = n // entries
    first, last = start // part, (limit - 1) // part
    if part == 1:
        return start, limit, stride
    if first == last:
        return first, first + 1, 1
    aligned = stride == 1 and start % part == 0 and limit % part == 0
    return (first, last + 1, 1) if aligned else None


def _dynamic_slice(eqn: Equation, value: Value, *starts: Value) -> Sequence[Value] | None:
    sizes = eqn.params["slice_sizes"]
    if not isinstance(value, Lazy) or any(isinstance(s, Lazy) for s in starts):
        return None

    def grid(coded: Levels) -> Move | None:
        cut = []
        for n, entries, start, size in zip(coded.shape, coded.scale.shape, starts, sizes, strict=True):
            if entries == 1 or size == n:
                cut.append((np.zeros((), jnp.result_type(start)), entries))
            elif entries == n:
                cut.append((start, size))
            else:
                return None
        return lambda g: jax.lax.dynamic_slice(g, *zip(*cut, strict=True)) if cut else g

    return _move(value, lambda a: jax.lax.dynamic_slice(a, starts, sizes), grid)


RULES: dict[str, Rule] = {
    "convert_element_type": _convert,
    "copy": _pass,
    "copy_p": _pass,
    "sharding_constraint": _pass,
    "stop_gradient": _pass,
    "pvary": _each,
    "optimization_barrier": _barrier,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "rev": _reverse,
}
