"""Uniform grid about zero."""

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
from jqz._scheme import Affine, ScaleGrid, Scheme, power


class Codes(abc.ABC):
    """Which integers a symmetric grid uses."""

    @abc.abstractmethod
    def bounds(self, bits: typing.Any) -> tuple[typing.Any, typing.Any]:
        """The lowest and the highest code; traced if ``bits`` is."""


@typing.final
@dataclasses.dataclass(frozen=True)
class Narrow(Codes):
    """-(2**(bits-1) - 1) to 2**(bits-1) - 1: the same magnitude on both sides, one code unused."""

    def bounds(self, bits: typing.Any) -> tuple[typing.Any, typing.Any]:
        high = power(bits - 1) - 1
        return -high, high


@typing.final
@dataclasses.dataclass(frozen=True)
class Full(Codes):
    """-2**(bits-1) to 2**(bits-1) - 1: every code; worth it at 2 to 4 bits with a clipped range."""

    def bounds(self, bits: typing.Any) -> tuple[typing.Any, typing.Any]:
        high = power(bits - 1) - 1
        return -high - 1, high


@_scheme.scheme
class Symmetric(Scheme):
    """Integers times one scale: x ~ scale * code, zero exact.

    code = clip(round(x / scale), low, high), scale = magnitude / (2**(bits-1) - 1). Inside the range
    the error is at most scale / 2 under nearest rounding. All-zero blocks get scale 1.

    Use it for weights: integer kernels need no zero-point correction. Below 5 bits pass
    ``range=OCTAV()`` or ``MSE()``: at 3 bits a clipped range gains 6 dB on Gaussian weights over the
    largest magnitude. For one-sided values (after relu) ``Asymmetric`` has twice the resolution.

    Args:
      bits: 2 to 16; codes are int8 up to 8, int16 above. May be traced in ``fake_quantize``.
      granularity: which values share a scale; ``PerAxis(-1)`` for one each output channel.
      range: what magnitude to cover: ``AbsMax``, ``Percentile``, ``MSE``, ``OCTAV``, ``Given``.
      rounding: ``HalfEven``, ``HalfAway``, ``Floor``, ``Stochastic``.
      codes: ``Narrow`` (2**bits - 1 levels, the default) or ``Full`` (2**bits).
      gradient: of the scale, in training on given grids: ``Fixed`` (none, the default), ``LSQ``, ``PACT``.

    Raises:
      ValueError: bits outside 2 to 16.

    >>> import jax.numpy as jnp, jqz
    >>> q = jqz.quantize(jnp.array([-1.0, 0.0, 0.3, 0.5]), jqz.Symmetric(bits=3))
    >>> q.codes.tolist(), jqz.dequantize(q).tolist()
    ([-3, 0, 1, 2], [-1.0, 0.0, 0.3333333432674408, 0.6666666865348816])

    References: SYMM of arXiv:1910.04877; restricted range of arXiv:1712.05877; OCTAV arXiv:2206.06501.
    """

    bits: typing.Any = 8
    granularity: Granularity = PerTensor()
    range: Range = AbsMax()
    rounding: Rounding = HalfEven()
    codes: Codes = Narrow()
    gradient: GridGradient = Fixed()
    linear = True

    def __post_init__(self) -> None:
        _scheme.check_bits("Symmetric", self.bits, 2, 16, "Use Binary() for one bit.")

    @property
    def code_dtype(self) -> typing.Any:
        if isinstance(self.bits, jax.Array):
            return jnp.int16
        return jnp.int8 if self.bits <= 8 else jnp.int16

    def calibrate(self, x: jax.Array) -> ScaleGrid:
        x = x.astype(_scheme.work_dtype(x))
        _, high = self.codes.bounds(self.bits)

        def scale(blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            def fake(magnitude: jax.Array) -> jax.Array:
                step = _step(magnitude, high)
                return self._round(blocks, step) * step

            return _step(self.range.magnitude(blocks, axes, fake, high), high)

        return ScaleGrid(self.granularity.reduce(scale, x))

    def _round(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        low, high = self.codes.bounds(self.bits)
        return jnp.clip(self.rounding(_scheme.quotient(x, scale)), low, high)

    def encode(self, x: jax.Array, grid: ScaleGrid) -> jax.Array:
        scale = self.granularity.expand(grid.scale, x.shape)
        x = x.astype(scale.dtype)
        if not isinstance(self.rounding, HalfEven) or scale.dtype != jnp.float32:
            return self._round(x, scale).astype(self.code_dtype)
        return _nearest(jnp.clip(_scheme.quotient(x, scale), *self.codes.bounds(self.bits)), self.code_dtype)

    def decode(self, codes: jax.Array, grid: ScaleGrid) -> jax.Array:
        scale = self.granularity.expand(grid.scale, codes.shape)
        return codes.astype(scale.dtype) * scale

    def affine(self, grid: ScaleGrid) -> Affine | None:
        if isinstance(self.bits, jax.Array):
            return None
        low, high = self.codes.bounds(self.bits)
        return Affine(grid.scale, None, lambda codes: codes, -low, (low, high) if self.rounding.nearest else None)

    @property
    def clips(self) -> bool:  # type: ignore[override]
        return not (isinstance(self.range, AbsMax | MinMax) and isinstance(self.codes, Narrow))

    def slope(self, x: jax.Array, grid: ScaleGrid) -> jax.Array | None:
        scale = self.granularity.expand(grid.scale, x.shape)
        low, high = self.codes.bounds(self.bits)
        return ((x >= low * scale) & (x <= high * scale)).astype(x.dtype)

    @property
    def learns(self) -> bool:
        return not isinstance(self.gradient, Fixed)

    def partials(self, x: jax.Array, value: jax.Array, grid: ScaleGrid) -> tuple[jax.Array, ScaleGrid]:
        scale = self.granularity.expand(grid.scale, x.shape)
        low, high = self.codes.bounds(self.bits)
        line = Line(scale, low * scale, high * scale, jnp.zeros_like(scale), high)
        of_x, of_scale, _ = self.gradient.partials(x, value, line, grid.scale.size)
        return of_x, ScaleGrid(of_scale)


def _step(magnitude: jax.Array, high: typing.Any) -> jax.Array:
    return jnp.where(magnitude < _scheme.TINY, 1, magnitude / high).astype(magnitude.dtype)


def _nearest(x: jax.Array, dtype: typing.Any) -> jax.Array:
    """round(x) as integers, ties to even, for float32 below 2**22 in magnitude; 0 for NaN.

    The sum with 1.5 * 2**23 has no room for a fraction and holds the integer in its low bits: one
    addition for a rounding and a saturating conversion. The clip before keeps it from fusing with a product.
    """
    return jax.lax.bitcast_convert_type(x + jnp.float32(1.5 * 2**23), jnp.int32).astype(dtype)
