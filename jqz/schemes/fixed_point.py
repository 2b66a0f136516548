"""Fixed point: a uniform grid whose step is a power of two, or one you know."""

import abc
import dataclasses
import numbers
import typing

import jax
import jax.numpy as jnp

from jqz import _scheme
from jqz._granularity import Granularity, PerTensor
from jqz._rounding import HalfAway, Rounding
from jqz._scheme import Affine, ScaleGrid, Scheme, power


class Sign(abc.ABC):
    """Whether codes have a sign."""

    @abc.abstractmethod
    def bounds(self, bits: typing.Any) -> tuple[typing.Any, typing.Any]:
        """The lowest and the highest code; traced if ``bits`` is."""


@typing.final
@dataclasses.dataclass(frozen=True)
class Signed(Sign):
    """-(2**(bits-1) - 1) to 2**(bits-1) - 1; the lowest code of two's complement is unused."""

    def bounds(self, bits: typing.Any) -> tuple[typing.Any, typing.Any]:
        high = power(bits - 1) - 1
        return -high, high


@typing.final
@dataclasses.dataclass(frozen=True)
class Unsigned(Sign):
    """0 to 2**bits - 1; negative values become 0."""

    def bounds(self, bits: typing.Any) -> tuple[typing.Any, typing.Any]:
        return 0, power(bits) - 1


class Step(abc.ABC):
    """Where the step comes from."""

    @abc.abstractmethod
    def choose(self, magnitude: jax.Array, high: typing.Any) -> jax.Array:
        """A step for blocks of this magnitude, whose highest code is ``high`` = 2**k - 1."""


@typing.final
@dataclasses.dataclass(frozen=True)
class Dynamic(Step):
    """The least power of two that covers the largest magnitude: 2**ceil(log2(magnitude / high)), exactly."""

    def choose(self, magnitude: jax.Array, high: typing.Any) -> jax.Array:
        # magnitude = m 2**e and high = h 2**k with m, h in [1/2, 1): the exponent is e - k, or one more if m > h
        high_mantissa, k = jnp.frexp(jnp.asarray(high, magnitude.dtype))
        mantissa, e = jnp.frexp(magnitude)
        exponent = e - k + (mantissa > high_mantissa).astype(e.dtype)
        step = jnp.ldexp(jnp.ones_like(magnitude), jnp.minimum(exponent, jnp.finfo(magnitude.dtype).maxexp - 1))
        step = jnp.where(magnitude < _scheme.TINY, 1, step)
        return jnp.where(jnp.isfinite(magnitude), step, magnitude)


@typing.final
@dataclasses.dataclass(frozen=True)
class GivenStep(Step):
    """A step you know, such as NNabla's default 2**-4."""

    step: typing.Any = 2.0**-4

    def __post_init__(self) -> None:
        known = isinstance(self.step, numbers.Real)
        if not (0 < self.step < float("inf") if known else isinstance(self.step, jax.Array) and self.step.ndim == 0):
            raise ValueError(f"GivenStep: got step={self.step!r}, wanted a positive number. Use GivenStep(2.0**-4).")

    def choose(self, magnitude: jax.Array, high: typing.Any) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(self.step, magnitude.dtype), magnitude.shape)


