"""Signed powers of two: multiplications become shifts."""

import abc
import dataclasses
import typing

import jax
import jax.numpy as jnp

from jqz import _powers, _scheme
from jqz._granularity import Granularity, PerTensor
from jqz._powers import (
    INQ,
    Arithmetic,
    BothSigns,
    Codebook,
    Dense,
    ExponentRounding,
    Geometric,
    NNabla,
    NonNegative,
    WithoutZero,
    WithZero,
)
from jqz._ranges import MSE, AbsMax, MinMax, Range
from jqz._scheme import Affine, ScaleGrid, Scheme

__all__ = [
    "INQ",
    "Arithmetic",
    "BothSigns",
    "DataTop",
    "Dense",
    "Geometric",
    "GivenTop",
    "NNabla",
    "NonNegative",
    "PowerOfTwo",
    "RealScale",
    "Unscaled",
    "WithZero",
    "WithoutZero",
]


class Top(abc.ABC):
    """What the largest power of an unscaled grid is."""

    @property
    @abc.abstractmethod
    def room(self) -> int:
        """How many powers there are from it down, in float32 and in a factor of float32."""


@typing.final
@dataclasses.dataclass(frozen=True)
class DataTop(Top):
    """The power that the largest magnitude of each block rounds to: nothing saturates."""

    @property
    def room(self) -> int:
        return 128


@typing.final
@dataclasses.dataclass(frozen=True)
class GivenTop(Top):
    """2**exponent for every block: larger values saturate, and no pass over the data is needed."""

    exponent: int

    def __post_init__(self) -> None:
        if not isinstance(self.exponent, int) or not -126 <= self.exponent <= 127:
            raise ValueError(
                f"GivenTop: got exponent={self.exponent!r}, wanted an integer from -126 to 127. Use GivenTop(0)."
            )

    @property
    def room(self) -> int:
        return min(128, self.exponent + 127)


