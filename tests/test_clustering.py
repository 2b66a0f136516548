"""One-dimensional clustering against brute force and a dynamic program in NumPy's float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqz import _clustering

RNG = np.random.default_rng(0)


def error(x, levels, weights=1.0):
    distance = np.abs(np.asarray(x, np.float64)[:, None] - np.asarray(levels, np.float64))
    return (weights * distance.min(axis=1) ** 2).sum()


def best_partition(x, count, weights=None):
    """The least error of all cuts of the sorted samples."""
    order = np.argsort(x)
    x = np.asarray(x, np.float64)[order]
    w = np.ones_like(x) if weights is None else np.asarray(weights, np.float64)[order]
    errors = []
    for cuts in itertools.combinations(range(1, len(x)), count - 1):
        parts = [(x[a:b], w[a:b]) for a, b in itertools.pairwise((0, *cuts, len(x)))]
        errors.append(sum((p * (v - (p * v).sum() / p.sum()) ** 2).sum() for v, p in parts))
    return min(errors)


def dynamic_program(x, count):
    """The same for more samples, O(n**2 count)."""
    x = np.sort(np.asarray(x, np.float64))
    n, s, q = np.arange(len(x) + 1), np.append(0, np.cumsum(x)), np.append(0, np.cumsum(x * x))
    size = n[:, None] - n[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(size > 0, (q[:, None] - q) - (s[:, None] - s) ** 2 / size, np.where(size == 0, 0, np.inf))
    least = cost[:, 0]
    for _ in range(count - 1):
        least = (least[None, :] + cost).min(axis=1)
    return least[-1]


@functools.partial(jax.jit, static_argnums=1)
def exact(x, count, weights=None, bins=512):
    return _clustering.exact(_clustering.samples(jnp.asarray(x), weights), count, bins)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("kind", ["normal", "clumps", "outliers"])
def test_exact_is_the_best_of_all_partitions(count, kind):
    x = {
        "normal": RNG.standard_normal(11),
        "clumps": np.concatenate([RNG.normal(c, 0.01, 4) for c in (-3, 0, 5)]),
        "outliers": np.append(RNG.standard_normal(10), 1e3),
    }[kind].astype(np.float32)
    levels = exact(x, count)
    wanted = best_partition(x, count)
    assert error(x, levels) == pytest.approx(wanted, rel=1e-4, abs=1e-7)


def test_weights_count():
    x = RNG.standard_normal(10).astype(np.float32)
    weights = RNG.integers(0, 5, 10).astype(np.float32)
    weights[np.argmax(x)] = 0
    levels = exact(x, 3, weights)
    some = weights > 0
    assert error(x, levels, weights) == pytest.approx(best_partition(x[some], 3, weights[some]), rel=1e-4)
    # a weight is a repetition
    repeated = np.repeat(x, weights.astype(int))
    np.testing.assert_allclose(levels, exact(repeated, 3), rtol=1e-5)


def test_exact_on_a_histogram_is_nearly_the_optimum():
    x = RNG.standard_t(3, 500).astype(np.float32)

    @jax.jit
    def solve(x):
        samples = _clustering.samples(x)
        return _clustering.lloyd(samples, _clustering.exact(samples, 8, 100), 10)

    levels = solve(x)
    assert error(x, levels) <= 1.01 * dynamic_program(x, 8)


def lloyd_step(x, levels):
    x, levels = np.asarray(x, np.float64), np.asarray(levels, np.float64)
    codes = np.argmin(np.abs(x[:, None] - levels), axis=1)
    return np.array([x[codes == k].mean() if (codes == k).any() else level for k, level in enumerate(levels)])


def test_lloyd_is_numpys_iteration():
    x = RNG.laplace(size=300).astype(np.float32)
    start = np.float32([-50, -1, 0, 0.1, 3, 40])  # the ends begin without a sample
    wanted = start
    for _ in range(7):
        wanted = lloyd_step(x, wanted)
    levels = jax.jit(lambda x, start: _clustering.lloyd(_clustering.samples(x), start, 7))(x, start)
    np.testing.assert_allclose(levels, wanted, rtol=1e-5, atol=1e-6)


def test_the_start_is_optimal_for_many_levels():
    # Panter and Dite: the levels of a normal distribution are quantiles of one sqrt(3) times as wide
    x = RNG.standard_normal(60_000).astype(np.float32)
    levels = np.asarray(jax.jit(lambda x: _clustering.spread(_clustering.samples(x), 64))(x))
    wanted = np.sqrt(3) * np.sort(RNG.standard_normal(10**6))[((np.arange(64) + 0.5) / 64 * 10**6).astype(int)]
    np.testing.assert_allclose(levels[8:-8], wanted[8:-8], atol=0.1)


@pytest.fixture(scope="module")
def histogram():
    return jax.jit(_clustering.samples)


def test_more_samples_than_are_sorted(histogram):
    x = RNG.laplace(size=_clustering.SORTED + 70_000).astype(np.float32)
    x[0] = 7.5
    samples = histogram(jnp.asarray(x))
    assert int(samples.mass[-1]) == x.size
    assert (np.diff(np.asarray(samples.points)) >= 0).all()
    levels = jax.jit(lambda samples: _clustering.lloyd(samples, _clustering.spread(samples, 8), 50))(samples)
    np.testing.assert_allclose(levels, lloyd_step(x, levels), atol=2e-3)
    assert 10 * np.log10((x**2).sum() / error(x, levels)) == pytest.approx(12.64, abs=0.05)  # Lloyd-Max of 3 bits


def test_a_histogram_keeps_repeated_values_exactly(histogram):
    values = np.float32([-7.3, -0.1, -0.1001, 0.0, 1e-3, 0.3333333, 5.1])
    x = RNG.choice(values, _clustering.SORTED + 70_000)
    samples = histogram(jnp.asarray(x))
    levels = _clustering.distinct(samples, 8, lambda: jnp.zeros(8))
    assert levels.tolist() == [*np.sort(values).tolist(), values.max()]
