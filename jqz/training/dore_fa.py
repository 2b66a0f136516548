"""Low-bit weights, activations and gradients: DoReFa-Net."""

import math
import typing

import jax
import jax.numpy as jnp

from jqz import _ste
from jqz._granularity import Granularity, PerTensor
from jqz._policy import PolicyLike
from jqz._ranges import AbsMax, Given
from jqz._scheme import TINY, Scheme, work_dtype
from jqz._transform import Selected, map_selected
from jqz.schemes import Asymmetric, Binary, FromZero, Minimum


def dore_fa_weights(bits: int, granularity: Granularity = PerTensor()) -> Scheme:
    """DoReFa-Net's levels for weights: 2**bits of them, evenly from -1 to 1 after ``dore_fa_squash``; zero is none.

    For one bit: mean(abs(w)) * sign(w), of weights as they are. Gradients pass unchanged. Levels without a zero run on
    decoded values in ``quantized``; ``Symmetric(bits=bits)`` after the same squash runs on integers.

    Args:
      bits: 1 to 16.
      granularity: which values share a largest magnitude; the paper has one a tensor.

    >>> import jax.numpy as jnp, jqz
    >>> from jqz.training import dore_fa_weights
    >>> [round(v, 3) for v in jqz.fake_quantize(jnp.array([-1.0, -0.2, 0.4, 1.0]), dore_fa_weights(2)).tolist()]
    [-1.0, -0.333, 0.333, 1.0]

    References: arXiv:1606.06160, equations 7 to 9.
    """
    if bits == 1:
        return Binary(granularity, estimator=_ste.Identity())
    return Asymmetric(bits, granularity, range=AbsMax(), anchor=Minimum())


def dore_fa_activations(bits: int) -> Scheme:
    """DoReFa-Net's activations: clipped to [0, 1], 2**bits levels; the gradient passes inside.

    Put it in a Policy's ``inputs`` and train by ``simulated`` with ``sites=None``: the range is known.

    >>> import jax.numpy as jnp, jqz
    >>> from jqz.training import dore_fa_activations
    >>> jqz.fake_quantize(jnp.array([-1.0, 0.2, 0.3, 7.0]), dore_fa_activations(1)).tolist()
    [0.0, 0.0, 0.0, 1.0]

    References: arXiv:1606.06160, equation 11.
    """
    return Asymmetric(bits, range=Given(0.0, 1.0), anchor=FromZero())


def dore_fa_squash(params: typing.Any, policy: PolicyLike) -> typing.Any:
    """Maps selected weights to tanh(w) / max(abs(tanh(w))), which lies between -1 and 1; differentiable.

    Give the result to ``fake_quantize`` with the same policy in training, and to ``quantize`` in the end. It
    composes with any scheme; weights with a scheme of one bit stay as they are. It takes the scale out of a
    layer: use it before batch norm. All-zero blocks stay zero.

    Grids of ``learnable`` stay beside their weights. Args and errors are those of ``quantize``; the maximum is over
    what the scheme's granularity puts together.

    >>> import jax.numpy as jnp, jqz
    >>> from jqz.training import dore_fa_squash, dore_fa_weights
    >>> w = dore_fa_squash(jnp.array([-4.0, 0.1, 0.6]), dore_fa_weights(2))
    >>> [round(v, 3) for v in jqz.fake_quantize(w, dore_fa_weights(2)).tolist()]
    [-1.0, 0.333, 0.333]

    References: arXiv:1606.06160, equation 9.
    """

    def squash(leaf: Selected) -> typing.Any:
        scheme, x = leaf.scheme, leaf.value
        if scheme.bits == 1:
            return leaf.moved(x)

        def largest(blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            return jnp.max(jnp.abs(blocks), axis=axes, keepdims=True)

        bent = jnp.tanh(x.astype(work_dtype(x)))
        top = scheme.granularity.reduce(largest, bent)
        top = jnp.where(top < TINY, 1, top)
        return leaf.moved((bent / scheme.granularity.expand(top, x.shape)).astype(x.dtype))

    return map_selected("dore_fa_squash", params, policy, squash)


def dore_fa_gradient(x: jax.Array, key: jax.Array, bits: int, batch_axes: tuple[int, ...] = (0,)) -> jax.Array:
    """Returns ``x``; on the way back its cotangent g is rounded to 2**bits levels at random, without bias ::

        g  ->  2 m (quantize(g / (2 m) + 1/2 + u / (2**bits - 1)) - 1/2),  m = max(abs(g)) of each example,

    with u uniform between -1/2 and 1/2. Put it behind a layer whose backward pass should run on few bits: 6 keep
    the accuracy of AlexNet in the paper, 4 lose a little; it regularises and does not help accuracy by itself.

    Args:
      x: a layer's output.
      key: a new one for each step and layer.
      bits: 1 to 16.
      batch_axes: axes along which examples have a maximum each.

    Raises:
      ValueError: bits outside 1 to 16, or x lacks an axis.

    >>> import jax, jax.numpy as jnp
    >>> from jqz.training import dore_fa_gradient
    >>> w, x, key = jnp.array([1.0, 0.5]), jnp.zeros((1, 2)), jax.random.key(0)
    >>> grad = jax.grad(lambda x: (dore_fa_gradient(x, key, bits=1) @ w).sum())(x)
    >>> jnp.abs(grad).tolist()
    [[1.0, 1.0]]

    References: arXiv:1606.06160, equation 12.
    """
    if not isinstance(bits, int) or not 1 <= bits <= 16:
        raise ValueError(f"dore_fa_gradient: got bits={bits!r}, wanted an integer from 1 to 16. Use bits=6.")
    steps = 2**bits - 1
    if x.ndim and not all(-x.ndim <= axis < x.ndim for axis in batch_axes):
        raise ValueError(
            f"dore_fa_gradient: got batch_axes={batch_axes!r} for x of shape {x.shape}, wanted axes that it has. "
            "Use batch_axes=(0,)."
        )
    kept = {axis % x.ndim for axis in batch_axes} if x.ndim else set()

    def rounded(g: jax.Array, key: jax.Array) -> jax.Array:
        wide = g.astype(work_dtype(g))
        top = jnp.max(jnp.abs(wide), axis=[axis for axis in range(g.ndim) if axis not in kept], keepdims=True)
        noise = jax.random.uniform(key, g.shape, wide.dtype, -0.5, 0.5)
        level = jnp.round((wide / (2 * jnp.where(top > 0, top, 1)) + 0.5) * steps + noise)
        return (2 * top * (jnp.clip(level, 0, steps) / steps - 0.5)).astype(g.dtype)

    return _ste.on_the_way_back(rounded, x, key) if math.prod(x.shape) else x
