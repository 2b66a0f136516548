"""Folded batch norms: the same function, the textbook formula, and what must not be folded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jqz.algorithms import fold_batch_norm


class Net(nn.Module):
    """Convolutions with and without bias, a depthwise one, a dense layer before a norm, and a shared result."""

    @nn.compact
    def __call__(self, x):
        def norm(x, **kwargs):
            return nn.BatchNorm(use_running_average=True, **kwargs)(x)

        x = nn.relu(norm(nn.Conv(6, (3, 3), use_bias=False)(x)))
        y = nn.relu(norm(nn.Conv(6, (3, 3), feature_group_count=6)(x), use_scale=False))
        shared = nn.Conv(6, (1, 1))(y)
        y = norm(shared) + shared
        return norm(nn.Dense(5)(y.mean((1, 2))), use_bias=False, epsilon=1e-3)


def setting():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 6, 6, 3)), jnp.float32)
    variables = jax.jit(Net().init)(jax.random.key(0), x)
    draw = lambda leaf: jnp.asarray(rng.uniform(0.5, 2, leaf.shape), jnp.float32)  # noqa: E731
    params = jax.tree.map(lambda a: draw(a) if a.ndim == 1 else a, variables["params"])
    return x, {"params": params, "batch_stats": jax.tree.map(draw, variables["batch_stats"])}


def test_the_function_stays_and_scales_become_one():
    x, variables = setting()
    folded = fold_batch_norm(Net().apply, variables, x)
    before, after = (np.asarray(Net().apply(v, x), np.float64) for v in (variables, folded))
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())

    old, new = variables["params"], folded["params"]
    stats, seen = variables["batch_stats"], folded["batch_stats"]
    factor = np.asarray(old["BatchNorm_0"]["scale"], np.float64) / np.sqrt(
        np.asarray(stats["BatchNorm_0"]["var"], np.float64) + 1e-5
    )
    np.testing.assert_allclose(new["Conv_0"]["kernel"], np.asarray(old["Conv_0"]["kernel"]) * factor, rtol=1e-5)
    np.testing.assert_allclose(
        seen["BatchNorm_0"]["mean"], np.asarray(stats["BatchNorm_0"]["mean"]) * factor, rtol=1e-5
    )
    for name in ("BatchNorm_0", "BatchNorm_1", "BatchNorm_3"):
        epsilon = 1e-3 if name == "BatchNorm_3" else 1e-5
        np.testing.assert_allclose(seen[name]["var"], 1 - epsilon, rtol=1e-6)
        assert (new[name].get("scale", np.ones(1)) == 1).all()
    bias = old["Conv_1"]["bias"] / np.sqrt(stats["BatchNorm_1"]["var"] + 1e-5)
    np.testing.assert_allclose(new["Conv_1"]["bias"], bias, rtol=1e-5)
    # the result of this convolution is used a second time
    np.testing.assert_array_equal(new["Conv_2"]["kernel"], old["Conv_2"]["kernel"])
    np.testing.assert_array_equal(seen["BatchNorm_2"]["var"], stats["BatchNorm_2"]["var"])


def norm(y, params):
    return (y - params["mean"][None]) / jnp.sqrt(params["var"] + 1e-5)[None]


PARAMS = {"w": jnp.eye(3) * 2, "mean": jnp.zeros(3), "var": jnp.full(3, 4.0)}
X = jnp.ones((2, 3))


def test_weights_of_two_products_are_left_alone():
    with pytest.raises(ValueError, match="found no batch norm behind a product"):
        fold_batch_norm(lambda p, x: norm(x @ p["w"], p) @ p["w"], PARAMS, X)


def test_what_folding_cannot_see_is_refused():
    with pytest.raises(ValueError, match=r"outputs change by .* one of \['mean', 'var', 'w'\]"):
        fold_batch_norm(lambda p, x: norm(x @ p["w"], p) + p["w"].sum(), PARAMS, X)


def test_a_pair_that_does_not_fold_leaves_the_others():
    """A scale that is 1 + s, as some libraries write it, is no plain product."""

    def norm(p, y, one):
        return (y - p["mean"][None]) * (jax.lax.rsqrt(p["var"] + 1e-3) * (one + p["scale"]))[None] + p["bias"][None]

    def model(params, x):
        y = jax.nn.relu(norm(params["plain"], x @ params["a"], 0))
        return norm(params["shifted"], y @ params["b"], 1)

    rng = np.random.default_rng(0)
    norms = [
        {n: rng.uniform(0.5, 1.5, size).astype(np.float32) for n in ("mean", "var", "scale", "bias")} for size in (8, 4)
    ]
    params = {"a": rng.normal(size=(6, 8)).astype(np.float32), "b": rng.normal(size=(8, 4)).astype(np.float32)}
    params |= {"plain": norms[0], "shifted": norms[1]}
    x = rng.normal(size=(16, 6)).astype(np.float32)
    folded = fold_batch_norm(model, params, x)
    np.testing.assert_allclose(model(folded, x), model(params, x), rtol=1e-3, atol=1e-4)
    assert not np.array_equal(folded["a"], params["a"])
    assert np.array_equal(folded["b"], params["b"])
