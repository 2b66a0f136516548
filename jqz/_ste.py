"""Straight-through primitives: the only custom derivatives in the house.

A quantizer is a staircase, whose true derivative is useless for training. Each primitive here
computes the exact staircase forward and a chosen surrogate backward. ``x + stop_gradient(q - x)``
would do as well but for one rounding error a value: x + (q - x) is not q in floating point.

==================== ============================================ ======================
estimator            d sign(x) / dx                               source
==================== ============================================ ======================
``Identity``         1                                            arXiv:1308.3432
``Clipped``          1 if abs(x) <= 1 else 0                      arXiv:1602.02830
``Hardtanh``         1 if abs(x) <  1 else 0 (strict)             NNabla binary_tanh
``ApproxSign``       2 - 2 abs(x) if abs(x) < 1 else 0            arXiv:1808.00278
``SwishSign``        b (2 - b x tanh(b x / 2)) / (1 + cosh(b x))  arXiv:1812.11800
==================== ============================================ ======================
"""

import abc
import dataclasses
import functools
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp


class Estimator(abc.ABC):
    """A surrogate derivative for ``sign``."""

    @abc.abstractmethod
    def slope(self, x: jax.Array) -> jax.Array:
        """The derivative at ``x``, same shape and dtype."""


@typing.final
@dataclasses.dataclass(frozen=True)
class Identity(Estimator):
    """Passes every gradient."""

    def slope(self, x: jax.Array) -> jax.Array:
        return jnp.ones_like(x)

    def __repr__(self) -> str:
        return "ste.Identity()"  # jqz.Identity is a scheme


@typing.final
@dataclasses.dataclass(frozen=True)
class Clipped(Estimator):
    """Passes gradients where abs(x) <= 1."""

    def slope(self, x: jax.Array) -> jax.Array:
        return (jnp.abs(x) <= 1).astype(x.dtype)


@typing.final
@dataclasses.dataclass(frozen=True)
class Hardtanh(Estimator):
    """Passes gradients where abs(x) < 1, strictly."""

    def slope(self, x: jax.Array) -> jax.Array:
        return (jnp.abs(x) < 1).astype(x.dtype)


@typing.final
@dataclasses.dataclass(frozen=True)
class ApproxSign(Estimator):
    """The derivative of a piecewise quadratic approximation of sign (Bi-Real Net)."""

    def slope(self, x: jax.Array) -> jax.Array:
        return jnp.maximum(2 - 2 * jnp.abs(x), 0).astype(x.dtype)


@typing.final
@dataclasses.dataclass(frozen=True)
class SwishSign(Estimator):
    """The derivative of SignSwish, a smooth approximation of sign (BNN+)."""

    beta: float = 5.0

    def slope(self, x: jax.Array) -> jax.Array:
        u = self.beta * x
        # 1 / (1 + cosh u) == 2 exp(-|u|) / (1 + exp(-|u|))**2, whose exponential vanishes where cosh would overflow
        decay = jnp.exp(-jnp.abs(u))
        slope = self.beta * (2 - u * jnp.tanh(u / 2)) * 2 * decay / (1 + decay) ** 2
        return jnp.where(decay > 0, slope, 0).astype(x.dtype)


@jax.custom_vjp
def straight_through(x: jax.Array, value: jax.Array, slope: jax.Array | None = None) -> jax.Array:
    """Returns ``value``; its cotangent reaches ``x``, times ``slope`` if one is given.

    ``value`` and ``slope`` get no gradient. All three have the shape and dtype of ``x``, or a slope
    that broadcasts to it.

    >>> jax.grad(lambda x: straight_through(x, jnp.round(x)))(1.3)
    Array(1., dtype=float32, weak_type=True)
    """
    del x, slope
    return value


def _straight_through_fwd(x, value, slope=None):
    del x
    return value, slope


def _straight_through_bwd(slope, g):
    return (g if slope is None else (g * slope).astype(g.dtype)), None, None


straight_through.defvjp(_straight_through_fwd, _straight_through_bwd)


@jax.custom_vjp
def with_partials(value: jax.Array, inputs: tuple[jax.Array, ...], slopes: tuple[jax.Array, ...]) -> jax.Array:
    """Returns ``value``; its cotangent reaches each of ``inputs``, times its slope.

    ``value`` and ``slopes`` get no gradient. All have one shape; a slope has its input's dtype.

    >>> x, scale = jnp.float32(1.5), jnp.float32(2.0)
    >>> [float(g) for g in jax.grad(lambda *inputs: with_partials(x, inputs, (scale, -scale)), (0, 1))(x, scale)]
    [2.0, -2.0]
    """
    del inputs, slopes
    return value


def _with_partials_fwd(value, inputs, slopes):
    del inputs
    return value, slopes


