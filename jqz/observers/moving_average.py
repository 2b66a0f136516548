"""Extremes smoothed over batches."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from jqz._observer import Observer, extremes
from jqz._scheme import Scheme


def _zero() -> typing.Any:
    return dataclasses.field(default_factory=lambda: np.float32(0), kw_only=True)


@typing.final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EMA(Observer):
    """Smallest and largest value of each batch, averaged exponentially over the batches.

    average <- decay * average + (1 - decay) * batch, starting at the first batch. Each ``update`` is a batch.
    ``merge`` is the average over this statistic's batches followed by the other's, exactly: of n batches
    it needs the average and the first value, a.merge(b) = b + decay**n_b * (a - first_b). It is associative, but
    the order of batches counts, so it is not commutative.

    Use it for ranges that training moves, where old batches should be forgotten, and where single outlying batches
    should count little. For calibration of a fixed model ``Percentile`` and ``MSE`` look at values, not at batches.

    Args:
      decay: the weight of the past, at least 0 and below 1. With n batches, choose about 1 - 3 / n or less.

    Raises:
      ValueError: ``decay`` outside [0, 1).

    >>> import jax.numpy as jnp, jqz
    >>> seen = jqz.observers.EMA(decay=0.5).update(jnp.array([-1.0, 4.0])).update(jnp.array([0.0, 8.0]))
    >>> float(seen.low), float(seen.high)
    (-0.5, 6.0)

    References: arXiv:1712.05877, section 3.1.
    """

    decay: float = dataclasses.field(default=0.9, metadata={"static": True})
    low: typing.Any = _zero()
    high: typing.Any = _zero()
    first_low: typing.Any = _zero()
    first_high: typing.Any = _zero()
    batches: typing.Any = dataclasses.field(default_factory=lambda: np.int32(0), kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"EMA: got decay={self.decay!r}, wanted at least 0 and less than 1. Use EMA(decay=0.9).")

    def update(self, x: jax.Array) -> typing.Self:
        if not x.size:
            return self
        low, high = extremes(x)
        return self.merge(EMA(self.decay, low=low, high=high, first_low=low, first_high=high, batches=jnp.int32(1)))

    def merge(self, other: typing.Any) -> typing.Self:
        past = jnp.float32(self.decay) ** jnp.asarray(other.batches).astype(jnp.float32)
        none = self.batches == 0

        def average(mine: typing.Any, other: typing.Any, first: typing.Any) -> jax.Array:
            return jnp.where(none, other, other + past * (mine - first))

        return dataclasses.replace(
            self,
            low=average(self.low, other.low, other.first_low),
            high=average(self.high, other.high, other.first_high),
            first_low=jnp.where(none, other.first_low, self.first_low),
            first_high=jnp.where(none, other.first_high, self.first_high),
            batches=self.batches + other.batches,
        )

    def limits(self, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
        return jnp.where(self.batches, self.low, jnp.inf), jnp.where(self.batches, self.high, -jnp.inf)
