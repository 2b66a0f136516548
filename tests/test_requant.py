"""Rules of requantization against their definitions in NumPy int64 and float64."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runtimes import multiplier, oracle

import jqz
from jqz import _requant
from jqz._requant import XNNPACK, Float32Requant, Gemmlowp, HalfAway, IntegerBias, ONNXRuntime, Onto, Ruy, Term

INTEGER_BIAS = Float32Requant(IntegerBias())
RULES = [Float32Requant(), INTEGER_BIAS, XNNPACK(), ONNXRuntime(), HalfAway(), Gemmlowp(), Ruy()]


@functools.cache
def accumulators():
    """A million: small and large ones, and many that lie on or next to ties of the multipliers."""
    rng = np.random.default_rng(0)
    channels = 100
    denominator = np.float32(0.037)
    numerators = np.float32(0.011), rng.uniform(1e-4, 3e-2, (1, channels)).astype(np.float32)
    m = numerators[0] * numerators[1].astype(np.float64) / denominator
    acc = rng.integers(-(2**18), 2**18, (10_000, channels))
    ties = np.rint((rng.integers(-200, 200, (5_000, channels)) + 0.5) / m) + rng.integers(-1, 2, (5_000, 1))
    acc[:5_000] = ties
    acc[5_000:5_010] = np.int64(2**31 - 1) >> rng.integers(0, 12, (10, 1))
    exact = acc.astype(np.int32), (numerators[0].reshape(1, 1), numerators[1]), denominator.reshape(1, 1)
    # a second set, whose multiplier is a power of two, so that float and integer rules meet exact ties
    powers = (
        acc.astype(np.int32) >> 6,
        (np.float32([[0.5]]), np.float32(2.0 ** -rng.integers(1, 9, (1, channels)))),
        np.float32([[1]]),
    )
    return exact, powers


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("which", [0, 1], ids=["any", "powers of two"])
def test_a_million_accumulators(rule, which):
    acc, numerators, denominator = accumulators()[which]
    run = jax.jit(lambda *args: rule(*args, zero_point=-7, low=-100, high=127))
    got = run(jnp.asarray(acc), tuple(map(jnp.asarray, numerators)), jnp.asarray(denominator))
    assert got.dtype == jnp.int8
    np.testing.assert_array_equal(got, oracle(rule, acc, numerators, denominator, -7, -100, 127))


def test_sixteen_bits_have_sums_of_64():
    """As LiteRT's product of a 64-bit sum and a multiplier, of which it keeps 15 bits."""
    rng = np.random.default_rng(0)
    numerators = np.float32(3e-4), np.float32(10.0 ** rng.uniform(-6, 1, (1, 50)) * rng.choice([-1, 1], 50))
    denominator = np.float32(0.0021)
    m, exponent = multiplier(tuple(map(np.abs, numerators)), denominator)
    reduced, exponent = np.where(m < 0x7FFF0000, (m + 2**15) >> 16, 0x7FFF), exponent.astype(np.int64)
    acc = rng.integers(-(2**20), 2**20, (4000, 50)) << rng.integers(0, 19, (4000, 50))
    acc[:2000] = np.rint((rng.integers(-30000, 30000, (2000, 50)) + 0.5) * 2.0 ** (15 - exponent) / reduced)
    acc = np.clip(acc, -(2**38), 2**38)
    low = rng.integers(-(2**28), 2**28, acc.shape)
    high, low = (acc - low) >> 8, low + ((acc - low) & 255)
    whole = rng.integers(-(2**20), 2**20, (1, 50))
    offset = np.float32(whole * (numerators[0].astype(np.float64) * numerators[1]))
    wanted = np.sign(numerators[1]).astype(np.int64) * (acc + whole) * reduced + (1 << (14 - exponent))
    wanted = np.clip(wanted >> (15 - exponent), -30000, 32767)
    long = _requant.Long(jnp.asarray(high, jnp.int32), jnp.asarray(low, jnp.int32))
    scales = jnp.float32(numerators[0]).reshape(1, 1), jnp.asarray(numerators[1])
    run = jax.jit(lambda long, offset: _requant.Int16x8()(long, scales, denominator, 0, -30000, 32767, offset))
    got = run(long, jnp.asarray(offset))
    assert got.dtype == jnp.int16
    assert len(np.unique(got)) > 10_000
    np.testing.assert_array_equal(got, wanted)


def test_sixteen_bits_are_for_grids_of_more_than_eight():
    x = jnp.ones((2, 4))
    policy = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Asymmetric(bits=8))
    with pytest.raises(ValueError, match=r"'w' is coded by Asymmetric\(bits=8\), wanted more than 8 bits"):
        jqz.convert(lambda p, x: x @ p["w"], {"w": jnp.eye(4)}, [x], policy, requant=jqz.requant.Int16x8())(x)


def test_the_rules_differ_by_at_most_a_step_and_do_differ():
    acc, numerators, denominator = accumulators()[1]
    codes = [oracle(rule, acc, numerators, denominator, 0, -128, 127) for rule in RULES[-3:]]
    for a in range(len(codes)):
        for b in range(a):
            apart = np.abs(codes[a] - codes[b])
            assert apart.max() == 1


