"""The layers of a tree as second-order rounding sees them: a weight, its grid, and the Gram matrix of its inputs."""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jqz import _qtensor
from jqz._learnable import Learnable
from jqz._policy import PolicyLike
from jqz._qtensor import QTensor
from jqz._rows import Contraction
from jqz._scheme import Chain, Grid, Scheme, narrow, work_dtype
from jqz._sites import Seen, Stats
from jqz._transform import Selected, map_selected


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A weight in its work dtype, the grid to round it on, and sums of products of what it meets.

    ``products`` is (groups, terms, terms), as ``contraction`` makes the weight a matrix. ``dtype`` is that in which
    levels are decoded, which may have fewer bits.
    """

    weight: jax.Array
    grid: Grid
    products: jax.Array
    dtype: typing.Any = dataclasses.field(metadata={"static": True})

    def decode(self, scheme: Scheme, codes: jax.Array, grid: Grid) -> jax.Array:
        """Levels as the tensor will have them, in the work dtype."""
        return narrow(scheme.decode(codes, grid), self.dtype).astype(self.weight.dtype)


#: ``(layer, scheme, contraction) -> codes`` in the shape of the weight.
Rounder = Callable[[Layer, Scheme, Contraction], jax.Array]


def round_layers(who: str, params: typing.Any, policy: PolicyLike, stats: Stats, rounder: Rounder) -> typing.Any:
    """Codes the selected leaves of a tree, each by ``rounder`` on the grid that its scheme chooses.

    A stack of scanned layers has a Gram matrix for each of them and is rounded layer by layer.

    Args:
      who: the function that errors name.
      params: any pytree of floating arrays.
      policy: as for ``quantize``.
      stats: of ``observe(fn, policy, Gram())``.
      rounder: hashable, since it is compiled once for each shape, scheme and contraction.
    """

    def coded(leaf: Selected) -> QTensor:
        seen = gram_of(leaf.path, leaf.value.shape, stats)
        gram: typing.Any = seen.observer
        products, contraction = gram.products, gram.contraction
        codes, grid = _round(leaf.value, leaf.grid, products, rounder, leaf.scheme, contraction, len(seen.lengths))
        payload, length = _qtensor.pack(codes, leaf.scheme)
        return QTensor(payload, grid, leaf.scheme, jnp.dtype(leaf.value.dtype), length)

    check_stats(who, stats)
    return map_selected(who, params, policy, coded)


#: ``(weight, grid, scheme, seen) -> grid``; ``seen`` is what ``Gram`` has seen of all that meets the weight, or None.
Fit = Callable[[jax.Array, Grid, typing.Any, Seen | None], Grid]


def fit_grids(who: str, params: typing.Any, policy: PolicyLike, stats: Stats | None, fit: Fit) -> typing.Any:
    """Puts beside each selected leaf the grid that ``fit`` finds for it: ``quantize`` and every rounder keep to it.

    With statistics, what shares outputs keeps the grids of the schemes where these change the outputs less.

    Args:
      who: the function that errors name.
      params: any pytree of floating arrays.
      policy: as for ``quantize``.
      stats: of ``observe(fn, policy, Gram())``, or None.
      fit: hashable, since it is compiled once for each shape and scheme.
    """

    def fitted(leaf: Selected) -> Learnable:
        seen = None if stats is None else gram_of(leaf.path, leaf.value.shape, stats)
        return Learnable(leaf.value, _fitted(leaf.value, leaf.grid, seen, fit, leaf.scheme), leaf.scheme)

    if stats is not None:
        check_stats(who, stats)
    return map_selected(who, params, policy, fitted)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _fitted(weight: jax.Array, grid: Grid, seen: Seen | None, fit: Fit, scheme: Scheme) -> Grid:
    wide = weight.astype(work_dtype(weight))
    grid = scheme.calibrate(weight) if grid is None else grid
    found = fit(wide, grid, scheme, seen)
    if seen is None:
        return found

    def error(grid: Grid) -> jax.Array:
        difference = narrow(scheme.decode(scheme.encode(wide, grid), grid), weight.dtype).astype(wide.dtype) - wide
        return sum_blocks(scheme, _by_layer(_spread_error, seen, difference))

    # blocks of the same outputs see the same sum, so that they choose alike
    return choose(error(found) < error(grid), found, grid)


def choose(better: jax.Array, new: Grid, old: Grid) -> Grid:
    """The one grid for blocks that are better off with it, the other for the rest."""
    return jax.tree.map(
        lambda a, b: jnp.where(better.reshape(*better.shape, *[1] * (a.ndim - better.ndim)), a, b), new, old
    )


def sum_blocks(scheme: Scheme, x: jax.Array) -> jax.Array:
    """Sums over what shares a grid, in the grid's shape."""
    return scheme.granularity.reduce(lambda blocks, axes: jnp.sum(blocks, axis=axes, keepdims=True), x)


