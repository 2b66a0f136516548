"""Writing into a coded tensor, a key-value cache say: what is written is coded, the rest stays as it is."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jqz._activations import with_granularity
from jqz._granularity import PerAxis, PerTensor
from jqz._qtensor import QTensor, pack
from jqz._scheme import Scheme
from jqz._values import Coded, Lazy, Stored, Value, decode
from jqz._walk import Equation, Rule

#: Writes updates, laid out as those of the equation, into an array of the operand's rank.
Write = Callable[[jax.Array, jax.Array], jax.Array]


def _dynamic_update_slice(eqn: Equation, cache: Value, update: Value, *starts: Value) -> Sequence[Value] | None:
    if not isinstance(cache, Coded) or any(isinstance(s, Lazy) for s in starts):
        return None
    update = decode(update)

    def write(array: jax.Array, part: jax.Array) -> jax.Array:
        zero = np.zeros((), jnp.result_type(*starts[:1]))
        more = (zero,) * (array.ndim - len(starts))  # axes of a grid's own, the levels of a codebook say
        # what is written whole starts at 0; a grid with an entry for each value is written where these are
        begin = [zero if n == m else s for s, n, m in zip((*starts, *more), array.shape, part.shape, strict=True)]
        return jax.lax.dynamic_update_slice(array, part, begin)

    return _stored(cache, update[None], update.shape, write, lambda part: part[0])


def _scatter(eqn: Equation, cache: Value, indices: Value, update: Value) -> Sequence[Value] | None:
    """``cache.at[...].set(update)``: windows of the update go to points that the indices name."""
    if not isinstance(cache, Coded) or isinstance(indices, Lazy) or eqn.params["update_jaxpr"] is not None:
        return None
    dims, update = eqn.params["dimension_numbers"], decode(update)
    points = tuple(axis for axis in range(update.ndim) if axis not in dims.update_window_dims)
    single = sorted([*dims.inserted_window_dims, *dims.operand_batching_dims])
    window = iter(dims.update_window_dims)
    # the shape of a window in the operand's axes; those that take one index each are not in the update
    shape = tuple(1 if axis in single else update.shape[next(window)] for axis in range(cache.ndim))
    windows = jnp.transpose(update, (*points, *dims.update_window_dims)).reshape(-1, *shape)

    def laid_out(part: jax.Array) -> jax.Array:
        kept = [n for axis, n in enumerate(part.shape[1:]) if axis not in single]
        part = part.reshape(*(update.shape[axis] for axis in points), *kept)
        order = [*points, *dims.update_window_dims, *range(update.ndim, part.ndim)]
        return jnp.transpose(part, [order.index(axis) for axis in range(part.ndim)])

    def write(array: jax.Array, part: jax.Array) -> jax.Array:
        more = tuple(range(update.ndim, part.ndim))
        return jax.lax.scatter(
            array,
            indices,
            part,
            dims._replace(update_window_dims=(*dims.update_window_dims, *more)),
            indices_are_sorted=eqn.params["indices_are_sorted"],
            unique_indices=eqn.params["unique_indices"],
            mode=eqn.params["mode"],
        )

    return _stored(cache, windows, shape, write, laid_out)


def _stored(
    cache: Coded,
    windows: jax.Array,
    shape: tuple[int, ...],
    write: Write,
    laid_out: Callable[[jax.Array], jax.Array],
) -> Sequence[Value] | None:
    """The tensor with windows (count, *shape) of values written to it, or None where its grid does not allow it."""
    q = cache.tensor
    if cache.casts or windows.dtype != q.dtype or 0 in windows.shape:
        return None
    fresh = _fresh(q, shape)
    if fresh is not None:  # whole blocks get grids of their own, as whatever is coded for the first time
        grids = jax.vmap(fresh.calibrate)(windows)
        grid = jax.tree.map(lambda leaf, part: write(leaf, laid_out(part)), q.grid, grids)
        codes = jax.vmap(q.scheme.encode)(windows, grids)
    elif all(entries == 1 for leaf in jax.tree.leaves(q.grid) for entries, _, _ in _cut(leaf, q, shape)):
        grid = q.grid  # parts of blocks use the grid that is there
        codes = jax.vmap(lambda window: q.scheme.encode(window, grid))(windows)
    else:
        return None
    if q.length is None or shape[-1] == q.length:
        packed, _ = pack(codes, q.scheme)
        payload = write(q.payload, laid_out(packed))
    else:  # packed bytes hold codes from all over the last axis
        payload, _ = pack(write(q.codes, laid_out(codes)), q.scheme)
    return [Stored(QTensor(payload, grid, q.scheme, q.dtype, q.length), cache.path)]


def _cut(leaf: jax.Array, q: QTensor, window: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(entries of a grid array, values, values in the window) along the axes of which the window holds a part."""
    return [(g, n, w) for g, n, w in zip(leaf.shape, q.shape, window, strict=False) if w != n]


def _fresh(q: QTensor, window: tuple[int, ...]) -> Scheme | None:
    """A scheme that calibrates a window to the entries that the tensor's grid has for it, if it holds whole blocks.

    That is the tensor's, unless its granularity counts axes from the front and the tensor is a slice of a stack:
    the grid itself tells which axes are meant.
    """
    leaves = jax.tree.leaves(q.grid)
    if not leaves or any(entries != n for leaf in leaves for entries, n, _ in _cut(leaf, q, window)):
        return None
    wanted = [
        (*(g if w == n else w for g, n, w in zip(leaf.shape, q.shape, window, strict=False)), *leaf.shape[q.ndim :])
        for leaf in leaves
    ]
    own = tuple(axis for axis in range(q.ndim) if leaves[0].shape[axis] == q.shape[axis])
    values = jax.ShapeDtypeStruct(window, q.dtype)
    for scheme in (q.scheme, with_granularity(q.scheme, PerAxis(own) if own else PerTensor())):
        try:
            found = jax.tree.leaves(jax.eval_shape(scheme.calibrate, values))
        except ValueError:  # the axes that it names are sliced away
            continue
        if [leaf.shape for leaf in found] == wanted:
            return scheme
    return None


RULES: dict[str, Rule] = {"dynamic_update_slice": _dynamic_update_slice, "scatter": _scatter}
