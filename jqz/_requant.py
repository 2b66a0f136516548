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
================== ============================================================ ==========================
"""

import abc
import dataclasses
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jqz import _rounding
from jqz._fixed_point import high_multiply, integer_multiplier, shift_half_away, shift_up
from jqz._rounding import fused_multiply_add, nearest_code, rounded_product
from jqz._scheme import quotient

__all__ = [
    "XNNPACK", "Bias", "Float32Requant", "Gemmlowp", "HalfAway", "IntegerBias", "ONNXRuntime", "RealBias", "Requant",
    "Ruy", "Term",
]  # fmt: skip

Pair = tuple[jax.Array, jax.Array]


class Term(typing.NamedTuple):
    """A tensor: int32 codes less their zero point, at most 255 in magnitude; a float32 scale; the zero point."""

    levels: jax.Array
    scale: jax.Array
    zero_point: jax.Array | int = 0


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
        terms: Sequence[Term],
        denominator: jax.Array,
        zero_point: jax.Array | int,
        low: jax.Array | int,
        high: jax.Array | int,
    ) -> jax.Array | None:
        """int8 codes of the sum of two coded tensors where a runtime has its own way; None: in real numbers.

        Args:
          terms: the two tensors.
          denominator: the positive float32 scale of the result.
          zero_point: of the result.
          low: the lowest code of the result.
          high: the highest.
        """
        return None

    def mean(
        self,
        sums: jax.Array,
        count: int,
        zeros: jax.Array | int,
        scale: jax.Array,
        denominator: jax.Array,
        zero_point: jax.Array | int,
        low: jax.Array | int,
        high: jax.Array | int,
    ) -> jax.Array | None:
        """int8 codes of the means of codes where a runtime has its own way; None: as of a product.

        Args:
          sums: of ``count`` codes each, less their zero points: int32.
          count: at most 2**16.
          zeros: the zero point of each of these codes.
          scale: the positive float32 scale of these codes.
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
    >>> jqz.requant.XNNPACK().sum(terms, jnp.float32(0.1), zero_point=0, low=-128, high=127).tolist()
    [18, 5]
    """

    bias: Bias = dataclasses.field(default=IntegerBias(), init=False, repr=False)

    def sum(
        self,
        terms: Sequence[Term],
        denominator: jax.Array,
        zero_point: jax.Array | int,
        low: jax.Array | int,
        high: jax.Array | int,
    ) -> jax.Array | None:
        if len(terms) != 2:
            return None
        ratios = [quotient(scale, denominator) for _, scale, _ in terms]
        shift = 21 - jnp.frexp(jnp.maximum(*map(jnp.abs, ratios)))[1]
        units = [jnp.round(jnp.ldexp(ratio, shift)).astype(jnp.int32) for ratio in ratios]
        total = sum((x * unit for (x, _, _), unit in zip(terms, units, strict=True)), jnp.int32(1) << (shift - 1))
        return jnp.clip((total >> shift) + zero_point, low, high).astype(jnp.int8)

    def mean(
        self,
        sums: jax.Array,
        count: int,
        zeros: jax.Array | int,
        scale: jax.Array,
        denominator: jax.Array,
        zero_point: jax.Array | int,
        low: jax.Array | int,
        high: jax.Array | int,
    ) -> jax.Array | None:
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

    def sum(
        self,
        terms: Sequence[Term],
        denominator: jax.Array,
        zero_point: jax.Array | int,
        low: jax.Array | int,
        high: jax.Array | int,
    ) -> jax.Array | None:
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
        self,
        sums: jax.Array,
        count: int,
        zeros: jax.Array | int,
        scale: jax.Array,
        denominator: jax.Array,
        zero_point: jax.Array | int,
        low: jax.Array | int,
        high: jax.Array | int,
    ) -> jax.Array | None:
        # as ONNX Runtime's global average pool, whose multiplier is s_in / (s_out * count)
        return self(sums, (scale, jnp.ones_like(scale)), denominator * count, zero_point, low, high)


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
        product = high_multiply(shift_up(acc, exponent), mantissa)
        return shift_half_away(product, jnp.maximum(-exponent, 0))

    def sum(
        self,
        terms: Sequence[Term],
        denominator: jax.Array,
        zero_point: jax.Array | int,
        low: jax.Array | int,
        high: jax.Array | int,
    ) -> jax.Array | None:
        if len(terms) != 2:
            return None
        # as LiteRT's reference kernel: with 20 fraction bits, each in units of twice the larger scale
        larger = jnp.maximum(*(jnp.abs(scale) for _, scale, _ in terms))
        halves = [self.scaled(x << 20, (scale, jnp.float32(0.5)), larger) for x, scale, _ in terms]
        total = self.scaled(halves[0] + halves[1], (larger, jnp.float32(2.0**-19)), denominator)
        return jnp.clip(total + zero_point, low, high).astype(jnp.int8)

    def mean(
        self,
        sums: jax.Array,
        count: int,
        zeros: jax.Array | int,
        scale: jax.Array,
        denominator: jax.Array,
        zero_point: jax.Array | int,
        low: jax.Array | int,
        high: jax.Array | int,
    ) -> jax.Array | None:
        # as LiteRT's reference kernel: s_in / s_out * 2**shift / count, cut off after 31 bits
        mantissa, exponent = integer_multiplier((scale, jnp.float32(1)), denominator)
        shift = jnp.minimum(count.bit_length() - 1, 31 + exponent)
        whole, rest = mantissa // count, (mantissa % count).astype(jnp.uint32)
        mantissa = (whole << shift) + ((rest << shift.astype(jnp.uint32)) // count).astype(jnp.int32)
        product = high_multiply(shift_up(sums, exponent - shift), mantissa)
        codes = shift_half_away(product, jnp.maximum(shift - exponent, 0))
        return jnp.clip(_saturating(codes, zero_point), low, high).astype(jnp.int8)


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
