"""Batch norm folded into the weights before it, in training as in deployment."""

import functools
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jqz._scheme import Scheme, work_dtype


class BatchNorm(typing.NamedTuple):
    """The parameters and the running statistics of a batch norm: one number a channel."""

    scale: jax.Array
    bias: jax.Array
    mean: jax.Array
    var: jax.Array


def fold_batch_norm(kernel: jax.Array, norm: BatchNorm, epsilon: float = 1e-5) -> tuple[jax.Array, jax.Array]:
    """The kernel and the bias of a product that does what the product and a batch norm behind it did.

    kernel * scale / sigma and bias - mean * scale / sigma, sigma = sqrt(var + epsilon); channels along the last axis.
    Each has the dtype that it had before.

    >>> import jax.numpy as jnp
    >>> from jqz.training import BatchNorm, fold_batch_norm
    >>> norm = BatchNorm(*(jnp.array([value]) for value in (2.0, 1.0, 3.0, 4.0)))
    >>> [part.tolist() for part in fold_batch_norm(jnp.array([[5.0]]), norm, epsilon=0.0)]
    [[[5.0]], [-2.0]]
    """
    scale, bias, mean, var = _wide(norm)
    factor = scale / jnp.sqrt(var + epsilon)
    folded = kernel.astype(factor.dtype) * factor.reshape((1,) * (kernel.ndim - 1) + (-1,))
    return folded.astype(kernel.dtype), (bias - mean * factor).astype(norm.bias.dtype)


def _wide(norm: BatchNorm) -> BatchNorm:
    """In one dtype, of at least 32 bits."""
    return BatchNorm(*(part.astype(functools.reduce(jnp.promote_types, map(work_dtype, norm))) for part in norm))


def folded_batch_norm(
    product: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    norm: BatchNorm,
    scheme: Scheme | None,
    frozen: jax.typing.ArrayLike = False,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
) -> tuple[jax.Array, BatchNorm]:
    """A product and its batch norm in training, with the folded kernel rounded as it will be deployed ::

        y = product(x, Q(kernel scale / sigma)) sigma / sigma_batch + bias - mean_batch scale / sigma_batch   at first
        y = product(x, Q(kernel scale / sigma))                     + bias - mean scale / sigma               frozen

    sigma and mean are running statistics, so the rounded kernel moves smoothly and is the deployed one from the
    beginning; the correction sigma / sigma_batch makes the result that of a batch norm. Freeze it for about
    the last third of the run: then ``y == product(x, Q(k)) + b`` with ``k, b = fold_batch_norm(kernel, norm)``.

    ``quantized`` folds a batch norm at inference without this. Use it where the target stores folded weights on one
    grid a tensor, and folding after training moves weights between levels. It costs a second product, for the
    statistics of the batch.

    Args:
      product: a convolution or dot of x and kernel, channels along the last axis of the kernel and of the result.
      x: the input, rounded already if it is to be.
      kernel: the float kernel, not folded.
      norm: the batch norm's parameters and running statistics.
      scheme: of the folded kernel; None leaves it float.
      frozen: traced or not, such as ``step >= 2 * steps // 3``.
      momentum: of the running statistics: running <- momentum * running + (1 - momentum) * batch.
      epsilon: added to variances.

    Returns:
      The result, in the dtype of the product, and ``norm`` with new running statistics, which carry no gradient.
      Statistics are computed in float32 where inputs have fewer bits, and keep their dtype.

    >>> import jax, jax.numpy as jnp, jqz
    >>> from jqz.training import BatchNorm, folded_batch_norm
    >>> norm = BatchNorm(jnp.ones(2), jnp.zeros(2), jnp.zeros(2), jnp.ones(2))
    >>> x, kernel = jax.random.normal(jax.random.key(0), (64, 8)), jax.random.normal(jax.random.key(1), (8, 2))
    >>> y, norm = folded_batch_norm(jnp.dot, x, kernel, norm, jqz.Symmetric(bits=8), momentum=0.9)
    >>> bool((jnp.abs(y.mean(0)) < 0.1).all() & (jnp.abs(y.std(0) - 1) < 0.1).all())
    True

    References: arXiv:1712.05877, section 3.2; arXiv:1806.08342, section 3.2.2.
    """
    scale, bias, mean, var = _wide(norm)
    mean, var = jax.lax.stop_gradient((mean, var))
    folded, rest = fold_batch_norm(kernel, norm._replace(mean=mean, var=var), epsilon)
    y = product(x, folded if scheme is None else scheme.simulate(folded))

    def in_batch() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        plain = product(x, kernel).astype(mean.dtype)
        axes = tuple(range(plain.ndim - 1))
        batch_mean, batch_var = jnp.mean(plain, axes), jnp.var(plain, axes)
        sigma = jnp.sqrt(batch_var + epsilon)
        moved = jax.lax.stop_gradient(
            (momentum * mean + (1 - momentum) * batch_mean, momentum * var + (1 - momentum) * batch_var)
        )
        return jnp.sqrt(var + epsilon) / sigma, bias - scale * batch_mean / sigma, *moved

    def at_rest() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        return jnp.ones_like(bias), rest.astype(bias.dtype), mean, var

    if isinstance(frozen, bool):
        factor, offset, mean, var = at_rest() if frozen else in_batch()
    else:
        factor, offset, mean, var = jax.lax.cond(frozen, at_rest, in_batch)
    rows = (1,) * (y.ndim - 1) + (-1,)
    y = (y.astype(factor.dtype) * factor.reshape(rows) + offset.reshape(rows)).astype(y.dtype)
    return y, BatchNorm(*norm[:2], mean.astype(norm.mean.dtype), var.astype(norm.var.dtype))
