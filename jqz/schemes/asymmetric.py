"""Uniform grid over any range."""

import abc
import dataclasses
import typing

import jax
import jax.numpy as jnp

from jqz import _scheme
from jqz._gradients import Fixed, GridGradient, Line
from jqz._granularity import Granularity, PerTensor
from jqz._ranges import AbsMax, MinMax, Range
from jqz._rounding import HalfEven, Rounding
from jqz._scheme import Affine, Grid, ScaleGrid, Scheme, power


class Levels(abc.ABC):
    """How many steps span the range."""

    @abc.abstractmethod
    def steps(self, bits: typing.Any) -> typing.Any:
        """The number of steps; traced if ``bits`` is."""


@typing.final
@dataclasses.dataclass(frozen=True)
class Standard(Levels):
    """2**bits - 1 steps: every code is used."""

    def steps(self, bits: typing.Any) -> typing.Any:
        return power(bits) - 1


@typing.final
@dataclasses.dataclass(frozen=True)
class Paper(Levels):
    """2**(bits-1) steps, as arXiv:1910.04877 prints it: nearly half of the codes stay unused."""

    def steps(self, bits: typing.Any) -> typing.Any:
        return power(bits - 1)


class Extent(typing.NamedTuple):
    """The lowest code, and how many lie above it."""

    bottom: typing.Any
    steps: typing.Any


class Anchor(abc.ABC):
    """Which real number a code stands on exactly."""

    @abc.abstractmethod
    def grid(self, low: jax.Array, high: jax.Array, extent: Extent) -> Grid:
        """The grid that covers low to high."""

    @abc.abstractmethod
    def encode(self, x: jax.Array, grid: Grid, extent: Extent, rounding: Rounding) -> jax.Array:
        """Integer codes in the dtype of ``x``, not clipped yet; the grid broadcasts against ``x``."""

    @abc.abstractmethod
    def decode(self, codes: jax.Array, grid: Grid, extent: Extent) -> jax.Array:
        """Values of codes that have the grid's dtype."""

    def zero_point(self, grid: Grid, extent: Extent) -> jax.Array | None:
        """The int32 code of zero in the scale's shape, or None where zero is no level."""
        return None


class ZeroPointGrid(typing.NamedTuple):
    """x ~ scale * (code - zero_point)."""

    scale: jax.Array
    zero_point: jax.Array


class OffsetGrid(typing.NamedTuple):
    """x ~ scale * (code - zero_point), zero_point = the nearest integer to lowest code - offset / scale."""

    scale: jax.Array
    offset: jax.Array


class MinimumGrid(typing.NamedTuple):
    """x ~ scale * (code - lowest code) + minimum."""

    scale: jax.Array
    minimum: jax.Array


@typing.final
@dataclasses.dataclass(frozen=True)
class ZeroPoint(Anchor):
    """Zero: x ~ scale * (code - zero_point), zero_point = clip(round(bottom - low / scale)).

    The range is first extended to contain 0. The integer zero point then moves it by at most half a step,
    so that padding, relu and pruned weights stay exact.
    """

    def grid(self, low: jax.Array, high: jax.Array, extent: Extent) -> ZeroPointGrid:
        finite = jnp.isfinite(low) & jnp.isfinite(high)
        low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
        scale = jnp.where(jnp.maximum(-low, high) < _scheme.TINY, 1, _step(low, high, extent.steps))
        bottom, top = extent.bottom, extent.bottom + extent.steps
        zero_point = jnp.clip(jnp.round(bottom - _scheme.quotient(low, scale)), bottom, top)
        # the outermost level may lie half a step beyond the largest number
        reach = jnp.maximum(zero_point - bottom, top - zero_point)
        scale = jnp.where(finite, jnp.minimum(scale, _largest(low.dtype) / reach), scale)
        return ZeroPointGrid(scale.astype(low.dtype), zero_point.astype(jnp.int32))

    def encode(self, x: jax.Array, grid: ZeroPointGrid, extent: Extent, rounding: Rounding) -> jax.Array:
        return rounding(_scheme.quotient(x, grid.scale)) + grid.zero_point.astype(x.dtype)

    def decode(self, codes: jax.Array, grid: ZeroPointGrid, extent: Extent) -> jax.Array:
        return (codes - grid.zero_point.astype(codes.dtype)) * grid.scale

    def zero_point(self, grid: ZeroPointGrid, extent: Extent) -> jax.Array:
        return grid.zero_point


