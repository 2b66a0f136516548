"""Outliers moved from activations into the weights that they meet."""

import typing
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from jqz._channels import bind_all, coded_already, verify
from jqz._links import find, met, observed
from jqz._steps import parts
from jqz._transform import named_leaves
from jqz.observers import TermMax


def smooth_quant(
    fn: Callable[..., typing.Any],
    params: typing.Any,
    batches: Iterable[typing.Any],
    *,
    alpha: float = 0.5,
    tolerance: float = 1e-4,
) -> typing.Any:
    """Shrinks the channels of activations that have outliers, and lets the weights that they meet grow instead.

    With x the largest magnitude that a channel has in the batches, and w that of all weights that sum over it::

        s = x**alpha / w**(1 - alpha),   activations / s,   weights * s

    so x**(1 - alpha) w**(1 - alpha) and x**alpha w**alpha are the new magnitudes: for alpha = 0.5 the same on both
    sides. Nothing is divided while the model runs: s goes into what makes the channels, which is the scale and bias of
    a norm, or a weight, its bias and the batch norm behind it. Both are found in the program.

    Use it before 8-bit weights and activations with one grid an activation: in transformers a few channels behind a
    norm are a hundred times as large as the others. ``alpha`` near 1 favours activations. With float activations use
    ``awq``; for weights alone in convolutional networks ``equalize``.

    Args:
      fn: a pure function of ``(params, *args)`` that infers, such as a Linen ``model.apply``.
      params: its float parameters.
      batches: arguments of ``fn`` after the parameters, to measure on: an array or a tuple each. The result is
        verified on the first.
      alpha: how much of the difficulty goes to the weights, 0 to 1.
      tolerance: of the relative difference of the outputs.

    Returns:
      The same tree with other weights, biases, means and scales of norms.

    Raises:
      ValueError: ``alpha`` is out of range, there are no batches, there is nothing to scale, or the outputs change by
        more than ``tolerance``.

    >>> import jax.numpy as jnp, jqz.algorithms
    >>> def model(params, x):
    ...     return (x * params["scale"][None]) @ params["kernel"]
    >>> params = {"scale": jnp.array([1.0, 1.0]), "kernel": jnp.array([[1.0], [1.0]])}
    >>> smooth = jqz.algorithms.smooth_quant(model, params, [jnp.array([[100.0, 1.0]])])
    >>> [round(float(v), 3) for v in (*smooth["scale"], *smooth["kernel"][:, 0])]
    [0.1, 1.0, 10.0, 1.0]

    References: arXiv:2211.10438.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"smooth_quant: got alpha={alpha!r}, wanted a share from 0 to 1. Use alpha=0.5.")
    fn, inputs = bind_all("smooth_quant", fn, batches)
    links = find(fn, params, inputs[0])
    if not links:
        raise ValueError(
            "smooth_quant: found no channels that a norm's scale or a weight makes and products alone use. Use a "
            "function that infers, with norms that have a scale: nn.LayerNorm(use_scale=True)." + coded_already(params)
        )
    seen = observed(fn, params, links, inputs, TermMax())
    leaves = parts(dict(named_leaves(params)), (path for link in links for path in link.paths))
    for link in links:
        largest = [met(at, *_high(seen[at.path]), leaves[at.path].shape) for at in link.seconds]
        x = jnp.max(jnp.stack([jnp.max(one, axis=1) for one in largest]), axis=0)
        if jnp.isnan(x).any():
            raise ValueError(
                f"smooth_quant: what meets {link.seconds[0].path!r} has NaN. Find out where the float model makes it, "
                "and use batches on which it works."
            )
        w = link.largest(leaves)
        alive = (x > 0) & (w > 0) & jnp.isfinite(x)
        s = jnp.where(alive, jnp.where(alive, x, 1) ** alpha / jnp.where(alive, w, 1) ** (1 - alpha), 1)
        leaves = link.scaled(leaves, s)
    return verify("smooth_quant", fn, inputs[0], params, leaves, tolerance)


def _high(observer: TermMax) -> tuple[jax.Array, typing.Any]:
    return observer.high, observer.contraction
