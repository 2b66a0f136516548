import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz.schemes import MaxFraction, MeanFraction, MeanOfAll, PerSign

X = np.random.default_rng(0).laplace(size=(45, 7)).astype(np.float32)


def oracle(x, threshold):
    """TWN's formulas in float64."""
    magnitude = np.abs(x.astype(np.float64))
    typical = magnitude.mean() if isinstance(threshold, MeanFraction) else magnitude.max()
    cut = threshold.fraction * typical
    codes = np.where(magnitude > cut, np.sign(x), 0)
    return codes, magnitude[codes != 0].mean(), cut


@pytest.mark.parametrize("threshold", [MeanFraction(), MeanFraction(0.3), MaxFraction(), MaxFraction(0.5)], ids=repr)
@pytest.mark.parametrize("granularity", [jqz.PerTensor(), jqz.PerAxis(-1), jqz.PerGroup(10, axis=0)], ids=repr)
def test_by_brute_force(granularity, threshold):
    q = jqz.quantize(jnp.asarray(X), jqz.Ternary(granularity, threshold))
    block = granularity.block(X.shape)
    for index in np.ndindex(*granularity.grid_shape(X.shape)):
        place = tuple(slice(i * b, (i + 1) * b) for i, b in zip(index, block, strict=True))
        codes, scale, cut = oracle(X[place], threshold)
        assert np.array_equal(q.codes[place], codes)
        assert q.grid.scale[index] == pytest.approx(scale, rel=1e-6)
        assert q.grid.threshold[index] == pytest.approx(cut, rel=1e-6)
        np.testing.assert_allclose(jqz.dequantize(q)[place], codes * scale, rtol=1e-6)


def test_the_scale_has_the_least_squared_error():
    q = jqz.quantize(jnp.asarray(X), jqz.Ternary())
    codes, scale, wide = np.asarray(q.codes), q.grid.scale.item(), X.astype(np.float64)
    error = ((wide - scale * codes) ** 2).sum()
    assert error == pytest.approx((wide**2).sum() - np.abs(codes).sum() * scale**2, rel=1e-5)
    assert all(error < ((wide - s * codes) ** 2).sum() for s in (0.98 * scale, 1.02 * scale))


def test_a_value_on_the_threshold_is_zero():
    x = jnp.array([1.0, -0.5, 0.5, 0.25])
    q = jqz.quantize(x, jqz.Ternary(threshold=MaxFraction(0.5)))
    assert q.codes.tolist() == [1, 0, 0, 0]
    assert jqz.dequantize(q).tolist() == [1, 0, 0, 0]


def test_codes_take_two_bits():
    q = jqz.quantize(jnp.asarray(X), jqz.Ternary())
    assert q.codes.dtype == jnp.int8
    assert set(np.unique(q.codes)) == {-1, 0, 1}
    assert jqz.size_bytes(q) == 45 * 2 + 8  # 7 codes in 2 bytes; scale and threshold


@pytest.mark.parametrize("threshold", [MeanFraction(), MaxFraction()], ids=repr)
def test_zero_blocks(threshold):
    x = jnp.array([[0.0, 2.0, 1e-35], [-0.0, -2.0, 0.0]])
    q = jqz.quantize(x, jqz.Ternary(jqz.PerAxis(-1), threshold))
    assert q.grid.scale.tolist() == [[1, 2, 1]]
    assert jqz.dequantize(q).tolist() == [[0, 2, 0], [0, -2, 0]]


@pytest.mark.parametrize("value", [0.1, -7.3, 1e-20, 3e38])
@pytest.mark.parametrize("threshold", [MeanFraction(), MaxFraction(), MeanFraction(0.0)], ids=repr)
def test_constants(threshold, value):
    x = jnp.full(1000, value, jnp.float32)
    np.testing.assert_allclose(jqz.fake_quantize(x, jqz.Ternary(threshold=threshold)), x, rtol=2e-6)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (2, 1, 3)], ids=str)
