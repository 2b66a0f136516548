"""Means that batch norms foretell against samples drawn in NumPy, float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jqz
from jqz.algorithms import correct_bias_data_free


class Net(nn.Module):
    """Weights behind relu, relu6, a sum and average pooling, with biases and batch norms behind them."""

    @nn.compact
    def __call__(self, x):
        def norm(x):
            return nn.BatchNorm(use_running_average=True)(x)

        x = norm(nn.Conv(6, (1, 1))(x))
        y = nn.relu(norm(nn.Conv(6, (3, 3), feature_group_count=6, use_bias=False)(nn.relu6(x))))
        x = x + norm(nn.Conv(6, (1, 1))(y))
        x = nn.relu(norm(nn.Conv(4, (1, 1), use_bias=False)(x)))
        x = nn.pooling.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4
        return nn.Dense(3)(x.mean((1, 2)))


@functools.cache
def setting():
    rng = np.random.default_rng(0)
    x = jnp.zeros((1, 4, 4, 3))

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        positive = "var" in name or "scale" in name
        values = rng.uniform(0.5, 3, leaf.shape) if positive else 1.5 * rng.normal(size=leaf.shape)
        return jnp.asarray(values, jnp.float32)

    params = jax.tree_util.tree_map_with_path(fill, jax.eval_shape(Net().init, jax.random.key(0), x))
    qparams = jqz.quantize(params, jqz.Policy({"**/kernel": jqz.Symmetric(2)}))
    return params, qparams, correct_bias_data_free(Net().apply, params, qparams, x)


def sampled(number, low=-np.inf, high=np.inf):
    """The mean of what a batch norm makes, clipped, by samples of its normal distributions."""
    params = setting()[0]["params"][f"BatchNorm_{number}"]
    scale, bias = (np.asarray(params[name], np.float64) for name in ("scale", "bias"))
    normal = np.random.default_rng(1).standard_normal((400_000, len(bias)))
    return np.clip(normal * scale + bias, low, high).mean(0)  # the variance that it stores is that of its input


def moved(name):
    """What rounding did to a kernel."""
    params, qparams, _ = setting()
    kernels = (tree["params"][name]["kernel"] for tree in (jqz.dequantize(qparams), params))
    return np.subtract(*(np.asarray(kernel, np.float64) for kernel in kernels))


def test_means_behind_relu6_relu_sums_and_pooling():
    params, _, got = setting()
    # the first layer meets the input, of which nothing is known
    np.testing.assert_array_equal(got["params"]["Conv_0"]["bias"], params["params"]["Conv_0"]["bias"])
    old, new = params["batch_stats"], got["batch_stats"]
    wanted = moved("Conv_1").sum((0, 1, 2)) * sampled(0, 0, 6)
    np.testing.assert_allclose(new["BatchNorm_1"]["mean"] - old["BatchNorm_1"]["mean"], wanted, rtol=5e-3, atol=0.03)
    wanted = -sampled(1, 0) @ moved("Conv_2")[0, 0]
    biases = [np.asarray(tree["params"]["Conv_2"]["bias"]) for tree in (params, got)]
    np.testing.assert_allclose(biases[1] - biases[0], wanted, rtol=5e-3, atol=0.03)
    wanted = (sampled(0) + sampled(2)) @ moved("Conv_3")[0, 0]
    np.testing.assert_allclose(new["BatchNorm_3"]["mean"] - old["BatchNorm_3"]["mean"], wanted, rtol=5e-3, atol=0.03)
    wanted = -sampled(3, 0) @ moved("Dense_0")
    biases = [np.asarray(tree["params"]["Dense_0"]["bias"]) for tree in (params, got)]
    np.testing.assert_allclose(biases[1] - biases[0], wanted, rtol=5e-3, atol=0.03)
    assert max(np.abs(wanted).max() for wanted in (moved("Conv_2"), moved("Dense_0"))) > 0.5
    assert isinstance(got["params"]["Conv_3"]["kernel"], jqz.QTensor)


def test_means_are_restored_where_the_statistics_hold():
    rng = np.random.default_rng(2)
    x = np.asarray(rng.normal(size=(5000, 8)) * rng.uniform(0.5, 2, 8) + rng.normal(size=8), np.float32)
    params = {"mean": x.mean(0), "var": x.var(0), "beta": rng.normal(size=8), "kernel": rng.normal(size=(8, 5))}
    params = {name: jnp.asarray(value, jnp.float32) for name, value in (params | {"bias": np.zeros(5)}).items()}

    def model(p, x):
        y = (x - p["mean"][None]) / jnp.sqrt(p["var"] + 1e-5)[None] + p["beta"][None]
        return jax.nn.relu(y) @ p["kernel"] + p["bias"][None]

    qparams = jqz.quantize(params, jqz.Policy({"kernel": jqz.Symmetric(2)}))
    fixed = correct_bias_data_free(model, params, qparams, x[:1])
    wanted = model(params, x).mean(0)
    off = [np.abs(model(jqz.dequantize(tree), x).mean(0) - wanted).max() for tree in (qparams, fixed)]
    assert off[1] < 0.05 * off[0]


def test_where_nothing_is_known_is_refused():
    params = {"a": jnp.eye(2), "bias": jnp.zeros(2)}
    with pytest.raises(ValueError, match="found no weight between a batch norm and a bias"):
        correct_bias_data_free(lambda p, x: x @ p["a"] + p["bias"][None], params, params, jnp.ones((1, 2)))
