"""From int32 accumulators to int8 codes: the rules that real runtimes follow.

A rule computes ``clip(round(acc * multiplier) + zero_point, low, high)``; the rules differ in how the product is
formed and rounded, and on about one output in a hundred to a thousand by one step.

================== ============================================================ ==========================
rule               acc * multiplier                                             bit-exact with
================== ============================================================ ==========================
``Float32Requant`` float32 product, ties to even                                PyTorch; products anywhere
``Gemmlowp``       31-bit integer product, then a rounding shift, ties away     LiteRT's reference kernels
``Ruy``            31-bit integer product, then a rounding shift, ties up       LiteRT's ruy kernels
``HalfAway``       float32 product, ties away from zero                         Arm NN's reference backend
``ONNXRuntime``    as ``Float32Requant``, integer biases; sums rounded twice    ONNX Runtime, sums and means too
``XNNPACK``        as ``Float32Requant``, integer biases; sums in fixed point   XNNPACK, sums and means too
``Int16x8``        15-bit integer product of 64-bit sums, ties up; codes of 16  LiteRT's kernels for 16x8
                   bits
================== ============================================================ ==========================
"""

import dataclasses
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jqz import _rounding
from jqz._fixed_point import high_multiply, integer_multiplier, long_multiply, shift_half_away, shift_up
from jqz._rescaling import (
    Bias,
    IntegerBias,
    Long,
    Onto,
    Pair,
    RealBias,
    Requant,
    Term,
    float_multiplier,
    long_bias,
    saturating,
)
from jqz._rounding import fused_multiply_add, nearest_code, rounded_product
from jqz._scheme import quotient

__all__ = [
    "XNNPACK", "Bias", "Float32Requant", "Gemmlowp", "HalfAway", "Int16x8", "IntegerBias", "ONNXRuntime", "Onto",
    "RealBias", "Requant", "Ruy", "Term",
]  # fmt: skip


class _Float32(Requant):
    """``rint(float32(acc) * float32(s_x * s_w / s_y)) + zero_point``, with one of the ways to add biases."""

    bias: Bias

    def scaled(self, acc: jax.Array, numerators: Pair, denominator: jax.Array) -> jax.Array:
        return self.nearest(acc.astype(jnp.float32) * float_multiplier(numerators, denominator))

    def rescaled(self, acc: jax.Array, numerators: Pair, onto: Onto, offset: jax.Array | None = None) -> jax.Array:
        denominator, zero_point, low, high = onto
        whole, rest = (None, None) if offset is None else self.bias.split(offset, numerators, denominator)
        acc = acc if whole is None else saturating(acc, whole)
        product = acc.astype(jnp.float32) * float_multiplier(numerators, denominator)
        product = product if rest is None else product + rest
        return self.of_real(product, zero_point, low, high)

    def of_real(
        self, x: jax.Array, zero_point: jax.Array | int, low: jax.Array | int, high: jax.Array | int
    ) -> jax.Array:
        return nearest_code(x, zero_point, low, high)


@typing.final
@dataclasses.dataclass(frozen=True)
class Float32Requant(_Float32):
    """``rint(float32(acc) * float32(s_x * s_w / s_y)) + zero_point``: the default.

    Args:
      bias: ``RealBias()`` (the default): inference equals ``simulated`` training to float rounding; or
        ``IntegerBias()``: bit-exact with runtimes that store biases as int32.
    """

    bias: Bias = RealBias()


@typing.final
@dataclasses.dataclass(frozen=True)
class XNNPACK(_Float32):
    """As ``Float32Requant(IntegerBias())``; sums of two coded tensors in fixed point: what LiteRT does by default.

    A sum multiplies both by integers, of which the larger has 21 bits, and shifts the total, ties up. A mean scales
    the codes' sum, zero points included, and takes the zero points off in float32.

    >>> import jax.numpy as jnp, jqz
    >>> pairs = (([10, -3], 0.1), ([4, 4], 0.2))
    >>> terms = [jqz.requant.Term(jnp.array(levels), jnp.float32(scale)) for levels, scale in pairs]
    >>> onto = jqz.requant.Onto(jnp.float32(0.1), zero_point=0, low=-128, high=127)
    >>> jqz.requant.XNNPACK().sum(terms, onto).tolist()
    [18, 5]
    """

    bias: Bias = dataclasses.field(default=IntegerBias(), init=False, repr=False)

    def sum(self, terms: Sequence[Term], onto: Onto) -> jax.Array | None:
        denominator, zero_point, low, high = onto
        if len(terms) != 2:
            return None
        ratios = [quotient(scale, denominator) for _, scale, _ in terms]
        shift = 21 - jnp.frexp(jnp.maximum(*map(jnp.abs, ratios)))[1]
        units = [jnp.round(jnp.ldexp(ratio, shift)).astype(jnp.int32) for ratio in ratios]
        total = sum((x * unit for (x, _, _), unit in zip(terms, units, strict=True)), jnp.int32(1) << (shift - 1))
        return jnp.clip((total >> shift) + zero_point, low, high).astype(jnp.int8)

    def mean(
        self, sums: jax.Array, count: int, zeros: jax.Array | int, scale: jax.Array, onto: Onto
    ) -> jax.Array | None:
        denominator, zero_point, low, high = onto
        # of the codes as they are: their zero points are taken off, with that of the result, in float32
        multiplier = quotient(scale, denominator) * (jnp.float32(1) / jnp.float32(count))
        zeros = jnp.asarray(zeros, jnp.int32) * count
        offset = jnp.asarray(zero_point, jnp.float32) - rounded_product(zeros.astype(jnp.float32), multiplier)
        real = rounded_product((sums + zeros).astype(jnp.float32), multiplier) + offset
        return jnp.clip(self.nearest(real), low, high).astype(jnp.int8)


