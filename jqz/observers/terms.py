"""The largest magnitude of each term of the sums that a weight makes."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from jqz._observer import Observer, higher
from jqz._rows import Contraction
from jqz._scheme import Scheme


@typing.final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TermMax(Observer):
    """The largest magnitude that meets each term of a weight's sum: which channels have outliers.

    ``observe`` shows it the rows of the matrix that a product is: for a convolution its patches, window first, then
    channels. ``high`` is float32 of shape (terms,); (groups, terms) for a grouped convolution. A plain array counts
    as rows along its last axis. As a range it is that of ``AbsMax``.

    Attributes:
      high: the largest magnitude of each term; NaN where one was not finite.
      contraction: how the weight is a matrix that rows of these terms multiply; None where that is not known.

    >>> import jax.numpy as jnp, jqz
    >>> jqz.observers.TermMax().update(jnp.array([[1.0, -2.0], [0.5, 1.0]])).high.tolist()
    [1.0, 2.0]

    References: arXiv:2211.10438.
    """

    high: typing.Any = dataclasses.field(default_factory=lambda: np.float32(-np.inf))
    contraction: Contraction | None = dataclasses.field(default=None, metadata={"static": True})
    by_rows = True

    def update(self, x: jax.Array) -> typing.Self:
        x = jnp.atleast_1d(x)
        return self.update_rows(x.reshape(1, -1, x.shape[-1]), self.contraction) if x.size else self

    def update_rows(self, x: jax.Array, contraction: Contraction | None) -> typing.Self:
        x = jnp.abs(x.astype(jnp.float32))
        high = jnp.where(jnp.all(jnp.isfinite(x), axis=1), jnp.max(x, axis=1), jnp.nan)
        return self.merge(type(self)(high if x.shape[0] > 1 else high[0], contraction))

    def merge(self, other: typing.Any) -> typing.Self:
        contraction = other.contraction if self.contraction is None else self.contraction
        return type(self)(higher(self.high, other.high), contraction)

    def limits(self, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
        high = jnp.max(self.high)
        high = jnp.where(jnp.any(jnp.isnan(self.high)), jnp.nan, high)
        return -high, high
