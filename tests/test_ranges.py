import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz import ranges

AbsMax, Given, MinMax, MSE, OCTAV, Percentile, Sigmas = (
    ranges.AbsMax,
    ranges.Given,
    ranges.MinMax,
    ranges.MSE,
    ranges.OCTAV,
    ranges.Percentile,
    ranges.Sigmas,
)

SAMPLES = {
    "gauss": np.random.default_rng(0).standard_normal(16_384).astype(np.float32),
    "laplace": np.random.default_rng(1).laplace(size=16_384).astype(np.float32),
    "relu": np.maximum(np.random.default_rng(2).standard_normal(16_384), 0).astype(np.float32),
    "exponential": np.random.default_rng(3).exponential(size=16_384).astype(np.float32),
    "shifted": (np.random.default_rng(4).standard_normal(16_384) + 3).astype(np.float32),
}


def _none(*_):
    raise AssertionError("this estimator needs no simulation")


def _symmetric(x, magnitude, high):
    """NumPy in float64: the narrow grid of ``high`` positive levels that covers ``magnitude``."""
    step = magnitude / high
    return np.clip(np.rint(x / step), -high, high) * step


def _asymmetric(x, low, high, steps):
    """NumPy in float64: the grid of arXiv:1712.05877, zero exact."""
    low, high = min(low, 0), max(high, 0)
    step = (high - low) / steps
    zero = np.clip(np.rint(-low / step), 0, steps)
    return (np.clip(np.rint(x / step) + zero, 0, steps) - zero) * step


