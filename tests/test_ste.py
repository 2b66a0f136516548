import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqz import rounding, ste

X = np.concatenate([np.linspace(-3, 3, 241), [-1, -0.0, 0.0, 1, np.nextafter(np.float32(1), 2)]]).astype(np.float32)


def _swish(x, beta):
    return beta * (2 - beta * x * np.tanh(beta * x / 2)) / (1 + np.cosh(beta * x))


FORMULAS = [
    (ste.Identity(), np.ones_like),
    (ste.Clipped(), lambda x: np.abs(x) <= 1),
    (ste.Hardtanh(), lambda x: np.abs(x) < 1),
    (ste.ApproxSign(), lambda x: np.where(np.abs(x) < 1, 2 - 2 * np.abs(x), 0)),
    (ste.SwishSign(), lambda x: _swish(x, 5.0)),
    (ste.SwishSign(beta=10.0), lambda x: _swish(x, 10.0)),
]


@pytest.mark.parametrize(("estimator", "formula"), FORMULAS, ids=[str(e) for e, _ in FORMULAS])
def test_slope_against_float64(estimator, formula):
    wanted = formula(X.astype(np.float64))
    slope = estimator.slope(jnp.asarray(X))
    assert slope.dtype == jnp.float32
    np.testing.assert_allclose(slope, wanted, rtol=1e-5, atol=2e-6)
    half = estimator.slope(jnp.asarray(X, jnp.float16))
    assert half.dtype == jnp.float16
    np.testing.assert_allclose(half, formula(X.astype(np.float16).astype(np.float64)), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("estimator", "formula"), FORMULAS, ids=[str(e) for e, _ in FORMULAS])
def test_slope_far_out(estimator, formula):
    far = estimator is FORMULAS[0][0]
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        top = float(jnp.finfo(dtype).max)
        assert estimator.slope(jnp.asarray([top, -top, jnp.inf], dtype)).tolist() == [float(far)] * 3


def test_surrogates_have_the_area_of_a_sign():
    """sign rises by 2; ApproxSign and SwishSign are derivatives of functions that do, too."""
    x = jnp.linspace(-8, 8, 100_001)
    for estimator in (ste.ApproxSign(), ste.SwishSign(), ste.Clipped()):
        area = float(estimator.slope(x).sum()) * 16 / 100_000
        assert area == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize(("estimator", "formula"), FORMULAS, ids=[str(e) for e, _ in FORMULAS])
def test_sign_forward_and_backward(estimator, formula):
    x, weight = jnp.asarray(X), jnp.arange(X.size, dtype=jnp.float32)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: (weight * ste.sign(x, estimator)).sum()))(x)
    sign = np.where(X < 0, -1, 1)
    np.testing.assert_array_equal(ste.sign(x, estimator), sign)
    assert value == pytest.approx((np.arange(X.size) * sign).sum(), rel=1e-5)
    np.testing.assert_allclose(gradient, np.arange(X.size) * formula(X.astype(np.float64)), rtol=1e-4, atol=2e-3)


def test_sign_of_zero_is_chosen():
    zeros = jnp.asarray([0.0, -0.0])
    assert ste.sign(zeros).tolist() == [1, 1]
    assert ste.sign(zeros, zero_to=0.0).tolist() == [0, 0]
    assert ste.sign(zeros, zero_to=-1.0).tolist() == [-1, -1]


def test_round_passes_the_gradient():
    x = jnp.asarray([-1.5, 0.5, 2.4])
    value, pull = jax.vjp(ste.round, x)
    assert value.tolist() == [-2, 0, 2]
    assert pull(jnp.asarray([1.0, 2.0, 3.0]))[0].tolist() == [1, 2, 3]
    assert ste.round(x, rounding.HalfAway()).tolist() == [-2, 1, 2]


def test_clip_passes_the_gradient_on_its_bounds():
    x = jnp.asarray([-2.0, -1.0, 0.3, 0.5, 0.7])
    value, pull = jax.vjp(lambda x, lo, hi: ste.clip(x, lo, hi), x, jnp.float32(-1), jnp.float32(0.5))
    assert value.tolist() == [-1, -1, jnp.float32(0.3), 0.5, 0.5]
    gradient, low, high = pull(jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert gradient.tolist() == [0, 2, 3, 4, 0]
    assert (float(low), float(high)) == (0, 0)


def test_straight_through_is_exact():
    """x + stop_gradient(value - x) is not: it is off by a rounding error."""
    x, value = jnp.asarray([1e8, 0.1, 3.0]), jnp.asarray([0.3, 0.7, -1e-7])
    naive = x + jax.lax.stop_gradient(value - x)
    assert (naive != value).any()
    np.testing.assert_array_equal(ste.straight_through(x, value), value)
    gradients = jax.grad(lambda x, v, s: (ste.straight_through(x, v, s) * 2).sum(), (0, 1, 2))(x, value, x)
    np.testing.assert_array_equal(gradients[0], 2 * x)
    np.testing.assert_array_equal(gradients[1], jnp.zeros(3))
    np.testing.assert_array_equal(gradients[2], jnp.zeros(3))


def test_straight_through_under_transformations():
    x = jnp.linspace(-2, 2, 12).reshape(3, 4)

    def loss(row):
        return (ste.sign(row, ste.ApproxSign()) * row).sum()

    mapped = jax.vmap(jax.grad(loss))(x)
    np.testing.assert_allclose(mapped, jnp.stack([jax.grad(loss)(row) for row in x]))
    remat = jax.grad(lambda x: jax.checkpoint(jax.vmap(loss))(x).sum())(x)
    np.testing.assert_allclose(remat, mapped)
    _, scanned = jax.lax.scan(lambda carry, row: (carry, jax.grad(loss)(row)), 0.0, x)
    np.testing.assert_allclose(scanned, mapped)
    half = jax.grad(lambda x: ste.clip(x, -1, 1).sum())(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_refuse_gradient():
    x = jnp.ones(3)
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda x: ste.refuse_gradient(x, "no")))(x), x)
    still = jax.grad(lambda x: (x * ste.refuse_gradient(jax.lax.stop_gradient(x), "no")).sum())(x)
    np.testing.assert_array_equal(still, x)
    for derivative in (jax.grad, lambda f: lambda x: jax.jvp(f, (x,), (x,)), lambda f: jax.jit(jax.grad(f))):
        with pytest.raises(TypeError, match="because"):
            derivative(lambda x: ste.refuse_gradient(x, "because").sum())(x)


def test_bilinear_has_the_gradients_of_its_function():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((3, 4), (4, 5)))
    weight = jnp.asarray(rng.standard_normal((3, 5)), jnp.float32)
    plain = jax.value_and_grad(lambda a, b: (weight * (a @ b)).sum(), (0, 1))(a, b)
    ours = jax.value_and_grad(lambda a, b: (weight * ste.bilinear(jnp.matmul, a, b)).sum(), (0, 1))(a, b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), ours, plain)
