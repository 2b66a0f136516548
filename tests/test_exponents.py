"""Exponents against exact rational arithmetic."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqz import _exponents


def neighbours(x):
    return [np.nextafter(x, x.dtype.type(0)), x, np.nextafter(x, x.dtype.type(np.inf))]


def exact(x, square):
    """The largest e such that x >= 2**(e - 1) times the boundary, whose square is given."""
    x = Fraction(float(x))
    e = x.numerator.bit_length() - x.denominator.bit_length()
    e -= Fraction(2) ** e > x
    return e + (x * x >= square * Fraction(4) ** e)


@pytest.mark.parametrize(
    ("boundary", "square"), [(_exponents.ARITHMETIC, Fraction(9, 4)), (_exponents.GEOMETRIC, 2), (2, 4)]
)
def test_nearest_exponent_at_every_boundary(boundary, square):
    at = [np.float32(np.sqrt(float(square)) * 2.0**e) for e in range(-125, 126)]
    x = np.array([v for value in at for v in neighbours(value)] + [np.float32(2.0**e) for e in range(-126, 128)])
    got = _exponents.nearest_exponent(jnp.asarray(x), boundary)
    assert got.tolist() == [exact(v, square) for v in x]


def test_ends():
    big = jnp.finfo(jnp.float32).max
    x = jnp.asarray([0.0, 1e-42, jnp.nan, big, jnp.inf])
    assert _exponents.nearest_exponent(x, 2).tolist() == [-127, -127, -127, 127, 127]
    assert _exponents.nearest_exponent(x).tolist() == [-127, -127, -127, 128, 128]


def test_power_of_two_is_exact():
    e = np.arange(-126, 128)
    assert _exponents.power_of_two(jnp.asarray(e)).tolist() == [2.0 ** int(i) for i in e]


def test_float64():
    with jax.enable_x64(True):
        x = np.array([v for e in (-1000, 0, 1000) for v in neighbours(np.float64(2.0**0.5 * 2.0**e))])
        got = _exponents.nearest_exponent(jnp.asarray(x), _exponents.GEOMETRIC)
        assert got.tolist() == [exact(v, 2) for v in x]
        powers = _exponents.power_of_two(got, jnp.float64)
        assert powers.dtype == jnp.float64
        assert powers.tolist() == [2.0 ** int(e) for e in got]