def importance(weight: jax.Array, seen: Seen) -> jax.Array:
    """The sum of the squares of what each entry of a weight meets, in its shape."""
    return _by_layer(lambda products, matrix: jnp.diagonal(products, axis1=1, axis2=2)[:, :, None], seen, weight)


def block_errors(difference: jax.Array, scheme: Scheme, seen: Seen) -> jax.Array:
    """What the change of each block of a weight, alone, does to the outputs: a squared sum, in the grid's shape."""
    shape = scheme.granularity.grid_shape(difference.shape)
    numbers = jnp.arange(math.prod(shape), dtype=jnp.int32).reshape(shape)
    numbers = jnp.broadcast_to(scheme.granularity.expand(numbers, difference.shape), difference.shape)

    def of_layer(products: jax.Array, matrix: jax.Array, numbers: jax.Array) -> jax.Array:
        block = numbers[:, :, 0]  # terms share a block for one output if they do for all
        products = jnp.where(block[:, :, None] == block[:, None, :], products, 0)
        return matrix * jnp.matmul(products, matrix, precision=jax.lax.Precision.HIGHEST)

    return sum_blocks(scheme, _by_layer(of_layer, seen, difference, numbers))


def _by_layer(fn: Callable[..., jax.Array], seen: Seen, *arrays: jax.Array) -> jax.Array:
    """What ``fn(products, *matrices)`` makes of each layer of a stack, as an array of the same shape."""
    gram: typing.Any = seen.observer
    contraction: Contraction = gram.contraction

    def of_layer(products: jax.Array, *arrays: jax.Array) -> jax.Array:
        products = batched(products.astype(arrays[0].dtype), contraction)
        matrices = [contraction.matrix(array) for array in arrays]
        out = jnp.broadcast_to(fn(products, *matrices), matrices[0].shape)
        return contraction.weight(out, arrays[0].shape)

    for _ in seen.lengths:
        of_layer = jax.vmap(of_layer)
    return of_layer(gram.products, *arrays)


def _spread_error(products: jax.Array, difference: jax.Array) -> jax.Array:
    return output_error(products, difference)[:, None]


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _round(
    weight: jax.Array,
    grid: Grid,
    products: jax.Array,
    rounder: Rounder,
    scheme: Scheme,
    contraction: Contraction,
    depth: int,
) -> tuple[jax.Array, Grid]:
    grid = scheme.calibrate(weight) if grid is None else grid
    wide = weight.astype(work_dtype(weight))

    def run(layer: Layer, depth: int) -> jax.Array:
        if depth == 0:
            layer = dataclasses.replace(layer, products=batched(layer.products, contraction))
            return rounder(layer, scheme, contraction)
        # what all layers share has length 1 and goes to each of them whole
        shared = jax.tree.map(lambda leaf: leaf.shape[0] != weight.shape[0], layer)
        sliced = jax.tree.map(lambda leaf, one: leaf[0] if one else leaf, layer, shared)
        axes = jax.tree.map(lambda one: None if one else 0, shared)
        return jax.vmap(lambda layer: run(layer, depth - 1), in_axes=(axes,))(sliced)

    return run(Layer(wide, grid, products.astype(wide.dtype), weight.dtype), depth), grid


def batched(products: jax.Array, contraction: Contraction) -> jax.Array:
    """Products as (groups, terms, terms)."""
    return products if contraction.groups > 1 else products[None]


def check_stats(who: str, stats: typing.Any) -> None:
    """Refuses what is no statistics."""
    if not isinstance(stats, Mapping) or not all(isinstance(seen, Seen) for seen in stats.values()):
        raise TypeError(
            f"{who}: got stats={type(stats).__name__}, wanted what observe returns. "
            "Use stats = observe(fn, policy, jqz.observers.Gram())(params, batch)."
        )


