"""Rounding to nearest: what every other rounder is measured against."""

import typing

import jax

from jqz._policy import PolicyLike
from jqz._sites import Stats
from jqz._transform import quantize


def nearest(
    params: typing.Any, policy: PolicyLike, stats: Stats | None = None, *, key: jax.Array | None = None
) -> typing.Any:
    """Codes each weight by its scheme, whatever it meets: ``jqz.quantize`` under the signature of a rounder.

    Use it where there are no inputs to measure. At 8 bits nothing is gained by more; below 5 bits choose a range that
    clips (``range=jqz.ranges.MSE()``), and with some inputs at hand ``gptq``.

    Args:
      params: any pytree of floating arrays.
      policy: as for ``quantize``.
      stats: not looked at.
      key: for stochastic rounding.

    Raises:
      ValueError, TypeError: as ``quantize``.

    >>> import jax.numpy as jnp, jqz.algorithms
    >>> q = jqz.algorithms.nearest({"w": jnp.array([[0.4, 1.0]])}, jqz.Symmetric(bits=2))
    >>> jqz.dequantize(q)["w"].tolist()
    [[0.0, 1.0]]
    """
    del stats
    return quantize(params, policy, key=key)
