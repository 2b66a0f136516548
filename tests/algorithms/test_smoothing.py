"""Smoothed activations against the formula in NumPy, and what they are good for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz.algorithms import smooth_quant


def model(params, x):
    """A norm before two products, of which one goes on to a third through relu."""
    h = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * params["scale"][None]
    return jax.nn.relu(h @ params["a"] + params["bias"][None]) @ params["c"] + h @ params["b"]


@functools.cache
def setting():
    rng = np.random.default_rng(0)
    params = {"scale": np.ones(16), "bias": rng.normal(size=6), "c": rng.normal(size=(6, 4))}
    params |= {"a": rng.normal(size=(16, 6)), "b": rng.normal(size=(16, 4))}
    params["scale"][3] = 200
    params["a"][5], params["b"][5] = 0, 0
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    return params, jnp.asarray(rng.normal(size=(64, 16)), jnp.float32)


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_scales_are_those_of_the_formula(alpha):
    params, x = setting()
    smooth = smooth_quant(model, params, [x[:30], x[30:]], alpha=alpha)
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    wide = np.asarray(x, np.float64)
    h = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]
    largest = np.abs(h).max(0), np.maximum(np.abs(p["a"]).max(1), np.abs(p["b"]).max(1))
    with np.errstate(divide="ignore"):
        s = largest[0] ** alpha / largest[1] ** (1 - alpha)
    s[5] = 1  # no weight meets this channel
    np.testing.assert_allclose(smooth["scale"], p["scale"] / s, rtol=1e-5)
    np.testing.assert_allclose(smooth["b"], p["b"] * s[:, None], rtol=1e-5)
    hidden = np.maximum(h @ p["a"] + p["bias"], 0).max(0)
    t = hidden**alpha / np.abs(p["c"]).max(1) ** (1 - alpha)
    np.testing.assert_allclose(smooth["a"], p["a"] * s[:, None] / t, rtol=1e-4)
    np.testing.assert_allclose(smooth["bias"], p["bias"] / t, rtol=1e-4)
    np.testing.assert_allclose(smooth["c"], p["c"] * t[:, None], rtol=1e-4)


def test_one_grid_an_activation_is_enough_then():
    params, x = setting()
    policy = jqz.Policy({"a": jqz.Symmetric(8), "b": jqz.Symmetric(8)}, inputs=jqz.Symmetric(8))
    simulate = jax.jit(jqz.simulated(model, policy))

    def distance(tree):
        return np.linalg.norm(simulate(tree, None, x) - model(params, x))

    assert distance(smooth_quant(model, params, [x])) < 0.5 * distance(params)


def test_errors_say_what_to_do():
    params, x = setting()
    with pytest.raises(ValueError, match=r"alpha=1.5, wanted a share from 0 to 1"):
        smooth_quant(model, params, [x], alpha=1.5)
    with pytest.raises(ValueError, match=r"no batches\. Use batches=\[x\]"):
        smooth_quant(model, params, [])
    with pytest.raises(ValueError, match="found no channels"):
        smooth_quant(lambda p, x: jnp.tanh(x @ p["a"]) @ p["c"], params, [x])
    with pytest.raises(ValueError, match=r"outputs change by .* one of"):
        smooth_quant(lambda p, x: x @ p["a"] @ p["c"] + p["a"].sum(), params, [x])
