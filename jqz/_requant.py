"""From int32 accumulators to int8 codes: the rules that real runtimes follow.

A rule computes ``clip(round(acc * multiplier) + zero_point, low, high)``; the rules differ in how the product is
formed and rounded, and on about one output in a hundred to a thousand by one step.

================== ============================================================ ==========================
rule               acc * multiplier                                             bit-exact with
================== ============================================================ ==========================
``Float32Requant`` float32 product, ties to even                                XNNPACK, ONNX Runtime, PyTorch
``Gemmlowp``       31-bit integer product, then a rounding shift, ties away     LiteRT's reference kernels
``Ruy``            31-bit integer product, then a rounding shift, ties up       LiteRT's ruy kernels
``HalfAway``       float32 product, ties away from zero                         Arm NN's reference backend
``XNNPACK``        as ``Float32Requant``, integer biases; sums in fixed point   XNNPACK, sums included
================== ============================================================ ==========================
"""

import abc
import dataclasses
import functools
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jqz import _rounding
from jqz._scheme import quotient

__all__ = ["XNNPACK", "Bias", "Float32Requant", "Gemmlowp", "HalfAway", "IntegerBias", "RealBias", "Requant", "Ruy"]

Pair = tuple[jax.Array, jax.Array]


class Bias(abc.ABC):
    """What happens to the real number that is added to scaled accumulators, such as a layer's bias."""

    @abc.abstractmethod
    def split(
        self, offset: jax.Array, numerators: Pair, denominator: jax.Array
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """An int32 number for the accumulator and a float32 number of codes; None stands for 0."""


@typing.final
@dataclasses.dataclass(frozen=True)
class RealBias(Bias):
    """It is added as it is, after scaling: what simulation does."""

    def split(
        self, offset: jax.Array, numerators: Pair, denominator: jax.Array
    ) -> tuple[jax.Array | None, jax.Array | None]:
        return None, offset / denominator


@typing.final
@dataclasses.dataclass(frozen=True)
class IntegerBias(Bias):
    """It is rounded to a multiple of the accumulator's scale: what integer runtimes store.

    Where that scale is 0, or so small that the multiple would leave int32, whole codes are added instead.
    """

    def split(self, offset: jax.Array, numerators: Pair, denominator: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = numerators[0] * numerators[1]
        whole = jnp.round(jnp.clip(offset / jnp.where(scale == 0, jnp.inf, scale), -(2.0**30), 2.0**30))
        rest = jnp.round(offset / denominator - whole * _float_multiplier(numerators, denominator))
        return whole.astype(jnp.int32), rest


class Requant(abc.ABC):
    """Rescales accumulators and clips them to codes."""

    #: Whether no floating-point operation touches an accumulator.
    integer: typing.ClassVar[bool] = False

    @abc.abstractmethod
    def scaled(self, acc: jax.Array, numerators: Pair, denominator: jax.Array) -> jax.Array:
        """``acc * numerators[0] * numerators[1] / denominator``, rounded to int32.

        Args:
          acc: int32.
          numerators: two float32 scales (of the activation and of the weight); either may be negative or 0.
          denominator: the positive float32 scale of the result. All broadcast to ``acc``.
        """

    def sum(
        self,
        terms: Sequence[tuple[jax.Array, jax.Array]],
        denominator: jax.Array,
        zero_point: jax.Array | int,
        low: jax.Array | int,
        high: jax.Array | int,
    ) -> jax.Array | None:
        """int8 codes of the sum of two coded tensors where a runtime has its own way; None: in real numbers.

        Args:
          terms: of each, codes less their zero point (int32, at most 255 in magnitude) and a float32 scale.
          denominator: the positive float32 scale of the result.
          zero_point: of the result.
          low: the lowest code of the result.
          high: the highest.
        """
        return None

    def nearest(self, x: jax.Array) -> jax.Array:
        """The int32 numbers nearest to real ones, saturating."""
        return jnp.round(jnp.clip(x, -(2.0**30), 2.0**30)).astype(jnp.int32)

    def of_real(
        self, x: jax.Array, zero_point: jax.Array | int, low: jax.Array | int, high: jax.Array | int
    ) -> jax.Array:
        """int8 codes of real numbers that have been divided by the scale of the result."""
        return jnp.clip(_saturating(self.nearest(x), zero_point), low, high).astype(jnp.int8)

    def __call__(
        self,
        acc: jax.Array,
        numerators: Pair,
        denominator: jax.Array,
        zero_point: jax.Array | int,
        low: jax.Array | int,
        high: jax.Array | int,
        offset: jax.Array | None = None,
    ) -> jax.Array:
        """int8 codes of the rescaled accumulators plus a real ``offset``, from ``low`` to ``high``."""
        if offset is not None:
            whole, rest = IntegerBias().split(offset, numerators, denominator)
            acc, zero_point = _saturating(acc, whole), self.nearest(rest) + zero_point
        codes = self.scaled(acc, numerators, denominator)
        return jnp.clip(_saturating(codes, zero_point), low, high).astype(jnp.int8)


def _saturating(a: jax.Array, b: jax.Array | int) -> jax.Array:
    """The int32 sum of a number and one of at most 2**30."""
    return jnp.clip(a, -(2**30) + 1, 2**30 - 1) + jnp.clip(b, -(2**30), 2**30)


def _float_multiplier(numerators: Pair, denominator: jax.Array) -> jax.Array:
    return quotient(numerators[0] * numerators[1], denominator)


class _Float32(Requant):
    """``rint(float32(acc) * float32(s_x * s_w / s_y)) + zero_point``, with one of the ways to add biases."""

    bias: Bias

    def scaled(self, acc: jax.Array, numerators: Pair, denominator: jax.Array) -> jax.Array:
        return self.nearest(acc.astype(jnp.float32) * _float_multiplier(numerators, denominator))

    def __call__(
        self,
        acc: jax.Array,
        numerators: Pair,
        denominator: jax.Array,
        zero_point: jax.Array | int,
        low: jax.Array | int,
        high: jax.Array | int,
        offset: jax.Array | None = None,
    ) -> jax.Array:
        whole, rest = (None, None) if offset is None else self.bias.split(offset, numerators, denominator)
        acc = acc if whole is None else _saturating(acc, whole)
        product = acc.astype(jnp.float32) * _float_multiplier(numerators, denominator)
        product = product if rest is None else product + rest
        return self.of_real(product, zero_point, low, high)

    def of_real(
        self, x: jax.Array, zero_point: jax.Array | int, low: jax.Array | int, high: jax.Array | int
    ) -> jax.Array:
        # Clipping first keeps the number within 2**22, where adding 1.5 * 2**23 rounds to the nearest even integer
        # and leaves it in the low bits: one addition for what rint and a conversion take several for.
        return _nearest(x, zero_point, low, high)


@typing.final
@dataclasses.dataclass(frozen=True)
class Float32Requant(_Float32):
    """``rint(float32(acc) * float32(s_x * s_w / s_y)) + zero_point``: the default.

    Args:
      bias: ``RealBias()`` (the default): inference equals ``simulated`` training to float rounding; or
        ``IntegerBias()``: bit-exact with runtimes that store biases as int32.
    """

    bias: Bias = RealBias()


@functools.partial(jax.jit, inline=True)  # traced once for a shape
def _nearest(x: jax.Array, zero_point: jax.Array | int, low: jax.Array | int, high: jax.Array | int) -> jax.Array:
    zero = jnp.asarray(zero_point, jnp.float32)
    bounds = jnp.asarray(low, jnp.float32) - zero, jnp.asarray(high, jnp.float32) - zero
    magic = jnp.float32(1.5 * 2**23)
    bits = jax.lax.bitcast_convert_type(jnp.clip(x, *bounds) + magic, jnp.int32)
    return (bits + jnp.asarray(zero_point, jnp.int32)).astype(jnp.int8)


@typing.final
@dataclasses.dataclass(frozen=True)
class XNNPACK(_Float32):
    """As ``Float32Requant(IntegerBias())``; sums of two coded tensors in fixed point: what LiteRT does by default.

    A sum multiplies both by integers, of which the larger has 21 bits, and shifts the total, ties up.

    >>> import jax.numpy as jnp, jqz
    >>> terms = [(jnp.array([10, -3]), jnp.float32(0.1)), (jnp.array([4, 4]), jnp.float32(0.2))]
    >>> jqz.requant.XNNPACK().sum(terms, jnp.float32(0.1), zero_point=0, low=-128, high=127).tolist()
    [18, 5]
    """

    bias: Bias = dataclasses.field(default=IntegerBias(), init=False, repr=False)

    def sum(
        self,
        terms: Sequence[tuple[jax.Array, jax.Array]],
        denominator: jax.Array,
        zero_point: jax.Array | int,
        low: jax.Array | int,
        high: jax.Array | int,
    ) -> jax.Array | None:
        if len(terms) != 2:
            return None
        ratios = [quotient(scale, denominator) for _, scale in terms]
        shift = 21 - jnp.frexp(jnp.maximum(*map(jnp.abs, ratios)))[1]
        units = [jnp.round(jnp.ldexp(ratio, shift)).astype(jnp.int32) for ratio in ratios]
        total = sum((x * unit for (x, _), unit in zip(terms, units, strict=True)), jnp.int32(1) << (shift - 1))
        return jnp.clip((total >> shift) + zero_point, low, high).astype(jnp.int8)


@typing.final
@dataclasses.dataclass(frozen=True)
class HalfAway(Requant):
    """A float32 product rounded half away from zero."""

    def scaled(self, acc: jax.Array, numerators: Pair, denominator: jax.Array) -> jax.Array:
        return self.nearest(acc.astype(jnp.float32) * _float_multiplier(numerators, denominator))

    def nearest(self, x: jax.Array) -> jax.Array:
        return _rounding.HalfAway()(jnp.clip(x, -(2.0**30), 2.0**30)).astype(jnp.int32)


@typing.final
@dataclasses.dataclass(frozen=True)
class Gemmlowp(Requant):
    """Integers only: a saturating rounding doubling high multiplication, then a rounding shift (arXiv:1712.05877).

    >>> import jax.numpy as jnp, jqz
    >>> acc, scales = jnp.array([1000, -1000, 10**6]), (jnp.float32(0.01), jnp.float32(0.02))
    >>> jqz.Gemmlowp()(acc, scales, jnp.float32(0.05), zero_point=3, low=-128, high=127).tolist()
    [7, -1, 127]
    """

    integer = True

    def scaled(self, acc: jax.Array, numerators: Pair, denominator: jax.Array) -> jax.Array:
        mantissa, exponent = integer_multiplier(numerators, denominator)
        product = high_multiply(_shift_up(acc, exponent), mantissa)
        return shift_half_away(product, jnp.maximum(-exponent, 0))

    def sum(
        self,
        terms: Sequence[tuple[jax.Array, jax.Array]],
        denominator: jax.Array,
        zero_point: jax.Array | int,
        low: jax.Array | int,
        high: jax.Array | int,
    ) -> jax.Array | None:
        if len(terms) != 2:
            return None
        # as LiteRT's reference kernel: with 20 fraction bits, each in units of twice the larger scale
        larger = jnp.maximum(*(jnp.abs(scale) for _, scale in terms))
        halves = [self.scaled(x << 20, (scale, jnp.float32(0.5)), larger) for x, scale in terms]
        total = self.scaled(halves[0] + halves[1], (larger, jnp.float32(2.0**-19)), denominator)
        return jnp.clip(total + zero_point, low, high).astype(jnp.int8)


@typing.final
@dataclasses.dataclass(frozen=True)
class Ruy(Requant):
    """As ``Gemmlowp``, with ties of the final shift toward plus infinity."""

    integer = True

    def scaled(self, acc: jax.Array, numerators: Pair, denominator: jax.Array) -> jax.Array:
        mantissa, exponent = integer_multiplier(numerators, denominator)
        product = high_multiply(_shift_up(acc, exponent), mantissa)
        shift = jnp.maximum(-exponent, 0)
        # (product + 2**(shift-1)) >> shift, without leaving int32
        return (product >> shift) + jnp.where(shift > 0, (product >> jnp.maximum(shift - 1, 0)) & 1, 0)


def _shift_up(acc: jax.Array, exponent: jax.Array) -> jax.Array:
    """``acc * 2**exponent``, saturating; ``acc`` where the exponent is not positive."""
    shift = jnp.clip(exponent, 0, 30)
    limit = jnp.int32(2**31 - 1) >> shift
    return jnp.clip(acc, -limit, limit) << shift


def high_multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """``floor((a * b + 2**30) / 2**31)`` of int32, in 16-bit halves (JAX has no int64 by default).

    This is gemmlowp's SaturatingRoundingDoublingHighMul for every pair but (-2**31, -2**31): nearest,
    ties toward plus infinity. ``b`` may be negative, but not -2**31.
    """
    flip = b < 0
    a, b = jnp.where(flip, -a, a), jnp.abs(b)
    high_a, low_a = a >> 16, a & 0xFFFF
    high_b, low_b = b >> 16, b & 0xFFFF
    cross = high_a * low_b, low_a * high_b
    low = ((low_a.astype(jnp.uint32) * low_b.astype(jnp.uint32)) >> 16).astype(jnp.int32)
    carry = (cross[0] & 0x7FFF) + (cross[1] & 0x7FFF) + low + (1 << 14)
    return high_a * high_b * 2 + (cross[0] >> 15) + (cross[1] >> 15) + (carry >> 15)


def shift_half_away(x: jax.Array, shift: jax.Array) -> jax.Array:
    """``x / 2**shift`` to the nearest integer, ties away from zero; 0 <= shift <= 31."""
    mask = jnp.where(shift >= 31, jnp.int32(0x7FFFFFFF), (jnp.int32(1) << jnp.minimum(shift, 30)) - 1)
    remainder = x & mask
    threshold = (mask >> 1) + (x < 0).astype(jnp.int32)
    return (x >> shift) + (remainder > threshold).astype(jnp.int32)


def integer_multiplier(numerators: Pair, denominator: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(m, e) with ``n0 * n1 / d ~ m * 2**(e - 31)``, 2**30 <= abs(m) < 2**31: gemmlowp's form.

    The quotient of the 24-bit mantissas is divided out bit by bit, so it is rounded once, half away, as from exact
    arithmetic: float32 would lose 7 of the 31 bits. A multiplier below 2**-31 gives m = 0.
    """
    n0, n1, d = jnp.broadcast_arrays(*numerators, denominator)
    (m0, e0), (m1, e1), (md, ed) = (jnp.frexp(jnp.abs(v).astype(jnp.float32)) for v in (n0, n1, d))
    a, b, divisor = ((m * 2**24).astype(jnp.uint32) for m in (m0, m1, md))
    # the 48-bit product a * b in two words of 24 bits
    low_a, high_a, low_b, high_b = a & 0xFFF, a >> 12, b & 0xFFF, b >> 12
    middle = low_a * high_b + high_a * low_b
    low = low_a * low_b + ((middle & 0xFFF) << 12)
    high = high_a * high_b + (middle >> 12) + (low >> 24)
    low = low & 0xFFFFFF
    zero = (a == 0) | (b == 0)

    def divide(i, state):
        """One binary digit of long division, until 31 significant digits are there; the next one rounds."""
        quotient, remainder, digits, rounding = state
        word = jnp.where(i < 24, high >> (23 - jnp.minimum(i, 23)), low >> (47 - jnp.clip(i, 24, 47)))
        remainder = (remainder << 1) | jnp.where(i < 48, word & 1, 0)
        digit = (remainder >= divisor).astype(jnp.uint32)
        full = quotient >= 2**30
        rounding = jnp.where(full & (digits == i), digit, rounding)
        quotient = jnp.where(full, quotient, (quotient << 1) | digit)
        digits = jnp.where(full, digits, digits + 1)
        return quotient, remainder - digit * divisor, digits, rounding

    nothing = jnp.zeros_like(a)
    start = nothing, nothing, jnp.zeros(a.shape, jnp.int32), nothing
    quotient, _, digits, rounding = jax.lax.fori_loop(0, 64, divide, start)
    quotient = quotient + rounding
    carry = (quotient >> 31) > 0
    mantissa = jnp.where(carry, quotient >> 1, quotient).astype(jnp.int32)
    # quotient = a * b / divisor * 2**(digits - 48), and the mantissas a, b, divisor carry 2**24 each
    exponent = e0 + e1 - ed - 24 + 48 - digits + 31 + carry.astype(jnp.int32)
    gone = zero | (exponent < -31)
    sign = jnp.where((n0 < 0) ^ (n1 < 0), -1, 1).astype(jnp.int32)
    return jnp.where(gone, 0, mantissa * sign), jnp.where(gone, 0, exponent)