@typing.final
@dataclasses.dataclass(frozen=True)
class ONNXRuntime(_Float32):
    """As ``Float32Requant(IntegerBias())``; sums and means as ONNX Runtime's operators on uint8 codes.

    A sum is ``a * s_a/s_y + (b * s_b/s_y + offset)`` of the codes as they are, each step rounded once to float32.
    """

    bias: Bias = dataclasses.field(default=IntegerBias(), init=False, repr=False)

    def sum(self, terms: Sequence[Term], onto: Onto) -> jax.Array | None:
        denominator, zero_point, low, high = onto
        if len(terms) != 2:
            return None
        unsigned = 128
        zeros = [jnp.asarray(term.zero_point + unsigned, jnp.float32) for term in terms]
        codes = [term.levels.astype(jnp.float32) + zero for term, zero in zip(terms, zeros, strict=True)]
        ratios = [quotient(term.scale, denominator) for term in terms]
        taken = [rounded_product(ratio, zero) for ratio, zero in zip(ratios, zeros, strict=True)]
        offset = jnp.asarray(zero_point + unsigned, jnp.float32) - (taken[0] + taken[1])
        real = fused_multiply_add(codes[0], ratios[0], fused_multiply_add(codes[1], ratios[1], offset))
        return jnp.clip(self.nearest(real) - unsigned, low, high).astype(jnp.int8)

    def mean(
        self, sums: jax.Array, count: int, zeros: jax.Array | int, scale: jax.Array, onto: Onto
    ) -> jax.Array | None:
        # as ONNX Runtime's global average pool, whose multiplier is s_in / (s_out * count)
        return self.rescaled(sums, (scale, jnp.ones_like(scale)), onto._replace(scale=onto.scale * count))


@typing.final
@dataclasses.dataclass(frozen=True)
class HalfAway(Requant):
    """A float32 product rounded half away from zero."""

    def scaled(self, acc: jax.Array, numerators: Pair, denominator: jax.Array) -> jax.Array:
        return self.nearest(acc.astype(jnp.float32) * float_multiplier(numerators, denominator))

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
        product = high_multiply(shift_up(acc, exponent), mantissa)
        return shift_half_away(product, jnp.maximum(-exponent, 0))

    def sum(self, terms: Sequence[Term], onto: Onto) -> jax.Array | None:
        denominator, zero_point, low, high = onto
        if len(terms) != 2:
            return None
        total = _gemmlowp_sum(terms, denominator, 20)
        return jnp.clip(total + zero_point, low, high).astype(jnp.int8)

    def mean(
        self, sums: jax.Array, count: int, zeros: jax.Array | int, scale: jax.Array, onto: Onto
    ) -> jax.Array | None:
        denominator, zero_point, low, high = onto
        codes = _gemmlowp_mean(sums, count, scale, denominator)
        return jnp.clip(saturating(codes, zero_point), low, high).astype(jnp.int8)


def _gemmlowp_sum(terms: Sequence[Term], denominator: jax.Array, bits: int) -> jax.Array:
    """With so many fraction bits, each in units of twice the larger scale."""
    scaled, larger = Gemmlowp().scaled, jnp.maximum(*(jnp.abs(scale) for _, scale, _ in terms))
    halves = [scaled(x << bits, (scale, jnp.float32(0.5)), larger) for x, scale, _ in terms]
    return scaled(halves[0] + halves[1], (larger, jnp.float32(2.0 ** (1 - bits))), denominator)


