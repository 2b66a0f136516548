"""Block formats against a float64 model of the specifications, with elements rounded by ml_dtypes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jqz
from jqz.schemes import (
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    CeilExponent,
    E4M3Scale,
    E8M0Scale,
    EvenExponent,
    FitExponent,
    Float16,
    FloorExponent,
    Int8,
)

fake = jax.jit(jqz.fake_quantize, static_argnums=1)
RNG = np.random.default_rng(0)
X = (RNG.standard_normal((70, 4)) * np.exp(2 * RNG.standard_normal((70, 4)))).astype(np.float32)
#: element -> how ml_dtypes rounds to it, its largest value, floor(log2) of that
MX = {
    E2M1(): (ml_dtypes.float4_e2m1fn, 6, 2),
    E2M3(): (ml_dtypes.float6_e2m3fn, 7.5, 2),
    E3M2(): (ml_dtypes.float6_e3m2fn, 28, 4),
    E4M3(): (ml_dtypes.float8_e4m3fn, 448, 8),
    E5M2(): (ml_dtypes.float8_e5m2, 57344, 15),
    Int8(): (None, 127 / 64, 0),
}


def floor_log2(m):
    return np.floor(np.log2(m))  # of magnitudes that are no rounding error away from a power of two


def even(m, largest, digits):
    power = 2.0 ** floor_log2(m)
    return floor_log2(np.floor(m / power * digits + 0.5) / digits * power)


#: rule -> the exponent that the largest magnitude m of a block asks for, before emax is taken off
RULES = {
    FloorExponent(): lambda m, largest, digits: floor_log2(m),
    CeilExponent(): lambda m, largest, digits: np.ceil(np.log2(m)),
    FitExponent(): lambda m, largest, digits: np.ceil(np.log2(m / largest)) + floor_log2(largest),
    EvenExponent(): even,
}


def rounded(x, element):
    """x in float64, rounded to an element."""
    oracle, largest, _ = MX[element]
    x = np.clip(x, -largest, largest)
    return np.rint(x * 64) / 64 if oracle is None else x.astype(np.float32).astype(oracle).astype(np.float64)


def sqnr_db(x, values):
    x, values = np.asarray(x, np.float64), np.asarray(values, np.float64)
    return 10 * np.log10((x**2).sum() / ((x - values) ** 2).sum())


@pytest.mark.parametrize(
    ("scheme", "gauss", "laplace", "bits"),
    [
        (jqz.Symmetric(bits=4, granularity=jqz.PerInputGroup(32)), 20.2, 18.3, 5),
        (jqz.BlockFloat(), 18.7, 18.0, 4.25),
        (jqz.BlockFloat(scale=E4M3Scale()), 20.4, 20.7, 4.5),
    ],
    ids=["int4", "mxfp4", "nvfp4"],
)
def test_sqnr_of_4_bit_blocks(scheme, gauss, laplace, bits):
    rng = np.random.default_rng(0)
    for x, db in ((rng.standard_normal(32768), gauss), (rng.laplace(size=32768), laplace)):
        q = jqz.quantize(jnp.asarray(x, jnp.float32), scheme)
        assert sqnr_db(x, jqz.dequantize(q)) == pytest.approx(db, abs=0.2)
    assert jqz.bits_per_weight(q) == pytest.approx(bits, abs=0.001)  # NVFP4 has one number a tensor besides


def blocks(size):
    return [(slice(i, i + size), j) for i in range(0, 70, size) for j in range(4)]


@pytest.mark.parametrize("element", MX, ids=repr)
def test_microscaling_by_the_specification(element):
    emax = MX[element][2]
    q = jqz.quantize(jnp.asarray(X), jqz.BlockFloat(element))
    assert q.grid.scale.dtype == jnp.uint8
    assert q.grid.scale.shape == (3, 4)
    values, scale = np.asarray(jqz.dequantize(q)), np.asarray(q.grid.scale)
    for row, (place, column) in enumerate(blocks(32)):
        x = X[place, column].astype(np.float64)
        exponent = np.floor(np.log2(np.abs(x).max())) - emax
        assert scale[row // 4, column] == exponent + 127
        assert np.array_equal(values[place, column], rounded(x / 2**exponent, element) * 2**exponent)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("element", [E2M1(), E2M3(), E4M3()], ids=repr)
def test_rules_of_the_exponent(rule, element):
    _, largest, emax = MX[element]
    digits = 2**element.mantissa_bits
    edges = np.array([1, 1.25, 1.5, 1.5 + 2**-20, 1.75, 1.75 - 2**-20, 1.875, 1.9375, 1.9375 - 2**-20, 2 - 2**-20])
    magnitude = np.concatenate([edges, RNG.uniform(1, 2, 50)]).astype(np.float32) * np.float32(2.0**-3)
    scheme = jqz.BlockFloat(element, E8M0Scale(rule), jqz.PerAxis(0))
    grid = scheme.calibrate(jnp.asarray(np.stack([magnitude, -magnitude / 2], -1)))
    wanted = RULES[rule](magnitude.astype(np.float64), largest, digits) - emax
    assert np.array_equal(np.asarray(grid.scale)[:, 0], wanted + 127)


@pytest.mark.parametrize("rule", [CeilExponent(), FitExponent()], ids=repr)
def test_rules_that_never_saturate(rule):
    scheme = jqz.BlockFloat(scale=E8M0Scale(rule))
    grid = scheme.calibrate(jnp.asarray(X))
    assert (scheme.slope(jnp.asarray(X), grid) == 1).all()
    assert (scheme.slope(jnp.asarray(100 * X), grid) == 0).any()
    assert not scheme.clips


def test_nvfp4_by_its_definition():
    q = jqz.quantize(jnp.asarray(X), jqz.BlockFloat(scale=E4M3Scale()))
    tensor = np.abs(X).max().astype(np.float64) / (6 * 448)
    assert q.grid.tensor.shape == (1, 1)
    assert q.grid.tensor.item() == pytest.approx(tensor, rel=5e-7)
    assert q.grid.scale.dtype == jnp.uint8
    tensor = np.float64(q.grid.tensor.item())
    scales = np.asarray(q.grid.scale).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    values = np.asarray(jqz.dequantize(q))
    for index, (place, column) in enumerate(blocks(16)):
        x = X[place, column].astype(np.float64)
        wanted = np.abs(x).max() / 6 / tensor
        scale = scales[index // 4, column]
        assert scale == max(float(np.float32(wanted).astype(ml_dtypes.float8_e4m3fn)), 2.0**-9)
        np.testing.assert_allclose(
            values[place, column], rounded(x / (scale * tensor), E2M1()) * scale * tensor, rtol=5e-7
        )


def test_layers_of_a_stack_have_a_tensor_scale_each():
    stack = jnp.stack([jnp.asarray(X), jnp.asarray(X) * 1e-6])
    alone = jqz.quantize(stack[1], jqz.BlockFloat(scale=E4M3Scale()))
    q = jqz.quantize(stack, jqz.BlockFloat(scale=E4M3Scale(shared=jqz.PerAxis(0))))
    assert q.grid.tensor.shape == (2, 1, 1)
    assert np.array_equal(q.codes[1], alone.codes)
    assert np.array_equal(jqz.dequantize(q)[1], jqz.dequantize(alone))
    members = jax.lax.map(lambda member: member.dequantize(), q)  # scan slices codes and grids alike
    assert np.array_equal(members, jqz.dequantize(q))


@pytest.mark.parametrize("element", [E2M1(), E2M3(), Int8()], ids=repr)
@pytest.mark.parametrize("scale", [E8M0Scale(), E4M3Scale()], ids=repr)
def test_integer_levels(element, scale):
    scheme = jqz.BlockFloat(element, scale)
    q = jqz.quantize(jnp.asarray(X), scheme)
    affine = scheme.affine(q.grid)
    assert affine is not None
    assert affine.zero_point is None
    levels = np.asarray(affine.levels(q.codes))
    assert levels.dtype == np.int8
    assert np.abs(levels).max() <= affine.limit <= 127
    wide = np.repeat(np.asarray(affine.scale), scale.size, axis=0)[:70]
    np.testing.assert_allclose(levels * wide, jqz.dequantize(q), rtol=1e-6)


def test_levels_beyond_int8():
    scheme = jqz.BlockFloat(E4M3())
    assert scheme.affine(scheme.calibrate(jnp.asarray(X))) is None


def test_a_block_of_almost_zeros_may_grow():
    x = jnp.array([0.0, 1e-33, -1e-35])
    assert fake(x, jqz.BlockFloat()).tolist() == [0, 0, 0]
    assert jax.grad(lambda x: fake(x, jqz.BlockFloat()).sum())(x).tolist() == [1, 1, 1]


def test_gradients_stop_where_values_saturate():
    # under the scale 1, which 7 asks for, everything beyond 6 saturates
    x = jnp.array([7.0, -6.5, 6.0, 0.1, -5.0])
    assert fake(x, jqz.BlockFloat()).tolist() == [6, -6, 6, 0, -4]
    assert jax.grad(lambda x: fake(x, jqz.BlockFloat()).sum())(x).tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("element", MX, ids=repr)
@pytest.mark.parametrize("scale", [E8M0Scale(), E8M0Scale(FitExponent()), E4M3Scale()], ids=repr)
def test_blocks_of_any_magnitude(element, scale):
    magnitudes = np.float32([0, 1e-45, 1e-38, 1e-30, 1e-20, 1, 1e20, 3e38, 3.4028235e38])
    x = magnitudes * np.float32([[1], [-0.7], [0.3], [0]])
    scheme = jqz.BlockFloat(element, scale, jqz.PerAxis(-1))
    if isinstance(scale, E4M3Scale):
        scheme = jqz.BlockFloat(element, E4M3Scale(jqz.PerAxis(-1)), jqz.PerAxis(-1))
    values = np.asarray(fake(jnp.asarray(x), scheme))
    assert np.isfinite(values).all()
    assert (values[:, :3] == 0).all()  # below 2**-100
    assert (np.abs(values - x)[:, 3:] <= 0.26 * magnitudes[3:]).all()
    assert (np.sign(values[:2, 3:]) == np.sign(x[:2, 3:])).all()
    again = np.asarray(fake(jnp.asarray(values), scheme))
    assert np.isfinite(again).all()


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (33,), (2, 33, 3)], ids=str)
@pytest.mark.parametrize(
    "scheme", [jqz.BlockFloat(), jqz.BlockFloat(scale=E4M3Scale()), jqz.BlockFloat(Int8())], ids=repr
)
def test_any_rank(shape, scheme):
    q = jqz.quantize(jnp.full(shape, -0.5), scheme)
    assert q.shape == q.codes.shape == shape
    assert q.grid.scale.shape == jqz.PerInputGroup(scheme.scale.size).grid_shape(shape)
    np.testing.assert_allclose(jqz.dequantize(q), np.full(shape, -0.5), rtol=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_values_stay_finite(dtype, rule):
    x = jnp.asarray(X * 0.01, dtype).at[0, 0].set(jnp.finfo(dtype).max)
    for scale in (E8M0Scale(rule), E4M3Scale()):
        values = jqz.dequantize(jqz.quantize(x, jqz.BlockFloat(scale=scale)))
        assert values.dtype == dtype
        assert jnp.isfinite(values).all()


def test_float64():
    with jax.enable_x64(True):
        x = jnp.asarray(X.astype(np.float64))
        for scale in (E8M0Scale(), E4M3Scale()):
            q = jqz.quantize(x, jqz.BlockFloat(scale=scale))
            assert jqz.dequantize(q).dtype == jnp.float64
            narrow = jqz.quantize(x.astype(jnp.float32), jqz.BlockFloat(scale=scale))
            np.testing.assert_allclose(jqz.dequantize(q), jqz.dequantize(narrow), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scale", [E8M0Scale(), E4M3Scale()], ids=repr)
def test_what_is_not_finite_is_refused_but_shows_in_training(scale, bad):
    x = jnp.asarray(X).at[40, 2].set(bad)
    with pytest.raises(ValueError, match="NaN or infinite"):
        jqz.quantize(x, jqz.BlockFloat(scale=scale))
    assert not jnp.isfinite(fake(x, jqz.BlockFloat(scale=scale))[40, 2])


def test_size_counts_scales_as_bytes():
    w = jnp.ones((64, 10))
    assert jqz.size_bytes(jqz.quantize(w, jqz.BlockFloat())) == 64 * 5 + 2 * 10
    assert jqz.size_bytes(jqz.quantize(w, jqz.BlockFloat(E3M2()))) == 64 * 8 + 2 * 10
    assert jqz.size_bytes(jqz.quantize(w, jqz.BlockFloat(scale=E4M3Scale()))) == 64 * 5 + 4 * 10 + 4


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match=r"got element=Float16\(\), wanted a format of at most 8 bits. Use BlockFloat"):
        jqz.BlockFloat(Float16())
    with pytest.raises(ValueError, match=r"got shared=PerGroup.*Use E4M3Scale\(\)"):
        E4M3Scale(jqz.PerGroup(4))
