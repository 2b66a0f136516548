"""Block floating point: small elements under 8-bit scales, the Microscaling formats and NVFP4."""

import abc
import dataclasses
import typing

import jax
import jax.numpy as jnp

from jqz import _exponents, _minifloat, _scheme
from jqz._granularity import Granularity, PerAxis, PerTensor
from jqz._input_groups import PerInputGroup
from jqz._minifloat import E2M1, E2M3, E3M2, E4M3, E5M2, Format, Int8
from jqz._scheme import Affine, Scheme


class ExponentRule(abc.ABC):
    """Which power of two a block's largest magnitude asks for."""

    @abc.abstractmethod
    def rises(self, mantissa: jax.Array, element: Format) -> jax.Array:
        """Whether the scale goes up a power from floor(log2(max |x|)) - emax; the mantissa of max |x| is in [1, 2)."""


@typing.final
@dataclasses.dataclass(frozen=True)
class FloorExponent(ExponentRule):
    """floor(log2(max |x|)) - emax: the rule of the specification. The largest values may saturate."""

    def rises(self, mantissa: jax.Array, element: Format) -> jax.Array:
        return jnp.zeros(mantissa.shape, bool)


@typing.final
@dataclasses.dataclass(frozen=True)
class CeilExponent(ExponentRule):
    """ceil(log2(max |x|)) - emax: nothing saturates, at the price of half the resolution in most blocks."""

    def rises(self, mantissa: jax.Array, element: Format) -> jax.Array:
        return mantissa > 1


@typing.final
@dataclasses.dataclass(frozen=True)
class FitExponent(ExponentRule):
    """ceil(log2(max |x| / largest)): the least power under which nothing saturates (also called rceil)."""

    def rises(self, mantissa: jax.Array, element: Format) -> jax.Array:
        return mantissa > element.largest / 2.0**element.largest_exponent


@typing.final
@dataclasses.dataclass(frozen=True)
class EvenExponent(ExponentRule):
    """floor(log2(r)) - emax, where r is max |x| rounded to the element's mantissa: between floor and ceil."""

    def rises(self, mantissa: jax.Array, element: Format) -> jax.Array:
        return mantissa >= 2 - 2.0 ** -(element.mantissa_bits + 1)


class BlockGrid(typing.NamedTuple):
    """The scale of each block as an 8-bit code, and what a real scale of the tensor adds to it, if there is one."""

    scale: jax.Array
    tensor: jax.Array | None


class BlockScale(abc.ABC):
    """How the scale of a block is chosen and stored."""

    #: Values in a block, where the granularity does not say otherwise.
    size: typing.ClassVar[int]

    @property
    def clips(self) -> bool:
        """Whether the largest values of a block may saturate."""
        return True

    @abc.abstractmethod
    def calibrate(self, x: jax.Array, magnitude: jax.Array, element: Format) -> BlockGrid:
        """The grid of values ``x``, whose blocks have these largest magnitudes."""

    @abc.abstractmethod
    def encode(self, x: jax.Array, grid: BlockGrid, element: Format, granularity: Granularity) -> jax.Array:
        """Codes of the elements."""

    @abc.abstractmethod
    def values(self, grid: BlockGrid) -> jax.Array:
        """The scales as floating numbers, one a block."""


