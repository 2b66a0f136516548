"""Mean and variance of what was seen."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from jqz._observer import Observer
from jqz._scheme import Scheme


@typing.final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments(Observer):
    """Count, mean and variance of each channel, and of all values together.

    Two statistics merge by Chan's formula, with d the difference of the means:
    squares = squares_a + squares_b + d**2 n_a n_b / (n_a + n_b), where squares sum the squared distances from
    the mean; so a mean far from zero costs no precision. NaN and infinity make the statistics of their channel NaN.

    As a range it covers the mean and ``sigmas`` standard deviations on both sides: right for values that
    spread like a normal distribution, wrong after relu.

    Args:
      sigmas: standard deviations to cover.
      axis: that of the channels.

    Attributes:
      count: values seen of each channel; up to 2**32 - 1.
      mean: float32, one a channel.
      squares: sums of squared distances from the mean, one a channel.

    >>> import jax.numpy as jnp, jqz
    >>> seen = jqz.observers.Moments().update(jnp.array([[1.0, 10.0], [3.0, 10.0]]))
    >>> seen.mean.tolist(), seen.variance.tolist(), float(seen.total_mean), float(seen.total_variance)
    ([2.0, 10.0], [1.0, 0.0], 6.0, 16.5)

    References: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm, 1979.
    """

    sigmas: float = dataclasses.field(default=3.0, metadata={"static": True})
    axis: int = dataclasses.field(default=-1, metadata={"static": True}, kw_only=True)
    count: typing.Any = dataclasses.field(default_factory=lambda: np.uint32(0), kw_only=True)
    mean: typing.Any = dataclasses.field(default_factory=lambda: np.float32(0), kw_only=True)
    squares: typing.Any = dataclasses.field(default_factory=lambda: np.float32(0), kw_only=True)

    @property
    def variance(self) -> jax.Array:
        """The mean squared distance from the mean of each channel; 0 where nothing was seen."""
        return self.squares / jnp.maximum(self.count, 1).astype(jnp.float32)

    @property
    def total_mean(self) -> jax.Array:
        """The mean of all values."""
        return jnp.mean(self.mean)

    @property
    def total_variance(self) -> jax.Array:
        """The variance of all values: that within channels and that of their means."""
        return jnp.mean(self.variance) + jnp.var(self.mean)

    def update(self, x: jax.Array) -> typing.Self:
        if not x.size:
            return self
        x = jnp.moveaxis(jnp.atleast_1d(x).astype(jnp.float32), self.axis, -1)
        axes = tuple(range(x.ndim - 1))
        mean = jnp.mean(x, axis=axes, keepdims=True)
        squares = jnp.sum((x - mean) ** 2, axis=axes)
        seen = {"count": jnp.uint32(x.size // x.shape[-1]), "mean": mean.reshape(squares.shape), "squares": squares}
        return self.merge(dataclasses.replace(self, **seen))

    def merge(self, other: typing.Any) -> typing.Self:
        count = self.count + other.count
        mine, its = (jnp.asarray(n).astype(jnp.float32) for n in (self.count, other.count))
        total = jnp.maximum(mine + its, 1)
        apart = other.mean - self.mean
        return dataclasses.replace(
            self,
            count=count,
            mean=self.mean + apart * (its / total),
            squares=self.squares + other.squares + apart * (apart * (mine / total * its)),
        )

    def limits(self, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
        spread = self.sigmas * jnp.sqrt(self.total_variance)
        ok = self.count > 0
        return (
            jnp.where(ok, self.total_mean - spread, jnp.nan),
            jnp.where(ok, self.total_mean + spread, jnp.nan),
        )