class PowerScale(abc.ABC):
    """What multiplies the powers of two."""

    @abc.abstractmethod
    def relative(self, x: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Values, and the power of two that the lowest level is among them."""


@typing.final
@dataclasses.dataclass(frozen=True)
class Unscaled(PowerScale):
    """Nothing: levels are powers of two themselves."""

    def relative(self, x: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x, scale


@typing.final
@dataclasses.dataclass(frozen=True)
class RealScale(PowerScale):
    """A real number a block: the largest level is the magnitude that ``range`` finds.

    The error of a grid of powers repeats with every octave that its top moves by, and clipping pays at
    few bits; ``MSE`` searches both, from the largest magnitude down. On Gaussian weights that gains
    2.7 dB at 3 bits and 6.5 dB at 2 over a power of two from the data.
    """

    range: Range = MSE()

    def relative(self, x: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        mantissa, power = _powers.layout_of(x.dtype).split(scale)
        return _scheme.quotient(x, mantissa), power  # x / scale might overflow


@_scheme.scheme
class PowerOfTwo(Scheme):
    """Zero and signed powers of two, with or without a real scale: x ~ sign(c) * scale * 2**(index(c) - 1).

    ``scale`` in the grid is the lowest level, 2**n2, times a real number if asked for; ``index(c)`` is
    abs(c), so codes are 0 for zero, 1 for the lowest level, and negative for negative values (codebooks
    without zero start at code 0). The levels of a block run from 2**n2 to 2**n1, n1 = n2 + count - 1, with

        count = 2**(bits-1) - 1  Dense()          7 at 4 bits
        count = 2**(bits-2)      INQ(), NNabla()  4 at 4 bits

    Between 2**n2 and 1.5 * 2**n1 the relative error is at most 1/3 under arithmetic rounding; below, the error is
    at most 2**(n2-1). No level is below 2**-126: denormals are zero, and a grid that would reach below is moved up.
    What is not finite gets the one code that no level needs and decodes to NaN.

    Use it where a shift is cheaper than a multiplication, for bell-shaped weights at 3 and 4 bits, and for files:
    its codes compress well. It cannot exceed 14.26 dB on Gaussian weights whatever the bits; from 4 bits up a
    clipped ``Symmetric`` and ``AdditivePowerOfTwo`` are more exact. At 2 and 3 bits pass ``scale=RealScale()``.
    Up to 4 bits (Dense, INQ) levels fit int8 and integer kernels run on them.

    ``bits=None`` keeps every exponent that matters: it stands for 8 dense bits from 2**-95 to 2**31, fixed, so
    that coding is a single pass over memory. Larger values saturate, smaller ones become zero.

    Args:
      bits: the width of a code, 2 to 8 (NNabla codebooks start at 1 to 3), or None. May be traced in
        ``fake_quantize``.
      granularity: which values share a top or a scale.
      codebook: ``Dense``, ``INQ``, ``NNabla(signs, zero)``.
      rounding: ``Arithmetic`` (nearest in value) or ``Geometric`` (nearest in the logarithm).
      top: ``DataTop`` or ``GivenTop(exponent)``.
      scale: ``Unscaled`` or ``RealScale(range)``.

    Raises:
      ValueError: bits outside the codebook's range, or fields that contradict each other.

    >>> import jax.numpy as jnp, jqz
    >>> q = jqz.quantize(jnp.array([-1.0, -0.7, 0.0, 0.01, 0.3]), jqz.PowerOfTwo(bits=4))
    >>> q.codes.tolist(), jqz.dequantize(q).tolist()
    ([-7, -6, 0, 1, 5], [-1.0, -0.5, 0.0, 0.015625, 0.25])
    >>> jqz.dequantize(jqz.quantize(jnp.array([-3.0, 1e-9]), jqz.PowerOfTwo(bits=None))).tolist()
    [-4.0, 9.313225746154785e-10]

    References: POWER-OF-2 of arXiv:1910.04877; INQ arXiv:1702.03044; DeepShift arXiv:1905.13298.
    """

    bits: typing.Any = 4
    granularity: Granularity = PerTensor()
    codebook: Codebook = Dense()
    rounding: ExponentRounding = Arithmetic()
    top: Top = DataTop()
    scale: PowerScale = Unscaled()

    def __post_init__(self) -> None:
        if self.bits is None:
            if self.codebook != Dense() or self.scale != Unscaled():
                raise ValueError(
                    f"PowerOfTwo: got bits=None with {self.codebook!r} and {self.scale!r}, wanted Dense() and "
                    "Unscaled(): all exponents need no scale. Use PowerOfTwo(bits=8, ...)."
                )
            object.__setattr__(self, "bits", 8)
            if self.top == DataTop():
                object.__setattr__(self, "top", GivenTop(31))
        if self.top != DataTop() and self.scale != Unscaled():
            raise ValueError(
                f"PowerOfTwo: got {self.top!r} and {self.scale!r}, which both place the levels. "
                "Use scale=RealScale(jqz.ranges.Given(low, high)) for a known range, or leave one of them out."
            )
        _scheme.check_bits("PowerOfTwo", self.bits, self.codebook.least_bits, 8, "Use Binary() for one bit.")

    @property
    def code_dtype(self) -> typing.Any:
        return jnp.int8 if self.codebook.signed else jnp.uint8

    @property
    def _count(self) -> typing.Any:
        """How many powers a grid has."""
        count = self.codebook.count(self.bits)
        return jnp.minimum(count, self.top.room) if isinstance(count, jax.Array) else min(count, self.top.room)

    def calibrate(self, x: jax.Array) -> ScaleGrid:
        layout = _powers.layout_of(_scheme.work_dtype(x))
        x = x.astype(layout.dtype)
        # where zero is no level, an empty block should not become ones
        empty = 1.0 if self.codebook.has_zero else layout.tiny

        def lowest(top: jax.Array) -> jax.Array:
            return _powers.lowest_level(top, self._count, empty)

        def scale(blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            if isinstance(self.scale, RealScale):

                def fake(magnitude: jax.Array) -> jax.Array:
                    return self._values(self._codes(blocks, lowest(magnitude)), lowest(magnitude))

                return lowest(self.scale.range.magnitude(blocks, axes, fake, self._count))
            largest = jnp.max(jnp.abs(blocks), axis=axes, keepdims=True)
            field = (layout.bits(largest) + self.rounding.carry(layout.fraction)) >> layout.fraction
            power = layout.power(jnp.minimum(field, 2 * layout.bias))
            return lowest(jnp.where(jnp.isfinite(largest), power, largest))

        if isinstance(self.top, GivenTop):
            top = jnp.asarray(2.0**self.top.exponent, x.dtype)
            return ScaleGrid(jnp.full(self.granularity.grid_shape(x.shape), lowest(top)))
        return ScaleGrid(self.granularity.reduce(scale, x))

    def _index(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        """The index of the nearest power, 1 for the lowest, not cut at the top; 0 where zero is nearer."""
        layout = _powers.layout_of(x.dtype)
        x, scale = self.scale.relative(x, scale)
        # bit patterns are ordered as magnitudes are, and a difference of exponent fields is one of exponents
        # (no abs: XLA would share that of calibrate through memory)
        bits, lowest, octave = layout.bits(x) & layout.magnitude, layout.bits(scale), 1 << layout.fraction
        index = (bits + (self.rounding.carry(layout.fraction) + octave - lowest)) >> layout.fraction
        floor = jnp.maximum(lowest - self.rounding.prune(layout.fraction), octave)  # denormals are zero
        return jnp.where(bits < floor, 0, jnp.maximum(index, 1))

    def _codes(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        index = self._index(x, scale)
        index = jnp.minimum(index, jnp.asarray(self._count, index.dtype))
        codes = self.codebook.join(index, x <= -_powers.layout_of(x.dtype).tiny)
        spare = self.codebook.spare(self.bits)
        if spare is not None:
            codes = jnp.where(jnp.isfinite(x), codes, jnp.asarray(spare, codes.dtype))
        return codes.astype(self.code_dtype)

    def _values(self, codes: jax.Array, scale: jax.Array) -> jax.Array:
        codes = codes.astype(jnp.int32)
        index = self.codebook.split(codes)
        layout = _powers.layout_of(jnp.float32)
        power = layout.power(index - 1 + layout.bias)
        power = jnp.where(codes < 0, -power, power)
        if self.codebook.has_zero:
            power = jnp.where(index == 0, 0, power)
            power = jnp.where(codes == self.codebook.spare(self.bits), jnp.nan, power)
        return power.astype(scale.dtype) * scale

    def encode(self, x: jax.Array, grid: ScaleGrid) -> jax.Array:
        scale = self.granularity.expand(grid.scale, x.shape)
        return self._codes(x.astype(scale.dtype), scale)

    def decode(self, codes: jax.Array, grid: ScaleGrid) -> jax.Array:
        return self._values(codes, self.granularity.expand(grid.scale, codes.shape))

    def finite(self, x: jax.Array, codes: jax.Array, grid: typing.Any) -> jax.Array:
        spare = self.codebook.spare(self.bits)
        if spare is None:
            return super().finite(x, codes, grid)
        # the spare code is the extreme one, and codes are a quarter of the memory of values
        extreme = jnp.min(codes, initial=0) if self.codebook.signed else jnp.max(codes, initial=0)
        return extreme != spare

    def affine(self, grid: ScaleGrid) -> Affine | None:
        count = self._count
        if isinstance(count, jax.Array) or count > 7:  # 2**7 is no int8
            return None

        def levels(codes: jax.Array) -> jax.Array:
            index = self.codebook.split(codes).astype(jnp.uint8)
            magnitude = ((jnp.uint8(1) << index) >> 1).astype(jnp.int8)  # 0 at index 0
            return jnp.where(codes < 0, -magnitude, magnitude)

        return Affine(grid.scale, None, levels, 2 ** (count - 1))

    @property
    def clips(self) -> bool:  # type: ignore[override]
        if isinstance(self.scale, RealScale):
            covers = isinstance(self.scale.range, AbsMax | MinMax)
        else:
            covers = isinstance(self.top, DataTop)
        return not (covers and self.codebook.signed)

    def slope(self, x: jax.Array, grid: ScaleGrid) -> jax.Array | None:
        index = self._index(x, self.granularity.expand(grid.scale, x.shape))
        inside = index <= jnp.asarray(self._count, index.dtype)
        return (inside if self.codebook.signed else inside & (x >= 0)).astype(x.dtype)
