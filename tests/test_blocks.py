"""Where a program is cut: by hand for small ones, and the pieces, one after the other, against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqz._blocks import arrays_of, blocks


def residual(p, x):
    return x + jax.nn.relu(x @ p["b"]) @ p["c"]


def scanned(p, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ p["a"], p["stack"])[0] @ p["d"]


def two_results(p, x):
    x = jnp.tanh(x @ p["a"])
    return {"one": x @ p["b"], "other": jnp.exp(x @ p["c"]), "input": x[:1], "shape": 3}


@jax.custom_vjp
def whole(p, x):
    return residual(p, x @ p["a"]) @ p["d"]


whole.defvjp(lambda p, x: (whole(p, x), (p, x)), lambda saved, g: (saved[0], g))

CASES = {
    "chain": (lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"].T @ p["c"], ["a", "b", "c"]),
    "residual": (lambda p, x: residual(p, jax.nn.relu(x @ p["a"])) @ p["d"], ["a", "bc", "d"]),
    "calls": (jax.jit(lambda p, x: jax.checkpoint(residual)(p, jnp.tanh(x @ p["a"])) @ p["d"]), ["a", "bc", "d"]),
    "derivatives": (whole, ["a", "bc", "d"]),
    "input": (lambda p, x: (jnp.tanh(x @ p["a"]) + x) @ p["d"] * x, ["a", "d"]),
    "twice": (lambda p, x: residual(p, jnp.tanh(x @ p["a"]) @ p["a"]) @ p["a"], ["a", "bc"]),
    "scan": (scanned, ["a", ["stack"], "d"]),
    "two results": (two_results, ["a", "bc"]),
    "not rounded": (lambda p, x: jnp.tanh(x @ p["float"]) @ p["a"] @ p["float"] @ p["d"], ["a", "d"]),
}


def setting():
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=(4, 4)), jnp.float32) for name in ("a", "b", "c", "d", "float")}
    params["stack"] = jnp.asarray(rng.normal(size=(3, 4, 4)), jnp.float32)
    return params, jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)


@pytest.mark.parametrize("name", CASES)
def test_cuts_are_those_found_by_hand_and_the_pieces_make_the_whole(name):
    fn, wanted = CASES[name]
    params, x = setting()
    found = blocks(fn, params, (x,), set(params) - {"float"})
    assert [list(block.weights) for block in found] == [list(one) for one in wanted]
    made = []
    for block in found:
        made = block(arrays_of(params, (x,)), made)
    results = [leaf for leaf in jax.tree.leaves(fn(params, x)) if np.ndim(leaf)]
    assert len(made) == len(results)
    for got, exact in zip(made, results, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6)


def test_weights_are_put_together_by_globs():
    fn = CASES["residual"][0]
    params, x = setting()
    found = blocks(fn, params, (x,), set(params), [["a", "[bc]"], ["{c,d}"]])
    assert [block.weights for block in found] == [("a",), ("b", "c", "d")]
    assert [b.weights for b in blocks(fn, params, (x,), set(params), [["a", "d"]])] == [("a", "b", "c", "d")]
    with pytest.raises(ValueError, match=r"together=\('e',\) names no rounded weight. Nearest paths: "):
        blocks(fn, params, (x,), set(params), [["e"]])
