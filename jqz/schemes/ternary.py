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


class PerSignGrid(typing.NamedTuple):
    """Values above ``threshold`` become ``positive``, those below its negative ``-negative``, others 0."""

    positive: jax.Array
    negative: jax.Array
    threshold: jax.Array


class Scale(abc.ABC):
    """The magnitude that stands for the values beyond the threshold."""

    @abc.abstractmethod
    def grid(self, blocks: jax.Array, axes: tuple[int, ...], threshold: jax.Array) -> TernaryGrid | PerSignGrid:
        """The grid of each block, ``axes`` kept with length 1."""


@typing.final
@dataclasses.dataclass(frozen=True)
class MeanBeyond(Scale):
    """The mean of the magnitudes above the threshold: the least squared error (TWN)."""

    def grid(self, blocks: jax.Array, axes: tuple[int, ...], threshold: jax.Array) -> TernaryGrid:
        scale = _scheme.mean_magnitude(blocks, axes, jnp.abs(blocks) > threshold)
        # NaN where nothing lies above, and where the values hold NaN: then the threshold is NaN as well
        return TernaryGrid(jnp.where(jnp.isnan(scale), 2 * threshold, scale), threshold)


@typing.final
@dataclasses.dataclass(frozen=True)
class MeanOfAll(Scale):
    """The mean of all magnitudes; with ``MeanFraction(0.5)``, round(x / scale) clipped to [-1, 1] (BitNet b1.58)."""

    def grid(self, blocks: jax.Array, axes: tuple[int, ...], threshold: jax.Array) -> TernaryGrid:
        scale = _scheme.mean_magnitude(blocks, axes)
        return TernaryGrid(jnp.where(scale < _scheme.TINY, 1, scale).astype(blocks.dtype), threshold)


@typing.final
@dataclasses.dataclass(frozen=True)
class PerSign(Scale):
    """One magnitude for each sign, which training moves: trained ternary quantization (TTQ).

    They start at the mean beyond the threshold on their side. With g the cotangent, ::

        gradient of positive:  sum of g where x > threshold
        gradient of negative: -sum of g where x < -threshold
        gradient of x:         positive g, g, negative g  above, between and below the thresholds

    ``jqz.learnable(params, policy)`` makes them parameters; the threshold stays as calibration found it. Three such
    levels are no multiples of one scale, so products run on decoded values.
    """

    def grid(self, blocks: jax.Array, axes: tuple[int, ...], threshold: jax.Array) -> PerSignGrid:
        either = MeanBeyond().grid(blocks, axes, threshold).scale
        sides = [_scheme.mean_magnitude(blocks, axes, side > threshold) for side in (blocks, -blocks)]
        positive, negative = (jnp.where(jnp.isnan(side), either, side) for side in sides)
        return PerSignGrid(positive, negative, threshold)


