"""A share of what was seen."""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from jqz._histogram import Histogram
from jqz._observer import about_zero
from jqz._scheme import Scheme


@typing.final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Percentile(Histogram):
    """Covers this percentage of the values on either side (of the magnitudes, for a grid about zero).

    A limit lies within one bin of the percentile of all values seen; ``bins`` (see below) count from the negative
    largest magnitude, rounded up to a power of two, to the positive. Where the share leaves nothing but zero, it
    covers every value.

    Use it where a few outliers stretch the range: 99.99 at 8 bits, 99.9 below. ``MSE`` finds the share by itself.

    Args:
      percent: more than 50 and at most 100.
      bins: of the histogram, a power of two from 16.

    Raises:
      ValueError: ``percent`` or ``bins`` is no such number.

    >>> import jax.numpy as jnp, jqz
    >>> seen = jqz.observers.Percentile(99.0).update(jnp.arange(1000.0))
    >>> [round(float(limit)) for limit in seen.limits(jqz.Asymmetric())]
    [10, 990]

    References: arXiv:2004.09602, section 5.3.
    """

    percent: float = dataclasses.field(default=99.99, metadata={"static": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 50 < self.percent <= 100:
            raise ValueError(f"Percentile: got percent={self.percent!r}, wanted more than 50 and at most 100.")

    def limits(self, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
        counts, half = self.at(self.exponent), self.bins // 2
        magnitude = self._above(self.magnitudes())
        low = jnp.where(about_zero(scheme), -magnitude, half - self._above(counts[::-1]))
        high = jnp.where(about_zero(scheme), magnitude, self._above(counts) - half)
        nothing = (low >= -1) & (high <= 1)
        low, high = (jnp.where(nothing, sign * jnp.inf, self.width * x) for sign, x in ((-1, low), (1, high)))
        return self.sound(low, high)

    def _above(self, counts: jax.Array) -> jax.Array:
        """Where in units of bins all but the share lies below, between the ends of a bin in proportion."""
        above = jnp.append(jnp.cumsum(counts[::-1].astype(jnp.float32))[::-1], 0)
        allowed = above[0] * ((100 - self.percent) / 100)
        index = jnp.maximum(jnp.argmax(above <= allowed), 1)
        within = (allowed - above[index]) / jnp.maximum(above[index - 1] - above[index], 1)
        return index.astype(jnp.float32) - within
