import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz.schemes import Exact, GivenLevels, KMeans

fake = jax.jit(jqz.fake_quantize, static_argnums=1)
RNG = np.random.default_rng(0)
SAMPLES = {"gauss": RNG.standard_normal(32768), "laplace": RNG.laplace(size=32768)}


def sqnr_db(x, values):
    x, values = np.asarray(x, np.float64), np.asarray(values, np.float64)
    return 10 * np.log10((x**2).sum() / ((x - values) ** 2).sum())


@pytest.mark.parametrize(("bits", "gauss", "laplace"), [(4, 20.2, 18.1), (3, 14.6, 12.7), (2, 9.3, 7.5)])
def test_sqnr_of_lloyd_max(bits, gauss, laplace):
    # both distributions in one array, a codebook each
    x = np.stack([SAMPLES["gauss"], SAMPLES["laplace"]], -1).astype(np.float32)
    q = jqz.quantize(jnp.asarray(x), jqz.Codebook(bits=bits, granularity=jqz.PerAxis(-1)))
    values = jqz.dequantize(q)
    assert sqnr_db(x[:, 0], values[:, 0]) == pytest.approx(gauss, abs=0.2)
    assert sqnr_db(x[:, 1], values[:, 1]) == pytest.approx(laplace, abs=0.2)


@pytest.mark.parametrize("levels", [KMeans(), Exact(bins=128, iterations=50)], ids=repr)
def test_codes_are_nearest_and_levels_are_means(levels):
    x = np.random.default_rng(1).laplace(size=(50, 6)).astype(np.float32)
    q = jqz.quantize(jnp.asarray(x), jqz.Codebook(bits=2, levels=levels))
    table = np.asarray(q.grid.levels[0, 0], np.float64)
    codes = np.asarray(q.codes)
    assert np.array_equal(codes, np.abs(x[..., None] - table).argmin(-1))
    assert np.array_equal(jqz.dequantize(q), table.astype(np.float32)[codes])
    np.testing.assert_allclose(table, [x[codes == k].mean(dtype=np.float64) for k in range(4)], rtol=1e-5)


def test_exact_is_the_optimum_of_few_values():
    x = np.sort(np.random.default_rng(2).standard_cauchy(12)).astype(np.float32)
    errors = [
        sum(((part - part.mean()) ** 2).sum() for part in np.split(x.astype(np.float64), cuts))
        for cuts in itertools.combinations(range(1, 12), 3)
    ]
    values = fake(jnp.asarray(x), jqz.Codebook(bits=2, levels=Exact()))
    assert ((np.asarray(values, np.float64) - x) ** 2).sum() == pytest.approx(min(errors), rel=1e-4)


def test_exact_finds_what_kmeans_misses():
    x = jnp.asarray(np.random.default_rng(3).standard_t(2, 3000), jnp.float32)
    error = [
        float(jnp.sum((fake(x, jqz.Codebook(bits=4, levels=levels)) - x) ** 2))
        for levels in (KMeans(), Exact(bins=256))
    ]
    assert error[1] < error[0]


def test_a_large_tensor_is_counted_in_a_histogram():
    x = np.random.default_rng(4).standard_normal((400, 200)).astype(np.float32)
    values = fake(jnp.asarray(x), jqz.Codebook(bits=4))
    assert sqnr_db(x, values) == pytest.approx(20.22, abs=0.05)


@pytest.mark.parametrize("levels", [KMeans(), Exact(bins=16)], ids=repr)
@pytest.mark.parametrize(
    "values", [[0.1], [-3e38, 3e38], [0.0, 1e-30, -7.3], [1.0, 1.0000001, 1.0000002, 5e5], [1e-36, 2e-36]], ids=str
)
def test_few_different_values_are_kept(levels, values):
    x = np.random.default_rng(5).choice(np.float32(values), 40)
    x[: len(values)] = values
    q = jqz.quantize(jnp.asarray(x), jqz.Codebook(bits=2, levels=levels))
    assert np.array_equal(jqz.dequantize(q), x)
    assert int(q.codes.max()) == len(values) - 1


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("levels", [KMeans(), Exact(), GivenLevels((-1.0, 0.5))], ids=repr)
def test_shapes(shape, levels):
    q = jqz.quantize(jnp.full(shape, 0.5), jqz.Codebook(bits=2, levels=levels))
    assert q.shape == q.codes.shape == shape
    assert q.grid.levels.shape[:-1] == (1,) * len(shape)
    assert (jqz.dequantize(q) == 0.5).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_values_keep_their_dtype(dtype):
    x = jnp.asarray(SAMPLES["gauss"][:300], dtype)
    q = jqz.quantize(x, jqz.Codebook(bits=3))
    assert q.grid.levels.dtype == jnp.float32
    assert jqz.dequantize(q).dtype == dtype
    assert fake(x, jqz.Codebook(bits=3)).dtype == dtype