@_scheme.scheme
class Ternary(Scheme):
    """Minus a scale, zero, or plus a scale: x ~ scale * sign(x) if abs(x) > threshold else 0.

    threshold = 0.7 mean(abs(x)), scale = mean of the magnitudes above it, which is the scale with the least
    squared error for that threshold: sum(x**2) - (count above) * scale**2. Zero is exact; a block of zeros
    gets scale 1. The gradient passes unchanged.

    Use it in networks that are trained with it: three levels in 2 bits, a third or more of the weights 0,
    and 2.5 dB better than ``Binary``. ``Symmetric(bits=2, range=MSE())`` has the same levels and searches the clip.

    ======================= ================================ ==============================
    network                 threshold                        scale
    ======================= ================================ ==============================
    ternary weight network  ``MeanFraction(0.7)``            ``MeanBeyond()``: the default
    trained ternary (TTQ)   ``MaxFraction(0.05)``            ``PerSign()``: learned
    BitNet b1.58            ``MeanFraction(0.5)``            ``MeanOfAll()``
    ======================= ================================ ==============================

    Args:
      granularity: which values share a scale and a threshold; ``PerAxis(-1)`` for one each output channel.
      threshold: ``MeanFraction(0.7)`` (the default) or ``MaxFraction(0.05)``.
      scale: ``MeanBeyond`` (the default), ``MeanOfAll`` or ``PerSign``.

    Raises:
      ValueError: (by the thresholds) a fraction outside [0, 1); ``MeanOfAll`` with a threshold that may exceed it.

    >>> import jax.numpy as jnp, jqz
    >>> q = jqz.quantize(jnp.array([-1.0, 0.1, 0.0, 0.5]), jqz.Ternary())
    >>> q.codes.tolist(), jqz.dequantize(q).tolist()
    ([-1, 0, 0, 1], [-0.75, 0.0, 0.0, 0.75])

    References: arXiv:1605.04711 (ternary weight networks), arXiv:1612.01064 (trained ternary quantization),
    arXiv:2402.17764 (BitNet b1.58).
    """

    granularity: Granularity = PerTensor()
    threshold: Threshold = MeanFraction()
    scale: Scale = MeanBeyond()
    bits = 2

    def __post_init__(self) -> None:
        if isinstance(self.scale, MeanOfAll) and not isinstance(self.threshold, MeanFraction):
            raise ValueError(
                f"Ternary: got scale={self.scale!r} with threshold={self.threshold!r}, which may lie above that mean. "
                "Use threshold=MeanFraction(0.5), or scale=MeanBeyond()."
            )

    @property
    def learns(self) -> bool:
        return isinstance(self.scale, PerSign)

    @property
    def linear(self) -> bool:  # type: ignore[override]
        return not self.learns

    @property
    def propagates(self) -> bool:  # type: ignore[override]
        return isinstance(self.threshold, MeanFraction)  # a mean has summed every value; a maximum may drop NaN

    def calibrate(self, x: jax.Array) -> TernaryGrid | PerSignGrid:
        def grid(blocks: jax.Array, axes: tuple[int, ...]) -> TernaryGrid | PerSignGrid:
            typical, threshold = self.threshold.choose(blocks, axes)
            # about scale 1, one half is where nearest rounding turns to zero
            threshold = jnp.where(typical < _scheme.TINY, 0.5, threshold).astype(blocks.dtype)
            return self.scale.grid(blocks, axes, threshold)

        return self.granularity.reduce(grid, x.astype(_scheme.work_dtype(x)))

    def _signs(self, x: jax.Array, grid: TernaryGrid | PerSignGrid) -> tuple[jax.Array, jax.Array]:
        """Where values become positive, and where negative."""
        threshold = self.granularity.expand(grid.threshold, x.shape)
        x = x.astype(threshold.dtype)
        return x > threshold, x < -threshold

    def encode(self, x: jax.Array, grid: TernaryGrid | PerSignGrid) -> jax.Array:
        positive, negative = self._signs(x, grid)
        return positive.astype(jnp.int8) - negative.astype(jnp.int8)

    def decode(self, codes: jax.Array, grid: TernaryGrid | PerSignGrid) -> jax.Array:
        if isinstance(grid, PerSignGrid):
            sides = [self.granularity.expand(part, codes.shape) for part in grid[:2]]
            scale = jnp.where(codes > 0, *sides)
        else:
            scale = self.granularity.expand(grid.scale, codes.shape)
        return codes.astype(scale.dtype) * scale

    def affine(self, grid: TernaryGrid | PerSignGrid) -> Affine | None:
        return None if isinstance(grid, PerSignGrid) else Affine(grid.scale, None, lambda codes: codes, 1)

    def slope(self, x: jax.Array, grid: TernaryGrid | PerSignGrid) -> jax.Array | None:
        if not isinstance(grid, PerSignGrid):
            return None
        positive, negative = self._signs(x, grid)
        sides = [self.granularity.expand(part, x.shape) for part in grid[:2]]
        return jnp.where(positive, sides[0], jnp.where(negative, sides[1], 1))

    def partials(self, x: jax.Array, value: jax.Array, grid: PerSignGrid) -> tuple[jax.Array, PerSignGrid]:
        positive, negative = (side.astype(x.dtype) for side in self._signs(x, grid))
        return typing.cast(jax.Array, self.slope(x, grid)), PerSignGrid(positive, -negative, jnp.zeros_like(x))
