"""Integer results whose rescaling waits until it is known what they are rounded to.

An integer product is an int32 accumulator times real scales. Adding a bias, subtracting a mean or multiplying by
a normalization only changes the scales and an offset, relu and clip only set bounds, and whatever moves values
moves their codes as well. So all of these wait, and the next product that reads the value rescales once, by
a rule of ``jqz.requant``. Whoever needs numbers gets them, in float32, once.
"""

import abc
import dataclasses
import functools
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jqz._fixed_point import shift_half_away
from jqz._rescaling import Long, Onto, Pair, Requant, Term
from jqz._rounding import rounded_product
from jqz._scheme import quotient
from jqz._values import Activation, Levels, Pending, Value

#: Fraction bits of the fixed-point numbers in which integers with different scales are added.
FRACTION = 16
#: No fixed-point number is larger, so that two of them can be added in int32.
LIMIT = 2**28


@dataclasses.dataclass(frozen=True)
class Target:
    """The grid that a value is rounded to; arrays are scalars."""

    rule: Requant
    scale: jax.Array
    zero_point: jax.Array
    low: jax.Array
    high: jax.Array

    @property
    def onto(self) -> Onto:
        """The grid alone."""
        return Onto(self.scale, self.zero_point, self.low, self.high)

    def of_real(self, x: jax.Array) -> jax.Array:
        """int8 codes of real numbers."""
        return _of_real(self.rule, x, self.scale, self.zero_point, self.low, self.high)


@functools.partial(jax.jit, static_argnums=0, inline=True)  # traced once for a shape
def _of_real(rule: Requant, x: jax.Array, scale: jax.Array, *bounds: jax.Array) -> jax.Array:
    return rule.of_real(quotient(x, scale), *bounds)


