import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jqz
from jqz.schemes import E2M1, E2M3, E3M2, E4M3, E5M2, BFloat16, Cast, Float16, Int8, RangeScale

fake = jax.jit(jqz.fake_quantize, static_argnums=1)
RNG = np.random.default_rng(0)
X = (RNG.standard_normal((50, 6)) * np.exp(RNG.standard_normal((50, 6)))).astype(np.float32)
ORACLES = {
    E4M3(): ml_dtypes.float8_e4m3fn,
    E5M2(): ml_dtypes.float8_e5m2,
    E3M2(): ml_dtypes.float6_e3m2fn,
    E2M3(): ml_dtypes.float6_e2m3fn,
    E2M1(): ml_dtypes.float4_e2m1fn,
    BFloat16(): ml_dtypes.bfloat16,
    Float16(): np.float16,
}
each_format = pytest.mark.parametrize(("element", "oracle"), ORACLES.items(), ids=lambda x: getattr(x, "__name__", x))
SCALED = [element for element in ORACLES if element != BFloat16()]


@each_format
def test_a_cast_is_that_of_ml_dtypes(element, oracle):
    x = X * np.float32(element.largest / 4 if element.bits < 16 else 1)
    q = jqz.quantize(jnp.asarray(x), jqz.Float(element, scale=Cast()))
    expected = np.clip(x, -element.largest, element.largest).astype(oracle)
    assert q.codes.dtype == (np.uint8 if element.bits <= 8 else np.uint16)
    assert np.array_equal(np.asarray(q.codes), expected.view(np.asarray(q.codes).dtype))
    assert np.array_equal(np.asarray(jqz.dequantize(q)), expected.astype(np.float32))


@pytest.mark.parametrize("element", SCALED, ids=repr)
@pytest.mark.parametrize("granularity", [jqz.PerTensor(), jqz.PerAxis(-1), jqz.PerGroup(16)], ids=repr)
def test_the_largest_magnitude_becomes_the_largest_number(element, granularity):
    q = jqz.quantize(jnp.asarray(X), jqz.Float(element, granularity, RangeScale()))
    scale = np.array(granularity.expand(q.grid.scale, X.shape) + jnp.zeros(X.shape))
    magnitude = granularity.reduce(lambda blocks, axes: jnp.max(jnp.abs(blocks), axes, keepdims=True), jnp.asarray(X))
    np.testing.assert_allclose(q.grid.scale * np.float32(element.largest), magnitude, rtol=5e-7)
    expected = np.clip(X / scale, -element.largest, element.largest).astype(ORACLES[element])
    assert np.array_equal(np.asarray(q.codes), expected.view(np.asarray(q.codes).dtype))
    values = np.asarray(jqz.dequantize(q))
    assert np.array_equal(values, expected.astype(np.float32) * scale)
    error = np.abs(values.astype(np.float64) - X)
    bound = np.maximum(np.abs(X) * 2.0 ** -(element.mantissa_bits + 1), scale * 2.0**element.step_exponent / 2)
    assert (error <= bound * (1 + 1e-5)).all()


def test_defaults_follow_the_format():
    assert jqz.Float() == jqz.Float(format=E4M3(), scale=RangeScale())
    assert jqz.Float(E2M1()).scale == RangeScale()
    assert jqz.Float(BFloat16()) == jqz.Float(BFloat16(), scale=Cast())
    assert jqz.Float(Float16()).scale == Cast()
    assert [jqz.Float(element).bits for element in ORACLES] == [8, 8, 6, 6, 4, 16, 16]


def test_bfloat16_keeps_denormals():
    x = np.float32([1e-40, -9.2e-41, 1.1754944e-38, 3e38])
    q = jqz.quantize(jnp.asarray(x), jqz.Float(BFloat16()))
    assert np.array_equal(np.asarray(q.codes), x.astype(ml_dtypes.bfloat16).view(np.uint16))
    # compared as patterns: a comparison of floats would flush denormals
    assert np.array_equal(np.asarray(q.dequantize()).view(np.int32) >> 16, np.asarray(q.codes).view(np.int16))


@pytest.mark.parametrize(("element", "limit"), [(E2M1(), 12), (E2M3(), 60)], ids=repr)
def test_integer_levels(element, limit):
    scheme = jqz.Float(element, jqz.PerAxis(-1))
    q = jqz.quantize(jnp.asarray(X), scheme)
    affine = scheme.affine(q.grid)
    assert affine is not None
    assert affine.zero_point is None
    assert affine.limit == limit
    levels = np.asarray(affine.levels(q.codes))
    assert levels.dtype == np.int8
    assert np.abs(levels).max() == limit
    assert affine.scale.shape == (1, 6)
    np.testing.assert_allclose(levels * np.asarray(affine.scale), jqz.dequantize(q), rtol=1e-6)


