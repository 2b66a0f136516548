"""Channels scaled between two weights, so that both use their range."""

import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jqz._channels import as_args, coded_already, verify
from jqz._links import Link, find
from jqz._steps import parts
from jqz._transform import named_leaves


def equalize(
    fn: Callable[..., typing.Any],
    params: typing.Any,
    batch: typing.Any,
    *,
    strength: float = 1.0,
    sweeps: int = 20,
    tolerance: float = 1e-4,
) -> typing.Any:
    """Gives every channel between two weights the same range on both sides of it.

    Where relu(W1 x + b) meets W2 alone, W1 and b may be divided by any s > 0, channel by channel, if W2 is multiplied
    by it. With r1 and r2 the largest magnitudes that W1 and W2 have for a channel, s = sqrt(r1 / r2) makes both
    sqrt(r1 r2). Weights that have two neighbours are visited repeatedly, until nothing moves.

    Pairs are found in the program: products whose result goes to other products and nowhere else, through what is
    positively homogeneous: biases, batch norms as they infer (folded or not), relu, pooling, scaling, the weighted
    sums of attention. A depthwise convolution is the second of one pair and the first of the next. A bound that is a
    parameter of each channel, jnp.minimum(x, bound), is divided by s as well. Relu6 has a bound of its own and ends a
    pair: write it with such a parameter, all 6; relu in its place would compute something else.

    Use it before rounding with one grid a tensor, which an outlying channel spoils: it is what makes 8 bits a tensor
    work for MobileNets. With a grid a channel it gains nothing for weights. Channels of the activations drift apart
    meanwhile: with 8-bit activations on one grid, half of the way (``strength=0.5``) and ``gptq`` for the rest of the
    weights' error may serve better.

    Args:
      fn: a pure function of ``(params, *args)`` that infers, such as a Linen ``model.apply``.
      params: its float parameters.
      batch: arguments of ``fn`` after the parameters, on which the result is verified: an array or a tuple.
      strength: how much of the way to go, 0 to 1: every s is taken to this power in the end.
      sweeps: over all pairs, at most.
      tolerance: of the relative difference of the outputs.

    Returns:
      The same tree with other weights, biases and means.

    Raises:
      ValueError: ``strength`` is out of range, there are no pairs, or the outputs change by more than ``tolerance``.

    >>> import jax, jax.numpy as jnp, jqz.algorithms
    >>> def model(params, x):
    ...     return jax.nn.relu(x @ params["a"]) @ params["b"]
    >>> params = {"a": jnp.array([[100.0, 1.0]]), "b": jnp.array([[1.0], [1.0]])}
    >>> equal = jqz.algorithms.equalize(model, params, jnp.ones((1, 1)))
    >>> equal["a"].tolist(), equal["b"].tolist()
    ([[10.0, 1.0]], [[10.0], [1.0]])

    References: arXiv:1906.04721, section 4.1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"equalize: got strength={strength!r}, wanted a share from 0 to 1. Use strength=1.0.")
    if sweeps < 1:
        raise ValueError(f"equalize: got sweeps={sweeps!r}, wanted at least 1. Use sweeps=20.")
    args = as_args(batch)
    links = [link for link in find(fn, params, args) if link.by_weight]
    if not links:
        raise ValueError(
            "equalize: found no product whose result goes to other products alone. Use a function that infers, with "
            "relu between its layers: lambda params, x: model.apply(params, x, train=False)." + coded_already(params)
        )
    before = leaves = parts(dict(named_leaves(params)), (path for link in links for path in link.paths))
    total = [jnp.ones(()) for _ in links]
    for _ in range(sweeps):
        leaves, scales = _sweep(links, leaves)
        total = [a * b for a, b in zip(total, scales, strict=True)]
        if max(float(jnp.max(jnp.maximum(s, 1 / s))) for s in scales) < 1 + 1e-3:
            break
    leaves = before
    for link, s in zip(links, total, strict=True):
        leaves = link.scaled(leaves, s**strength)
    return verify("equalize", fn, args, params, leaves, tolerance)


def _sweep(links: list[Link], leaves: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], list[jax.Array]]:
    """Equalizes every link once; by which factors."""
    scales = []
    for link in links:
        r1 = link.first.largest(leaves[link.first.path])
        r2 = link.largest(leaves)
        alive = (r1 > 0) & (r2 > 0)
        scales.append(jnp.where(alive, jnp.sqrt(jnp.where(alive, r1, 1) / jnp.where(alive, r2, 1)), 1))
        leaves = link.scaled(leaves, scales[-1])
    return leaves, scales