def test_shapes(shape):
    q = jqz.quantize(jnp.full(shape, -1.0), jqz.Ternary())
    assert q.shape == q.codes.shape == shape
    assert (jqz.dequantize(q) == -1).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        q = jqz.quantize(jnp.asarray([-0.5, 0.0, 1.0, 0.125], dtype), jqz.Ternary())
        assert q.grid.scale.dtype == q.grid.threshold.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
        assert jqz.dequantize(q).dtype == dtype
        assert jqz.dequantize(q).tolist() == [-0.75, 0, 0.75, 0]


@pytest.mark.parametrize("threshold", [MeanFraction, MaxFraction])
@pytest.mark.parametrize("fraction", [-0.1, 1, 1.0, 2, float("nan")])
def test_refuses_other_fractions(fraction, threshold):
    with pytest.raises(ValueError, match=rf"{threshold.__name__}: got fraction=.*Use {threshold.__name__}"):
        threshold(fraction)


@pytest.mark.parametrize("threshold", [MeanFraction(), MaxFraction()], ids=repr)
@pytest.mark.parametrize("place", [0, 5000, 16387])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_quantize_sees_every_value_that_is_not_finite(value, place, threshold):
    x = np.ones((4097, 4), np.float32)
    x.flat[place] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        jqz.quantize(jnp.asarray(x), jqz.Ternary(threshold=threshold))


@pytest.mark.parametrize("granularity", [jqz.PerTensor(), jqz.PerAxis(-1), jqz.PerGroup(32, axis=0)], ids=repr)
def test_a_mean_propagates_what_is_not_finite_and_nothing_else(granularity):
    scheme = jqz.Ternary(granularity)
    assert scheme.propagates
    assert not jqz.Ternary(threshold=MaxFraction()).propagates
    calibrate = jax.jit(scheme.calibrate)
    large = np.full((4097, 4), 3e38, np.float32)
    assert all(np.isfinite(part).all() for part in calibrate(jnp.asarray(large)))
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, 777, 16387):
            x = large.copy()
            x.flat[place] = value
            assert not all(np.isfinite(part).all() for part in calibrate(jnp.asarray(x)))


def test_affine_levels_are_the_codes():
    scheme = jqz.Ternary(jqz.PerAxis(-1))
    q = jqz.quantize(jnp.asarray(X), scheme)
    scale, zero_point, levels, limit, _ = scheme.affine(q.grid)
    assert zero_point is None
    assert limit == 1
    assert np.array_equal(levels(q.codes), q.codes)
    assert np.array_equal(jqz.dequantize(q), np.asarray(levels(q.codes), np.float32) * np.asarray(scale))


def test_the_gradient_passes_unchanged():
    weight = jnp.arange(X.size, dtype=jnp.float32).reshape(X.shape)
    grad = jax.grad(lambda x: (jqz.fake_quantize(x, jqz.Ternary()) * weight).sum())(jnp.asarray(X))
    assert np.array_equal(grad, weight)


@pytest.mark.parametrize(("column", "target"), [("normal", 7.1), ("laplace", 5.5)])
def test_sqnr_table(column, target):
    x = getattr(np.random.default_rng(0), column)(size=(8, 32768)).astype(np.float32)
    values = np.asarray(jqz.fake_quantize(jnp.asarray(x), jqz.Ternary(jqz.PerAxis(0))))
    assert np.mean(10 * np.log10((x**2).mean(1) / ((values - x) ** 2).mean(1))) == pytest.approx(target, abs=0.2)


# --- other scales -----------------------------------------------------------------------------------------------------


def test_the_mean_of_all_rounds_as_bitnet_does():
    gamma = np.abs(X.astype(np.float64)).mean(0)
    scheme = jqz.Ternary(jqz.PerAxis(-1), MeanFraction(0.5), MeanOfAll())
    np.testing.assert_allclose(
        jqz.fake_quantize(jnp.asarray(X), scheme), gamma * np.clip(np.rint(X / gamma), -1, 1), rtol=1e-6
    )
    assert jqz.fake_quantize(jnp.zeros(3), scheme.__class__(scale=MeanOfAll())).tolist() == [0, 0, 0]