@typing.final
@dataclasses.dataclass(frozen=True)
class Offset(Anchor):
    """Zero, as ``ZeroPoint``, whose integer follows from a real offset, near the lowest value: for learned grids.

    An integer has no gradient; the offset has, and integer kernels still get a zero point.
    """

    def _rounded(self, grid: OffsetGrid, extent: Extent) -> ZeroPointGrid:
        return ZeroPointGrid(grid.scale, self.zero_point(grid, extent))

    def grid(self, low: jax.Array, high: jax.Array, extent: Extent) -> OffsetGrid:
        scale, zero_point = ZeroPoint().grid(low, high, extent)
        return OffsetGrid(scale, (extent.bottom - zero_point.astype(scale.dtype)) * scale)

    def encode(self, x: jax.Array, grid: OffsetGrid, extent: Extent, rounding: Rounding) -> jax.Array:
        return ZeroPoint().encode(x, self._rounded(grid, extent), extent, rounding)

    def decode(self, codes: jax.Array, grid: OffsetGrid, extent: Extent) -> jax.Array:
        return ZeroPoint().decode(codes, self._rounded(grid, extent), extent)

    def zero_point(self, grid: OffsetGrid, extent: Extent) -> jax.Array:
        below = jnp.round(_scheme.quotient(grid.offset, grid.scale))
        return jnp.clip(extent.bottom - below, extent.bottom, extent.bottom + extent.steps).astype(jnp.int32)


@typing.final
@dataclasses.dataclass(frozen=True)
class FromZero(Anchor):
    """Zero, as the lowest code: x ~ scale * (code - lowest code), for values after relu; the lower end is ignored.

    The grid is a scale alone, as LSQ and PACT learn it.
    """

    def _counted(self, grid: ScaleGrid, extent: Extent) -> ZeroPointGrid:
        return ZeroPointGrid(grid.scale, self.zero_point(grid, extent))

    def grid(self, low: jax.Array, high: jax.Array, extent: Extent) -> ScaleGrid:
        high = jnp.where(jnp.isfinite(low), jnp.maximum(high, 0), low)
        return ScaleGrid(ZeroPoint().grid(jnp.zeros_like(high), high, extent).scale)

    def encode(self, x: jax.Array, grid: ScaleGrid, extent: Extent, rounding: Rounding) -> jax.Array:
        return ZeroPoint().encode(x, self._counted(grid, extent), extent, rounding)

    def decode(self, codes: jax.Array, grid: ScaleGrid, extent: Extent) -> jax.Array:
        return ZeroPoint().decode(codes, self._counted(grid, extent), extent)

    def zero_point(self, grid: ScaleGrid, extent: Extent) -> jax.Array:
        return jnp.full(grid.scale.shape, extent.bottom, jnp.int32)


@typing.final
@dataclasses.dataclass(frozen=True)
class Minimum(Anchor):
    """The lowest value: x ~ scale * (code - bottom) + minimum. Zero is not exact, and integer kernels do not take it.

    The scale is at least four units in the last place of the largest magnitude, so that levels differ.
    """

    def grid(self, low: jax.Array, high: jax.Array, extent: Extent) -> MinimumGrid:
        magnitude = jnp.maximum(jnp.abs(low), jnp.abs(high))
        scale = jnp.maximum(_step(low, high, extent.steps), 4 * float(jnp.finfo(low.dtype).eps) * magnitude)
        scale = jnp.where(jnp.isfinite(magnitude), jnp.minimum(scale, _largest(low.dtype)), scale)
        return MinimumGrid(jnp.where(magnitude < _scheme.TINY, 1, scale).astype(low.dtype), low)

    def encode(self, x: jax.Array, grid: MinimumGrid, extent: Extent, rounding: Rounding) -> jax.Array:
        # halves, which are exact, keep the difference of two large numbers finite
        return rounding(_scheme.quotient(x * 0.5 - grid.minimum * 0.5, grid.scale * 0.5)) + extent.bottom

    def decode(self, codes: jax.Array, grid: MinimumGrid, extent: Extent) -> jax.Array:
        # not scale * steps + minimum: a multiply-add may round once or twice, differently in one loop
        return (codes - extent.bottom + _scheme.quotient(grid.minimum, grid.scale)) * grid.scale


