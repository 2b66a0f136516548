"""Products of the inputs of a weight with each other."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from jqz._observer import Observer
from jqz._rows import Contraction
from jqz._scheme import Scheme


@typing.final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gram(Observer):
    """X^T X of the rows that meet a weight: what second-order rounding of weights (``jqz.algorithms.gptq``) needs.

    ``observe`` shows it the rows of the matrix that a product is: for a convolution its patches, window first, then
    channels. ``products`` is float32 of shape (terms, terms), where a sum of the product has so many terms, computed at
    the highest precision; (groups, terms, terms) for a grouped convolution. A plain array counts as rows along its
    last axis. It says nothing about ranges: ``calibrate`` refuses it.

    Attributes:
      products: the sum over rows of x[i] * x[j].
      rows: how many there were; up to 2**32 - 1.
      contraction: how the weight is a matrix that rows of these terms multiply; None where that is not known, as
        for plain arrays.

    >>> import jax.numpy as jnp, jqz
    >>> seen = jqz.observers.Gram().update(jnp.array([[1.0, 2.0], [0.0, 3.0]]))
    >>> seen.products.tolist(), int(seen.rows)
    ([[1.0, 2.0], [2.0, 13.0]], 2)

    References: arXiv:2210.17323.
    """

    products: typing.Any = dataclasses.field(default_factory=lambda: np.float32(0))
    rows: typing.Any = dataclasses.field(default_factory=lambda: np.uint32(0))
    contraction: Contraction | None = dataclasses.field(default=None, metadata={"static": True})
    by_rows = True

    def update(self, x: jax.Array) -> typing.Self:
        x = jnp.atleast_1d(x)
        return self.update_rows(x.reshape(1, -1, x.shape[-1]), self.contraction) if x.size else self

    def update_rows(self, x: jax.Array, contraction: Contraction | None) -> typing.Self:
        x = x.astype(jnp.float32)
        products = jnp.einsum("grt,gru->gtu", x, x, precision=jax.lax.Precision.HIGHEST)
        products = products if x.shape[0] > 1 else products[0]
        return self.merge(type(self)(products, jnp.uint32(x.shape[1]), contraction))

    def merge(self, other: typing.Any) -> typing.Self:
        contraction = other.contraction if self.contraction is None else self.contraction
        return type(self)(self.products + other.products, self.rows + other.rows, contraction)

    def limits(self, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
        raise ValueError(
            "Gram: products of channels say nothing about the range of values. Use observe(fn, policy, MinMax()) for "
            "the statistics that calibrate takes, and read Gram's from stats[site].observer.products."
        )