def test_refuses_a_scale_below_its_threshold():
    with pytest.raises(ValueError, match=r"Ternary: got scale=MeanOfAll\(\).*Use threshold=MeanFraction\(0\.5\)"):
        jqz.Ternary(threshold=MaxFraction(), scale=MeanOfAll())


def test_each_sign_starts_at_its_mean():
    x = jnp.array([4.0, 2.0, -1.0, 0.1, 0.0])
    scheme = jqz.Ternary(threshold=MaxFraction(0.05), scale=PerSign())
    assert jqz.fake_quantize(x, scheme).tolist() == [3, 3, -1, 0, 0]
    assert jqz.fake_quantize(jnp.abs(x), scheme).tolist() == pytest.approx([7 / 3, 7 / 3, 7 / 3, 0, 0])
    assert scheme.affine(scheme.calibrate(x)) is None


def test_gradients_of_trained_ternary_quantization():
    """With W+ = 2, W- = 0.5 and a threshold of 1, by hand."""
    scheme = jqz.Ternary(scale=PerSign())
    grid = type(scheme.calibrate(jnp.ones(1)))(*(jnp.full(1, value) for value in (2.0, 0.5, 1.0)))
    x, g = jnp.array([3.0, 1.5, 1.0, -0.2, -1.0, -1.1, -7.0]), jnp.array([1.0, 10.0, 100.0, 3.0, 5.0, 0.25, 0.5])
    value, pull = jax.vjp(scheme.simulate, x, grid)
    of_x, of_grid = pull(g)
    assert value.tolist() == [2, 2, 0, 0, 0, -0.5, -0.5]
    assert of_x.tolist() == [2, 20, 100, 3, 5, 0.125, 0.25]
    assert [part.tolist() for part in of_grid] == [[11], [-0.75], [0]]


def test_magnitudes_are_parameters_and_are_stored():
    scheme = jqz.Ternary(jqz.PerAxis(-1), MaxFraction(0.05), PerSign())
    params = jqz.learnable({"w": jnp.asarray(X)}, scheme)
    params = jax.tree.map(lambda leaf: 1.5 * leaf, params)
    coded = jqz.quantize(params, scheme)
    np.testing.assert_array_equal(coded["w"].grid.positive, params["w"].grid.positive)
    np.testing.assert_array_equal(jqz.dequantize(coded)["w"], jqz.fake_quantize(params, scheme)["w"])
    with pytest.raises(ValueError, match="learns its grid"):
        scheme >> jqz.Symmetric(bits=8)


@pytest.mark.parametrize("granularity", [jqz.PerTensor(), jqz.PerAxis(-1)], ids=str)
def test_training_finds_two_magnitudes(granularity):
    """A teacher of levels -1, 0 and 3: rounding its noisy weights, or training one magnitude, is far off."""
    rng = np.random.default_rng(1)
    levels, x = rng.choice([-1, 0, 3], (16, 8)), rng.standard_normal((128, 16)).astype(np.float32)
    noisy = jnp.asarray(levels + 0.3 * rng.standard_normal((16, 8)), jnp.float32)
    target = x @ levels.astype(np.float32)

    def trained(scheme):
        def loss(params):
            return jnp.mean((x @ jqz.fake_quantize(params, scheme) - target) ** 2)

        def step(params, _):
            return jax.tree.map(lambda p, g: p - 0.02 * g, params, jax.grad(loss)(params)), None

        start = jqz.learnable(noisy, scheme)
        moved = jax.jit(lambda params: jax.lax.scan(step, params, None, length=200)[0])(start)
        return float(loss(start)), float(loss(moved))

    rounded, learned = trained(jqz.Ternary(granularity, MaxFraction(0.2), PerSign()))
    assert learned < 0.2 * rounded
    assert learned < 0.2 * trained(jqz.Ternary(granularity, MaxFraction(0.2)))[1]