@_scheme.scheme
class FixedPoint(Scheme):
    """Integers times a power of two: x ~ step * code, zero exact.

    code = clip(round(x / step), -(2**(bits-1) - 1), 2**(bits-1) - 1), ties away from zero. Inside the range
    the error is at most step / 2. The default step is the least power of two that covers the block
    (dynamic fixed point), so nothing clips and at most one bit is lost against ``Symmetric``.

    Use it where rescaling must be a shift. ``FixedPoint(step=GivenStep(2.0**-4))`` is NNabla's
    fixed_point_quantize with n=8; mind that this step leaves only 5 to 9 distinct values of a freshly
    initialised layer.

    Args:
      bits: 2 to 16, 1 to 16 if unsigned; codes take 8 bits up to 8, 16 above. May be traced in ``fake_quantize``.
      step: ``Dynamic`` (the default) or ``GivenStep``, which clips at step * highest code; the gradient
        is 0 where it does.
      granularity: which values share a step.
      sign: ``Signed`` (the default) or ``Unsigned``: 0 to 2**bits - 1, for values after relu.
      rounding: ``HalfAway`` (the default), ``HalfEven``, ``Floor``, ``Stochastic``.

    Raises:
      ValueError: bits out of range, or a step that is not positive.

    >>> import jax.numpy as jnp, jqz
    >>> x = jnp.array([-1.0, -0.125, 0.0, 0.3, 0.9])
    >>> jqz.fake_quantize(x, jqz.FixedPoint(bits=4)).tolist()
    [-1.0, -0.25, 0.0, 0.25, 1.0]
    >>> jqz.quantize(x, jqz.FixedPoint(bits=4, step=jqz.schemes.GivenStep(2.0**-4))).codes.tolist()
    [-7, -2, 0, 5, 7]

    References: dynamic fixed point arXiv:1412.7024; stochastic rounding arXiv:1502.02551; the functions of NNabla.
    """

    bits: typing.Any = 8
    step: Step = Dynamic()
    granularity: Granularity = PerTensor()
    sign: Sign = Signed()
    rounding: Rounding = HalfAway()
    linear = True

    def __post_init__(self) -> None:
        lowest = 2 if isinstance(self.sign, Signed) else 1
        _scheme.check_bits("FixedPoint", self.bits, lowest, 16, "Use Binary() for one bit." if lowest == 2 else "")

    @property
    def code_dtype(self) -> typing.Any:
        narrow, wide = (jnp.int8, jnp.int16) if isinstance(self.sign, Signed) else (jnp.uint8, jnp.uint16)
        return wide if isinstance(self.bits, jax.Array) or self.bits > 8 else narrow

    def calibrate(self, x: jax.Array) -> ScaleGrid:
        x = x.astype(_scheme.work_dtype(x))
        _, high = self.sign.bounds(self.bits)

        def scale(blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            reach = jnp.abs(blocks) if isinstance(self.sign, Signed) else jnp.maximum(blocks, 0)
            return self.step.choose(jnp.max(reach, axis=axes, keepdims=True), high)

        return ScaleGrid(self.granularity.reduce(scale, x))

    def encode(self, x: jax.Array, grid: ScaleGrid) -> jax.Array:
        dtype = grid.scale.dtype
        low, high = (jnp.asarray(bound, dtype) for bound in self.sign.bounds(self.bits))
        # the highest codes may stand for more than the largest number
        reach = self.granularity.expand(jnp.floor(float(jnp.finfo(dtype).max) / grid.scale), x.shape)
        codes = self.rounding(_scheme.quotient(x.astype(dtype), self.granularity.expand(grid.scale, x.shape)))
        return jnp.clip(codes, jnp.maximum(low, -reach), jnp.minimum(high, reach)).astype(self.code_dtype)

    def decode(self, codes: jax.Array, grid: ScaleGrid) -> jax.Array:
        scale = self.granularity.expand(grid.scale, codes.shape)
        return codes.astype(scale.dtype) * scale

    def affine(self, grid: ScaleGrid) -> Affine | None:
        if isinstance(self.bits, jax.Array) or self.bits > 8:
            return None
        if isinstance(self.sign, Unsigned) and self.bits == 8:  # levels are int8
            shift = jnp.full(grid.scale.shape, -128, jnp.int32)
            ends = (-128, 127) if self.rounding.nearest else None
            return Affine(grid.scale, shift, lambda codes: (codes.astype(jnp.int16) - 128).astype(jnp.int8), 128, ends)
        low, high = self.sign.bounds(self.bits)
        ends = (low, high) if self.rounding.nearest else None
        return Affine(grid.scale, None, lambda codes: codes.astype(jnp.int8), high, ends)

    @property
    def clips(self) -> bool:  # type: ignore[override]
        return not (isinstance(self.step, Dynamic) and isinstance(self.sign, Signed))

    def slope(self, x: jax.Array, grid: ScaleGrid) -> jax.Array | None:
        scale = self.granularity.expand(grid.scale, x.shape)
        low, high = (jnp.asarray(bound, scale.dtype) for bound in self.sign.bounds(self.bits))
        return ((x >= low * scale) & (x <= high * scale)).astype(x.dtype)
