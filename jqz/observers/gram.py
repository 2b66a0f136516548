"""Products of channels with each other."""

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
class Gram(Observer):
    """X^T X of the rows that meet a weight: what second-order rounding of weights (GPTQ) needs.

    ``x`` counts as rows of channels along its last axis, as a dot reads them; ``products`` is float32 of shape
    (channels, channels), computed at the highest precision. For a convolution the channels are those of the
    image, not of its patches. It says nothing about ranges: ``calibrate`` refuses it.

    Attributes:
      products: the sum over rows of x[i] * x[j].
      rows: how many there were; up to 2**32 - 1.

    >>> import jax.numpy as jnp, jqz
    >>> seen = jqz.observers.Gram().update(jnp.array([[1.0, 2.0], [0.0, 3.0]]))
    >>> seen.products.tolist(), int(seen.rows)
    ([[1.0, 2.0], [2.0, 13.0]], 2)

    References: arXiv:2210.17323.
    """

    products: typing.Any = dataclasses.field(default_factory=lambda: np.float32(0))
    rows: typing.Any = dataclasses.field(default_factory=lambda: np.uint32(0))

    def update(self, x: jax.Array) -> typing.Self:
        if not x.size:
            return self
        x = jnp.atleast_1d(x).astype(jnp.float32)
        x = x.reshape(-1, x.shape[-1])
        products = jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)
        return self.merge(type(self)(products, jnp.uint32(x.shape[0])))

    def merge(self, other: typing.Any) -> typing.Self:
        return type(self)(self.products + other.products, self.rows + other.rows)

    def limits(self, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
        raise ValueError(
            "Gram: products of channels say nothing about the range of values. Use observe(fn, policy, MinMax()) for "
            "the statistics that calibrate takes, and read Gram's from stats[site].observer.products."
        )
