"""The range with the least squared error on what was seen."""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jqz._histogram import Histogram
from jqz._observer import about_zero, covering
from jqz._scheme import Scheme


@typing.final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MSE(Histogram):
    """The clip with the least mean squared error of the scheme itself, among ``candidates`` for each end.

    Each bin's values stand at its middle: the error of a grid with steps of several bins is that of the values. The
    shares of the full range are 2**(-4 u**2) for u from 0 to 1, as those of ``jqz.ranges.MSE``. A grid that is
    not about zero has two ends; its upper, lower and upper end are searched in turn.

    Use it below 8 bits, where rounding costs more than clipping a few outliers. It works for every scheme.

    Args:
      candidates: shares to try.
      bins: of the histogram, a power of two from 16; more than ten for each step of the grid are plenty.

    Raises:
      ValueError: ``candidates`` is not positive, or ``bins`` no power of two.

    >>> import jax, jqz
    >>> x = jax.random.normal(jax.random.key(0), (10000,))
    >>> low, high = jqz.observers.MSE().update(x).limits(jqz.Symmetric(bits=4))
    >>> bool(2.2 < high < 2.8)
    True

    References: arXiv:2106.08295, section 3.1.
    """

    candidates: int = dataclasses.field(default=80, metadata={"static": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < 1:
            raise ValueError(f"MSE: got candidates={self.candidates!r}, wanted a positive integer. Use MSE(80).")

    def limits(self, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
        scheme, half = covering(scheme), self.bins // 2
        middles = (jnp.arange(self.bins, dtype=jnp.float32) - (half - 0.5)) * self.width
        unit = jnp.ldexp(jnp.float32(1), -self.exponent) / half  # errors near 1: their squares could overflow
        weights = self.counts.astype(jnp.float32)
        shares = jnp.asarray(2 ** (-4 * np.linspace(0, 1, self.candidates) ** 2), jnp.float32)

        def error(low: jax.Array, high: jax.Array) -> jax.Array:
            grid = scheme.calibrate(jnp.stack([low, high]))
            off = scheme.decode(scheme.encode(middles, grid), grid) * unit - middles * unit
            return jnp.sum(weights * off**2)

        def best(error: Callable[[jax.Array], jax.Array]) -> jax.Array:
            return shares[jnp.argmin(jax.lax.map(error, shares))]

        # a grid about zero ignores the lower end once it is 0
        magnitude = jnp.maximum(-self.low, self.high)
        bottom = jnp.where(about_zero(scheme), 0, self.low)
        top = jnp.where(about_zero(scheme), magnitude, self.high)
        high = top * best(lambda share: error(bottom, top * share))
        low = bottom * best(lambda share: error(bottom * share, high))
        high = top * best(lambda share: error(low, top * share))
        ok = jnp.isfinite(self.low) & jnp.isfinite(self.high)
        return jnp.where(ok, low, jnp.nan), jnp.where(ok, high, jnp.nan)
