"""What a rule from accumulators to codes is, and what happens to biases: the ground of ``jqz.requant``."""

import abc
import dataclasses
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jqz._scheme import quotient

Pair = tuple[jax.Array, jax.Array]


class Term(typing.NamedTuple):
    """A tensor: int32 codes less their zero point, at most 255 in magnitude; a float32 scale; the zero point."""

    levels: jax.Array
    scale: jax.Array
    zero_point: jax.Array | int = 0


class Long(typing.NamedTuple):
    """``2**8 * high + low``: sums of products that int32 may not hold, such as those of 16-bit codes."""

    high: jax.Array
    low: jax.Array


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
        rest = jnp.round(offset / denominator - whole * float_multiplier(numerators, denominator))
        return whole.astype(jnp.int32), rest


def long_bias(offset: jax.Array, numerators: Pair, denominator: jax.Array) -> Pair:
    """As ``IntegerBias``, of accumulators of 64 bits: a float32 whole number of at most 2**38, and whole codes.

    Where there are whole codes, they are all that the result is.
    """
    scale = numerators[0] * numerators[1]
    whole = offset / jnp.where(scale == 0, jnp.inf, scale)
    lives = (jnp.abs(whole) <= 2.0**38) & (scale != 0)
    codes = jnp.round(jnp.clip(quotient(offset, denominator), -(2.0**20), 2.0**20))
    return jnp.where(lives, jnp.round(whole), 0), jnp.where(lives, 0, codes)


class Onto(typing.NamedTuple):
    """What a result is rounded to: a positive float32 scale, the zero point, and the lowest and the highest code."""

    scale: jax.Array
    zero_point: jax.Array | int
    low: jax.Array | int
    high: jax.Array | int


class Requant(abc.ABC):
    """Rescales accumulators and clips them to codes."""

    #: Whether no floating-point operation touches an accumulator.
    integer: typing.ClassVar[bool] = False
    #: Whether it is for activations of 9 to 16 bits, whose codes are int16.
    long: typing.ClassVar[bool] = False

    @abc.abstractmethod
    def scaled(self, acc: jax.Array, numerators: Pair, denominator: jax.Array) -> jax.Array:
        """``acc * numerators[0] * numerators[1] / denominator``, rounded to int32.

        Args:
          acc: int32.
          numerators: two float32 scales (of the activation and of the weight); either may be negative or 0.
          denominator: the positive float32 scale of the result. All broadcast to ``acc``.
        """

    def recoded(self, levels: jax.Array, numerators: Pair, onto: Onto) -> jax.Array:
        """Codes on one grid from codes on another, less their zero point: int32."""
        return self.rescaled(levels, numerators, onto)

    def sum(self, terms: Sequence[Term], onto: Onto) -> jax.Array | None:
        """int8 codes of the sum of two coded tensors where a runtime has its own way; None: in real numbers.

        Args:
          terms: the two tensors.
          onto: the grid of the result.
        """
        return None

    def mean(
        self, sums: jax.Array, count: int, zeros: jax.Array | int, scale: jax.Array, onto: Onto
    ) -> jax.Array | None:
        """int8 codes of the means of codes where a runtime has its own way; None: as of a product.

        Args:
          sums: of ``count`` codes each, less their zero points: int32.
          count: at most 2**16.
          zeros: the zero point of each of these codes.
          scale: the positive float32 scale of these codes.
          onto: the grid of the result.
        """
        return None

    def nearest(self, x: jax.Array) -> jax.Array:
        """The int32 numbers nearest to real ones, saturating."""
        return jnp.round(jnp.clip(x, -(2.0**30), 2.0**30)).astype(jnp.int32)

    def of_real(
        self, x: jax.Array, zero_point: jax.Array | int, low: jax.Array | int, high: jax.Array | int
    ) -> jax.Array:
        """int8 codes of real numbers that have been divided by the scale of the result."""
        return jnp.clip(saturating(self.nearest(x), zero_point), low, high).astype(jnp.int8)

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
        return self.rescaled(acc, numerators, Onto(denominator, zero_point, low, high), offset)

    def rescaled(self, acc: jax.Array, numerators: Pair, onto: Onto, offset: jax.Array | None = None) -> jax.Array:
        """As a call, with the grid of the result in one argument: what a rule with another way overrides."""
        denominator, zero_point, low, high = onto
        if offset is not None:
            whole, rest = IntegerBias().split(offset, numerators, denominator)
            acc, zero_point = saturating(acc, whole), self.nearest(rest) + zero_point
        codes = self.scaled(acc, numerators, denominator)
        return jnp.clip(saturating(codes, zero_point), low, high).astype(jnp.int8)


def saturating(a: jax.Array, b: jax.Array | int) -> jax.Array:
    """The int32 sum of a number and one of at most 2**30."""
    return jnp.clip(a, -(2**30) + 1, 2**30 - 1) + jnp.clip(b, -(2**30), 2**30)


def float_multiplier(numerators: Pair, denominator: jax.Array) -> jax.Array:
    """The factor from accumulators to codes."""
    return quotient(numerators[0] * numerators[1], denominator)
