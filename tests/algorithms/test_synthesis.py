"""Inputs that a network's batch norms recognize."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqz.algorithms import synthesize_inputs


def test_batch_norms_see_what_they_saw():
    def model(params, x):
        h = x @ params["w"]
        return (h - params["mean"][None]) * jax.lax.rsqrt(params["var"] + 1e-5)[None]

    rng = np.random.default_rng(0)
    w = rng.normal(size=(4, 2))
    params = {"w": w, "mean": np.array([0.3, -0.2]), "var": np.array([2.0, 6.0])}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    x = np.asarray(synthesize_inputs(model, params, (128, 4), jax.random.key(0), steps=150), np.float64)
    start = np.asarray(jax.random.normal(jax.random.key(0), (128, 4)), np.float64)

    def distance(x):
        h = x @ w
        return np.abs(h.mean(0) - params["mean"]).sum() + np.abs(h.std(0) - np.sqrt(params["var"])).sum()

    assert distance(x) < 0.5 * distance(start)


def test_needs_a_batch_norm():
    with pytest.raises(ValueError, match="found no batch norm"):
        synthesize_inputs(lambda p, x: x, {}, (4, 2), jax.random.key(0))
