"""Sums of a few powers of two: nearly a uniform grid's precision, still by shifts."""

import itertools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from jqz import _levels, _scheme
from jqz._gradients import Fixed, GridGradient, Line
from jqz._granularity import Granularity, PerTensor
from jqz._powers import BothSigns, NonNegative, Signs
from jqz._ranges import AbsMax, Range
from jqz._scheme import Affine, ScaleGrid, Scheme

__all__ = ["AdditivePowerOfTwo", "BothSigns", "NonNegative"]

#: Magnitude bits -> the powers of which a level sums one of each set, as integers. Read as binary fractions of
#: 2**1, 2**3, 2**4, 2**6 and 2**7 they are the paper's: {0, 2**-1, 2**-3, 2**-5} + {0, 2**-2, 2**-4, 2**-6} for 4 bits.
_TERMS = {
    1: ((0, 1),),
    2: ((0, 1, 2, 4),),
    3: ((0, 1, 4, 8), (0, 2)),
    4: ((0, 2, 8, 32), (0, 1, 4, 16)),
    5: ((0, 2, 16, 64), (0, 1, 8, 32), (0, 4)),
}


@_scheme.scheme
class AdditivePowerOfTwo(Scheme):
    """Sums of up to three powers of two times one scale (APoT): x ~ sign(c) * scale * level(abs(c)).

    Levels are integers, dense about zero and sparse at the ends ::

        bits  levels of abs(c) = 0, 1, 2, ...
        2     0 1
        3     0 1 2 4
        4     0 1 2 3 4 6 8 10
        5     0 1 2 3 4 6 8 9 12 16 18 24 32 33 36 48
        6     0 1 2 3 4 5 6 7 8 10 12 ... 72 76 96 100

    scale = magnitude / (largest level); a value goes to the nearest level, halfway between two to the smaller.
    Inside the range the error is at most half the gap around a value. All-zero blocks get scale 1.

    Use it for bell-shaped weights at 4 to 6 bits, where each product is one to three shifts: 19.1 dB at 4 bits
    on Gaussian weights with ``range=MSE()``, where one power of two stops at 14.3 and ``Symmetric`` reaches 18.8.
    The gradient passes everywhere under ``BothSigns``, as in the paper; under ``NonNegative`` from zero to the
    largest level. Levels fit int8 at every width, so integer kernels run on it. At 2 bits it is the grid of
    ``Symmetric``, at 3 that of ``PowerOfTwo``.

    Args:
      bits: 2 to 6; 1 to 5 without negative levels.
      granularity: which values share a scale.
      range: what magnitude to cover: ``AbsMax``, ``MSE`` (best below 5 bits), ``Percentile``, ``Given``.
      signs: ``BothSigns``, or ``NonNegative`` for values after relu: one bit more of magnitude, codes in uint8.
      gradient: of the scale, in training on given grids: ``Fixed`` (none, the default), ``RCF`` (the paper's learned
        clip; begin with ``range=Given(-3.0, 3.0)`` and ``jqz.training.standardize_weights``), ``LSQ``, ``PACT``.

    Raises:
      ValueError: bits outside the range.
      TypeError: traced bits; the levels are a table.

    >>> import jax.numpy as jnp, jqz
    >>> q = jqz.quantize(jnp.array([-1.0, 0.0, 0.32, 0.75]), jqz.AdditivePowerOfTwo(bits=4))
    >>> q.codes.tolist(), [round(v, 3) for v in jqz.dequantize(q).tolist()]
    ([-7, 0, 3, 6], [-1.0, 0.0, 0.3, 0.8])

    References: APoT arXiv:1909.13144.
    """

    bits: typing.Any = 4
    granularity: Granularity = PerTensor()
    range: Range = AbsMax()
    signs: Signs = BothSigns()
    gradient: GridGradient = Fixed()

    def __post_init__(self) -> None:
        if isinstance(self.bits, jax.Array):
            raise TypeError(
                "AdditivePowerOfTwo: got traced bits, wanted an int: its levels are a table. Use int(bits)."
            )
        sign = int(self._signed)
        _scheme.check_bits("AdditivePowerOfTwo", self.bits, 1 + sign, 5 + sign, "Use Symmetric(bits) for more.")

    @property
    def _signed(self) -> bool:
        return isinstance(self.signs, BothSigns)

    @property
    def _table(self) -> np.ndarray:
        """The integer magnitudes, in rising order."""
        return np.array(sorted(map(sum, itertools.product(*_TERMS[self.bits - self._signed]))), np.int8)

    @property
    def code_dtype(self) -> typing.Any:
        return jnp.int8 if self._signed else jnp.uint8

    def calibrate(self, x: jax.Array) -> ScaleGrid:
        x = x.astype(_scheme.work_dtype(x))
        top = int(self._table[-1])

        def step(magnitude: jax.Array) -> jax.Array:
            return jnp.where(magnitude < _scheme.TINY, 1, magnitude / top)

        def scale(blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            def fake(magnitude: jax.Array) -> jax.Array:
                return self._values(self._codes(blocks, step(magnitude)), step(magnitude))

            return step(self.range.magnitude(blocks, axes, fake, len(self._table) - 1))

        return ScaleGrid(self.granularity.reduce(scale, x))

    def _codes(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        y = _scheme.quotient(x, scale)
        index = _levels.nearest(jnp.abs(y), jnp.asarray(self._table, x.dtype)).astype(self.code_dtype)
        return jnp.where(y < 0, -index if self._signed else 0, index)

    def _values(self, codes: jax.Array, scale: jax.Array) -> jax.Array:
        return self._levels(codes).astype(scale.dtype) * scale

    def _levels(self, codes: jax.Array) -> jax.Array:
        level = _levels.lookup(jnp.abs(codes).astype(jnp.uint8), jnp.asarray(self._table))
        return jnp.where(codes < 0, -level, level)

    def encode(self, x: jax.Array, grid: ScaleGrid) -> jax.Array:
        scale = self.granularity.expand(grid.scale, x.shape)
        return self._codes(x.astype(scale.dtype), scale)

    def decode(self, codes: jax.Array, grid: ScaleGrid) -> jax.Array:
        return self._values(codes, self.granularity.expand(grid.scale, codes.shape))

    def affine(self, grid: ScaleGrid) -> Affine | None:
        return Affine(grid.scale, None, self._levels, int(self._table[-1]))

    def slope(self, x: jax.Array, grid: ScaleGrid) -> jax.Array | None:
        if self._signed:
            return None
        top = self.granularity.expand(grid.scale, x.shape) * int(self._table[-1])
        return ((x >= 0) & (x <= top)).astype(x.dtype)

    @property
    def learns(self) -> bool:
        return not isinstance(self.gradient, Fixed)

    def partials(self, x: jax.Array, value: jax.Array, grid: ScaleGrid) -> tuple[jax.Array, ScaleGrid]:
        scale, top = self.granularity.expand(grid.scale, x.shape), int(self._table[-1])
        zero = jnp.zeros_like(scale)
        line = Line(scale, -top * scale if self._signed else zero, top * scale, zero, top)
        of_x, of_scale, _ = self.gradient.partials(x, value, line, grid.scale.size)
        return of_x, ScaleGrid(of_scale)
