"""Is a tensor rounded as well as its distribution allows?"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from jqz._samples import float64
from jqz._scheme import Scheme
from jqz.schemes import TRACED_BITS


@typing.final
@dataclasses.dataclass(frozen=True)
class SQNR:
    """Signal to quantization noise of a tensor, and what a scheme gives on tensors that are alike, in dB.

    Attributes:
      measured_db: of the tensor.
      gaussian_db: predicted, were its values Gaussian.
      laplace_db: predicted, were they Laplace: heavier tails.
    """

    measured_db: float
    gaussian_db: float
    laplace_db: float

    @property
    def surprise_db(self) -> float:
        """How far the measurement is outside what both predict: negative for worse, 0 in between.

        Below -3 dB look for outliers: clip the range or use a finer granularity. Above 3 dB the values lie on few
        levels already, or are bounded.
        """
        low, high = sorted((self.gaussian_db, self.laplace_db))
        if low <= self.measured_db <= high:
            return 0.0
        return self.measured_db - (low if self.measured_db < low else high)


def sqnr_db(values: typing.Any, rounded: typing.Any) -> float:
    """10 log10(sum(values**2) / sum((values - rounded)**2)): infinite where nothing is lost.

    Raises:
      ValueError: shapes differ, or arrays are empty or not finite.

    >>> from jqz.analysis import sqnr_db
    >>> sqnr_db([3.0, 4.0], [3.0, 3.5])
    20.0
    """
    w, r = float64("sqnr_db", values), float64("sqnr_db", rounded)
    if w.shape != r.shape:
        raise ValueError(f"sqnr_db: got shapes {w.shape} and {r.shape}. Use sqnr_db(x, fake_quantize(x, scheme)).")
    signal, noise = np.sum(w**2), np.sum((w - r) ** 2)
    if noise == 0:
        return math.inf
    return float(10 * np.log10(signal / noise)) if signal else -math.inf


def sqnr(values: typing.Any, scheme: Scheme, seed: int = 0) -> SQNR:
    """Measures the SQNR of a tensor under a scheme, and predicts it from the scheme and the shape alone.

    The prediction rounds Gaussian and Laplace samples of the tensor's shape, whose blocks have the spread of the
    tensor's own blocks; so it holds for every scheme, codebooks and chains included.

    Args:
      values: floating values.
      scheme: any scheme.
      seed: of the samples.

    Raises:
      ValueError: ``values`` are empty or not finite, or the scheme does not fit their shape.

    >>> import jax, jqz
    >>> from jqz.analysis import sqnr
    >>> w = jax.random.normal(jax.random.key(1), (64, 64))
    >>> usual, spoilt = sqnr(w, jqz.Symmetric(bits=4)), sqnr(w.at[0, 0].set(30.0), jqz.Symmetric(bits=4))
    >>> abs(usual.surprise_db) < 1, spoilt.surprise_db < -6
    (True, True)
    """
    draws = np.random.default_rng(seed)
    shape, x = np.shape(values), jnp.asarray(float64("sqnr", values).astype(np.float32))
    like = [draw(size=shape).astype(np.float32) for draw in (draws.standard_normal, draws.laplace)]
    frame, bits = scheme, None
    if isinstance(scheme, TRACED_BITS):  # one program for all of a shape
        frame, bits = dataclasses.replace(typing.cast(typing.Any, scheme), bits=8), jnp.asarray(scheme.bits, jnp.int32)
    exact, rounded = _rounded(frame, bits, x, jnp.asarray(np.stack(like)))
    return SQNR(*map(sqnr_db, exact, rounded))


@functools.partial(jax.jit, static_argnums=0)
def _rounded(frame: Scheme, bits: jax.Array | None, x: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The tensor with samples whose blocks have its blocks' spread, and what they are rounded to."""
    scheme = frame if bits is None else dataclasses.replace(typing.cast(typing.Any, frame), bits=bits)
    deviation = scheme.granularity.reduce(lambda blocks, axes: jnp.std(blocks, axis=axes, keepdims=True), x)
    spread = jnp.broadcast_to(scheme.granularity.expand(deviation, x.shape), x.shape)
    exact = jnp.concatenate([x[None], like * spread[None]])
    return exact, jax.vmap(scheme.simulate)(exact)
