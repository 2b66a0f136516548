"""Activation-aware scales against a search that runs the model itself on every candidate."""

import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz.algorithms import awq


def model(params, x):
    """A norm's scale before two products; what each computes."""
    h = x * params["scale"][None]
    return h @ params["a"], h @ params["b"].T


def setting():
    rng = np.random.default_rng(3)
    magnitude = np.exp(2 * rng.normal(size=32))
    params = {"scale": rng.uniform(0.5, 2, 32), "a": rng.normal(size=(32, 6)), "b": rng.normal(size=(5, 32))}
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    return params, jnp.asarray(rng.normal(size=(80, 32)) * magnitude, jnp.float32)


def test_the_best_candidate_is_found():
    params, x = setting()
    policy = jqz.Policy({"a": jqz.Symmetric(3, jqz.PerGroup(16)), "b": jqz.Asymmetric(3)})
    got = awq(model, params, policy, [x[:50], x[50:]], candidates=8)
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    magnitude = np.sqrt(((np.asarray(x, np.float64) * p["scale"]) ** 2).mean(0))

    def cost(tree):
        rounded = jqz.dequantize(jqz.quantize(tree, policy))
        return sum(
            float(np.sum((np.asarray(a) - b) ** 2)) for a, b in zip(model(rounded, x), model(params, x), strict=False)
        )

    found = []
    for alpha in np.arange(8) / 8:
        s = magnitude**alpha
        s /= np.sqrt(s.max() * s.min())
        tree = {"scale": p["scale"] / s, "a": p["a"] * s[:, None], "b": p["b"] * s[None]}
        tree = {name: jnp.asarray(value, jnp.float32) for name, value in tree.items()}
        found.append((cost(tree), tree))
    best = min(found, key=lambda one: one[0])
    assert best[0] < 0.8 * found[0][0]
    np.testing.assert_allclose(cost(got), best[0], rtol=1e-3)
    np.testing.assert_allclose(got["scale"], best[1]["scale"], rtol=1e-4)


def test_weights_that_stay_float_do_not_count():
    params, x = setting()
    alone = awq(lambda p, x: model(p, x)[0], params, jqz.Policy({"a": jqz.Symmetric(3)}), [x], candidates=4)
    both = awq(model, params, jqz.Policy({"a": jqz.Symmetric(3)}), [x], candidates=4)
    np.testing.assert_allclose(both["scale"], alone["scale"], rtol=1e-5)
    assert (np.asarray(both["b"]) != np.asarray(params["b"])).any()


def test_errors_say_what_to_do():
    params, x = setting()
    with pytest.raises(ValueError, match=r"no batches\. Use batches=\[x\]"):
        awq(model, params, jqz.Symmetric(3), [])
    with pytest.raises(ValueError, match="the policy rounds no weight that sums"):
        awq(lambda p, x: x @ p["a"], params, jqz.Policy({"a": jqz.Symmetric(3)}), [x])