@dataclasses.dataclass(frozen=True, eq=False)
class Waiting(Pending, abc.ABC):
    """A value as an expression of integers; ``aval`` has its shape and dtype."""

    aval: typing.Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.aval.shape

    @property
    def dtype(self) -> typing.Any:
        return self.aval.dtype

    @functools.cached_property
    @abc.abstractmethod
    def real(self) -> jax.Array:
        """The value in float32."""

    @abc.abstractmethod
    def codes(self, target: Target) -> jax.Array:
        """int8 codes of the value."""

    @abc.abstractmethod
    def fixed(self, rule: Requant, unit: jax.Array) -> jax.Array:
        """The value in multiples of ``unit``, a scalar: int32, at most ``LIMIT``."""

    def rounded(self, target: Target) -> jax.Array:
        """Codes by way of the real value, or in fixed point where the rule is for integers only."""
        if not target.rule.integer:
            return target.of_real(self.real)
        levels = shift_half_away(self.fixed(target.rule, target.scale * 2.0**-FRACTION), jnp.int32(FRACTION))
        return jnp.clip(levels + target.zero_point, target.low, target.high).astype(jnp.int8)

    def decode(self) -> jax.Array:
        return self.real.astype(self.dtype)

    @property
    def known(self) -> bool:
        """Whether its numbers have been asked for."""
        return "real" in self.__dict__


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Integers, or a value that waits, times two scales that broadcast to them."""

    integers: jax.Array | Waiting | Long
    scales: Pair

    @property
    def numbers(self) -> jax.Array:
        """The integers as real numbers."""
        dtype = self.scales[0].dtype
        if isinstance(self.integers, Long):
            return self.integers.high.astype(dtype) * 2**8 + self.integers.low.astype(dtype)
        return self.integers.real if isinstance(self.integers, Waiting) else self.integers.astype(dtype)

    def times(self, factor: jax.Array) -> "Part":
        return dataclasses.replace(self, scales=(self.scales[0], self.scales[1] * factor))

    def over(self, unit: jax.Array) -> "Part":
        first, second = self.scales
        return Part(self.integers, (quotient(first * second, unit), jnp.ones_like(second)))


@dataclasses.dataclass(frozen=True, eq=False)
class OfCodes(Part):
    """The codes of a tensor, less their zero point: at most 255 in magnitude, with one scale."""

    zero_point: jax.Array


def _term(part: Part) -> Term:
    assert isinstance(part, OfCodes)
    assert not isinstance(part.integers, Waiting | Long)
    return Term(part.integers, part.scales[0] * part.scales[1], part.zero_point)


@dataclasses.dataclass(frozen=True, eq=False)
class OfSums(Part):
    """Sums of so many codes of a tensor each, less their zero points, with one scale."""

    count: int
    zero_point: jax.Array

    def times(self, factor: jax.Array) -> Part:
        return Part(self.integers, self.scales).times(factor)

    def over_count(self) -> "OfMeans":
        ones = jnp.ones_like(self.scales[1])
        return OfMeans(self.integers, (self.scales[0], ones / self.count), self.count, self.zero_point)


@dataclasses.dataclass(frozen=True, eq=False)
class OfMeans(OfSums):
    """The same sums, of which each stands for a mean."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scaled(Waiting):
    """The sum of its parts and of an offset, which broadcasts to the shape."""

    parts: tuple[Part, ...]
    offset: jax.Array | None = None
    #: The tensor of codes that this is, if it is one as it stands.
    origin: Activation | None = None

    @functools.cached_property
    def real(self) -> jax.Array:
        total = None
        for part in self.parts:
            term = part.numbers * (part.scales[0] * part.scales[1])
            total = term if total is None else total + term
        assert total is not None
        return total if self.offset is None else total + self.offset

    def codes(self, target: Target) -> jax.Array:
        first, *more = self.parts
        if not more and not isinstance(first.integers, Waiting):
            acc = typing.cast(jax.Array, first.integers)  # or sums of 64 bits, under the rule for these
            if isinstance(first, OfMeans) and self.offset is None:
                scale = first.scales[0]
                codes = target.rule.mean(acc, first.count, first.zero_point, scale, target.onto)
                if codes is not None:
                    return codes
            if isinstance(first, OfCodes) and self.offset is None:
                return target.rule.recoded(acc, first.scales, target.onto)
            return target.rule.rescaled(acc, first.scales, target.onto, self.offset)
        if self.offset is None and all(isinstance(part, OfCodes) and part.scales[1].size == 1 for part in self.parts):
            codes = target.rule.sum([_term(part) for part in self.parts], target.onto)
            if codes is not None:
                return codes
        if target.rule.integer or self.known:
            return self.rounded(target)
        # in units of the result, so that every part is multiplied once
        parts = tuple(part.over(target.scale) for part in self.parts)
        offset = None if self.offset is None else quotient(self.offset, target.scale)
        return target.rule.of_real(Scaled(self.aval, parts, offset).real, *target.onto[1:])

    def fixed(self, rule: Requant, unit: jax.Array) -> jax.Array:
        total = _multiples(self.offset, unit) if self.offset is not None else jnp.int32(0)
        for part in self.parts:
            integers, (first, second) = part.integers, part.scales
            if not isinstance(integers, Waiting):
                term = rule.scaled(typing.cast(jax.Array, integers), (first, second), unit)
            elif first.size == second.size == 1:
                scale = (first * second).reshape(())
                term = integers.fixed(rule, unit / jnp.abs(scale)) * jnp.sign(scale).astype(jnp.int32)
            else:  # another scale for every channel, of what has been bounded or summed already
                term = _multiples(integers.real * (first * second), unit)
            total = jnp.clip(total + jnp.clip(term, -LIMIT, LIMIT), -LIMIT, LIMIT)
        return total

    def times(self, factor: jax.Array) -> "Scaled":
        """The value times real numbers that broadcast to it."""
        parts = tuple(part.times(factor) for part in self.parts)
        offset = None if self.offset is None else rounded_product(self.offset, factor)
        return dataclasses.replace(self, parts=parts, offset=offset, origin=None)

    def plus(self, offset: jax.Array | None, parts: tuple[Part, ...] = ()) -> "Scaled":
        """The value and these."""
        if offset is not None and self.offset is not None:
            offset = self.offset + offset
        both = (*self.parts, *parts)
        return dataclasses.replace(self, parts=both, offset=self.offset if offset is None else offset, origin=None)


@dataclasses.dataclass(frozen=True, eq=False)
class Bounded(Waiting):
    """A value clipped to real bounds, which broadcast to it."""

    inner: Waiting
    low: jax.Array | None
    high: jax.Array | None

    @functools.cached_property
    def real(self) -> jax.Array:
        return self._clip(self.inner.real, lambda bound: bound)

    def _clip(self, x: jax.Array, form: Callable[[jax.Array], jax.Array]) -> jax.Array:
        x = x if self.low is None else jnp.maximum(x, form(self.low))
        return x if self.high is None else jnp.minimum(x, form(self.high))

    def codes(self, target: Target) -> jax.Array:
        bounds = [target.low, target.high]
        for i, bound in enumerate((self.low, self.high)):
            if bound is not None and bound.size == 1:
                bounds[i] = target.of_real(bound.reshape(())).astype(jnp.int32)
        codes = self.inner.codes(dataclasses.replace(target, low=bounds[0], high=bounds[1]))
        wide = all(bound is None or bound.size == 1 for bound in (self.low, self.high))
        return codes if wide else self._clip(codes, target.of_real)

    def fixed(self, rule: Requant, unit: jax.Array) -> jax.Array:
        return self._clip(self.inner.fixed(rule, unit), lambda bound: _multiples(bound, unit))


