"""Ternary weights and 8-bit tokens: BitNet b1.58."""

from jqz._granularity import Granularity, PerAxis, PerTensor
from jqz._scheme import Scheme
from jqz.schemes import MeanFraction, MeanOfAll, Symmetric, Ternary


def bit_net_weights(granularity: Granularity = PerTensor()) -> Scheme:
    """BitNet b1.58's weights: gamma * clip(round(w / gamma), -1, 1), gamma = mean(abs(w)); gradients pass unchanged.

    Train with it from random weights, or long. Trained without it, a network loses nearly everything.

    >>> import jax.numpy as jnp, jqz
    >>> from jqz.training import bit_net_weights
    >>> jqz.fake_quantize(jnp.array([-1.0, 0.1, 0.2, 0.7]), bit_net_weights()).tolist()
    [-0.5, 0.0, 0.0, 0.5]

    References: arXiv:2402.17764.
    """
    return Ternary(granularity, MeanFraction(0.5), MeanOfAll())


def bit_net_activations(token_axes: tuple[int, ...] = (0, 1)) -> Scheme:
    """BitNet b1.58's activations: 8 bits on a scale for each token, max(abs(x)) / 127.

    With ``bit_net_weights`` it makes a policy for ``simulated`` (with ``sites=None``: every token measures itself) and
    for ``quantized(fn, inputs=policy)``, which computes on integers what was trained. The paper normalises
    x / sqrt(mean(x**2)) before each product, without factors of its own.

    Args:
      token_axes: the axes that tell tokens apart: (0, 1) for (sequence, position, channel), (0,) for (token, channel).

    >>> import jax, jax.numpy as jnp, jqz
    >>> from jqz.training import bit_net_activations, bit_net_weights
    >>> def model(params, x):
    ...     return (x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True))) @ params["kernel"]
    >>> policy = jqz.Policy({"**/kernel": bit_net_weights()}, inputs=bit_net_activations((0,)))
    >>> params, x = {"kernel": jax.random.normal(jax.random.key(0), (16, 4))}, jnp.ones((3, 16))
    >>> in_training = jqz.simulated(model, policy)(params, None, x)
    >>> on_integers = jqz.quantized(model, inputs=policy)(jqz.quantize(params, policy), x)
    >>> bool(jnp.allclose(in_training, on_integers, atol=1e-4))
    True

    References: arXiv:2402.17764.
    """
    return Symmetric(bits=8, granularity=PerAxis(token_axes))