@typing.final
@dataclasses.dataclass(frozen=True)
class E8M0Scale(BlockScale):
    """A power of two, 2**(code - 127) in one byte: the scale of the Microscaling (MX) formats.

    Code 0 is kept for blocks of zeros and 255 for blocks that are not finite.
    """

    exponent: ExponentRule = FloorExponent()
    size = 32

    @property
    def clips(self) -> bool:
        return not isinstance(self.exponent, CeilExponent | FitExponent)

    def calibrate(self, x: jax.Array, magnitude: jax.Array, element: Format) -> BlockGrid:
        finite = jnp.isfinite(magnitude)
        some = finite & (magnitude >= _scheme.TINY)
        mantissa, power = jnp.frexp(jnp.where(some, magnitude, 1))
        rises = self.exponent.rises(2 * mantissa, element).astype(power.dtype)
        # the largest element of the highest scale is still a number
        exponent = power - 1 - element.largest_exponent + rises
        exponent = jnp.clip(exponent, -126, 127 - element.largest_exponent)
        code = jnp.where(some, exponent + 127, jnp.where(finite, 0, 255))
        return BlockGrid(code.astype(jnp.uint8), None)

    def encode(self, x: jax.Array, grid: BlockGrid, element: Format, granularity: Granularity) -> jax.Array:
        code = grid.scale.astype(jnp.int32)
        exponent = jnp.where(code == 0, 1000, code - 127)  # so high that all elements are zero
        return _minifloat.encode(x, element, granularity.expand(exponent, x.shape))

    def values(self, grid: BlockGrid) -> jax.Array:
        code = grid.scale.astype(jnp.int32)
        scale = _exponents.power_of_two(jnp.maximum(code, 1) - 127)
        return jnp.where(code == 255, jnp.nan, jnp.where(code == 0, 0, scale))