@dataclasses.dataclass(frozen=True, eq=False)
class Moved(Waiting):
    """Values moved or chosen by ``move``, which does the same with codes; a maximum of some of them counts as such."""

    inners: tuple[Waiting, ...]
    move: Callable[..., jax.Array]

    @functools.cached_property
    def real(self) -> jax.Array:
        return self.move(*(inner.real for inner in self.inners))

    def codes(self, target: Target) -> jax.Array:
        return self.move(*(inner.codes(target) for inner in self.inners))

    def fixed(self, rule: Requant, unit: jax.Array) -> jax.Array:
        return self.move(*(inner.fixed(rule, unit) for inner in self.inners))


@dataclasses.dataclass(frozen=True, eq=False)
class Summed(Waiting):
    """Sums of so many ``terms`` each, by ``sums``, which adds floats and int32 alike."""

    inner: Waiting
    terms: int
    sums: Callable[[jax.Array], jax.Array]

    @functools.cached_property
    def real(self) -> jax.Array:
        return self.sums(self.inner.real)

    def codes(self, target: Target) -> jax.Array:
        return self.rounded(target)

    def fixed(self, rule: Requant, unit: jax.Array) -> jax.Array:
        limit = max(LIMIT // max(self.terms, 1), 1)
        return self.sums(jnp.clip(self.inner.fixed(rule, unit), -limit, limit))


@dataclasses.dataclass(frozen=True, eq=False)
class Constant(Waiting):
    """Numbers, where an expression needs them beside integers."""

    numbers: jax.Array

    @functools.cached_property
    def real(self) -> jax.Array:
        return self.numbers.astype(jnp.float32)

    def codes(self, target: Target) -> jax.Array:
        return target.of_real(self.real)

    def fixed(self, rule: Requant, unit: jax.Array) -> jax.Array:
        return _multiples(self.real, unit)


def _multiples(x: jax.Array, unit: jax.Array) -> jax.Array:
    return jnp.round(jnp.clip(x / unit, -LIMIT, LIMIT)).astype(jnp.int32)


def product(acc: jax.Array | Long, scales: Pair, dtype: typing.Any) -> Scaled:
    """What an int32 accumulator stands for."""
    shape = acc.low.shape if isinstance(acc, Long) else acc.shape
    return Scaled(jax.ShapeDtypeStruct(shape, dtype), (Part(acc, scales),))


def together(high: Scaled, low: Scaled) -> Scaled:
    """A product from those of the halves of its codes: ``2**8 * high + low``."""
    (above,), (below,) = high.parts, low.parts
    assert isinstance(above.integers, jax.Array)
    assert isinstance(below.integers, jax.Array)
    return product(Long(above.integers, below.integers), below.scales, low.dtype)


def waiting(value: Value) -> Waiting | None:
    """The value as an expression of integers, or None where it has no such form."""
    if isinstance(value, Waiting):
        return value
    if isinstance(value, Activation) and isinstance(value.original, Activation):
        return waiting(value.original)
    if not isinstance(value, Activation) or value.original is not None or not isinstance(value.rounded, Levels):
        return None
    levels = value.rounded
    if levels.scale.size != 1 or levels.dtype != jnp.float32:
        return None
    integers, zero_point = levels.levels.astype(jnp.int32), levels.zero_point
    if zero_point is None:
        zero_point = jnp.int32(0)
    else:
        integers = integers - zero_point
    one = jnp.ones((1,) * levels.ndim, jnp.float32)
    part = OfCodes(integers, (levels.scale, one), zero_point.reshape(()))
    aval = jax.ShapeDtypeStruct(levels.shape, levels.dtype)
    return Scaled(aval, (part,), origin=value)


def moved_codes(value: Waiting, rule: Requant) -> Activation | None:
    """The value as codes on the grid of the one tensor whose codes it moves; None where it is anything else."""
    source = _origin(value)
    if source is None:
        return None
    levels = source.rounded
    zero_point = jnp.int32(0) if levels.zero_point is None else levels.zero_point.reshape(())
    end = 1 << (levels.limit - 1).bit_length()  # of the type: what moves here is within the grid
    codes = value.codes(Target(rule, levels.scale.reshape(()), zero_point, jnp.int32(-end), jnp.int32(end - 1)))
    scale, zero = (None if a is None else a.reshape((1,) * codes.ndim) for a in (levels.scale, levels.zero_point))
    return Activation(
        None, dataclasses.replace(levels, levels=codes, scale=scale, zero_point=zero), source.scheme, source.path
    )


def _origin(value: Waiting) -> Activation | None:
    if isinstance(value, Scaled):
        return value.origin
    if not isinstance(value, Moved):
        return None
    sources = [_origin(inner) for inner in value.inners if not isinstance(inner, Constant)]
    return sources[0] if len({id(source) for source in sources}) == 1 else None
