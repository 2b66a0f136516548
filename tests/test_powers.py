"""Rounding to exponents and codebooks of exponents, as ``PowerOfTwo`` uses them."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz.schemes import INQ, Arithmetic, Dense, Geometric, GivenTop, NNabla, NonNegative, PowerOfTwo, WithoutZero

POSITIVE = NNabla(NonNegative())
ALL_CODES = NNabla(zero=WithoutZero())
POSITIVE_ALL_CODES = NNabla(NonNegative(), WithoutZero())

#: (codebook, bits) -> powers, signs, zero: counted by hand
CODEBOOKS = {
    (Dense(), 2): (1, True, True),
    (Dense(), 3): (3, True, True),
    (Dense(), 4): (7, True, True),
    (Dense(), 6): (31, True, True),
    (INQ(), 2): (1, True, True),
    (INQ(), 3): (2, True, True),
    (INQ(), 4): (4, True, True),
    (INQ(), 5): (8, True, True),
    (NNabla(), 4): (4, True, True),
    (ALL_CODES, 2): (2, True, False),
    (ALL_CODES, 4): (8, True, False),
    (POSITIVE, 2): (2, False, True),
    (POSITIVE, 4): (8, False, True),
    (POSITIVE_ALL_CODES, 1): (2, False, False),
    (POSITIVE_ALL_CODES, 4): (16, False, False),
}


def decoded(scheme, x):
    x = jnp.asarray(x)
    grid = scheme.calibrate(x)
    return np.asarray(scheme.decode(scheme.encode(x, grid), grid))


def hard(top, seed=0):
    """Values around every boundary of the octaves below and above 2**top, with neighbours, and random ones."""
    rng = np.random.default_rng(seed)
    powers = 2.0 ** np.arange(top - 12, top + 3)
    edges = np.concatenate([powers, 1.5 * powers, np.sqrt(2.0) * powers]).astype(np.float32)
    x = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(np.inf))])
    x = np.concatenate([x, 2.0 ** rng.uniform(top - 12, top + 2, 300), [0, 1e-45, 1e-39, 2.0**-126]])
    return np.concatenate([x, -x]).astype(np.float32)


def levels_by_hand(highest, count, signed, zero):
    powers = 2.0 ** (highest - np.arange(count, dtype=float))
    return np.concatenate([powers, -powers if signed else [], [0.0] if zero else []])


def nearest_by_hand(x, levels):
    """Brute force in float64: the nearest level, of two the larger magnitude; denormals are zero."""
    x = np.where(np.abs(x) < 2.0**-126, 0, x).astype(np.float64)
    distance = np.abs(x[:, None] - levels)
    chosen = np.where(distance == distance.min(1, keepdims=True), np.abs(levels), -1).argmax(1)
    return levels[chosen]


@pytest.mark.parametrize(("codebook", "bits"), CODEBOOKS)
def test_arithmetic_is_the_nearest_of_all_levels(codebook, bits):
    count, signed, zero = CODEBOOKS[codebook, bits]
    x = hard(1)
    got = decoded(PowerOfTwo(bits=bits, codebook=codebook, top=GivenTop(1)), x)
    wanted = nearest_by_hand(x, levels_by_hand(1, count, signed, zero))
    if signed and not zero:  # beside zero float64 cannot tell which of the lowest powers is nearer
        wanted = np.where((x < 0) & (np.abs(x) >= 2.0**-126), -1, 1) * np.abs(wanted)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("codebook", "bits"), CODEBOOKS)
def test_every_level_has_a_code_of_the_width_that_comes_back(codebook, bits):
    count, signed, zero = CODEBOOKS[codebook, bits]
    scheme = PowerOfTwo(bits=bits, codebook=codebook, top=GivenTop(3))
    levels = levels_by_hand(3, count, signed, zero)
    padded = np.resize(levels, 64).astype(np.float32)  # one shape for all codebooks
    grid = scheme.calibrate(jnp.zeros(64))
    codes = scheme.encode(jnp.asarray(padded), grid)
    assert codes.dtype == scheme.code_dtype == (jnp.int8 if signed else jnp.uint8)
    low = -(2 ** (bits - 1)) if signed else 0
    assert low <= int(codes.min()) <= int(codes.max()) < low + 2**bits
    assert len(set(codes.tolist())) == len(levels)
    np.testing.assert_array_equal(scheme.decode(codes, grid), padded)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_boundaries_are_exact_in_every_octave(dtype):
    info = np.finfo(dtype)
    for rounding, square in ((Geometric(), Fraction(2)), (Arithmetic(), Fraction(9, 4))):
        exponents = np.arange(-125, 120, 7)
        edge = np.ldexp(np.asarray(float(square) ** 0.5, dtype), exponents)
        x = np.stack([np.nextafter(edge, dtype(0)), edge, np.nextafter(edge, dtype(info.max))])
        with jax.enable_x64(dtype == np.float64):
            got = decoded(PowerOfTwo(bits=8, rounding=rounding, granularity=jqz.PerAxis((0, 1))), x)
        for value, power, k in zip(x.ravel(), got.ravel(), np.tile(exponents, 3), strict=True):
            goes_up = Fraction(float(value)) ** 2 >= square * Fraction(2) ** int(2 * k)
            assert power == 2.0 ** int(k + goes_up), (rounding, value)
