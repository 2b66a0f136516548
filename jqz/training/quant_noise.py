"""Some weights rounded at each step, the others exact: Quant-Noise."""

import itertools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jqz._granularity import Granularity, PerGroup
from jqz._policy import PolicyLike
from jqz._transform import Selected, map_selected


def quant_noise(
    params: typing.Any,
    policy: PolicyLike,
    key: jax.Array,
    rate: jax.typing.ArrayLike = 0.5,
    units: Granularity = PerGroup(1, axis=-1),
) -> typing.Any:
    """As ``fake_quantize``, for a share of the weights drawn anew with each key; the others stay exact.

    Exact weights get an exact gradient, which keeps training unbiased where a straight-through gradient goes astray:
    use it below 4 bits, for codebooks, and for networks too deep for the rounding of everything. Evaluate and
    deploy with everything rounded (``rate=1``, or ``quantize``).

    Args:
      params: any pytree of floating arrays.
      policy: as for ``quantize``; with ``learnable`` leaves, their grids.
      key: a new one for each step; each leaf draws by itself.
      rate: the probability of a unit to be rounded; may be traced, as in a schedule. The paper has 0.5 for 4 and
        8 bits, 0.05 to 0.2 for blocks of codebooks.
      units: what is drawn together: single values (the default), ``PerGroup(8)``, ``PerBlock``.

    Raises:
      ValueError: a rate outside [0, 1], or as ``quantize``.
      TypeError: as ``quantize``.

    >>> import jax, jax.numpy as jnp, jqz
    >>> from jqz.training import quant_noise
    >>> w = jnp.linspace(-1, 1, 1000)
    >>> noisy = quant_noise(w, jqz.Symmetric(bits=3), jax.random.key(0), rate=0.25)
    >>> 0.2 < float((noisy != w).mean()) < 0.3
    True

    References: arXiv:2004.07320.
    """
    if not isinstance(rate, Tracer) and not (np.ndim(rate) == 0 and 0 <= np.asarray(rate) <= 1):
        raise ValueError(f"quant_noise: got rate={rate!r}, wanted a probability from 0 to 1. Use rate=0.5.")
    index = itertools.count()

    def noisy(leaf: Selected) -> jax.Array:
        draw, round_ = jax.random.split(jax.random.fold_in(key, next(index)))
        rounded = leaf.scheme.with_key(round_).simulate(leaf.value, leaf.grid)
        if not leaf.value.ndim:
            return jnp.where(jax.random.bernoulli(draw, rate), rounded, leaf.value)
        chosen = jax.random.bernoulli(draw, rate, units.grid_shape(leaf.value.shape))
        return jnp.where(units.expand(chosen, leaf.value.shape), rounded, leaf.value)

    return map_selected("quant_noise", params, policy, noisy)
