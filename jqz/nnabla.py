"""NNabla's quantization functions, with its argument names, its defaults and its exact arithmetic.

They rebuild the networks of NNabla's quantization example and read models that were trained there.
Elsewhere the schemes of ``jqz.schemes`` are the better choice: they fit their grid to the values.

========================= ===================================== ==================================
function                  forward                               dy/dx
========================= ===================================== ==================================
``sign``                  -1 or 1 (``alpha`` at 0)              1
``binary_tanh``           -1 or 1 (-1 at 0)                     1 where abs(x) < 1, else 0
``binary_sigmoid``        0 or 1 (0 at 0)                       1/2 where abs(x) < 1, else 0
``fixed_point_quantize``  round(x / delta) delta, clipped       1 where nothing clips, else 0
``pow2_quantize``         the power of two nearest in log(x)    1 where nothing overflows, else 0
``min_max_quantize``      a uniform grid over a range           1 inside the range, else 0
``binary_weight``         mean(abs(w)) sign(w)                  1
``inq_quantize``          0 or a power of two                   1
========================= ===================================== ==================================

All of them compute in float32 whatever the dtype of ``x``, in NNabla's order of operations, and
return the dtype of ``x``; denormals count as 0. Second derivatives are those of the table: 0.

References: NNabla 1.39.0; BinaryConnect arXiv:1511.00363; BinaryNet arXiv:1602.02830; XNOR-Net
arXiv:1603.05279; INQ arXiv:1702.03044; min-max arXiv:1712.05877.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jqz import _exponents, _ste
from jqz._rounding import HalfAway
from jqz._scheme import quotient

_TINY = np.finfo(np.float32).tiny
_LOWEST, _HIGHEST = -126, 127  # exponents of float32


def sign(x: jax.typing.ArrayLike, alpha: float = 1.0) -> jax.Array:
    """-1 below zero, 1 above, ``alpha`` at zero; the gradient passes unchanged.

    >>> sign(jnp.array([-2.0, 0.0, 3.0])).tolist()
    [-1.0, 1.0, 1.0]
    """
    x, wide = _widen("sign", x)
    return _ste.straight_through(wide, _signs(wide, alpha)).astype(x.dtype)


def binary_tanh(x: jax.typing.ArrayLike) -> jax.Array:
    """1 above zero, else -1; the gradient passes where abs(x) < 1.

    >>> binary_tanh(jnp.array([-2.0, 0.0, 0.5])).tolist()
    [-1.0, -1.0, 1.0]
    """
    x, wide = _widen("binary_tanh", x)
    return _ste.sign(wide, _ste.Hardtanh(), zero_to=-1.0).astype(x.dtype)


def binary_sigmoid(x: jax.typing.ArrayLike) -> jax.Array:
    """1 above zero, else 0; half the gradient passes where abs(x) < 1.

    >>> binary_sigmoid(jnp.array([-2.0, 0.0, 0.5])).tolist()
    [0.0, 0.0, 1.0]
    """
    x, wide = _widen("binary_sigmoid", x)
    value = (wide > 0).astype(wide.dtype)
    return _ste.straight_through(wide, value, _ste.Hardtanh().slope(wide) / 2).astype(x.dtype)


def fixed_point_quantize(
    x: jax.typing.ArrayLike,
    sign: bool = True,
    n: int = 8,
    delta: float = 0.0625,
    quantize: bool = True,
    ste_fine_grained: bool = True,
) -> jax.Array:
    """Multiples of ``delta`` that ``n`` bits can count, ties away from zero.

    y = sgn(x) floor(abs(x) / delta + 1/2) delta, clipped to [-M, M], or to [0, M] without ``sign``;
    M = (2**k - 1) delta with k = n - 1 bits for the magnitude (k = n without ``sign``).
    The error is at most delta / 2 inside the range.

    Args:
      x: floating values.
      sign: whether negative values exist; the sign takes a bit.
      n: bits, the sign included.
      delta: the step, a Python number.
      quantize: False returns ``x`` itself.
      ste_fine_grained: no gradient where x clips; False passes every gradient.

    Raises:
      ValueError: no bit is left for the magnitude, or delta is not positive.
      TypeError: x is not floating.

    >>> fixed_point_quantize(jnp.array([-9.0, -0.03125, 0.1]), n=8, delta=0.0625).tolist()
    [-7.9375, -0.0625, 0.125]
    """
    magnitude_bits = _magnitude_bits("fixed_point_quantize", n, sign=sign, with_zero=False)
    if not delta > 0:
        raise ValueError(f"fixed_point_quantize: got delta={delta!r}, wanted a positive number. Use delta=2**-4.")
    if not quantize:
        return jnp.asarray(x)
    x, wide = _widen("fixed_point_quantize", x)
    still = jax.lax.stop_gradient(wide)
    step = np.float32(delta)
    high = np.float32((2.0**magnitude_bits - 1) * float(step))
    low = -high if sign else np.float32(0)
    magnitude = HalfAway()(quotient(jnp.abs(still), jnp.asarray(step))) * step
    value = jnp.where(still < 0, -magnitude, magnitude)
    value = jnp.where(still > high, high, jnp.where(still < low, low, value))
    slope = ((still >= low) & (still <= high)).astype(still.dtype) if ste_fine_grained else None
    return _ste.straight_through(wide, value, slope).astype(x.dtype)


def pow2_quantize(
    x: jax.typing.ArrayLike,
    sign: bool = True,
    with_zero: bool = True,
    n: int = 8,
    m: int = 1,
    quantize: bool = True,
    ste_fine_grained: bool = True,
) -> jax.Array:
    """Powers of two, the nearest in the logarithm: boundaries at sqrt(2) times a power.

    abs(y) = 2**round(log2(abs(x))), at most 2**m and at least p = 2**(m - (2**k - 1)), where k bits
    remain of ``n`` after one for the sign and one for zero. Below p / sqrt(2) it is 0, or p without
    zero; negative values are 0 (or p) without ``sign``. The relative error is at most sqrt(2) - 1
    inside the range. The boundaries are exact; NNabla's own float32 logarithm misses them by up
    to 40 units in the last place where abs(m) is large.

    Args:
      x: floating values.
      sign: whether negative values exist; the sign takes a bit.
      with_zero: whether zero exists; it takes a whole bit.
      n: bits, those of the sign and of zero included.
      m: the exponent of the largest power, -126 to 127.
      quantize: False returns ``x`` itself.
      ste_fine_grained: no gradient from 2**(m + 1/2) on, nor for negative values without ``sign``;
        values below the smallest power keep theirs. False passes every gradient.

    Raises:
      ValueError: no bit is left for the exponent, or 2**m is not a float32.
      TypeError: x is not floating.

    >>> pow2_quantize(jnp.array([-3.0, 0.375, 0.01]), n=4, m=1).tolist()
    [-2.0, 0.5, 0.0]
    """
    exponent_bits = _magnitude_bits("pow2_quantize", n, sign=sign, with_zero=with_zero)
    if not isinstance(m, int) or not _LOWEST <= m <= _HIGHEST:
        raise ValueError(f"pow2_quantize: got m={m!r}, wanted an integer from -126 to 127. Use m=1.")
    if not quantize:
        return jnp.asarray(x)
    x, wide = _widen("pow2_quantize", x)
    still = jax.lax.stop_gradient(wide)
    lowest = m - (2**exponent_bits - 1)
    vanishing = lowest < _LOWEST  # the smallest power is 0 in float32
    smallest = 0.0 if vanishing else 2.0**lowest
    magnitude = jnp.abs(still)
    exponent = _exponents.nearest_exponent(magnitude, _exponents.GEOMETRIC)
    power = _exponents.power_of_two(jnp.clip(exponent, max(lowest, _LOWEST), m))
    if with_zero or vanishing:
        # float32 rounds this below sqrt(1/2) times the smallest power, so that the power takes the tie
        threshold = max(np.float32(smallest * 0.5**0.5), _TINY)
        power = jnp.where(magnitude < threshold, 0, power)
    negative = still < 0
    value = jnp.where(negative, -power if sign else 0.0 if with_zero else smallest, power)
    value = jnp.where(jnp.isnan(still), still, value)
    slope = None
    if ste_fine_grained:
        slope = ((exponent <= m) if sign else (exponent <= m) & ~negative).astype(still.dtype)
    return _ste.straight_through(wide, value, slope).astype(x.dtype)


def min_max_quantize(
    x: jax.typing.ArrayLike,
    qr_min: jax.typing.ArrayLike,
    qr_max: jax.typing.ArrayLike,
    ql_min: jax.typing.ArrayLike = 0,
    ql_max: jax.typing.ArrayLike = 255,
    decay: float = 0.999,
    x_min_max: bool = False,
    ema: bool = False,
    ste_fine_grained: bool = True,
    eps: float = 0.01,
    quantize: bool = True,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """A uniform grid from ``qr_min`` to ``qr_max``, shifted so that zero is on it; returns ``(y, (qr_min, qr_max))``.

    NNabla updates the range in place; here it comes back as the second result, for the next step::

      x_min_max  ema    range
      True       True   decay range + (1 - decay) (min(x), max(x))
      True       False  min(x), max(x)
      False      True   as given
      False      False  as given, and trained: it gets the gradients of the values that it clips

    qr_max is at least qr_min + eps; scale = (qr_max - qr_min) / (ql_max - ql_min);
    z = clip(round(ql_min - qr_min / scale), ql_min, ql_max); low = (ql_min - z) scale, high = (ql_max - z) scale;
    y = round((clip(x, low, high) - low) / scale) scale + low, ties away from zero.
    The error is at most scale / 2 inside [low, high].

    Do not use it for ranges that exclude zero, which are shifted and not widened ([0.2, 1] becomes [0, 0.8]),
    nor for ranges near ``eps``. A range symmetric about zero with an even number of levels puts z on a
    tie that float32 decides: [-6, 6] gives 128 of 255, [-2, 2] gives 127.

    Args:
      x: floating values.
      qr_min, qr_max: the range: scalars, or arrays of the rank of ``x`` with length 1 on the axes that share a range.
      ql_min, ql_max: the levels: scalars, or arrays of the shape of ``qr_min``.
      decay: of the moving average, 0 to 1.
      x_min_max: measure the range on ``x``.
      ema: use (and with ``x_min_max`` update) a moving average of the range.
      ste_fine_grained: no gradient where x clips; False passes every gradient to ``x``.
      eps: the smallest width of a range, positive.
      quantize: False returns ``x`` and the range themselves.

    Returns:
      y, and the range that it was rounded with, float32 in the shape of ``qr_min``, without gradient.

    Raises:
      ValueError: ql_min >= ql_max, eps <= 0, decay outside [0, 1], or shapes that do not fit each other.
      TypeError: x is not floating.

    >>> y, (low, high) = min_max_quantize(jnp.array([-3.0, -0.4, 1.5]), -1.0, 3.0, ql_min=0, ql_max=4)
    >>> y.tolist(), float(low), float(high)
    ([-1.0, 0.0, 2.0], -1.0, 3.0)
    """
    if not eps > 0:
        raise ValueError(f"min_max_quantize: got eps={eps!r}, wanted a positive number. Use eps=0.01.")
    if not 0 <= decay <= 1:
        raise ValueError(f"min_max_quantize: got decay={decay!r}, wanted a number from 0 to 1. Use decay=0.999.")
    traced = isinstance(ql_min, Tracer) or isinstance(ql_max, Tracer)
    if not traced and np.any(np.greater_equal(ql_min, ql_max)):
        raise ValueError(f"min_max_quantize: got levels {ql_min} to {ql_max}, wanted ql_min < ql_max. Use 0 and 255.")
    if not quantize:
        return jnp.asarray(x), (jnp.asarray(qr_min), jnp.asarray(qr_max))
    x, wide = _widen("min_max_quantize", x)
    shape = _range_shape(x.shape, *(jnp.shape(part) for part in (qr_min, qr_max, ql_min, ql_max)))
    low, high, first, last = (
        jnp.broadcast_to(jnp.asarray(part, jnp.float32), shape) for part in (qr_min, qr_max, ql_min, ql_max)
    )

    still = jax.lax.stop_gradient(wide)
    trained = (low, high) if not (x_min_max or ema) else jax.lax.stop_gradient((low, high))
    low, high, first, last = jax.lax.stop_gradient((low, high, first, last))
    if x_min_max and x.size:
        axes = tuple(axis for axis, length in enumerate(shape) if length == 1)
        seen = jnp.min(still, axis=axes, keepdims=True), jnp.max(still, axis=axes, keepdims=True)
        low, high = (_average(decay, a, b) for a, b in zip((low, high), seen, strict=True)) if ema else seen
    high = jnp.where(high - low < eps, low + np.float32(eps), high)
    scale, bottom, top = _grid(low, high, first, last)
    value = _on_grid(still, scale, bottom, top, (last - first) * scale)

    # where x clips it stands for the limit, so the limit gets the gradient
    below, above = still < bottom, still > top
    lower, upper = (jnp.broadcast_to(limit, x.shape) for limit in trained)
    if ste_fine_grained:
        surrogate = jnp.where(below, lower, jnp.where(above, upper, wide))
    else:
        surrogate = wide + jnp.where(below, lower, 0) + jnp.where(above, upper, 0)
    y = _ste.straight_through(surrogate, value).astype(x.dtype)
    return y, (low.reshape(jnp.shape(qr_min)), high.reshape(jnp.shape(qr_max)))


def binary_weight(w: jax.typing.ArrayLike, axis: int = -1, quantize_zero_to: float = 1.0) -> jax.Array:
    """The weights of NNabla's binary weight layers: mean(abs(w)) sign(w), one mean for each output unit.

    The gradient passes unchanged, as it does there: neither scaled nor clipped, and the mean counts
    as a constant. (NNabla documents the reciprocal of the l1 norm; it computes the mean.)

    Args:
      w: floating weights.
      axis: that of the output units, the last one in Flax.
      quantize_zero_to: the sign of zero.

    Raises:
      ValueError: w lacks the axis.

    >>> binary_weight(jnp.array([[1.0, -0.5], [-3.0, 0.0]])).tolist()
    [[2.0, -0.25], [-2.0, 0.25]]
    """
    w, wide = _widen("binary_weight", w)
    if w.ndim and not -w.ndim <= axis < w.ndim:
        raise ValueError(
            f"binary_weight: got axis={axis} for w of shape {w.shape}, wanted one of its axes. Use axis=-1."
        )
    shared = tuple(a for a in range(w.ndim) if a not in (axis, axis + w.ndim))
    still = jax.lax.stop_gradient(wide)
    mean = jnp.mean(jnp.abs(still), axis=shared, keepdims=True)
    return _ste.straight_through(wide, mean * _signs(still, quantize_zero_to)).astype(w.dtype)


def inq_quantize(
    w: jax.typing.ArrayLike,
    num_bits: int = 4,
    fixed: jax.typing.ArrayLike | None = None,
    maximum: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """INQ's codebook: 0 and the powers of two from 2**n2 to 2**n1, ties away from zero.

    n1 = floor(log2(4 maximum / 3)), n2 = n1 + 1 - 2**(num_bits - 2); a maximum of 0 counts as 1. Below
    2**(n2 - 1) weights become 0. The gradient passes unchanged.

    Args:
      w: floating weights of one layer.
      num_bits: bits, at least 2.
      fixed: True where weights are rounded already; the others stay as they are. All of them if left out.
      maximum: the largest magnitude, which chooses the exponents. NNabla measures it at every step, so that
        free weights that grow move fixed ones; pass that of the pretrained weights to keep these where they are.

    Raises:
      ValueError: num_bits < 2.
      TypeError: w is not floating.

    >>> inq_quantize(jnp.array([-1.0, 0.74, 0.75, 0.07, 0.03]), num_bits=4).tolist()
    [-1.0, 0.5, 1.0, 0.125, 0.0]
    """
    if not isinstance(num_bits, int) or num_bits < 2:
        raise ValueError(f"inq_quantize: got num_bits={num_bits!r}, wanted an integer of at least 2. Use num_bits=4.")
    w, wide = _widen("inq_quantize", w)
    still = jax.lax.stop_gradient(wide)
    magnitude = jnp.abs(still)
    if maximum is None:
        maximum = jnp.max(magnitude, initial=0)
    maximum = jax.lax.stop_gradient(jnp.asarray(maximum, jnp.float32))
    highest = _exponents.nearest_exponent(jnp.where(maximum == 0, 1, maximum))
    lowest = highest + (1 - 2 ** (num_bits - 2))
    bounds = jnp.clip(jnp.stack([lowest, highest]), _LOWEST, _HIGHEST)
    power = _exponents.power_of_two(jnp.clip(_exponents.nearest_exponent(magnitude), bounds[0], bounds[1]))
    smallest = _exponents.power_of_two(jnp.clip(lowest - 1, _LOWEST, _HIGHEST))  # half a level
    value = jnp.where(magnitude < smallest, 0, jnp.where(still < 0, -power, power))
    value = jnp.where(jnp.isnan(still), still, value)
    if fixed is not None:
        value = jnp.where(jnp.asarray(fixed, bool), value, still)
    return _ste.straight_through(wide, value).astype(w.dtype)


def _widen(who: str, x: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The values as an array, and in float32."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{who}: got dtype {x.dtype}, wanted a floating dtype. Use x.astype(jnp.float32).")
    return x, x.astype(jnp.float32)


def _magnitude_bits(who: str, n: int, *, sign: bool, with_zero: bool) -> int:
    """What remains of n bits after the sign and zero."""
    taken = int(sign) + int(with_zero)
    if not isinstance(n, int) or n - taken < 1:
        spent = " and ".join(["sign"] * sign + ["zero"] * with_zero) or "nothing"
        raise ValueError(f"{who}: got n={n!r}, wanted an integer of at least {taken + 1} ({spent} taken off). Use n=8.")
    return n - taken


def _range_shape(
    x: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...], first: tuple[int, ...], last: tuple[int, ...]
) -> tuple[int, ...]:
    """The shape of the range in the rank of x."""
    shape = low or (1,) * len(x)
    fits = len(shape) == len(x) and all(length in (1, n) for length, n in zip(shape, x, strict=True))
    if low != high or not fits or any(levels not in ((), low) for levels in (first, last)):
        raise ValueError(
            f"min_max_quantize: got x {x}, qr_min {low}, qr_max {high}, ql_min {first}, ql_max {last}, wanted ranges "
            "of one shape that broadcasts to x axis by axis, and levels that are scalars or have that shape. "
            f"Use qr_min=jnp.full({(1,) * len(x)}, -6.0)."
        )
    return shape


def _signs(x: jax.Array, zero_to: float) -> jax.Array:
    return jnp.where(x > 0, 1, jnp.where(x < 0, -1, zero_to)).astype(x.dtype)


def _average(decay: float, old: jax.Array, new: jax.Array) -> jax.Array:
    # float32 holds the decay before 1 - decay is taken; the barrier keeps XLA from fusing sum and product
    kept = np.float32(decay)
    old, new = jax.lax.optimization_barrier((kept * old, np.float32(1 - float(kept)) * new))
    return old + new


def _grid(low: jax.Array, high: jax.Array, first: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The step of a range and its limits shifted to put zero on the grid."""
    scale = quotient(high - low, last - first)
    zero = first - quotient(low, scale)
    zero = jnp.where(zero <= first, first, jnp.where(zero >= last, last, HalfAway()(zero)))
    # the barrier keeps these products out of fused multiply-adds further on
    return jax.lax.optimization_barrier((scale, (first - zero) * scale, (last - zero) * scale))


def _on_grid(x: jax.Array, scale: jax.Array, bottom: jax.Array, top: jax.Array, span: jax.Array) -> jax.Array:
    scale, bottom, top, span = (jnp.broadcast_to(part, x.shape) for part in (scale, bottom, top, span))
    steps = HalfAway()(quotient(jnp.minimum(jnp.maximum(x, bottom), top) - bottom, scale))
    # no product exceeds the span; saying so keeps XLA from fusing it with the sum, and costs no pass
    return jnp.minimum(steps * scale, span) + bottom
