"""Weighted codebooks against all partitions, in NumPy and float64."""

import itertools

import jax.numpy as jnp
import layers
import numpy as np
import pytest

import jqz
from jqz.algorithms import k_means
from jqz.schemes import Exact, GivenLevels, SparseKMeans


def setting(x, w, scheme):
    params, policy = {"w": jnp.asarray(w, jnp.float32)}, jqz.Policy(scheme, inputs=jqz.Identity())
    x = jnp.asarray(x, jnp.float32)
    return params, policy, jqz.observe(lambda p, x: x @ p["w"], policy, jqz.observers.Gram())(params, x)


def best_cost(w, h, count):
    """The least weighted squared error over all ways to cut sorted values into intervals."""
    order = np.argsort(w)
    w, h = w[order], h[order]
    costs = []
    for cuts in itertools.combinations(range(1, len(w)), count - 1):
        parts = np.split(np.arange(len(w)), cuts)
        costs.append(sum(np.sum(h[p] * (w[p] - np.average(w[p], weights=h[p])) ** 2) for p in parts))
    return min(costs)


SCHEME = jqz.Codebook(2, layers.CHANNEL, levels=Exact(bins=16))


def test_is_the_best_of_all_partitions():
    """Rows that are no two terms at once have a diagonal Gram matrix, which the weighted error is exact for."""
    rng = np.random.default_rng(0)
    w, energy = rng.normal(size=(12, 6)), rng.exponential(size=12) ** 2
    q = k_means(*setting(np.diag(np.sqrt(energy)), w, SCHEME))["w"]
    values = np.asarray(q.dequantize(), np.float64)
    found = np.sum(energy[:, None] * (values - w) ** 2, axis=0)
    best = np.array([best_cost(column, energy, 4) for column in w.T])
    plain = np.sum(energy[:, None] * (np.asarray(jqz.fake_quantize(jnp.asarray(w, jnp.float32), SCHEME)) - w) ** 2, 0)
    np.testing.assert_allclose(found, best, rtol=1e-3, atol=1e-6)
    assert best.sum() < 0.8 * plain.sum()


def test_sparse_weights_keep_their_zeros():
    rng = np.random.default_rng(1)
    w = np.where(rng.random((24, 4)) < 0.5, 0, rng.normal(size=(24, 4)))
    q = k_means(*setting(rng.normal(size=(50, 24)) * np.linspace(0, 3, 24), w, jqz.Codebook(2, levels=SparseKMeans())))
    assert (np.asarray(q["w"].dequantize())[w == 0] == 0).all()


def test_inputs_that_are_zero_leave_levels_as_they_are():
    w = np.random.default_rng(2).normal(size=(12, 6))
    params, policy, stats = setting(np.zeros((12, 12)), w, SCHEME)
    values, plain = jqz.dequantize(k_means(params, policy, stats)), jqz.fake_quantize(params["w"], SCHEME)
    np.testing.assert_allclose(values["w"], plain, atol=1e-6)


def test_errors_say_what_to_do():
    for scheme in (jqz.Symmetric(bits=4), jqz.Codebook(1, levels=GivenLevels((0.0, 1.0)))):
        with pytest.raises(ValueError, match=r"k_means: 'w' has shape \(3, 3\); .* no levels to learn, .* or gptq"):
            k_means(*setting(np.eye(3), np.eye(3), scheme))
    params, policy, _ = setting(np.eye(3), np.eye(3), jqz.Codebook(2))
    with pytest.raises(TypeError, match=r"k_means: got stats=None.*observers\.Gram"):
        k_means(params, policy, None)