def _gemmlowp_mean(sums: jax.Array, count: int, scale: jax.Array, denominator: jax.Array) -> jax.Array:
    """As LiteRT's reference kernel: s_in / s_out * 2**shift / count, cut off after 31 bits."""
    mantissa, exponent = integer_multiplier((scale, jnp.float32(1)), denominator)
    shift = jnp.minimum(count.bit_length() - 1, 31 + exponent)
    whole, rest = mantissa // count, (mantissa % count).astype(jnp.uint32)
    mantissa = (whole << shift) + ((rest << shift.astype(jnp.uint32)) // count).astype(jnp.int32)
    product = high_multiply(shift_up(sums, exponent - shift), mantissa)
    return shift_half_away(product, jnp.maximum(shift - exponent, 0))


@typing.final
@dataclasses.dataclass(frozen=True)
class Ruy(Requant):
    """As ``Gemmlowp``, with ties of the final shift toward plus infinity."""

    integer = True

    def scaled(self, acc: jax.Array, numerators: Pair, denominator: jax.Array) -> jax.Array:
        mantissa, exponent = integer_multiplier(numerators, denominator)
        product = high_multiply(shift_up(acc, exponent), mantissa)
        shift = jnp.maximum(-exponent, 0)
        # (product + 2**(shift-1)) >> shift, without leaving int32
        return (product >> shift) + jnp.where(shift > 0, (product >> jnp.maximum(shift - 1, 0)) & 1, 0)


@typing.final
@dataclasses.dataclass(frozen=True)
class Int16x8(Requant):
    """Codes of 16 bits as LiteRT's kernels make them: sums of 64 bits, times 15 bits, shifted with ties up.

    For activations of 9 to 16 bits, ``Symmetric(bits=16)``, and int8 weights. Biases are multiples of the
    accumulator's scale, in 64 bits. A sum has 15 fraction bits, and a mean is as of ``Gemmlowp``.

    >>> import jax.numpy as jnp, jqz
    >>> acc, scales = jnp.array([1000, -1000, 10**6]), (jnp.float32(0.01), jnp.float32(0.02))
    >>> jqz.requant.Int16x8()(acc, scales, jnp.float32(0.05), zero_point=0, low=-32768, high=32767).tolist()
    [4, -4, 4000]
    """

    long = True

    def scaled(self, acc: jax.Array | Long, numerators: Pair, denominator: jax.Array) -> jax.Array:
        high, low = acc if isinstance(acc, Long) else (acc >> 8, acc & 0xFF)
        mantissa, exponent = integer_multiplier(numerators, denominator)
        sign, mantissa = jnp.where(mantissa < 0, -1, 1), jnp.abs(mantissa)
        mantissa = jnp.where(mantissa < 0x7FFF0000, (mantissa + (1 << 15)) >> 16, 0x7FFF)
        return long_multiply(high * sign, low * sign, mantissa, jnp.maximum(15 - exponent, 1))

    def rescaled(
        self, acc: jax.Array | Long, numerators: Pair, onto: Onto, offset: jax.Array | None = None
    ) -> jax.Array:
        denominator, zero_point, low, high = onto
        long = acc if isinstance(acc, Long) else Long(acc >> 8, acc & 0xFF)
        if offset is None:
            return _int16(self.scaled(long, numerators, denominator), zero_point, low, high)
        whole, rest = long_bias(offset, numerators, denominator)
        above = jnp.floor(whole / 2**8)
        below = (whole - 2**8 * above).astype(jnp.int32)
        long = Long(saturating(long.high + (long.low >> 8), above.astype(jnp.int32)), (long.low & 0xFF) + below)
        codes = jnp.where(rest == 0, self.scaled(long, numerators, denominator), rest.astype(jnp.int32))
        return _int16(codes, zero_point, low, high)

    def recoded(self, levels: jax.Array, numerators: Pair, onto: Onto) -> jax.Array:
        denominator, zero_point, low, high = onto
        return _int16(Gemmlowp().scaled(levels, numerators, denominator), zero_point, low, high)

    def sum(self, terms: Sequence[Term], onto: Onto) -> jax.Array | None:
        denominator, zero_point, low, high = onto
        return None if len(terms) != 2 else _int16(_gemmlowp_sum(terms, denominator, 15), zero_point, low, high)

    def mean(
        self, sums: jax.Array, count: int, zeros: jax.Array | int, scale: jax.Array, onto: Onto
    ) -> jax.Array | None:
        denominator, zero_point, low, high = onto
        return _int16(_gemmlowp_mean(sums, count, scale, denominator), zero_point, low, high)

    def of_real(
        self, x: jax.Array, zero_point: jax.Array | int, low: jax.Array | int, high: jax.Array | int
    ) -> jax.Array:
        return _int16(self.nearest(x), zero_point, low, high)


def _int16(codes: jax.Array, zero_point: jax.Array | int, low: jax.Array | int, high: jax.Array | int) -> jax.Array:
    return jnp.clip(saturating(codes, zero_point), low, high).astype(jnp.int16)
