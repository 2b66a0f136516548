"""One bit a weight: the sign, times a scale."""

import abc
import dataclasses
import math
import typing

import jax
import jax.numpy as jnp

from jqz import _scheme, _ste
from jqz._granularity import Granularity, PerTensor
from jqz._scheme import Affine, ScaleGrid, Scheme


class Scale(abc.ABC):
    """The magnitude that every sign of a block stands for."""

    @abc.abstractmethod
    def choose(self, blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        """A scale for each block, ``axes`` kept with length 1."""


@typing.final
@dataclasses.dataclass(frozen=True)
class MeanScale(Scale):
    """mean(abs(w)), the scale with the least squared error (XNOR-Net)."""

    def choose(self, blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        return _scheme.mean_magnitude(blocks, axes)


@typing.final
@dataclasses.dataclass(frozen=True)
class UnitScale(Scale):
    """1: weights are -1 or +1 (BinaryConnect)."""

    def choose(self, blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        return jnp.ones([1 if axis in axes else n for axis, n in enumerate(blocks.shape)], blocks.dtype)


class WeightEstimator(abc.ABC):
    """A surrogate derivative for scale * sign(w)."""

    @abc.abstractmethod
    def slope(self, x: jax.Array, scale: jax.Array, count: jax.Array) -> jax.Array:
        """The derivative at ``x``, of a block of ``count`` values; all broadcast."""


@typing.final
@dataclasses.dataclass(frozen=True)
class Scaled(WeightEstimator):
    """scale * slope of the sign: the scale counts as a constant factor."""

    sign: _ste.Estimator = _ste.Clipped()

    def slope(self, x: jax.Array, scale: jax.Array, count: jax.Array) -> jax.Array:
        return scale * self.sign.slope(x)


@typing.final
@dataclasses.dataclass(frozen=True)
class ThroughMean(WeightEstimator):
    """1 / count + scale * slope of the sign: XNOR-Net's, which lets the scale vary with its own weight as well."""

    sign: _ste.Estimator = _ste.Clipped()

    def slope(self, x: jax.Array, scale: jax.Array, count: jax.Array) -> jax.Array:
        return 1 / count + scale * self.sign.slope(x)


@_scheme.scheme
class Binary(Scheme):
    """The sign of each value times the mean magnitude of its block: x ~ scale * sign(x), sign(0) = +1.

    Codes are 1 for +1 and 0 for -1, eight in a byte. The squared error of a block is
    sum(x**2) - n * scale**2, the least that two opposite levels allow. A block of zeros gets scale 0
    and decodes to zeros.

    Use it in networks that are trained with it; after training alone it leaves 4.4 dB of a Gaussian.
    ``Binary(PerAxis(-1))`` is the binary weight network of XNOR-Net, ``Binary(scale=UnitScale())``
    BinaryConnect. NNabla's layers pass the gradient unchanged: ``estimator=ste.Identity()``.

    ===================== ================================= ===========================
    estimator             d scale * sign(w) / dw            source
    ===================== ================================= ===========================
    ``Scaled()``          scale if abs(w) <= 1 else 0       the default
    ``ThroughMean()``     the same + 1 / n                  XNOR-Net
    ``ste.Identity()``    1                                 NNabla
    ``ste.Clipped()``     1 if abs(w) <= 1 else 0           BinaryNet
    other ``ste`` types   as for the sign, not scaled
    ===================== ================================= ===========================

    Args:
      granularity: which values share a scale; ``PerAxis(-1)`` for one each output channel.
      scale: ``MeanScale`` (the default) or ``UnitScale``.
      estimator: an estimator of ``jqz.ste``, ``Scaled`` or ``ThroughMean``; the last two take one for the sign.

    Raises:
      ValueError: ``ThroughMean`` with a scale that is no mean.

    >>> import jax.numpy as jnp, jqz
    >>> q = jqz.quantize(jnp.array([-1.0, 0.0, 0.5]), jqz.Binary())
    >>> q.codes.tolist(), jqz.dequantize(q).tolist()
    ([0, 1, 1], [-0.5, 0.5, 0.5])

    References: arXiv:1511.00363 (BinaryConnect), arXiv:1602.02830 (BinaryNet), arXiv:1603.05279 (XNOR-Net).
    """

    granularity: Granularity = PerTensor()
    scale: Scale = MeanScale()
    estimator: _ste.Estimator | WeightEstimator = Scaled()
    bits = 1

    def __post_init__(self) -> None:
        if isinstance(self.estimator, ThroughMean) and not isinstance(self.scale, MeanScale):
            raise ValueError(
                f"Binary: got estimator={self.estimator!r} with scale={self.scale!r}, wanted a mean to differentiate. "
                "Use estimator=Scaled(), or scale=MeanScale()."
            )

    @property
    def propagates(self) -> bool:  # type: ignore[override]
        return isinstance(self.scale, MeanScale)

    @property
    def code_dtype(self) -> typing.Any:
        return jnp.uint8

    def calibrate(self, x: jax.Array) -> ScaleGrid:
        return ScaleGrid(self.granularity.reduce(self.scale.choose, x.astype(_scheme.work_dtype(x))))

    def encode(self, x: jax.Array, grid: ScaleGrid) -> jax.Array:
        return (x >= 0).astype(jnp.uint8)

    def decode(self, codes: jax.Array, grid: ScaleGrid) -> jax.Array:
        scale = self.granularity.expand(grid.scale, codes.shape)
        return (codes.astype(scale.dtype) * 2 - 1) * scale

    def affine(self, grid: ScaleGrid) -> Affine | None:
        return Affine(grid.scale, None, lambda codes: codes.astype(jnp.int8) * 2 - 1, 1)

    def slope(self, x: jax.Array, grid: ScaleGrid) -> jax.Array | None:
        if isinstance(self.estimator, _ste.Identity):
            return None
        if isinstance(self.estimator, _ste.Estimator):
            return self.estimator.slope(x)
        scale = self.granularity.expand(grid.scale, x.shape)
        return self.estimator.slope(x, scale, self.granularity.expand(self._count(x), x.shape))

    def _count(self, x: jax.Array) -> jax.Array:
        """How many values each block holds, edge blocks included."""

        def count(blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            kept = [1 if axis in axes else n for axis, n in enumerate(blocks.shape)]
            return jnp.full(kept, math.prod(blocks.shape[axis] for axis in axes), x.dtype)

        return self.granularity.reduce(count, x)
