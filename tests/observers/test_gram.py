"""Gram against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz.observers import Gram


def test_products_of_what_meets_a_weight():
    x = np.random.default_rng(4).standard_normal((3, 20, 6)).astype(np.float32)
    policy = jqz.Policy(jqz.Symmetric(bits=4), inputs=jqz.Symmetric(bits=8))

    def model(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    params = {"a": jnp.asarray(np.random.default_rng(5).standard_normal((6, 5)), jnp.float32), "b": jnp.ones((5, 2))}
    watch = jax.jit(jqz.observe(model, policy, Gram()))
    stats = jqz.merge(watch(params, x[:1]), watch(params, x[1:]))
    wide = x.reshape(-1, 6).astype(np.float64)
    for name, rows in (("a", wide), ("b", np.maximum(wide @ np.asarray(params["a"], np.float64), 0))):
        seen = stats[name].observer
        np.testing.assert_allclose(seen.products, rows.T @ rows, rtol=1e-4, atol=1e-3)
        assert int(seen.rows) == 60


def test_has_no_range():
    with pytest.raises(ValueError, match=r"Gram: .*MinMax\(\).*stats\[site\]\.observer\.products"):
        Gram().update(jnp.ones((2, 2))).grid(jqz.Symmetric(), 2)