def gram_of(path: str, shape: tuple[int, ...], stats: Stats) -> Seen:
    """What ``Gram`` has seen of all that meets a weight, wherever it is used."""
    uses = [seen for name, seen in stats.items() if name.split("#")[0] == path]
    if not uses:
        raise ValueError(
            f"the statistics have nothing of {path!r}; they have {list(stats)[:5]}. Use the policy of observe here, "
            "with inputs that match this path, or map it to None and round it by quantize."
        )
    contractions = {getattr(seen.observer, "contraction", None) for seen in uses}
    contraction = contractions.pop()
    if contractions or contraction is None:
        raise ValueError(
            f"what meets {path!r} does not tell how this weight is a matrix: the statistics are not of Gram, or the "
            "model reshapes or combines the weight before a product, or uses it in two ways. "
            "Use observe(fn, policy, jqz.observers.Gram()), or map this path to None and round it by quantize."
        )
    seen = functools.reduce(Seen.merge, uses)
    terms = typing.cast(typing.Any, seen.observer).products.shape[-1]
    if contraction.terms(shape[len(seen.lengths) :]) != terms:
        raise ValueError(f"the statistics are of rows of {terms} terms. Use observe with these parameters.")
    check_gram(path, seen.observer)
    return seen


def check_gram(path: str, gram: typing.Any) -> None:
    """Refuses sums of nothing, or of NaN, where they are known."""
    if isinstance(gram.products, Tracer):
        return
    if not np.isfinite(gram.products).all():
        raise ValueError(
            f"what meets {path!r} has NaN or infinite values. Find out where the float model makes them, or map this "
            "path to None and round it by quantize."
        )
    if not np.all(gram.rows):
        raise ValueError(
            f"nothing has met {path!r}. Use batches that reach it, or map it to None and round it by quantize."
        )


def grid_at(scheme: Scheme, grid: Grid, contraction: Contraction, shape: tuple[int, ...]) -> Callable[..., Grid]:
    """A function from a term of the sum to the part of the grid that serves it, length 1 along summed axes."""
    lengths = tuple(shape[axis] for axis in contraction.axes)
    stages = list(zip(scheme.stages, grid, strict=True)) if isinstance(scheme, Chain) else [(scheme, grid)]

    def entry(leaf: jax.Array, stage: Scheme, axis: int, index: jax.Array) -> jax.Array:
        entries = leaf.shape[axis]
        if entries == 1:
            return leaf
        if entries != shape[axis]:
            index = index // typing.cast(int, stage.granularity.period(axis, len(shape)))
        return jax.lax.dynamic_slice_in_dim(leaf, index, 1, axis)

    def at(term: jax.Array) -> Grid:
        places = jnp.unravel_index(term, lengths)

        def cut(stage: Scheme, part: Grid) -> Grid:
            for axis, index in zip(contraction.axes, places, strict=True):
                part = jax.tree.map(lambda leaf, axis=axis, index=index: entry(leaf, stage, axis, index), part)
            return part

        parts = [cut(stage, part) for stage, part in stages]
        return tuple(parts) if isinstance(scheme, Chain) else parts[0]

    return at


def row_encoder(
    layer: Layer, scheme: Scheme, contraction: Contraction
) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """A function of (groups, outputs) and a term, which codes and decodes values in the place of that term."""
    shape = layer.weight.shape
    one = tuple(1 if axis in contraction.axes else n for axis, n in enumerate(shape))
    at = grid_at(scheme, layer.grid, contraction, shape)

    def encode(row: jax.Array, term: jax.Array) -> tuple[jax.Array, jax.Array]:
        grid = at(term)
        codes = scheme.encode(contraction.weight(row[:, None], one), grid)
        values = layer.decode(scheme, codes, grid)
        return contraction.matrix(codes)[:, 0], contraction.matrix(values)[:, 0]

    return encode


def level_table(
    layer: Layer, scheme: Scheme, contraction: Contraction
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """A function from a term to what it may become: all codes (n,), their values, and whether the scheme uses them.

    Values are (n, groups, outputs).
    """
    shape = layer.weight.shape
    one = tuple(1 if axis in contraction.axes else n for axis, n in enumerate(shape))
    at = grid_at(scheme, layer.grid, contraction, shape)
    low = -(2 ** (scheme.bits - 1)) if jnp.issubdtype(scheme.code_dtype, jnp.signedinteger) else 0
    codes = (jnp.arange(2**scheme.bits, dtype=jnp.int32) + low).astype(scheme.code_dtype)

    def table(term: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        grid = at(term)

        def level(code: jax.Array) -> tuple[jax.Array, jax.Array]:
            value = layer.decode(scheme, jnp.broadcast_to(code, one), grid)
            used = (scheme.encode(value, grid) == code) & jnp.isfinite(value)
            return contraction.matrix(value)[:, 0], contraction.matrix(used)[:, 0]

        return codes, *jax.vmap(level)(codes)

    return table


def output_error(products: jax.Array, difference: jax.Array) -> jax.Array:
    """sum(d (G d)) for each output: the squared error of what a layer computes, (groups, outputs)."""
    return jnp.sum(difference * jnp.matmul(products, difference, precision=jax.lax.Precision.HIGHEST), axis=1)
