"""A histogram that grows by doubling, on which observers search for a range."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from jqz._observer import Observer, extremes, higher, lower

#: Bins are never narrower than the smallest normal number of float32.
LEAST = -126


@dataclasses.dataclass(frozen=True)
class Histogram(Observer):
    """Counts of values in a fixed number of bins of width 2**exponent, half of them below zero.

    The width is the least power of two at which everything seen fits. Bins of a wider histogram are unions of bins
    of a narrower one, so that growing moves counts and never splits them: the state depends on the values alone,
    bit for bit, whatever their order and batches. At least a quarter of the bins lie within the largest
    magnitude seen; an outlier coarsens the bins of all other values.

    Args:
      bins: a power of two, at least 16; the state is one uint32 a bin, which holds up to 2**32 - 1 values.

    Raises:
      ValueError: ``bins`` is no such number.
    """

    counts: typing.Any = dataclasses.field(default_factory=lambda: np.uint32(0), kw_only=True)
    exponent: typing.Any = dataclasses.field(default_factory=lambda: np.int32(LEAST), kw_only=True)
    low: typing.Any = dataclasses.field(default_factory=lambda: np.float32(np.inf), kw_only=True)
    high: typing.Any = dataclasses.field(default_factory=lambda: np.float32(-np.inf), kw_only=True)
    bins: int = dataclasses.field(default=4096, kw_only=True, metadata={"static": True})

    def __post_init__(self) -> None:
        if self.bins < 16 or self.bins & (self.bins - 1):
            name = type(self).__name__
            raise ValueError(f"{name}: got bins={self.bins!r}, wanted a power of two from 16. Use {name}(bins=4096).")

    @property
    def width(self) -> jax.Array:
        """The width of a bin."""
        return jnp.ldexp(jnp.float32(1), self.exponent)

    def at(self, exponent: jax.Array) -> jax.Array:
        """The counts in bins of width 2**exponent, which must not be less than they have."""
        half = self.bins // 2
        shift = jnp.minimum(exponent - self.exponent, 31)
        to = ((jnp.arange(self.bins, dtype=jnp.int32) - half) >> shift) + half
        return jnp.zeros(self.bins, jnp.uint32).at[to].add(self.counts)

    def update(self, x: jax.Array) -> typing.Self:
        low, high = extremes(x)
        x = x.astype(jnp.float32).ravel()
        sound, half = jnp.isfinite(x), self.bins // 2
        top = jnp.max(jnp.where(sound, jnp.abs(x), 0), initial=0)
        fitting = jnp.where(top > 0, jnp.frexp(top)[1] - (half.bit_length() - 1), LEAST)
        exponent = jnp.maximum(jnp.maximum(fitting, LEAST), self.exponent)
        index = jnp.floor(x * jnp.ldexp(jnp.float32(1), -exponent)).astype(jnp.int32)
        index = jnp.where((x < 0) & (index == 0), -1, index)  # a quotient that vanished is negative nevertheless
        index = jnp.where(sound, index + half, self.bins)
        counts = self.at(exponent).at[index].add(jnp.uint32(1), mode="drop")
        return dataclasses.replace(
            self, counts=counts, exponent=exponent, low=lower(self.low, low), high=higher(self.high, high)
        )

    def merge(self, other: typing.Any) -> typing.Self:
        exponent = jnp.maximum(self.exponent, other.exponent)
        return dataclasses.replace(
            self,
            counts=self.at(exponent) + other.at(exponent),
            exponent=exponent,
            low=lower(self.low, other.low),
            high=higher(self.high, other.high),
        )

    def magnitudes(self) -> jax.Array:
        """Counts of abs(x), in half as many bins from zero up."""
        counts, half = self.at(self.exponent), self.bins // 2
        return counts[half:] + counts[:half][::-1]

    def sound(self, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
        """These limits, within the extremes; NaN where something was not finite, or nothing was seen."""
        ok = jnp.isfinite(self.low) & jnp.isfinite(self.high)
        return (
            jnp.where(ok, jnp.maximum(low, self.low), jnp.nan),
            jnp.where(ok, jnp.minimum(high, self.high), jnp.nan),
        )
