"""Levels at the quantiles of a normal distribution."""

import functools
import statistics
import typing

import jax
import jax.numpy as jnp
import numpy as np

from jqz import _levels, _scheme
from jqz._granularity import Granularity
from jqz._input_groups import PerInputGroup
from jqz._ranges import AbsMax, Range
from jqz._scheme import ScaleGrid, Scheme

#: The published levels of NF4, to the last bit of float32.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@functools.cache
def normal_levels(bits: int) -> tuple[float, ...]:
    """The 2**bits levels of a normal float, from -1 to 1, rounded to float32.

    With n = 2**bits: n / 2 quantiles of N(0, 1) above zero, n / 2 - 1 below, and zero itself, each side evenly
    spaced in probability from 1/2 to 1 - (1 / (2 n) + 1 / (2 (n - 1))) / 2, all divided by the largest.

    >>> [round(level, 3) for level in normal_levels(3)]
    [-1.0, -0.535, -0.247, 0.0, 0.183, 0.382, 0.623, 1.0]
    """
    if bits == 4:
        return NF4
    n = 2**bits
    last = 1 - (1 / (2 * n) + 1 / (2 * (n - 1))) / 2
    quantile = statistics.NormalDist().inv_cdf

    def side(count: int) -> list[float]:
        return [quantile(0.5 + (last - 0.5) * i / count) / quantile(last) for i in range(1, count + 1)]

    below = [-level for level in reversed(side(n // 2 - 1))]
    return tuple(float(np.float32(level)) for level in (*below, 0.0, *side(n // 2)))


@_scheme.scheme
class NormalFloat(Scheme):
    """One of 2**bits quantiles of a normal distribution, times one scale a block: x ~ scale * level[code].

    code = argmin |x / scale - level|, scale = max |x| of the block. Levels are dense about zero, where most
    weights are; zero and the largest magnitude are exact (of negative values too: -1 is a level). The error is
    at most half the widest gap, 0.152 * scale at 4 bits. All-zero blocks get scale 1.

    Use it for weights at 4 bits that are decoded before they are used: on Gaussian values in blocks of 64 it
    reaches 20.7 dB at 4.5 bits a weight, half a decibel more than integers in blocks of 32 at 5 bits. Not for
    integer kernels, whose products need evenly spaced levels; ``Codebook`` fits levels to the data instead.

    Args:
      bits: 2 to 8; codes are uint8. 4 gives the published NF4, others follow the same construction.
      granularity: which values share a scale; by default 64 along the input axis, as QLoRA has it. The scale is
        float32, so it adds 0.5 bits a weight.
      range: what magnitude level 1 stands for: ``AbsMax`` (the default), ``MSE``, ``Percentile``, ``Given``.

    Raises:
      ValueError: bits outside 2 to 8.

    >>> import jax.numpy as jnp, jqz
    >>> q = jqz.quantize(jnp.array([-2.0, 0.0, 0.3, 1.0]), jqz.NormalFloat(bits=4))
    >>> q.codes.tolist(), [round(v, 3) for v in jqz.dequantize(q).tolist()]
    ([0, 7, 9, 12], [-2.0, 0.0, 0.322, 0.881])

    References: QLoRA, arXiv:2305.14314.
    """

    bits: int = 4
    granularity: Granularity = PerInputGroup(64)
    range: Range = AbsMax()

    def __post_init__(self) -> None:
        _scheme.check_bits("NormalFloat", self.bits, 2, 8, "Use Binary() for one bit.")

    @property
    def code_dtype(self) -> typing.Any:
        return jnp.uint8

    def _levels(self, dtype: typing.Any) -> jax.Array:
        return jnp.asarray(np.array(normal_levels(self.bits)), dtype)

    def calibrate(self, x: jax.Array) -> ScaleGrid:
        x = x.astype(_scheme.work_dtype(x))
        levels = self._levels(x.dtype)

        def scale(blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            def fake(magnitude: jax.Array) -> jax.Array:
                unit = _unit(magnitude)
                return _levels.lookup(_levels.nearest(_scheme.quotient(blocks, unit), levels), levels) * unit

            return _unit(self.range.magnitude(blocks, axes, fake, 2 ** (self.bits - 1)))

        return ScaleGrid(self.granularity.reduce(scale, x))

    def encode(self, x: jax.Array, grid: ScaleGrid) -> jax.Array:
        scale = self.granularity.expand(grid.scale, x.shape)
        return _levels.nearest(_scheme.quotient(x.astype(scale.dtype), scale), self._levels(scale.dtype))

    def decode(self, codes: jax.Array, grid: ScaleGrid) -> jax.Array:
        scale = self.granularity.expand(grid.scale, codes.shape)
        return _levels.lookup(codes, self._levels(scale.dtype)) * scale

    @property
    def clips(self) -> bool:  # type: ignore[override]
        return not isinstance(self.range, AbsMax)

    def slope(self, x: jax.Array, grid: ScaleGrid) -> jax.Array | None:
        scale = self.granularity.expand(grid.scale, x.shape)
        return (jnp.abs(x) <= scale).astype(x.dtype)


def _unit(magnitude: jax.Array) -> jax.Array:
    return jnp.where(magnitude < _scheme.TINY, 1, magnitude).astype(magnitude.dtype)
