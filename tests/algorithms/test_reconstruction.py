"""Rounding learned for blocks against all ways to round a small one, in NumPy and float64."""

import itertools

import jax
import jax.numpy as jnp
import layers
import numpy as np
import pytest

import jqz
from jqz.algorithms import reconstruct


def model(p, x):
    """A residual block for each entry of the first axis, with inputs of its own."""
    hidden = jax.nn.relu(jnp.einsum("kri,kih->krh", x, p["a"]))
    return jax.nn.relu(x + jnp.einsum("krh,kho->kro", hidden, p["b"]))


def computed(a, b, x):
    return np.maximum(x + np.maximum(x @ a, 0) @ b, 0)


def test_finds_nearly_the_best_of_all_ways():
    rng = np.random.default_rng(0)
    wide = {name: rng.normal(size=(20, 2, 2)) for name in "ab"}
    x = rng.normal(size=(3, 20, 16, 2)) @ (rng.normal(size=(20, 2, 2)) + np.eye(2))
    params, batches = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (wide, list(x)))
    plain = jqz.quantize(params, jqz.Symmetric(3, jqz.PerAxis((0, -1))))
    q = reconstruct(model, params, plain, batches, steps=300, learning_rate=0.03)
    x, wanted = np.concatenate(x, 1), computed(wide["a"], wide["b"], np.concatenate(x, 1))

    def error(a, b):
        return np.sum((computed(a, b, x) - wanted) ** 2, (-2, -1))

    scales = {name: np.asarray(p.grid.scale, np.float64) for name, p in plain.items()}
    low = {name: np.floor(wide[name] / scales[name]) for name in wide}
    for name in wide:
        assert np.isin(np.asarray(q[name].codes) - low[name], (0, 1)).all()
    ways = np.array(list(itertools.product((0, 1), repeat=4)), np.float64).reshape(-1, 1, 2, 2)
    tries = {name: np.clip(low[name] + ways, -3, 3) * scales[name] for name in wide}
    best = np.min([error(a, b) for a in tries["a"] for b in tries["b"]], 0)
    found, nearest = (error(*(np.asarray(v, np.float64) for v in jqz.dequantize(t).values())) for t in (q, plain))
    assert (found >= best * (1 - 1e-4)).all()
    assert np.sum(found - best) < 0.5 * np.sum(nearest - best)


def chain(p, x):
    return jax.nn.relu(x @ p["first"]) @ p["second"] + p["bias"][None]


def wider(seed=1):
    rng = np.random.default_rng(seed)
    params = {"first": rng.normal(size=(8, 10)), "second": rng.normal(size=(10, 6)), "bias": rng.normal(size=6)}
    x = rng.normal(size=(2, 40, 8)) @ (rng.normal(size=(8, 8)) + 1)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params), [jnp.asarray(one, jnp.float32) for one in x]


SCHEMES = (
    jqz.Symmetric(2, layers.CHANNEL),
    jqz.Asymmetric(2, jqz.PerGroup(5)),
    jqz.Symmetric(8) >> jqz.PowerOfTwo(3),
)


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_no_block_gets_worse_behind_those_before_it(scheme):
    params, batches = wider()
    plain = {**jqz.quantize(params, jqz.Policy({"{first,second}": scheme})), "bias": params["bias"] + 0.1}
    q = reconstruct(chain, params, plain, batches, steps=60, learning_rate=0.03)
    np.testing.assert_array_equal(q["bias"], plain["bias"])
    x = np.concatenate(batches).astype(np.float64)
    exact, before, after = (
        jax.tree.map(lambda a: np.asarray(a, np.float64), jqz.dequantize(t)) for t in (params, plain, q)
    )
    for name in ("first", "second"):
        assert q[name].scheme == scheme
        np.testing.assert_array_equal(scheme.encode(q[name].dequantize(), q[name].grid), q[name].codes)

    def hidden(tree):
        return np.maximum(x @ tree["first"], 0)

    def second(tree, h):
        return np.sum((h @ tree["second"] + tree["bias"] - (hidden(exact) @ exact["second"] + exact["bias"])) ** 2)

    errors = [np.sum((hidden(tree) - hidden(exact)) ** 2) for tree in (after, before)]
    assert errors[0] <= errors[1] * (1 + 1e-5)
    errors = [second(tree, hidden(after)) for tree in (after, before)]  # both with inputs as they are rounded
    assert errors[0] <= errors[1] * (1 + 1e-5)
    assert second(after, hidden(after)) < 0.9 * second(before, hidden(before))


def test_together_is_one_block():
    params, batches = wider()
    plain = jqz.quantize(params, jqz.Symmetric(2, layers.CHANNEL))

    def error(tree):
        pairs = [(chain(jqz.dequantize(tree), x), chain(params, x)) for x in batches]
        return sum(float(jnp.sum((a - b) ** 2)) for a, b in pairs)

    one = reconstruct(chain, params, plain, batches, steps=200, learning_rate=0.03, together=[["first", "second"]])
    assert error(one) < 0.8 * error(plain)


def test_what_is_gained_already_is_kept():
    """From codes that are the best already, nothing moves; what no block reads stays."""
    params = {"w": jnp.asarray([[1.0], [0.4]]), "unused": jnp.asarray([[0.3, 1.0]])}
    plain = jqz.quantize(params, jqz.Symmetric(2))
    q = reconstruct(lambda p, x: x @ p["w"], params, plain, [jnp.eye(2)], steps=30)
    np.testing.assert_array_equal(q["w"].codes, plain["w"].codes)
    assert q["unused"] is plain["unused"]


def test_errors_say_what_to_do():
    params, batches = wider()
    plain = jqz.quantize(params, jqz.Symmetric(3))
    with pytest.raises(ValueError, match=r"reconstruct: got batches of shapes .*wanted one or more of the same shapes"):
        reconstruct(chain, params, plain, [batches[0], batches[1][:3]])
    with pytest.raises(ValueError, match="reconstruct: got batches of shapes"):
        reconstruct(chain, params, plain, [])
    with pytest.raises(ValueError, match=r"qparams holds no QTensor\. Use gptq"):
        reconstruct(chain, params, params, batches)
    with pytest.raises(ValueError, match=r"reconstruct: got steps=0"):
        reconstruct(chain, params, plain, batches, steps=0)


def test_grids_that_search_clips_found_are_kept():
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=size), jnp.float32) for name, size in {"a": (8, 16), "b": (16, 4)}.items()
    }
    x = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)

    def model(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    policy = jqz.Policy(jqz.Symmetric(3), inputs=jqz.Identity())
    stats = jqz.observe(model, policy, jqz.observers.Gram())(params, x)
    clipped = jqz.algorithms.search_clips(params, policy, stats)
    start = jqz.quantize(clipped, policy)
    found, same = (reconstruct(model, tree, start, [x], steps=20) for tree in (clipped, params))
    jax.tree.map(np.testing.assert_array_equal, found, same)
    with pytest.raises(ValueError, match=r"reconstruct: what the block of .* computes has NaN"):
        reconstruct(model, params, start, [x.at[0, 0].set(jnp.nan)], steps=1)


def test_choices_among_the_outputs_are_left_out():
    params = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)}
    x = jnp.asarray(np.random.default_rng(1).normal(size=(16, 8)), jnp.float32)
    rounded = jqz.quantize(params, jqz.Symmetric(3))
    found = reconstruct(lambda p, x: (x @ p["a"], x @ p["a"] > 0), params, rounded, [x], steps=20)
    assert found["a"].scheme == rounded["a"].scheme
