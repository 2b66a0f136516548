"""Weights of mean 0 and variance 1 before they are rounded: APoT's weight normalization."""

import typing

import jax
import jax.numpy as jnp

from jqz._policy import PolicyLike
from jqz._scheme import work_dtype
from jqz._transform import Selected, map_selected


def standardize_weights(params: typing.Any, policy: PolicyLike, epsilon: float = 1e-6) -> typing.Any:
    """Maps selected weights to (w - mean) / (deviation + epsilon), for a clip that means the same in every layer.

    Differentiable through mean and deviation. Give the result to ``fake_quantize`` with the same policy in training,
    and to ``quantize`` in the end. It takes scale and mean out of a layer: use it before batch norm, from the start.
    APoT pairs it with ``AdditivePowerOfTwo(bits, range=Given(-3.0, 3.0), gradient=RCF())`` and ``learnable``.

    Grids of ``learnable`` stay beside their weights. Args and errors are those of ``quantize``; mean and deviation are
    of what the scheme's granularity puts together.

    >>> import jax.numpy as jnp, jqz
    >>> from jqz.training import standardize_weights
    >>> scheme = jqz.AdditivePowerOfTwo(bits=4, range=jqz.ranges.Given(-3.0, 3.0))
    >>> [round(v, 3) for v in standardize_weights(jnp.array([1.0, 2.0, 3.0]), scheme).tolist()]
    [-1.225, 0.0, 1.225]

    References: arXiv:1909.13144, section 2.3.
    """

    def standardize(leaf: Selected) -> typing.Any:
        x = leaf.value.astype(work_dtype(leaf.value))

        def moments(blocks: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
            mean = jnp.mean(blocks, axis=axes, keepdims=True)
            variance = jnp.mean((blocks - mean) ** 2, axis=axes, keepdims=True)
            # the root has no derivative at 0
            return mean, jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)

        mean, deviation = (
            leaf.scheme.granularity.expand(part, x.shape) for part in leaf.scheme.granularity.reduce(moments, x)
        )
        return leaf.moved(((x - mean) / (deviation + epsilon)).astype(leaf.value.dtype))

    return map_selected("standardize_weights", params, policy, standardize)
