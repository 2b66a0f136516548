"""Rounding to small floats against ml_dtypes, which converts by other means."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jqz import _minifloat
from jqz._minifloat import E2M1, E2M3, E3M2, E4M3, E5M2, BFloat16, Float16, Int8

ORACLES = {
    E4M3(): ml_dtypes.float8_e4m3fn,
    E5M2(): ml_dtypes.float8_e5m2,
    E3M2(): ml_dtypes.float6_e3m2fn,
    E2M3(): ml_dtypes.float6_e2m3fn,
    E2M1(): ml_dtypes.float4_e2m1fn,
    BFloat16(): ml_dtypes.bfloat16,
    Float16(): np.float16,
}
encode = jax.jit(_minifloat.encode, static_argnums=1)
decode = jax.jit(_minifloat.decode, static_argnums=1)
each_format = pytest.mark.parametrize(("element", "oracle"), ORACLES.items(), ids=lambda x: getattr(x, "__name__", x))


def patterns(element):
    return np.arange(2**element.bits).astype(np.uint8 if element.bits <= 8 else np.uint16)


def meaning(element, oracle):
    """What ml_dtypes makes of every pattern, in float64."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        return patterns(element).view(oracle).astype(np.float32).astype(np.float64)


def representables(element, oracle):
    """Every finite value, rising."""
    values = meaning(element, oracle)
    return np.unique(values[np.isfinite(values)])


@each_format
def test_limits_are_those_of_ml_dtypes(element, oracle):
    info = ml_dtypes.finfo(oracle)
    assert element.bits == info.bits
    assert element.largest == float(info.max)
    assert 2.0**element.step_exponent == float(info.smallest_subnormal)
    assert 2.0**element.largest_exponent <= element.largest < 2.0 ** (element.largest_exponent + 1)


@each_format
def test_every_pattern_decodes_exactly(element, oracle):
    values = np.asarray(decode(jnp.asarray(patterns(element)), element))
    expected = meaning(element, oracle).astype(np.float32)
    assert np.array_equal(np.isnan(values), np.isnan(expected))
    known = ~np.isnan(expected)
    assert np.array_equal(values.view(np.int32)[known], expected.view(np.int32)[known])  # signs of zeros too


@each_format
def test_representables_midpoints_and_random_values_encode_as_ml_dtypes_does(element, oracle):
    rng = np.random.default_rng(0)
    levels = representables(element, oracle)
    middles = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    beyond = np.float32([1e-45, -1e-45, 3e-39, 1e-38, 3e38, -3e38, 0.0, -0.0])
    x = np.concatenate(
        [
            levels.astype(np.float32),
            middles,
            np.nextafter(middles, np.float32(np.inf), dtype=np.float32),
            np.nextafter(middles, np.float32(-np.inf), dtype=np.float32),
            (rng.uniform(-1, 1, 5000) * element.largest).astype(np.float32),
            np.ldexp(rng.uniform(-1, 1, 5000), rng.integers(-148, 128, 5000)).astype(np.float32),
            beyond,
        ]
    )
    # ml_dtypes overflows to NaN or infinity where we saturate
    expected = np.clip(x, np.float32(-element.largest), np.float32(element.largest)).astype(oracle)
    assert np.array_equal(np.asarray(encode(jnp.asarray(x), element)), expected.view(patterns(element).dtype))


@each_format
def test_float64_is_rounded_once(element, oracle):
    levels = representables(element, oracle)
    middles = (levels[1:] + levels[:-1]) / 2
    x = np.concatenate([levels, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf), [1e-310, 1e300, -1e300]])
    with jax.enable_x64(True):
        values = decode(encode(jnp.asarray(x), element), element)
        assert np.array_equal(np.asarray(values, np.float64), levels[np.searchsorted(middles, x)])


@each_format
def test_infinity_saturates_and_nan_stays_where_it_can(element, oracle):
    x = jnp.array([jnp.inf, -jnp.inf, jnp.nan])
    values = np.asarray(decode(encode(x, element), element))
    assert values[:2].tolist() == [element.largest, -element.largest]
    has_nan = np.isnan(meaning(element, oracle)).any()
    assert np.isnan(values[2]) if has_nan else values[2] == element.largest


def test_int8_is_a_fixed_point_of_64ths():
    x = np.concatenate([np.linspace(-2.5, 2.5, 4001), np.arange(-300, 300) / 128]).astype(np.float32)
    codes = np.asarray(encode(jnp.asarray(x), Int8()))
    assert np.array_equal(codes, np.clip(np.rint(x.astype(np.float64) * 64), -127, 127))
    assert np.array_equal(np.asarray(decode(jnp.asarray(codes), Int8())), codes / 64)
    assert float(decode(jnp.int8(-128), Int8())) == -2


@pytest.mark.parametrize("exponent", [-126, -60, 0, 7, 120])
def test_a_power_of_two_is_divided_exactly(exponent):
    # float64 knows the quotient without rounding or flushing
    x = np.ldexp(np.random.default_rng(1).uniform(-9, 9, 500), exponent).astype(np.float32)
    codes = encode(jnp.asarray(x), E2M1(), jnp.full(500, exponent, jnp.int32))
    quotient = np.ldexp(x.astype(np.float64), -exponent)
    assert np.array_equal(np.asarray(codes), np.clip(quotient, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8))


@pytest.mark.parametrize(("element", "limit"), [(E2M1(), 12), (E2M3(), 60), (Int8(), 127)], ids=repr)
def test_integers_are_values_in_steps(element, limit):
    codes = jnp.asarray(patterns(element).astype(element.code_dtype))
    integers = _minifloat.integers(codes, element)
    assert integers.dtype == jnp.int8
    assert element.limit == limit
    values = np.asarray(decode(codes, element))
    assert np.array_equal(np.asarray(integers) * 2.0**element.step_exponent, values)


@pytest.mark.parametrize("element", [E4M3(), E5M2(), E3M2(), BFloat16(), Float16()], ids=repr)
def test_formats_beyond_int8_say_so(element):
    assert element.limit is None


def test_fit_never_reaches_beyond():
    top = np.float32(3.4028235e38)
    magnitudes = np.concatenate([np.random.default_rng(2).uniform(1, 2, 1000), [1.0]]).astype(np.float32)
    for factors in ((448.0,), (7.5,), (448.0, 6.0)):
        for x in (jnp.asarray(magnitudes), jnp.asarray(magnitudes / 2 * top)):
            product = _minifloat.fit(x, *factors)
            for factor in factors:
                product = product * factor
            assert (product <= x).all()
            np.testing.assert_allclose(product, x, rtol=6e-7)
    for factors in ((448.0, 6.0), (448.0, 127 / 64)):  # compilers take products in another order
        for order in itertools.permutations(factors):
            product = _minifloat.fit(jnp.float32(top), *factors)
            for factor in order:
                product = np.nextafter(product * np.float32(factor), np.float32(np.inf))
            assert np.isfinite(product)
    assert _minifloat.fit(jnp.array([0.0, 1e-31]), 448.0).tolist() == [1, 1]
    assert not np.isfinite(_minifloat.fit(jnp.array([jnp.nan, jnp.inf]), 448.0)).any()