def test_multipliers_are_those_of_exact_arithmetic():
    rng = np.random.default_rng(1)
    numerators = [np.float32(10.0 ** rng.uniform(-6, 2, 20_000)) for _ in range(2)]
    denominator = np.float32(10.0 ** rng.uniform(-4, 2, 20_000))
    m, exponent = jax.jit(_requant.integer_multiplier)(tuple(map(jnp.asarray, numerators)), jnp.asarray(denominator))
    wanted_m, wanted_exponent = multiplier(numerators, denominator)
    normal = wanted_exponent >= -31
    np.testing.assert_array_equal(np.where(normal, wanted_m, 0), m)
    np.testing.assert_array_equal(np.where(normal, wanted_exponent, 0), exponent)
    zero, _ = _requant.integer_multiplier((jnp.float32(0), jnp.float32(1)), jnp.float32(1))
    assert int(zero) == 0


def test_golden_products():
    golden = json.loads((pathlib.Path(__file__).parent / "data" / "golden.json").read_text())["fixedpoint_multiplier"]
    for a, b, wanted in golden["srdhm"]:
        if b == -(2**31):
            continue  # no multiplier is that
        assert int(_requant.high_multiply(jnp.int32(a), jnp.int32(b))) == wanted
    for x, shift, wanted in golden["rdbp"]:
        assert int(_requant.shift_half_away(jnp.int32(x), jnp.int32(shift))) == wanted
    for real, wanted in golden["qmul"].items():
        number = np.float32(float(real))
        if float(number) == float(real):  # a scale is float32
            m, exponent = _requant.integer_multiplier((jnp.asarray(number), jnp.float32(1)), jnp.float32(1))
            assert [int(m), int(exponent)] == wanted


@pytest.mark.parametrize("rule", [INTEGER_BIAS, XNNPACK(), ONNXRuntime(), HalfAway(), Gemmlowp(), Ruy()], ids=repr)
def test_biases_are_multiples_of_the_accumulators_scale(rule):
    acc, numerators, denominator = accumulators()[0]
    acc = np.clip(acc, -(2**20), 2**20)
    whole = np.random.default_rng(2).integers(-5000, 5000, (1, acc.shape[1]))
    scale = numerators[0] * numerators[1]
    offset = (whole * scale.astype(np.float64) * (1 + 1e-5)).astype(np.float32)  # rounds to the multiple
    got = rule(
        jnp.asarray(acc),
        tuple(map(jnp.asarray, numerators)),
        jnp.asarray(denominator),
        0,
        -128,
        127,
        jnp.asarray(offset),
    )
    np.testing.assert_array_equal(got, oracle(rule, acc + whole, numerators, denominator, 0, -128, 127))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_channels_without_a_scale_keep_their_offset(rule):
    numerators = jnp.float32([[1.0]]), jnp.float32([[0.0, 1e-30, 0.5]])
    offset = jnp.float32([[3.2, -2.9, 10.0]])
    got = rule(jnp.array([[5, 5, 4]], jnp.int32), numerators, jnp.float32([[1.0]]), 1, -128, 127, offset)
    assert got.tolist() == [[4, -2, 13]]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_saturation(rule):
    acc = jnp.array([[2**30, -(2**30)]], jnp.int32)
    one = jnp.float32([[1.0]])
    assert rule(acc, (one, one), one / 1000, 0, -128, 127).tolist() == [[127, -128]]
    assert rule(acc, (one, one), one, 100, -128, 127, jnp.float32([[5.0]])).tolist() == [[127, -128]]
    assert rule(acc, (one, -one), one, 0, -128, 127).tolist() == [[-128, 127]]


@pytest.mark.parametrize("scales", [(0.02, 0.03, 0.041), (0.5, 0.0007, 0.31), (0.11, -0.07, 0.09)])
@pytest.mark.parametrize("rule", [XNNPACK(), ONNXRuntime(), Gemmlowp()], ids=repr)
def test_sums_of_all_codes_are_nearest(rule, scales):
    """Fixed point errs by less than 2**-10 of a step here, so it is the nearest integer but next to ties."""
    a, b = np.meshgrid(np.arange(-255, 256), np.arange(-255, 256))
    exact = (a * np.float64(np.float32(scales[0])) + b * np.float64(np.float32(scales[1]))) / np.float32(scales[2])
    terms = [Term(jnp.asarray(x, jnp.int32), jnp.float32(s)) for x, s in zip((a, b), scales, strict=False)]
    got = rule.sum(terms, Onto(jnp.float32(scales[2]), 3, -120, 127))
    clear = np.abs(exact - np.floor(exact) - 0.5) > 2**-10
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(np.asarray(got)[clear], np.clip(np.rint(exact) + 3, -120, 127)[clear])
    assert Float32Requant().sum(terms, Onto(jnp.float32(1), 0, -128, 127)) is None
    assert rule.sum(terms[:1], Onto(jnp.float32(1), 0, -128, 127)) is None


def test_the_default_is_float32_and_real_biases():
    assert Float32Requant() == Float32Requant(_requant.RealBias())
    with pytest.raises(TypeError, match=r"quantized: got requant='gemmlowp', wanted a rule"):
        jqz.quantized(jnp.dot, requant="gemmlowp")
