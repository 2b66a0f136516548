"""Channels rotated, so that no single one of them is an outlier."""

import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jqz._channels import as_args, coded_already, verify
from jqz._links import find, find_rotatable
from jqz._rows import Place
from jqz._steps import parts
from jqz._transform import named_leaves


def hadamard(
    fn: Callable[..., typing.Any], params: typing.Any, key: jax.Array, batch: typing.Any, *, tolerance: float = 1e-4
) -> typing.Any:
    """Rotates the channels between weights by random Hadamard matrices: outliers spread over all channels.

    With R = diag(signs) H / sqrt(n), H of ones and minus ones, R R^T = 1, and so::

        (x W1 + b) W2 == (x W1 R + b R) (R^T W2)

    where every entry of W1 R is a sum of n weights with random signs, so none is far from the others. Rotated are, as
    found in the program:

    - channels between two products with nothing but sums, scales and transposes between them: the values of attention
      and the output layer, head by head; the factors of a low-rank layer
    - the residual stream of a transformer with RMS norms before its layers: whatever is added to it (embeddings,
      output layers and their biases) and whatever reads it behind a norm. The scales of the norms move into the
      weights behind them first, and are 1 then.

    n is the largest power of two that divides the number of channels (of a head, or of the stream); neighbours are
    rotated in runs of n. Not rotated are channels that meet a nonlinearity, a layer norm (which subtracts their mean),
    or weights in loops other than a scan over layers.

    Use it before rounding to 4 bits and below with grids that largest magnitudes choose, and before low-bit
    activations. It is no help where weights have no outliers; ``smooth_quant`` and ``awq`` scale channels instead.

    Args:
      fn: a pure function of ``(params, *args)`` that infers, such as a Linen ``model.apply``.
      params: its float parameters.
      key: for the signs.
      batch: arguments of ``fn`` after the parameters, on which the result is verified: an array or a tuple.
      tolerance: of the relative difference of the outputs.

    Returns:
      The same tree with other weights, biases and scales of norms.

    Raises:
      ValueError: there is nothing to rotate, or the outputs change by more than ``tolerance``.

    >>> import jax, jax.numpy as jnp, jqz.algorithms
    >>> def model(params, x):
    ...     return (x @ params["down"]) @ params["up"]
    >>> params = {"down": jnp.eye(4)[:, :4] * jnp.array([[16.0, 1.0, 1.0, 1.0]]), "up": jnp.eye(4)}
    >>> rotated = jqz.algorithms.hadamard(model, params, jax.random.key(0), jnp.ones((1, 4)))
    >>> jnp.abs(rotated["down"]).tolist()[0], jnp.abs(rotated["up"]).tolist()[0]
    ([8.0, 8.0, 8.0, 8.0], [0.5, 0.5, 0.5, 0.5])

    References: arXiv:2404.00456.
    """
    args = as_args(batch)
    scalable = find(fn, params, args)
    tree = dict(named_leaves(params))
    before = {**tree, **parts(tree, (path for link in scalable for path in link.paths))}
    leaves = dict(before)
    for link in scalable:
        if not link.by_weight and not link.shifts:
            scale = jnp.abs(leaves[link.first.path])
            leaves = link.scaled(leaves, jnp.where(scale > 0, scale, 1))
    ones = frozenset(path for path, leaf in leaves.items() if jnp.ndim(leaf) == 1 and bool(jnp.all(leaf == 1)))
    links = [link for link in find_rotatable(fn, params, args, ones) if link.block % 2 == 0]
    if not links:
        raise ValueError(
            "hadamard: found no channels that products make and sum over with nothing else between, in a number that 2 "
            "divides. Use a model with attention, low-rank layers, or RMS norms before its layers."
            + coded_already(params)
        )
    before = {**parts(tree, (path for link in links for path in link.paths)), **before}
    leaves = {**before, **leaves} if any(link.normed for link in links) else dict(before)
    for link, one in zip(links, jax.random.split(key, len(links)), strict=True):
        rotation = _rotation(link.block & -link.block, one)
        for place in dict.fromkeys(link.places):
            leaves[place.path] = _rotated(leaves[place.path], place, rotation)
    changed = {path: leaf for path, leaf in leaves.items() if leaf is not before[path]}
    return verify("hadamard", fn, args, params, changed, tolerance)


def _rotation(size: int, key: jax.Array) -> jax.Array:
    """diag(signs) H / sqrt(size) for a power of two."""
    matrix = jnp.ones((1, 1))
    while len(matrix) < size:
        matrix = jnp.kron(jnp.array([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return jax.random.rademacher(key, (size, 1), jnp.float32) * matrix / jnp.sqrt(jnp.float32(size))


def _rotated(leaf: jax.Array, place: Place, rotation: jax.Array) -> jax.Array:
    """A parameter whose channels are mixed in runs: as rows both w -> w R and w -> R^T w read so."""
    rows = place.channels_first(leaf)
    runs = rows.reshape(-1, len(rotation), rows.shape[1]).astype(jnp.promote_types(leaf.dtype, jnp.float32))
    mixed = jnp.einsum("ij,rik->rjk", rotation.astype(runs.dtype), runs, precision=jax.lax.Precision.HIGHEST)
    return place.back(mixed.reshape(rows.shape), leaf.shape).astype(leaf.dtype)