def _db(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return 10 * np.log10((x**2).sum() / ((x - y) ** 2).sum())


@pytest.fixture(scope="module")
def blocks():
    x = np.random.default_rng(5).standard_normal((3, 4, 50)).astype(np.float32)
    x[0, 1] = 0
    return x


@pytest.mark.parametrize("axes", [(2,), (0, 2), (0, 1, 2), ()])
def test_extremes_against_numpy(blocks, axes):
    def numpy(fn, x):
        return fn(x, axis=axes, keepdims=True) if axes else x

    low, high = MinMax().limits(jnp.asarray(blocks), axes, _none, 255)
    np.testing.assert_array_equal(low, numpy(np.min, blocks))
    np.testing.assert_array_equal(high, numpy(np.max, blocks))
    low, high = AbsMax().limits(jnp.asarray(blocks), axes, _none, 255)
    np.testing.assert_array_equal(high, numpy(np.max, np.abs(blocks)))
    np.testing.assert_array_equal(low, -high)
    np.testing.assert_array_equal(AbsMax().magnitude(jnp.asarray(blocks), axes, _none, 127), high)
    np.testing.assert_array_equal(
        MinMax().magnitude(jnp.asarray(blocks), axes, _none, 127), numpy(np.max, np.abs(blocks))
    )


@pytest.mark.parametrize("axes", [(2,), (0, 1, 2)])
def test_percentile_against_numpy(blocks, axes):
    low, high = Percentile(98.0).limits(jnp.asarray(blocks), axes, _none, 255)
    np.testing.assert_allclose(low, np.percentile(blocks, 2, axis=axes, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(high, np.percentile(blocks, 98, axis=axes, keepdims=True), rtol=1e-5)
    magnitude = Percentile(98.0).magnitude(jnp.asarray(blocks), axes, _none, 127)
    np.testing.assert_allclose(magnitude, np.percentile(np.abs(blocks), 98, axis=axes, keepdims=True), rtol=1e-5)


def test_percentile_of_sparse_values_covers_them_all():
    x = jnp.zeros((2, 200)).at[0, 3].set(5.0).at[0, 4].set(-7.0)
    assert Percentile(90.0).magnitude(x, (1,), _none, 7).tolist() == [[7.0], [0.0]]
    low, high = Percentile(90.0).limits(x, (1,), _none, 7)
    assert (low.tolist(), high.tolist()) == ([[-7.0], [0.0]], [[5.0], [0.0]])
    assert jqz.fake_quantize(x, jqz.Symmetric(bits=8, range=Percentile(90.0)))[0, 4] == -7


@pytest.mark.parametrize("norm", [2.0, 2.4])
@pytest.mark.parametrize("name", ["gauss", "laplace"])
def test_mse_is_the_best_of_its_candidates(name, norm):
    x = SAMPLES[name][:2000].astype(np.float64)
    shares = 2 ** (-4 * np.linspace(0, 1, 40) ** 2)
    errors = [(np.abs(_symmetric(x, np.abs(x).max() * share, 3) - x) ** norm).sum() for share in shares]
    wanted = np.abs(x).max() * shares[int(np.argmin(errors))]
    scheme = jqz.Symmetric(bits=3, range=MSE(candidates=40, norm=norm))
    np.testing.assert_allclose(scheme.calibrate(jnp.asarray(x, jnp.float32)).scale, [wanted / 3], rtol=1e-5)


@pytest.mark.parametrize(("bits", "short_db"), [(2, 0.07), (3, 0.02), (4, 0.02)])
@pytest.mark.parametrize("estimator", [OCTAV(), MSE()])
@pytest.mark.parametrize("name", ["gauss", "laplace"])
def test_clip_is_as_good_as_exhaustive_search(name, estimator, bits, short_db):
    x, high = SAMPLES[name].astype(np.float64), 2 ** (bits - 1) - 1
    top = np.abs(x).max()
    best = max(_db(x, _symmetric(x, clip, high)) for clip in np.linspace(0.02, 1, 800) * top)
    got = _db(x, jqz.fake_quantize(jnp.asarray(x, jnp.float32), jqz.Symmetric(bits=bits, range=estimator)))
    assert best - short_db < got < best + 1e-3


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["gauss", "laplace", "relu", "exponential"])
def test_octav_finds_both_ends(name, bits):
    """Against the best range that shrinks both ends alike, which MSE searches as well."""
    x, steps = SAMPLES[name].astype(np.float64), 2**bits - 1
    best = max(_db(x, _asymmetric(x, s * x.min(), s * x.max(), steps)) for s in np.geomspace(1, 1 / 16, 200))
    got = _db(x, jqz.fake_quantize(jnp.asarray(x, jnp.float32), jqz.Asymmetric(bits=bits, range=OCTAV())))
    assert got > best - 0.06
    searched = _db(x, jqz.fake_quantize(jnp.asarray(x, jnp.float32), jqz.Asymmetric(bits=bits, range=MSE())))
    assert best - 0.03 < searched < best + 0.02


def test_octav_is_a_fixed_point_of_its_own_equations():
    x = SAMPLES["shifted"].astype(np.float64)
    ends = OCTAV(iterations=40).limits(jnp.asarray(x, jnp.float32), (0,), _none, 15)
    low, high = (float(end[0]) for end in ends)
    kappa, kept = 1 / (12 * 15**2), ((x >= low) & (x <= high)).sum()
    below, above = x[x < low], x[x > high]
    assert high == pytest.approx((above.sum() + kappa * kept * low) / (above.size + kappa * kept), rel=1e-4)
    assert low == pytest.approx((below.sum() + kappa * kept * high) / (below.size + kappa * kept), rel=1e-4)
    assert x.min() < low < 1.5 < 4.5 < high < x.max()


@pytest.mark.parametrize("estimator", [MSE(candidates=20), OCTAV(), Percentile(97.0), Sigmas(2.0)], ids=str)
@pytest.mark.parametrize("exponent", [126, -95])
def test_estimators_do_not_care_for_the_unit(estimator, exponent):
    """Exactly the same clip at 1e37 and at 1e-29, where squares overflow or vanish."""
    x = np.clip(SAMPLES["laplace"][:500] / 8, -1.9, 1.9)

    def limits(x):
        scheme = jqz.Asymmetric(bits=3, range=estimator)
        return scheme.calibrate(jnp.asarray(x)), jqz.Symmetric(bits=3, range=estimator).calibrate(jnp.asarray(x)).scale

    (plain, scale), (far, far_scale) = limits(x), limits(np.ldexp(x, exponent))
    np.testing.assert_array_equal(np.ldexp(np.asarray(plain.scale), exponent), far.scale)
    np.testing.assert_array_equal(plain.zero_point, far.zero_point)
    np.testing.assert_array_equal(np.ldexp(np.asarray(scale), exponent), far_scale)


@pytest.mark.parametrize("estimator", [AbsMax(), MinMax(), MSE(candidates=8), OCTAV(), Percentile()], ids=str)
def test_constants_and_zeros(estimator):
    x = jnp.stack([jnp.zeros(9), jnp.full(9, 0.1), jnp.full(9, -3.0)])
    scheme = jqz.Symmetric(bits=4, granularity=jqz.PerAxis(0), range=estimator)
    np.testing.assert_allclose(jqz.fake_quantize(x, scheme), x, rtol=1e-6)
    if not isinstance(estimator, AbsMax):  # half of whose range would lie beyond the constant
        scheme = jqz.Asymmetric(bits=4, granularity=jqz.PerAxis(0), range=estimator)
        np.testing.assert_allclose(jqz.fake_quantize(x, scheme), x, rtol=1e-6)


@pytest.mark.parametrize("estimator", [MSE(candidates=8), OCTAV(), Percentile(), Sigmas()], ids=str)
def test_float64(estimator):
    x = SAMPLES["laplace"][:500].astype(np.float64)
    with jax.enable_x64(True):
        narrow = estimator.magnitude(jnp.asarray(x, jnp.float32), (0,), lambda m: jnp.minimum(x.astype("f"), m), 7)
        wide = estimator.magnitude(jnp.asarray(x), (0,), lambda m: jnp.minimum(x, m), 7)
        low, _ = estimator.limits(jnp.asarray(x), (0,), lambda lo, hi: jnp.clip(x, lo, hi), 7)
    assert (wide.dtype, narrow.dtype, low.dtype) == (np.float64, np.float32, np.float64)
    np.testing.assert_allclose(wide, narrow, rtol=1e-5)


def test_given():
    x = jnp.asarray([-5.0, 0.5, 2.0])
    low, high = Given(-1, 2.0).limits(x, (0,), _none, 255)
    assert (low.tolist(), high.tolist()) == ([-1.0], [2.0])
    assert Given(-1, 0.5).magnitude(x, (0,), _none, 127).tolist() == [1.0]
    assert jqz.fake_quantize(x, jqz.Symmetric(bits=3, range=Given(-3.0, 3.0))).tolist() == [-3, 0, 2]
    traced = jax.jit(lambda clip: jqz.fake_quantize(x, jqz.Symmetric(bits=3, range=Given(-clip, clip))))
    assert traced(3.0).tolist() == [-3, 0, 2]


def test_refused_arguments():
    with pytest.raises(ValueError, match="wanted low < high"):
        Given(1.0, 1.0)
    with pytest.raises(ValueError, match=r"got arrays of shape \(2,\) and \(\), wanted numbers"):
        Given(np.zeros(2), 1.0)
    for percent in (50, 100.1):
        with pytest.raises(ValueError, match="wanted more than 50"):
            Percentile(percent)
    with pytest.raises(ValueError, match="wanted 1 to 65536"):
        MSE(candidates=0)
