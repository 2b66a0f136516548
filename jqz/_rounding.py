"""How a real number becomes an integer: explicit small types, never a flag.

=============== ============================== ==========================================
type            definition                     used by
=============== ============================== ==========================================
``HalfEven``    nearest, ties to even          the default; ONNX, XNNPACK
``HalfAway``    nearest, ties away from zero   NNabla, gemmlowp's parameters, Arm NN
``Floor``       toward minus infinity          shift hardware
``Stochastic``  up with probability frac(x)    unbiased low-precision updates; needs a key
=============== ============================== ==========================================
"""

import abc
import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp


class Rounding(abc.ABC):
    """Rounds to integers, keeping the floating dtype."""

    #: Whether an integer that is nearest is taken.
    nearest: typing.ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, x: jax.Array) -> jax.Array:
        """Integers in the dtype of ``x``."""


@typing.final
@dataclasses.dataclass(frozen=True)
class HalfEven(Rounding):
    """To the nearest integer, ties to the even one (IEEE 754).

    >>> HalfEven()(jnp.array([0.5, 1.5, -0.5, 0.49999997])).tolist()
    [0.0, 2.0, -0.0, 0.0]
    """

    nearest = True

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.round(x)


@typing.final
@dataclasses.dataclass(frozen=True)
class HalfAway(Rounding):
    """To the nearest integer, ties away from zero.

    ``floor(abs(x) + 0.5)`` would send 0.49999997 to 1; this does not.

    >>> HalfAway()(jnp.array([0.5, 1.5, -0.5, 0.49999997])).tolist()
    [1.0, 2.0, -1.0, 0.0]
    """

    nearest = True

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.lax.round(x, jax.lax.RoundingMethod.AWAY_FROM_ZERO)


@typing.final
@dataclasses.dataclass(frozen=True)
class Floor(Rounding):
    """Toward minus infinity.

    >>> Floor()(jnp.array([0.9, -0.1])).tolist()
    [0.0, -1.0]
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.floor(x)


@typing.final
@dataclasses.dataclass(frozen=True)
class Stochastic(Rounding):
    """Up with probability equal to the fraction, so the mean is exact (arXiv:1502.02551).

    In a policy write ``Stochastic()`` and pass the key to the verb:
    ``quantize(params, policy, key=key)``; every leaf gets its own. A scheme used by itself takes
    the key here. The variance of a value with fraction f is f (1 - f) steps squared.

    >>> x = jnp.full(10_000, 0.25)
    >>> float(Stochastic(jax.random.key(0))(x).mean().round(2))
    0.25
    """

    key: typing.Any = None

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.key is None:
            raise ValueError(
                "Stochastic: got no key. Use quantize(params, policy, key=jax.random.key(0)), "
                "or Stochastic(key) on a scheme of your own."
            )
        # floor(x + uniform) would carry some integers up: 100 + 0.9999999 is 101 in float32
        whole = jnp.floor(x)
        return whole + (jax.random.uniform(self.key, x.shape, x.dtype) < x - whole).astype(x.dtype)


def rounded_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product, rounded before anything is added to it.

    Compilers fuse the two where they see both, so that offsets would differ in the last place between programs: and
    with them one bias in a thousand, in steps of accumulators.
    """
    return jax.lax.optimization_barrier(a * b)


@functools.partial(jax.jit, inline=True)  # traced once for a shape
def nearest_code(x: jax.Array, zero_point: jax.Array | int, low: jax.Array | int, high: jax.Array | int) -> jax.Array:
    """The int8 code of a real number of steps: nearest, ties to even, zero point added, within bounds.

    Clipping first keeps the number within 2**22, where adding 1.5 * 2**23 rounds to the nearest even integer and
    leaves it in the low bits: one addition for what rint and a conversion take several for.
    """
    zero = jnp.asarray(zero_point, jnp.float32)
    bounds = jnp.asarray(low, jnp.float32) - zero, jnp.asarray(high, jnp.float32) - zero
    magic = jnp.float32(1.5 * 2**23)
    bits = jax.lax.bitcast_convert_type(jnp.clip(x, *bounds) + magic, jnp.int32)
    return (bits + jnp.asarray(zero_point, jnp.int32)).astype(jnp.int8)


def fused_multiply_add(x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
    """``x * y + z``, rounded once, of integers x below 2**12 in magnitude: what hardware computes, on any backend.

    The product is parted in two that are exact, the sums are kept with their errors, and the smaller of the two is
    rounded to odd, so that the last addition alone decides (Boldo and Melquiond, 2008).
    """
    bits = jax.lax.bitcast_convert_type(y, jnp.int32)
    high = jax.lax.bitcast_convert_type(bits & ~0xFFF, jnp.float32)
    total, error = _two_sum(x * high, z)
    rest, tiny = _two_sum(x * (y - high), error)
    bits = jax.lax.bitcast_convert_type(rest, jnp.int32)
    step = jnp.where((tiny > 0) == (rest > 0), 1, -1)
    odd = bits + jnp.where((tiny != 0) & (bits & 1 == 0), step, 0)
    return total + jax.lax.bitcast_convert_type(odd, jnp.float32)


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum and what rounding left out."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)