@pytest.mark.parametrize("element", [E4M3(), E5M2(), E3M2(), BFloat16()], ids=repr)
def test_levels_beyond_int8(element):
    scheme = jqz.Float(element)
    assert scheme.affine(scheme.calibrate(jnp.asarray(X))) is None


def test_gradients_stop_where_values_saturate():
    x = jnp.array([-500.0, -448.0, 3.0, 448.0, 449.0])
    cast = jqz.Float(scale=Cast())
    assert fake(x, cast).tolist() == [-448, -448, 3, 448, 448]
    assert jax.grad(lambda x: fake(x, cast).sum())(x).tolist() == [0, 1, 1, 1, 0]
    assert jax.grad(lambda x: fake(x, jqz.Float()).sum())(x).tolist() == [1] * 5
    half = jqz.Float(E2M1(), scale=RangeScale(jqz.ranges.Given(-250.0, 250.0)))
    assert jax.grad(lambda x: fake(x, half).sum())(x).tolist() == [0, 0, 1, 0, 0]
    assert fake(x, half)[0] == pytest.approx(-250)


def test_a_searched_range_is_better():
    x = jnp.asarray(RNG.laplace(size=4096), jnp.float32)

    def error(range_):
        return float(jnp.sum((fake(x, jqz.Float(E2M1(), scale=RangeScale(range_))) - x) ** 2))

    assert error(jqz.ranges.MSE()) < 0.9 * error(jqz.ranges.AbsMax())


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e-38, 1e-30, 3e38, -3.4028235e38])
@pytest.mark.parametrize("element", SCALED, ids=repr)
def test_constants(element, value):
    x = jnp.full(9, value, jnp.float32)
    values = np.asarray(fake(x, jqz.Float(element, scale=RangeScale())))
    wanted = value if abs(value) > 2.0**-100 else 0
    np.testing.assert_allclose(values, wanted, rtol=5e-7)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("scheme", [jqz.Float(), jqz.Float(E2M1()), jqz.Float(Float16())], ids=repr)
def test_shapes(shape, scheme):
    q = jqz.quantize(jnp.full(shape, -0.5), scheme)
    assert q.shape == q.codes.shape == shape
    assert q.grid.scale.shape == (1,) * len(shape)
    np.testing.assert_allclose(jqz.dequantize(q), np.full(shape, -0.5), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_values_keep_their_dtype(dtype):
    x = jnp.asarray(X, dtype).at[0, 0].set(jnp.finfo(dtype).max)
    for scheme in (jqz.Float(), jqz.Float(E2M1())):
        values = jqz.dequantize(jqz.quantize(x, scheme))
        assert values.dtype == dtype
        assert jnp.isfinite(values).all()


def test_float64_is_rounded_once():
    with jax.enable_x64(True):
        tie = 1 + 2.0**-4  # halfway between two E4M3 numbers
        x = jnp.asarray([tie, np.nextafter(tie, 2), np.nextafter(tie, 0), -448.0])
        q = jqz.quantize(x, jqz.Float())
        assert jqz.dequantize(q).tolist() == [1, 1.125, 1, -448]
        assert q.grid.scale.dtype == jqz.dequantize(q).dtype == jnp.float64


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scale", [Cast(), RangeScale()], ids=repr)
def test_what_is_not_finite_is_refused_but_shows_in_training(scale, bad):
    x = jnp.asarray(X).at[7, 3].set(bad)
    with pytest.raises(ValueError, match="NaN or infinite"):
        jqz.quantize(x, jqz.Float(scale=scale))
    value = fake(x, jqz.Float(scale=scale))[7, 3]
    assert not jnp.isfinite(value) if np.isnan(bad) or scale == RangeScale() else value == np.sign(bad) * 448


def test_size():
    w = jnp.ones((64, 32))
    assert jqz.size_bytes(jqz.quantize(w, jqz.Float())) == 64 * 32 + 4
    assert jqz.size_bytes(jqz.quantize(w, jqz.Float(E2M3()))) == 64 * 24 + 4
    assert jqz.size_bytes(jqz.quantize(w, jqz.Float(BFloat16()))) == 64 * 32 * 2 + 4


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match=r"BFloat16.*Use Float\(BFloat16\(\)\)"):
        jqz.Float(BFloat16(), scale=RangeScale())
    with pytest.raises(ValueError, match=r"got format=Int8\(\), wanted a floating format. Use Float\(E4M3\(\)\)"):
        jqz.Float(Int8())
    with pytest.raises(ValueError, match="got format='e4m3'"):
        jqz.Float("e4m3")  # type: ignore[arg-type]