def _with_partials_bwd(slopes, g):
    return None, tuple(g.astype(slope.dtype) * slope for slope in slopes), None


with_partials.defvjp(_with_partials_fwd, _with_partials_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def on_the_way_back(fn: Callable[..., jax.Array], x: jax.Array, *operands: typing.Any) -> jax.Array:
    """Returns ``x``; its cotangent g reaches it as ``fn(g, *operands)``, in the shape and dtype of x.

    ``operands``, which may be keys, get no gradient.

    >>> float(jax.grad(lambda x: 5 * on_the_way_back(jnp.minimum, x, jnp.float32(2)))(1.0))
    2.0
    """
    del fn, operands
    return x


def _on_the_way_back_fwd(fn, x, *operands):
    del fn
    return x, operands


def _on_the_way_back_bwd(fn, operands, g):
    return fn(g, *operands), *(None for _ in operands)


on_the_way_back.defvjp(_on_the_way_back_fwd, _on_the_way_back_bwd)


def round(x: jax.Array, rounding: Callable[[jax.Array], jax.Array] = jnp.round) -> jax.Array:  # noqa: A001
    """Rounds forward, passes the gradient through.

    >>> jax.value_and_grad(round)(1.6)[0].item(), jax.grad(round)(1.6).item()
    (2.0, 1.0)
    """
    return straight_through(x, rounding(x))


def clip(x: jax.Array, low: jax.typing.ArrayLike, high: jax.typing.ArrayLike) -> jax.Array:
    """Clips forward; the gradient passes where low <= x <= high, bounds included.

    ``jnp.clip`` splits the gradient at the bounds, where a clipped quantizer has many values.
    The bounds get no gradient.

    >>> jax.vmap(jax.grad(lambda x: clip(x, 0.0, 1.0)))(jnp.array([-1.0, 0.0, 1.0, 2.0])).tolist()
    [0.0, 1.0, 1.0, 0.0]
    """
    low, high = jax.lax.stop_gradient((low, high))
    inside = ((x >= low) & (x <= high)).astype(x.dtype)
    return straight_through(x, jnp.clip(x, low, high), inside)


def sign(x: jax.Array, estimator: Estimator = Clipped(), zero_to: float = 1.0) -> jax.Array:
    """-1 or +1 forward (``zero_to`` at 0), the estimator's slope backward.

    >>> sign(jnp.array([-2.0, 0.0, 3.0])).tolist()
    [-1.0, 1.0, 1.0]
    """
    value = jnp.where(x > 0, 1, jnp.where(x < 0, -1, zero_to)).astype(x.dtype)
    return straight_through(x, value, estimator.slope(x))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def refuse_gradient(x: jax.Array, message: str) -> jax.Array:
    """Returns ``x``; raises TypeError where a derivative is taken through it.

    Integers carry no gradient, so a loss on codes would silently train the grid alone.

    >>> refuse_gradient(jnp.float32(2), "codes have no gradient").item()
    2.0
    """
    del message
    return x


@refuse_gradient.defjvp
def _refuse_gradient_jvp(message, primals, tangents):
    raise TypeError(message)


Product = Callable[[jax.Array, jax.Array], jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def bilinear(
    fn: Product, a: jax.Array, b: jax.Array, of_a: Product | None = None, of_b: Product | None = None
) -> jax.Array:
    """``fn(a, b)``, linear in each argument, with a backward pass that XLA compiles well.

    The value and the gradients are exact. The gradient of ``b`` is computed behind a barrier, without
    which XLA's CPU backend fuses the batch norm's backward pass into the transposes of the
    filter-gradient convolution and slows a training step by a third.

    Args:
      fn: a product.
      a: its first factor.
      b: its second factor.
      of_a: maps ``(b, cotangent)`` to the gradient of ``a``; the transpose of ``fn`` if left out.
      of_b: maps ``(a, cotangent)`` to the gradient of ``b``, likewise.

    >>> jax.grad(lambda b: bilinear(jnp.dot, jnp.array([2.0, 3.0]), b))(jnp.ones(2)).tolist()
    [2.0, 3.0]
    """
    del of_a, of_b
    return fn(a, b)


def _bilinear_fwd(fn, a, b, of_a, of_b):
    return fn(a, b), (a, b)


def _bilinear_bwd(fn, of_a, of_b, residuals, g):
    a, b = residuals
    da = jax.linear_transpose(lambda a: fn(a, b), a)(g)[0] if of_a is None else of_a(b, g)
    a, g = jax.lax.optimization_barrier((a, g))
    db = jax.linear_transpose(lambda b: fn(a, b), b)(g)[0] if of_b is None else of_b(a, g)
    return da, db


bilinear.defvjp(_bilinear_fwd, _bilinear_bwd)
