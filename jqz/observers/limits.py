"""The extremes of what was seen."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from jqz._observer import Observer, extremes, higher, lower
from jqz._scheme import Scheme


@typing.final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AbsMax(Observer):
    """The largest magnitude.

    >>> import jax.numpy as jnp, jqz
    >>> seen = jqz.observers.AbsMax().update(jnp.array([-2.0, 1.0])).merge(jqz.observers.AbsMax().update(jnp.ones(3)))
    >>> float(seen.high)
    2.0
    """

    high: typing.Any = dataclasses.field(default_factory=lambda: np.float32(-np.inf))

    def update(self, x: jax.Array) -> typing.Self:
        return type(self)(higher(self.high, extremes(jnp.abs(x))[1]))

    def merge(self, other: typing.Any) -> typing.Self:
        return type(self)(higher(self.high, other.high))

    def limits(self, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
        return -self.high, self.high


@typing.final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MinMax(Observer):
    """The smallest and the largest value: nothing seen in calibration clips. The default; best at 8 bits.

    >>> import jax.numpy as jnp, jqz
    >>> seen = jqz.observers.MinMax().update(jnp.array([-2.0, 1.0])).update(jnp.array([4.0]))
    >>> float(seen.low), float(seen.high)
    (-2.0, 4.0)
    """

    low: typing.Any = dataclasses.field(default_factory=lambda: np.float32(np.inf))
    high: typing.Any = dataclasses.field(default_factory=lambda: np.float32(-np.inf))

    def update(self, x: jax.Array) -> typing.Self:
        low, high = extremes(x)
        return type(self)(lower(self.low, low), higher(self.high, high))

    def merge(self, other: typing.Any) -> typing.Self:
        return type(self)(lower(self.low, other.low), higher(self.high, other.high))

    def limits(self, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
        return self.low, self.high
