"""Powers of two without logarithms: exact exponents from and to the bits of floating numbers.

``log2`` is off by ulps just where rounding decides, and ``exp2`` is not exact; see also
``jnp.frexp`` and ``jnp.ldexp``, which are, and take several passes.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np

GEOMETRIC = 2**0.5  #: the mantissa from which the next power is nearer in the logarithm
ARITHMETIC = 1.5  #: the mantissa from which the next power is nearer in value


def nearest_exponent(magnitude: jax.Array, boundary: float = ARITHMETIC) -> jax.Array:
    """The exponent of the nearest power of two, exactly: mantissas in [1, 2) from ``boundary`` on go up.

    Args:
      magnitude: float32 or float64, not negative. Infinity counts as the largest finite number.
      boundary: ``ARITHMETIC`` (relative error at most 1/3), ``GEOMETRIC`` (at most sqrt(2) - 1), or 2 for the floor.

    Returns:
      Integers of the width of the values; below the least normal exponent (-127, -1023) for 0, denormals and NaN.

    >>> nearest_exponent(jnp.array([0.375, 0.74, 3.0])).tolist()
    [-1, -1, 2]
    >>> nearest_exponent(jnp.array([0.375, 0.70710677, 0.7071068]), GEOMETRIC).tolist()
    [-1, -1, 0]
    """
    info, whole, width = _layout(magnitude.dtype)
    first = np.asarray(boundary, magnitude.dtype)
    if float(first) < boundary:  # GEOMETRIC in float32
        first = np.nextafter(first, np.asarray(2, magnitude.dtype))
    finite = jnp.minimum(magnitude, np.asarray(info.max, magnitude.dtype))
    normal = jnp.where(finite >= np.asarray(info.tiny, magnitude.dtype), finite, 0)
    # what the first mantissa to go up lacks to the next power's pattern, added to every pattern,
    # carries into the exponent
    lacking = np.asarray(2, magnitude.dtype).view(whole) - first.view(whole)
    return ((jax.lax.bitcast_convert_type(normal, whole) + lacking) >> width) + (info.minexp - 1)


def power_of_two(exponent: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """2 ** exponent, exactly, for exponents of normal numbers (float32: -126 to 127).

    >>> power_of_two(jnp.array([-126, 0, 3])).tolist()
    [1.1754943508222875e-38, 1.0, 8.0]
    """
    info, whole, width = _layout(dtype)
    return jax.lax.bitcast_convert_type((exponent.astype(whole) + (1 - info.minexp)) << width, dtype)


def _layout(dtype: jax.typing.DTypeLike) -> tuple[typing.Any, typing.Any, int]:
    """Limits, the integer dtype of the same width, and the bits of the mantissa."""
    info = np.finfo(np.dtype(dtype))
    return info, {32: np.int32, 64: np.int64}[info.bits], info.nmant
