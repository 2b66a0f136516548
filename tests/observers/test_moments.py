"""Moments against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz.observers import Moments

X = np.random.default_rng(3).standard_normal((600, 2, 3)) * [1, 10, 0.1] + [1000, 0, -50]


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_mean_and_variance_of_channels_and_of_all(axis):
    x = X[:40].astype(np.float32)
    wide, others = x.astype(np.float64), tuple({0, 1, 2} - {axis % 3})
    seen = Moments(axis=axis).update(jnp.asarray(x))
    np.testing.assert_allclose(seen.mean, wide.mean(others), rtol=1e-5)
    np.testing.assert_allclose(seen.variance, wide.var(others), rtol=1e-4)
    np.testing.assert_allclose(seen.total_mean, wide.mean(), rtol=1e-5)
    np.testing.assert_allclose(seen.total_variance, wide.var(), rtol=1e-4)
    assert int(seen.count) == x.size // x.shape[axis]


def test_uneven_batches_merge_without_losing_precision():
    """A sum of squares would lose the variance of the first channel, a millionth of its square."""
    x = X.astype(np.float32)
    update = jax.jit(lambda x: Moments().update(x))
    seen = functools.reduce(lambda a, b: a.merge(b), [update(part) for part in np.split(x, [1, 4, 100])])
    wide = x.astype(np.float64)
    np.testing.assert_allclose(seen.mean, wide.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(seen.variance, wide.var((0, 1)), rtol=1e-3)


def test_covers_standard_deviations():
    x = X[:, :, 1].astype(np.float32)
    low, high = Moments(2.0).update(jnp.asarray(x)).limits(jqz.Asymmetric())
    np.testing.assert_allclose([low, high], [x.mean() - 2 * x.std(), x.mean() + 2 * x.std()], rtol=1e-4)
