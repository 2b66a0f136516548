"""Rounding for small files against all codes that are within the limit, in NumPy and float64."""

import itertools

import jax.numpy as jnp
import layers
import numpy as np
import pytest

import jqz
from jqz.algorithms import entropy_constrained


def setting(terms, outputs, scheme, rows=60, seed=4):
    rng = np.random.default_rng(seed)
    mix = np.eye(terms) + rng.normal(size=(terms, terms)) / np.sqrt(terms)
    x = jnp.asarray(rng.normal(size=(rows, terms)) @ mix, jnp.float32)
    params = {"w": jnp.asarray(rng.laplace(size=(terms, outputs)), jnp.float32)}
    policy = jqz.Policy(scheme, inputs=jqz.Identity())
    return params, x, policy, jqz.observe(lambda p, x: x @ p["w"], policy, jqz.observers.Gram())(params, x)


def error(x, q, w):
    """The squared change of the layer's output, in float64."""
    difference = np.asarray(q["w"].dequantize(), np.float64) - np.asarray(w, np.float64)
    return np.sum((np.asarray(x, np.float64) @ difference) ** 2)


def entropy(codes):
    """Bits of all codes together."""
    counts = np.unique_counts(np.asarray(codes)).counts
    return -np.sum(counts * np.log2(counts / counts.sum()))


def test_comes_near_the_best_of_all_codes():
    columns = np.array(list(itertools.product((-1, 0, 1), repeat=6)))
    counts = np.stack([(columns == c).sum(1) for c in (-1, 0, 1)], -1)
    together = counts[:, None] + counts[None]
    bits = -np.sum(together * np.log2(np.maximum(together, 1) / 12), -1)  # of every two columns
    totals = np.zeros(3)
    for seed in range(6):
        params, x, policy, stats = setting(6, 2, jqz.Symmetric(2, range=jqz.ranges.MSE()), seed=seed)
        q, plain = entropy_constrained(params, policy, stats, error=2.0, damping=1e-6), jqz.quantize(params, policy)
        w, x64 = np.asarray(params["w"], np.float64), np.asarray(x, np.float64)
        away = columns[:, :, None] * float(plain["w"].grid.scale[0, 0]) - w[None]
        cost = np.einsum("nto,tu,nuo->no", away, x64.T @ x64, away)
        limit = 2 * error(x, plain, params["w"])
        assert error(x, q, params["w"]) <= limit * (1 + 1e-5)
        best = bits[cost[:, :1] + cost[:, 1:].T <= limit * (1 + 1e-6)].min()
        found, nearest = entropy(q["w"].codes), entropy(plain["w"].codes)
        assert best * (1 - 1e-6) <= found <= nearest * (1 + 1e-6)
        totals += best, found, nearest
    best, found, nearest = totals
    assert found - best < 0.4 * (nearest - best)


def test_uses_its_limit_and_stays_within():
    params, x, policy, stats = setting(48, 32, jqz.Symmetric(4, layers.CHANNEL))
    plain = jqz.quantize(params, policy)
    share = error(x, entropy_constrained(params, policy, stats, error=0.7), params["w"]) / error(x, plain, params["w"])
    assert 0.63 < share <= 0.7 * (1 + 1e-4)


def test_files_are_smaller(tmp_path):
    params, x, policy, stats = setting(96, 64, jqz.Symmetric(4, layers.CHANNEL))
    trees = jqz.quantize(params, policy), entropy_constrained(params, policy, stats)
    sizes = []
    for name, tree in zip("ab", trees, strict=True):
        jqz.save(tmp_path / name, {"w": tree["w"]}, compress=jqz.files.Entropy())
        sizes.append((tmp_path / name).stat().st_size)
    saved = (entropy(trees[0]["w"].codes) - entropy(trees[1]["w"].codes)) / 8
    assert saved > 0.08 * entropy(trees[0]["w"].codes) / 8
    assert sizes[0] - sizes[1] > 0.9 * saved
    assert error(x, trees[1], params["w"]) <= error(x, trees[0], params["w"])


def test_errors_say_what_to_do():
    params, _, policy, stats = setting(4, 3, jqz.Symmetric(12))
    with pytest.raises(ValueError, match=r"entropy_constrained: 'w' .* has 12 bits, wanted at most 8"):
        entropy_constrained(params, policy, stats)
    with pytest.raises(ValueError, match=r"got error=-1\.0"):
        entropy_constrained(params, policy, stats, error=-1.0)


def test_a_limit_out_of_reach_gives_the_least_error():
    rng = np.random.default_rng(0)
    params, x = (
        {"w": jnp.asarray(rng.normal(size=(16, 32)), jnp.float32)},
        jnp.asarray(rng.normal(size=(256, 16)), jnp.float32),
    )
    policy = jqz.Policy(jqz.Symmetric(4), inputs=jqz.Identity())
    stats = jqz.observe(lambda p, x: x @ p["w"], policy, jqz.observers.Gram())(params, x)

    def error(q):
        return float(((x @ q["w"].dequantize() - x @ params["w"]) ** 2).sum())

    errors = [error(entropy_constrained(params, policy, stats, error=limit)) for limit in (1.0, 0.01)]
    assert errors[1] < errors[0] <= error(jqz.quantize(params, policy)) * 1.0001