def _step(low: jax.Array, high: jax.Array, steps: typing.Any) -> jax.Array:
    return (high * 0.5 - low * 0.5) / steps * 2  # high - low may overflow


def _largest(dtype: typing.Any) -> float:
    info = jnp.finfo(dtype)
    return float(info.max) * (1 - 2 * float(info.eps))  # a quotient of it times the divisor does not overflow


@_scheme.scheme
class Asymmetric(Scheme):
    """Integers times a scale, shifted: x ~ scale * (code - zero_point), zero exact.

    code = clip(round(x / scale) + zero_point, -2**(bits-1), 2**(bits-1) - 1),
    scale = (high - low) / (2**bits - 1). Inside the representable range, scale * (lowest code - zero_point)
    to scale * (highest code - zero_point), the error is at most scale / 2 under nearest rounding.
    All-zero blocks get scale 1; a block of one repeated value decodes to it within one unit in the last place.

    Use it for one-sided values (after relu it has twice the resolution of ``Symmetric``) and for
    activations. For weights, which lie about zero, ``Symmetric`` is as good and spares the integer kernels
    a correction. ``anchor=Minimum(), levels=Paper()`` is the scheme as arXiv:1910.04877 prints it.

    Args:
      bits: 1 to 16; codes are int8 up to 8, int16 above. May be traced in ``fake_quantize``.
      granularity: which values share a scale and a zero point.
      range: what to cover: ``MinMax``, ``Percentile``, ``MSE``, ``OCTAV``, ``Given``.
      rounding: ``HalfEven``, ``HalfAway``, ``Floor``, ``Stochastic``. The zero point goes to the nearest integer.
      anchor: ``ZeroPoint`` (the default), ``Offset`` (the same, to be learned), ``FromZero`` (zero is the lowest
        code), or ``Minimum``: levels count from the range's low end, zero is not exact.
      levels: ``Standard`` (2**bits - 1 steps, the default) or ``Paper`` (2**(bits-1) steps).
      gradient: of the grid, in training on given grids: ``Fixed`` (none, the default), ``LSQ``, ``PACT``.

    Raises:
      ValueError: bits outside 1 to 16, or a gradient for the integer of a ``ZeroPoint``.

    >>> import jax.numpy as jnp, jqz
    >>> q = jqz.quantize(jnp.array([-0.5, 0.0, 1.0, 2.5]), jqz.Asymmetric(bits=2))
    >>> q.codes.tolist(), q.grid.zero_point.tolist(), jqz.dequantize(q).tolist()
    ([-2, -2, -1, 0], [-2], [0.0, 0.0, 1.0, 2.0])

    References: arXiv:1712.05877 (zero point); ASYMM of arXiv:1910.04877.
    """

    bits: typing.Any = 8
    granularity: Granularity = PerTensor()
    range: Range = MinMax()
    rounding: Rounding = HalfEven()
    anchor: Anchor = ZeroPoint()
    levels: Levels = Standard()
    gradient: GridGradient = Fixed()

    def __post_init__(self) -> None:
        _scheme.check_bits("Asymmetric", self.bits, 1, 16)
        if self.learns and isinstance(self.anchor, ZeroPoint):
            raise ValueError(
                f"Asymmetric: got gradient={self.gradient!r} with anchor=ZeroPoint(), an integer that has no gradient. "
                "Use anchor=jqz.schemes.Offset(), or jqz.schemes.FromZero() after relu."
            )

    @property
    def code_dtype(self) -> typing.Any:
        if isinstance(self.bits, jax.Array):
            return jnp.int16
        return jnp.int8 if self.bits <= 8 else jnp.int16

    def _extent(self, dtype: typing.Any) -> Extent:
        bottom, steps = -power(self.bits - 1), self.levels.steps(self.bits)
        if isinstance(self.bits, jax.Array):
            bottom, steps = bottom.astype(dtype), steps.astype(dtype)
        return Extent(bottom, steps)

    def calibrate(self, x: jax.Array) -> Grid:
        x = x.astype(_scheme.work_dtype(x))
        extent = self._extent(x.dtype)

        def grid(blocks: jax.Array, axes: tuple[int, ...]) -> Grid:
            def fake(low: jax.Array, high: jax.Array) -> jax.Array:
                grid = self.anchor.grid(low, high, extent)
                return self.anchor.decode(self._codes(blocks, grid, extent), grid, extent)

            return self.anchor.grid(*self.range.limits(blocks, axes, fake, extent.steps), extent)

        return self.granularity.reduce(grid, x)

    def _codes(self, x: jax.Array, grid: Grid, extent: Extent) -> jax.Array:
        codes = self.anchor.encode(x, grid, extent, self.rounding)
        return jnp.clip(codes, extent.bottom, extent.bottom + extent.steps)

    def _expand(self, grid: Grid, shape: tuple[int, ...]) -> Grid:
        return jax.tree.map(lambda part: self.granularity.expand(part, shape), grid)

    def encode(self, x: jax.Array, grid: Grid) -> jax.Array:
        x = x.astype(grid.scale.dtype)
        return self._codes(x, self._expand(grid, x.shape), self._extent(x.dtype)).astype(self.code_dtype)

    def decode(self, codes: jax.Array, grid: Grid) -> jax.Array:
        codes = codes.astype(grid.scale.dtype)
        return self.anchor.decode(codes, self._expand(grid, codes.shape), self._extent(codes.dtype))

    def affine(self, grid: Grid) -> Affine | None:
        if isinstance(self.bits, jax.Array) or self.bits > 8:
            return None
        extent = self._extent(grid.scale.dtype)
        zero_point = self.anchor.zero_point(grid, extent)
        if zero_point is None:
            return None
        ends = (extent.bottom, extent.bottom + extent.steps) if self.rounding.nearest else None
        return Affine(grid.scale, zero_point, lambda codes: codes, power(self.bits - 1), ends)

    @property
    def clips(self) -> bool:  # type: ignore[override]
        return not isinstance(self.range, MinMax | AbsMax) or isinstance(self.anchor, FromZero)

    def _ends(self, grid: Grid, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """The lowest and the highest level."""
        extent = self._extent(grid.scale.dtype)
        ends = [jnp.full_like(grid.scale, extent.bottom), jnp.full_like(grid.scale, extent.bottom + extent.steps)]
        low, high = (self.granularity.expand(self.anchor.decode(end, grid, extent), shape) for end in ends)
        return low, high

    def slope(self, x: jax.Array, grid: Grid) -> jax.Array | None:
        low, high = self._ends(grid, x.shape)
        return ((x >= low) & (x <= high)).astype(x.dtype)

    @property
    def learns(self) -> bool:
        return not isinstance(self.gradient, Fixed)

    def partials(self, x: jax.Array, value: jax.Array, grid: Grid) -> tuple[jax.Array, Grid]:
        low, high = self._ends(grid, x.shape)
        scale = self.granularity.expand(grid.scale, x.shape)
        line = Line(scale, low, high, low, self._extent(x.dtype).steps)
        of_x, *of_grid = self.gradient.partials(x, value, line, grid.scale.size)
        return of_x, type(grid)(*of_grid[: len(grid)])