@typing.final
@dataclasses.dataclass(frozen=True)
class E4M3Scale(BlockScale):
    """A positive E4M3 number in one byte, times one float32 number a tensor: the scale of NVFP4.

    tensor = max |x| / (largest * 448), scale = round(max |block| / largest / tensor), at least 2**-9. Rounding
    moves a block's largest value by up to a sixteenth, so that some saturate.

    Args:
      shared: which values share the float32 number: ``PerTensor()``, or ``PerAxis(0)`` for scanned layers.
    """

    shared: Granularity = PerTensor()
    size = 16

    def __post_init__(self) -> None:
        if not isinstance(self.shared, PerTensor | PerAxis):
            raise ValueError(
                f"E4M3Scale: got shared={self.shared!r}, wanted PerTensor() or PerAxis(...). Use E4M3Scale()."
            )

    def calibrate(self, x: jax.Array, magnitude: jax.Array, element: Format) -> BlockGrid:
        def fit(blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            top = jnp.max(jnp.abs(blocks), axis=axes, keepdims=True)
            return _minifloat.fit(top, E4M3().largest, element.largest)

        tensor = self.shared.reduce(fit, x.astype(magnitude.dtype))
        wanted = _scheme.quotient(magnitude / element.largest, self.shared.expand(tensor, magnitude.shape))
        return BlockGrid(jnp.maximum(_minifloat.encode(wanted, E4M3()), 1), tensor)

    def encode(self, x: jax.Array, grid: BlockGrid, element: Format, granularity: Granularity) -> jax.Array:
        return _minifloat.encode(_scheme.quotient(x, granularity.expand(self.values(grid), x.shape)), element)

    def values(self, grid: BlockGrid) -> jax.Array:
        tensor = typing.cast(jax.Array, grid.tensor)
        scale = _minifloat.decode(grid.scale, E4M3()).astype(tensor.dtype)
        return scale * self.shared.expand(tensor, scale.shape)


@_scheme.scheme
class BlockFloat(Scheme):
    """Elements of few bits under a shared 8-bit scale a block: x ~ scale * element(code).

    ======== ======================================================== ============ =============
    name     scheme                                                   bits/weight  SQNR, Gauss
    ======== ======================================================== ============ =============
    MXFP4    BlockFloat()                                             4.25         18.7 dB
    MXFP6    BlockFloat(E2M3()) or BlockFloat(E3M2())                 6.25         30.9, 25.4 dB
    MXFP8    BlockFloat(E4M3()) or BlockFloat(E5M2())                 8.25         30.6, 25.4 dB
    MXINT8   BlockFloat(Int8())                                       8.25         41.6 dB
    NVFP4    BlockFloat(scale=E4M3Scale())                            4.5          20.4 dB
    ======== ======================================================== ============ =============

    code = round(x / scale) to the element format, to nearest, ties to even, saturating, denormals kept. Scales
    are stored as the codes they are, so ``size_bytes`` counts them as one byte; blocks whose largest magnitude is
    below 2**-100 count as zeros. The error is at most half the distance of neighbouring elements times the
    scale, but for saturated values: under ``FloorExponent`` those beyond ``largest * scale``, a quarter of the
    block's largest for E2M1.

    Use NVFP4 for 4-bit weights, MXFP4 where a power-of-two scale is worth two decibels to the hardware, MXINT8
    or MXFP6 (E2M3) for activations. Within a block elements of equal size are the rule, so more mantissa
    (E2M3, Int8) beats more exponent (E3M2, E5M2). The elements of MXFP4, NVFP4, MXFP6 (E2M3) and MXINT8 are
    integers of at most 8 bits times a step, on which integer kernels run.

    Args:
      element: ``E2M1`` (the default), ``E2M3``, ``E3M2``, ``E4M3``, ``E5M2``, ``Int8``.
      scale: ``E8M0Scale(exponent)``, with ``FloorExponent`` (the specification's, the default), ``CeilExponent``,
        ``FitExponent`` or ``EvenExponent``; or ``E4M3Scale(shared)``.
      granularity: what a block is; by default 32 (E8M0) or 16 (E4M3) values along the input axis.

    Raises:
      ValueError: an element format of 16 bits.

    >>> import jax.numpy as jnp, jqz
    >>> q = jqz.quantize(jnp.array([-1.0, 0.26, 3.5]), jqz.BlockFloat())
    >>> q.codes.tolist(), q.grid.scale.tolist(), jqz.dequantize(q).tolist()
    ([12, 1, 7], [126], [-1.0, 0.25, 3.0])

    References: OCP Microscaling Formats v1.0, arXiv:2310.10537; NVFP4 arXiv:2509.25149.
    """

    element: Format = E2M1()
    scale: BlockScale = E8M0Scale()
    granularity: Granularity = typing.cast(Granularity, None)

    def __post_init__(self) -> None:
        if not isinstance(self.element, Format) or self.element.bits > 8:
            raise ValueError(
                f"BlockFloat: got element={self.element!r}, wanted a format of at most 8 bits. Use BlockFloat(E2M1())."
            )
        if self.granularity is None:
            object.__setattr__(self, "granularity", PerInputGroup(self.scale.size))

    @property
    def bits(self) -> int:  # type: ignore[override]
        return self.element.bits

    @property
    def code_dtype(self) -> typing.Any:
        return self.element.code_dtype

    def calibrate(self, x: jax.Array) -> BlockGrid:
        def largest(blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            return jnp.max(jnp.abs(blocks), axis=axes, keepdims=True)

        magnitude = self.granularity.reduce(largest, x.astype(_scheme.work_dtype(x)))
        return self.scale.calibrate(x, magnitude, self.element)

    def encode(self, x: jax.Array, grid: BlockGrid) -> jax.Array:
        return self.scale.encode(x.astype(_scheme.work_dtype(x)), grid, self.element, self.granularity)

    def decode(self, codes: jax.Array, grid: BlockGrid) -> jax.Array:
        scale = self.granularity.expand(self.scale.values(grid), codes.shape)
        return _minifloat.decode(codes, self.element).astype(scale.dtype) * scale

    def affine(self, grid: BlockGrid) -> Affine | None:
        if self.element.limit is None:
            return None
        step = self.scale.values(grid) * 2.0**self.element.step_exponent
        return Affine(step, None, lambda c: _minifloat.integers(c, self.element), self.element.limit)

    @property
    def clips(self) -> bool:  # type: ignore[override]
        return self.scale.clips

    def slope(self, x: jax.Array, grid: BlockGrid) -> jax.Array | None:
        limit = self.scale.values(grid) * self.element.largest
        limit = jnp.where(limit == 0, jnp.inf, limit)  # a block of zeros may grow
        return (jnp.abs(x) <= self.granularity.expand(limit.astype(x.dtype), x.shape)).astype(x.dtype)


__all__ = [
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E5M2",
    "BlockFloat",
    "CeilExponent",
    "E4M3Scale",
    "E8M0Scale",
    "EvenExponent",
    "FitExponent",
    "FloorExponent",
    "Int8",
]
