"""Three levels: minus a scale, zero, plus a scale."""

import abc
import dataclasses
import typing

import jax
import jax.numpy as jnp

from jqz import _scheme
from jqz._granularity import Granularity, PerTensor
from jqz._scheme import Affine, Scheme


class Threshold(abc.ABC):
    """Below which magnitude a value becomes zero."""

    @abc.abstractmethod
    def choose(self, blocks: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """A magnitude typical of each block, ``axes`` kept with length 1, and the threshold."""


@typing.final
@dataclasses.dataclass(frozen=True)
class MeanFraction(Threshold):
    """fraction * mean(abs(w)); 0.7 is near the optimum for uniform and Gaussian weights (TWN)."""

    fraction: float = 0.7

    def __post_init__(self) -> None:
        _check(self, self.fraction)

    def choose(self, blocks: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        mean = _scheme.mean_magnitude(blocks, axes)
        return mean, self.fraction * mean


@typing.final
@dataclasses.dataclass(frozen=True)
class MaxFraction(Threshold):
    """fraction * max(abs(w)); trained ternary quantization takes 0.05."""

    fraction: float = 0.05

    def __post_init__(self) -> None:
        _check(self, self.fraction)

    def choose(self, blocks: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        top = jnp.max(jnp.abs(blocks), axis=axes, keepdims=True)
        return top, self.fraction * top


def _check(who: Threshold, fraction: typing.Any) -> None:
    # from 1 on, no value of a constant block exceeds the threshold
    if isinstance(fraction, int | float) and not 0 <= fraction < 1:
        name = type(who).__name__
        raise ValueError(f"{name}: got fraction={fraction!r}, wanted 0 <= fraction < 1. Use {type(who)()!r}.")


class TernaryGrid(typing.NamedTuple):
    """Magnitudes above ``threshold`` become ``scale``, others 0."""

    scale: jax.Array
    threshold: jax.Array


@_scheme.scheme
class Ternary(Scheme):
    """Minus a scale, zero, or plus a scale: x ~ scale * sign(x) if abs(x) > threshold else 0.

    threshold = 0.7 mean(abs(x)), scale = mean of the magnitudes above it, which is the scale with the least
    squared error for that threshold: sum(x**2) - (count above) * scale**2. Zero is exact; a block of zeros
    gets scale 1. The gradient passes unchanged.

    Use it in networks that are trained with it: three levels in 2 bits, a third or more of the weights 0,
    and 2.5 dB better than ``Binary``. ``Symmetric(bits=2, range=MSE())`` has the same levels and searches the clip.

    Args:
      granularity: which values share a scale and a threshold; ``PerAxis(-1)`` for one each output channel.
      threshold: ``MeanFraction(0.7)`` (the default) or ``MaxFraction(0.05)``.

    Raises:
      ValueError: (by the thresholds) a fraction outside [0, 1).

    >>> import jax.numpy as jnp, jqz
    >>> q = jqz.quantize(jnp.array([-1.0, 0.1, 0.0, 0.5]), jqz.Ternary())
    >>> q.codes.tolist(), jqz.dequantize(q).tolist()
    ([-1, 0, 0, 1], [-0.75, 0.0, 0.0, 0.75])

    References: arXiv:1605.04711 (ternary weight networks), arXiv:1612.01064 (trained ternary quantization).
    """

    granularity: Granularity = PerTensor()
    threshold: Threshold = MeanFraction()
    bits = 2
    linear = True

    @property
    def propagates(self) -> bool:  # type: ignore[override]
        return isinstance(self.threshold, MeanFraction)  # a mean has summed every value; a maximum may drop NaN

    def calibrate(self, x: jax.Array) -> TernaryGrid:
        def grid(blocks: jax.Array, axes: tuple[int, ...]) -> TernaryGrid:
            typical, threshold = self.threshold.choose(blocks, axes)
            # about scale 1, one half is where nearest rounding turns to zero
            threshold = jnp.where(typical < _scheme.TINY, 0.5, threshold).astype(blocks.dtype)
            scale = _scheme.mean_magnitude(blocks, axes, jnp.abs(blocks) > threshold)
            # NaN where nothing lies above, and where the values hold NaN: then the threshold is NaN as well
            return TernaryGrid(jnp.where(jnp.isnan(scale), 2 * threshold, scale), threshold)

        return self.granularity.reduce(grid, x.astype(_scheme.work_dtype(x)))

    def encode(self, x: jax.Array, grid: TernaryGrid) -> jax.Array:
        threshold = self.granularity.expand(grid.threshold, x.shape)
        x = x.astype(threshold.dtype)
        return (x > threshold).astype(jnp.int8) - (x < -threshold).astype(jnp.int8)

    def decode(self, codes: jax.Array, grid: TernaryGrid) -> jax.Array:
        scale = self.granularity.expand(grid.scale, codes.shape)
        return codes.astype(scale.dtype) * scale

    def affine(self, grid: TernaryGrid) -> Affine | None:
        return Affine(grid.scale, None, lambda codes: codes, 1)
