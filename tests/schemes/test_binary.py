import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz import ste
from jqz.schemes import MeanScale, Scaled, ThroughMean, UnitScale

X = np.random.default_rng(0).normal(size=(45, 7)).astype(np.float32)


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [(jqz.PerTensor(), (1, 1)), (jqz.PerAxis(-1), (1, 7)), (jqz.PerGroup(10, axis=0), (5, 7))],
    ids=repr,
)
def test_by_brute_force(granularity, shape):
    q = jqz.quantize(jnp.asarray(X), jqz.Binary(granularity))
    assert q.grid.scale.shape == shape
    block = granularity.block(X.shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            place = tuple(slice(i * b, (i + 1) * b) for i, b in zip((row, column), block, strict=True))
            part = X[place].astype(np.float64)
            scale = np.abs(part).mean()
            assert q.grid.scale[row, column] == pytest.approx(scale, rel=1e-6)
            values = np.asarray(jqz.dequantize(q)[place], np.float64)
            np.testing.assert_allclose(values, np.where(part >= 0, scale, -scale), rtol=1e-6)
            # the least squared error of all scales
            assert ((values - part) ** 2).sum() == pytest.approx((part**2).sum() - part.size * scale**2, rel=1e-4)


def test_the_codes_are_bits():
    q = jqz.quantize(jnp.asarray(X), jqz.Binary(jqz.PerAxis(-1)))
    assert q.codes.dtype == jnp.uint8
    assert np.array_equal(q.codes, X >= 0)
    assert q.payload.shape == (45, 1)  # 7 codes in a byte
    assert jqz.size_bytes(q) == 45 + 7 * 4


def test_both_zeros_are_plus_one():
    x = jnp.array([0.0, -0.0, -1.0, 1.0])
    assert jqz.fake_quantize(x, jqz.Binary(scale=UnitScale())).tolist() == [1, 1, -1, 1]
    assert jqz.fake_quantize(x, jqz.Binary()).tolist() == [0.5, 0.5, -0.5, 0.5]


def test_zero_blocks_decode_to_zero():
    q = jqz.quantize(jnp.array([[0.0, 2.0], [-0.0, -3.0]]), jqz.Binary(jqz.PerAxis(-1)))
    assert jqz.dequantize(q).tolist() == [[0, 2.5], [0, -2.5]]


@pytest.mark.parametrize("value", [0.1, -7.3, 1e-30, 3e38])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_constants(count, value):
    x = jnp.full(count, value, jnp.float32)
    np.testing.assert_allclose(jqz.fake_quantize(x, jqz.Binary()), x, rtol=2e-6)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("scale", [MeanScale(), UnitScale()], ids=repr)
def test_shapes(shape, scale):
    q = jqz.quantize(jnp.full(shape, -1.0), jqz.Binary(scale=scale))
    assert q.shape == q.codes.shape == shape
    assert q.grid.scale.shape == (1,) * len(shape)
    assert (jqz.dequantize(q) == -1).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray([-0.5, 0.25, 1.5], dtype)
        q = jqz.quantize(x, jqz.Binary())
        assert q.grid.scale.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
        assert jqz.dequantize(q).dtype == dtype
        assert jqz.dequantize(q).tolist() == [-0.75, 0.75, 0.75]
        grad = jax.grad(lambda x: jqz.fake_quantize(x, jqz.Binary(estimator=ThroughMean())).sum())(x)
        assert grad.dtype == dtype


G = np.float32([1.0, -2.0, 3.0, 5.0, 7.0])
W = np.float32([-1.5, -1.0, 0.0, 0.5, 1.0])  # mean magnitude 0.8
INSIDE = np.float32([0, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("estimator", "slope"),
    [
        (ste.Identity(), np.ones(5)),
        (ste.Clipped(), INSIDE),
        (ste.Hardtanh(), [0, 0, 1, 1, 0]),
        (ste.ApproxSign(), [0, 0, 2, 1, 0]),
        (Scaled(), 0.8 * INSIDE),
        (Scaled(ste.Identity()), np.full(5, 0.8)),
        (Scaled(ste.ApproxSign()), [0, 0, 1.6, 0.8, 0]),
        (ThroughMean(), 0.2 + 0.8 * INSIDE),
        (ThroughMean(ste.Hardtanh()), [0.2, 0.2, 1, 1, 0.2]),
    ],
    ids=repr,
)
def test_gradients(estimator, slope):
    scheme = jqz.Binary(estimator=estimator)
    grad = jax.grad(lambda w: (jqz.fake_quantize(w, scheme) * G).sum())(jnp.asarray(W))
    np.testing.assert_allclose(grad, G * np.asarray(slope), rtol=1e-6)


def test_swish_sign_gradient():
    scheme = jqz.Binary(scale=UnitScale(), estimator=ste.SwishSign(beta=5.0))
    grad = jax.grad(lambda w: jqz.fake_quantize(w, scheme).sum())(jnp.asarray(W))
    u = 5 * W.astype(np.float64)
    np.testing.assert_allclose(grad, 5 * (2 - u * np.tanh(u / 2)) / (1 + np.cosh(u)), rtol=2e-5)


def test_through_mean_divides_by_the_size_of_its_own_block():
    scheme = jqz.Binary(jqz.PerGroup(2, axis=0), estimator=ThroughMean())
    w = jnp.array([3.0, 5.0, 2.0, 4.0, 6.0])  # groups of 2, 2 and 1, all beyond the clip
    grad = jax.grad(lambda w: jqz.fake_quantize(w, scheme).sum())(w)
    assert grad.tolist() == [0.5, 0.5, 0.5, 0.5, 1.0]


def test_unit_scale_clips_like_binary_connect():
    grad = jax.grad(lambda w: (jqz.fake_quantize(w, jqz.Binary(scale=UnitScale())) * G).sum())(jnp.asarray(W))
    assert grad.tolist() == (G * INSIDE).tolist()


def test_refuses_a_derivative_of_no_mean():
    with pytest.raises(ValueError, match=r"Binary: got estimator=ThroughMean.*Use estimator=Scaled"):
        jqz.Binary(scale=UnitScale(), estimator=ThroughMean())


@pytest.mark.parametrize("scale", [MeanScale(), UnitScale()], ids=repr)
@pytest.mark.parametrize("place", [0, 5000, 16387])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_quantize_sees_every_value_that_is_not_finite(value, place, scale):
    x = np.ones((4097, 4), np.float32)
    x.flat[place] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        jqz.quantize(jnp.asarray(x), jqz.Binary(scale=scale))


@pytest.mark.parametrize("granularity", [jqz.PerTensor(), jqz.PerAxis(-1), jqz.PerGroup(32, axis=0)], ids=repr)
def test_a_mean_propagates_what_is_not_finite_and_nothing_else(granularity):
    scheme = jqz.Binary(granularity)
    assert scheme.propagates
    assert not jqz.Binary(scale=UnitScale()).propagates
    calibrate = jax.jit(scheme.calibrate)
    large = np.full((4097, 4), 3e38, np.float32)
    assert np.isfinite(calibrate(jnp.asarray(large)).scale).all()
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, 777, 16387):
            x = large.copy()
            x.flat[place] = value
            assert not np.isfinite(calibrate(jnp.asarray(x)).scale).all()


def test_affine_levels_are_signs():
    scheme = jqz.Binary(jqz.PerAxis(-1))
    q = jqz.quantize(jnp.asarray(X), scheme)
    scale, zero_point, levels, limit, _ = scheme.affine(q.grid)
    assert zero_point is None
    assert limit == 1
    assert levels(q.codes).dtype == jnp.int8
    assert np.array_equal(levels(q.codes), np.where(X >= 0, 1, -1))
    assert np.array_equal(jqz.dequantize(q), np.where(X >= 0, 1, -1) * np.asarray(scale))


def test_a_chain_ends_in_bits():
    scheme = jqz.Symmetric(bits=8) >> jqz.Binary()
    q = jqz.quantize(jnp.asarray(X), scheme)
    eight = jqz.quantize(jnp.asarray(X), jqz.Symmetric(bits=8))
    scale = np.abs(np.asarray(eight.codes, float)).mean() * eight.grid.scale.item()
    np.testing.assert_allclose(jqz.dequantize(q), np.where(np.asarray(eight.codes) >= 0, scale, -scale), rtol=1e-5)
    assert scheme.affine(q.grid).limit == 1


@pytest.mark.parametrize(("column", "target"), [("normal", 4.4), ("laplace", 3.0)])
def test_sqnr_table(column, target):
    x = getattr(np.random.default_rng(0), column)(size=(8, 32768)).astype(np.float32)
    values = np.asarray(jqz.fake_quantize(jnp.asarray(x), jqz.Binary(jqz.PerAxis(0))))
    assert np.mean(10 * np.log10((x**2).mean(1) / ((values - x) ** 2).mean(1))) == pytest.approx(target, abs=0.2)