def test_float64_is_kept():
    with jax.enable_x64(True):
        x = jnp.asarray(SAMPLES["gauss"][:64]) * 1e-300
        q = jqz.quantize(x, jqz.Codebook(bits=6))
        assert q.grid.levels.dtype == jnp.float64
        assert np.array_equal(jqz.dequantize(q), x)


def test_size_counts_codes_and_levels():
    w = jnp.asarray(SAMPLES["gauss"].reshape(256, 128), jnp.float32)
    q = jqz.quantize(w, jqz.Codebook(bits=4))
    assert q.codes.dtype == jnp.uint8
    assert jqz.size_bytes(q) == w.size // 2 + 16 * 4


def test_given_levels():
    x = jnp.array([-9.0, -0.6, -0.4, 0.1, 0.3, 9.0])
    scheme = jqz.Codebook(bits=2, levels=GivenLevels((-1.0, 0.0, 0.25)))
    assert fake(x, scheme).tolist() == [-1, -1, 0, 0, 0.25, 0.25]
    assert jax.grad(lambda x: fake(x, scheme).sum())(x).tolist() == [0, 1, 1, 1, 0, 0]
    relative = jqz.Codebook(bits=2, granularity=jqz.PerAxis(-1), levels=GivenLevels((-1, 0, 1), jqz.ranges.AbsMax()))
    w = jnp.array([[4.0, 0.0, -0.1], [1.0, 0.0, -0.04]])
    expected = np.float32([[4, 0, -0.1], [0, 0, 0]])
    assert np.array_equal(fake(w, relative), expected)


def test_gradients_pass_everywhere():
    x = jnp.asarray(SAMPLES["laplace"][:100], jnp.float32)
    assert (jax.grad(lambda x: fake(x, jqz.Codebook(bits=2)).sum())(x) == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "levels", [KMeans(), Exact(bins=16), GivenLevels((-1, 1)), GivenLevels((-1, 1), jqz.ranges.AbsMax())], ids=repr
)
def test_what_is_not_finite_is_refused(levels, bad):
    x = np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]])
    x[2, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        jqz.quantize(jnp.asarray(x), jqz.Codebook(bits=1, levels=levels))


def test_nan_shows_in_training():
    x = jnp.array([1.0, jnp.nan, 3.0, 4.0, 5.0])
    assert jnp.isnan(fake(x, jqz.Codebook(bits=2))).any()


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match="Codebook: got bits=9"):
        jqz.Codebook(bits=9)
    with pytest.raises(ValueError, match=r"Codebook: got 5 levels.*Use Codebook\(bits=3"):
        jqz.Codebook(bits=2, levels=GivenLevels((1, 2, 3, 4, 5)))
    with pytest.raises(ValueError, match=r"rising order.*tuple\(sorted\(set\(levels\)\)\)"):
        GivenLevels((1.0, 0.0))
    with pytest.raises(ValueError, match="KMeans: got iterations=-1"):
        KMeans(-1)
    with pytest.raises(ValueError, match="Exact: got bins=5000, wanted an integer from 2 to 4096"):
        Exact(bins=5000)
    with pytest.raises(ValueError, match=r"'w' has shape \(3,\).*rank 1"):
        jqz.quantize({"w": jnp.ones(3)}, {"**/w": jqz.Codebook(granularity=jqz.PerAxis(1))})


def test_sparse_kmeans_clusters_what_is_not_zero():
    """Lloyd's iteration in float64, from evenly spaced levels, on the values that are not zero."""
    rng = np.random.default_rng(5)
    w = rng.normal(size=200)
    w[abs(w) < 0.7] = 0
    values = np.float64(np.float32(w[w != 0]))
    levels = np.linspace(values.min(), values.max(), 7)
    for _ in range(30):
        nearest = abs(values[:, None] - levels).argmin(axis=1)
        levels = np.array([values[nearest == k].mean() if (nearest == k).any() else levels[k] for k in range(7)])
    scheme = jqz.Codebook(bits=3, levels=jqz.schemes.SparseKMeans(iterations=30))
    q = jqz.quantize(jnp.asarray(w, jnp.float32), scheme)
    assert np.allclose(q.grid.levels.reshape(-1), np.sort([*levels, 0.0]), atol=1e-5)
    assert (np.asarray(jqz.dequantize(q))[w == 0] == 0).all()
    assert jqz.dequantize(jqz.quantize(jnp.zeros(9), scheme)).tolist() == [0.0] * 9
