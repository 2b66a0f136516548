"""Statistics measured again, against the layers' own training mode and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jqz
from jqz.algorithms import reestimate_batch_norm


class Net(nn.Module):
    """Two batch norms, one behind the other, around a residual; one has no scale of its own."""

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.Conv(4, (2, 2), use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.0)(y))
        z = nn.BatchNorm(use_running_average=not train, momentum=0.0, use_scale=False)(nn.Conv(4, (1, 1))(y))
        return nn.Dense(3)(nn.relu(y + z).mean((1, 2)))


def setting():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(16, 5, 4, 3)) + 1, jnp.float32)
    variables = jax.jit(Net().init)(jax.random.key(0), x)
    policy = jqz.Policy({"**/kernel": jqz.Symmetric(2)})
    return x, variables, jqz.quantize(variables, policy)


def test_is_what_training_measures():
    x, _, qparams = setting()
    wanted = Net().apply(jqz.dequantize(qparams), x, train=True, mutable=["batch_stats"])[1]["batch_stats"]
    got = reestimate_batch_norm(Net().apply, qparams, [x])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got["batch_stats"], wanted)
    assert isinstance(got["params"]["Conv_0"]["kernel"], jqz.QTensor)


def test_batches_merge_and_a_reference_tells_what_changed():
    def model(params, x):  # as Equinox and Haiku write it
        return (x @ params["w"] - params["mean"][None]) / jnp.sqrt(params["var"] + 1e-3)[None] * params["scale"][None]

    rng = np.random.default_rng(1)
    w = rng.normal(size=(3, 2))
    params = {"w": w, "mean": np.full(2, 0.5), "var": np.full(2, 3.0), "scale": np.ones(2)}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    rounded = {**params, "w": jnp.round(params["w"])}
    batches = [jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for n in (20, 30)]
    x = np.concatenate(batches).astype(np.float64)
    before, after = x @ w, x @ np.asarray(rounded["w"], np.float64)
    plain = reestimate_batch_norm(model, rounded, batches)
    np.testing.assert_allclose(plain["mean"], after.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plain["var"], after.var(0), rtol=1e-4)
    moved = reestimate_batch_norm(model, rounded, batches, reference=params)
    np.testing.assert_allclose(moved["mean"], 0.5 + after.mean(0) - before.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved["var"], 3 * after.var(0) / before.var(0), rtol=1e-4)
    same = reestimate_batch_norm(model, params, batches, reference=params)
    np.testing.assert_allclose(same["var"], params["var"], rtol=1e-5)


def test_channels_may_stand_in_the_middle():
    def model(params, x):
        return (x - params["m"][None, :, None]) * (params["g"] * jax.lax.rsqrt(params["v"] + 1e-5))[None, :, None]

    params = {"m": jnp.zeros(3), "v": jnp.ones(3), "g": jnp.full(3, 2.0)}
    x = jnp.arange(24.0).reshape(2, 3, 4)
    got = reestimate_batch_norm(model, params, [x])
    np.testing.assert_allclose(got["m"], np.asarray(x).mean((0, 2)))
    np.testing.assert_allclose(got["v"], np.asarray(x).var((0, 2)), rtol=1e-6)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"no batches\. Use batches=\[x\]"):
        reestimate_batch_norm(lambda p, x: x, {}, [])
    with pytest.raises(ValueError, match="found no batch norm"):
        reestimate_batch_norm(lambda p, x: x * p["scale"][None], {"scale": jnp.ones(3)}, [jnp.ones((2, 3))])


def test_one_value_has_no_variance():
    x, variables, _ = setting()

    class Small(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))

    x = jnp.ones((1, 3))
    variables = Small().init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="'batch_stats/BatchNorm_0/var' has seen one value of a channel"):
        reestimate_batch_norm(Small().apply, variables, [x])


def test_coded_norms_are_measured_too():
    x, variables, _ = setting()
    every = jqz.Policy({"**/{kernel,scale,mean,var,bias}": jqz.Symmetric(3)})
    got = reestimate_batch_norm(Net().apply, jqz.quantize(variables, every), [x])
    few = jqz.dequantize(jqz.quantize(variables, every))
    wanted = Net().apply(few, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got["batch_stats"], wanted)
    assert isinstance(got["params"]["BatchNorm_0"]["scale"], jqz.QTensor)
