"""Floating-point numbers of few bits."""

import abc
import dataclasses
import typing

import jax
import jax.numpy as jnp

from jqz import _minifloat, _scheme
from jqz._granularity import Granularity, PerTensor
from jqz._minifloat import E2M1, E2M3, E3M2, E4M3, E5M2, BFloat16, Float16, Format, Int8
from jqz._ranges import AbsMax, Range
from jqz._scheme import Affine, ScaleGrid, Scheme


class Scaling(abc.ABC):
    """What values are divided by before they are rounded."""

    @abc.abstractmethod
    def scale(self, scheme: "Float", blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        """One positive scale a block, with ``axes`` kept at length 1."""


@typing.final
@dataclasses.dataclass(frozen=True)
class RangeScale(Scaling):
    """By a real scale, so that the range's magnitude becomes the format's largest value."""

    range: Range = AbsMax()

    def scale(self, scheme: "Float", blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        largest = scheme.format.largest

        def fake(magnitude: jax.Array) -> jax.Array:
            scale = _minifloat.fit(magnitude, largest)
            codes = _minifloat.encode(_scheme.quotient(blocks, scale), scheme.format)
            return _minifloat.decode(codes, scheme.format).astype(scale.dtype) * scale

        return _minifloat.fit(self.range.magnitude(blocks, axes, fake, largest), largest)


@typing.final
@dataclasses.dataclass(frozen=True)
class Cast(Scaling):
    """By nothing: values are cast as they are, and those beyond the format's largest saturate."""

    def scale(self, scheme: "Float", blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        return jnp.ones([1 if axis in axes else n for axis, n in enumerate(blocks.shape)], blocks.dtype)


@_scheme.scheme
class Float(Scheme):
    """Floating-point numbers of 4 to 16 bits, times one scale a block: x ~ scale * float(code).

    code = bits of round(x / scale), to nearest, ties to even, saturating at the format's largest value, denormals
    kept; scale = max |x| / largest. The error is at most |x| / 2**(mantissa_bits + 1) for normal results and
    half the smallest number for denormal ones, times the scale. Infinity and NaN are never values of a code
    that ``quantize`` makes.

    Use ``E4M3`` for weights and activations with outliers, and where hardware multiplies fp8; ``BFloat16`` to
    halve a tensor without thinking. At equal bits, well-clipped integers (``Symmetric``) or ``BlockFloat`` are more
    accurate on weights without outliers: relative precision is wasted on the small ones.

    Args:
      format: ``E4M3`` (the default), ``E5M2``, ``E3M2``, ``E2M3``, ``E2M1``, ``BFloat16``, ``Float16``. Codes are their
        bit patterns in uint8, or uint16 for the last two.
      granularity: which values share a scale.
      scale: ``RangeScale(range)`` or ``Cast()``; by default 16-bit formats are cast and smaller ones scaled.

    Raises:
      ValueError: a scale for BFloat16, which has the range of float32; or Int8 as the format.

    >>> import jax.numpy as jnp, jqz
    >>> q = jqz.quantize(jnp.array([-1.0, 0.26, 3.0]), jqz.Float(jqz.schemes.E2M1()))
    >>> q.codes.tolist(), q.grid.scale.tolist(), jqz.dequantize(q).tolist()
    ([12, 1, 7], [0.5], [-1.0, 0.25, 3.0])

    References: arXiv:2209.05433 (FP8), OCP Microscaling Formats v1.0 (FP6, FP4).
    """

    format: Format = E4M3()
    granularity: Granularity = PerTensor()
    scale: Scaling = typing.cast(Scaling, None)

    def __post_init__(self) -> None:
        if not isinstance(self.format, Format) or isinstance(self.format, Int8):
            raise ValueError(f"Float: got format={self.format!r}, wanted a floating format. Use Float(E4M3()).")
        if self.scale is None:
            object.__setattr__(self, "scale", Cast() if self.format.bits == 16 else RangeScale())
        if isinstance(self.scale, RangeScale) and isinstance(self.format, BFloat16):
            raise ValueError(
                "Float: got a scale for BFloat16, which has the range of float32 without one. Use Float(BFloat16())."
            )

    @property
    def bits(self) -> int:  # type: ignore[override]
        return self.format.bits

    @property
    def code_dtype(self) -> typing.Any:
        return self.format.code_dtype

    def calibrate(self, x: jax.Array) -> ScaleGrid:
        x = x.astype(_scheme.work_dtype(x))
        return ScaleGrid(self.granularity.reduce(lambda blocks, axes: self.scale.scale(self, blocks, axes), x))

    def encode(self, x: jax.Array, grid: ScaleGrid) -> jax.Array:
        x = x.astype(grid.scale.dtype)
        if not isinstance(self.scale, Cast):  # dividing by 1 would flush denormals
            x = _scheme.quotient(x, self.granularity.expand(grid.scale, x.shape))
        return _minifloat.encode(x, self.format)

    def decode(self, codes: jax.Array, grid: ScaleGrid) -> jax.Array:
        values = _minifloat.decode(codes, self.format).astype(grid.scale.dtype)
        return values if isinstance(self.scale, Cast) else values * self.granularity.expand(grid.scale, codes.shape)

    def affine(self, grid: ScaleGrid) -> Affine | None:
        if self.format.limit is None:
            return None
        step = 2.0**self.format.step_exponent
        return Affine(grid.scale * step, None, lambda c: _minifloat.integers(c, self.format), self.format.limit)

    @property
    def clips(self) -> bool:  # type: ignore[override]
        return not (isinstance(self.scale, RangeScale) and isinstance(self.scale.range, AbsMax))

    def slope(self, x: jax.Array, grid: ScaleGrid) -> jax.Array | None:
        limit = self.granularity.expand(grid.scale * self.format.largest, x.shape)
        return (jnp.abs(x) <= limit).astype(x.dtype)


__all__ = ["E2M1", "E2M3", "E3M2", "E4M3", "E5M2", "BFloat16", "Cast", "Float", "Float16", "RangeScale", "Scaling"]
