"""Corrected biases against a direct computation, layer by layer, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz.algorithms import correct_bias


def model(params, x):
    y = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    return y @ params["b"]["kernel"] + params["b"]["bias"][None]


def test_layer_by_layer():
    rng = np.random.default_rng(0)
    shapes = {"a": {"kernel": (6, 5), "bias": (5,)}, "b": {"kernel": (5, 3), "bias": (3,)}}
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )
    qparams = jqz.quantize(params, jqz.Policy({"**/kernel": jqz.Symmetric(2)}))
    batches = [jnp.asarray(rng.normal(size=(n, 6)) + 1, jnp.float32) for n in (10, 10)]
    got = correct_bias(model, params, qparams, batches)

    wide, rounded = (
        jax.tree.map(lambda a: np.asarray(a, np.float64), tree) for tree in (params, jqz.dequantize(qparams))
    )
    x = np.concatenate(batches).astype(np.float64)
    y = x @ wide["a"]["kernel"] + wide["a"]["bias"]
    first = y.mean(0) - (x @ rounded["a"]["kernel"]).mean(0)
    np.testing.assert_allclose(got["a"]["bias"], first, rtol=1e-4, atol=1e-5)
    # with one batch all of it goes layer by layer
    once = correct_bias(model, params, qparams, [jnp.concatenate(batches)])
    z = np.maximum(y, 0) @ wide["b"]["kernel"] + wide["b"]["bias"]
    behind = np.maximum(x @ rounded["a"]["kernel"] + first, 0) @ rounded["b"]["kernel"]
    np.testing.assert_allclose(once["b"]["bias"], z.mean(0) - behind.mean(0), rtol=1e-4, atol=1e-5)
    outputs = [np.asarray(model(jqz.dequantize(tree), x.astype(np.float32))) for tree in (params, once)]
    np.testing.assert_allclose(outputs[0].mean(0), outputs[1].mean(0), atol=1e-5)
    assert isinstance(once["a"]["kernel"], jqz.QTensor)
    # batches whose means are apart keep their own while later layers are measured
    apart = [batches[0] - 2, batches[1] + 2]
    got = correct_bias(model, params, qparams, apart)
    first, behind = [], []
    for part in (np.asarray(batch, np.float64) for batch in apart):
        y = part @ wide["a"]["kernel"] + wide["a"]["bias"]
        z = np.maximum(y, 0) @ wide["b"]["kernel"] + wide["b"]["bias"]
        own = y.mean(0) - (part @ rounded["a"]["kernel"]).mean(0)
        first.append(own)
        hidden = np.maximum(part @ rounded["a"]["kernel"] + own, 0)
        behind.append(z.mean(0) - (hidden @ rounded["b"]["kernel"]).mean(0))
    np.testing.assert_allclose(got["a"]["bias"], np.mean(first, 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["b"]["bias"], np.mean(behind, 0), rtol=1e-4, atol=1e-5)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"no batches\. Use batches=\[x\]"):
        correct_bias(model, {}, {}, [])
    with pytest.raises(ValueError, match="found no bias"):
        correct_bias(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, {"w": jnp.eye(2)}, [jnp.ones((1, 2))])


def test_coded_biases_are_corrected_in_float():
    def model(params, x):
        return x @ params["w"] + params["bias"][None]

    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=4), jnp.float32),
    }
    x = jnp.asarray(rng.normal(size=(32, 8)) + 1, jnp.float32)
    q = jqz.quantize(params, jqz.Policy({"w": jqz.Symmetric(3), "bias": jqz.Symmetric(3)}))
    better = correct_bias(model, params, q, [x])
    assert isinstance(better["w"], jqz.QTensor)
    means = (model(jqz.dequantize(tree), x).mean(0) for tree in (better, params))
    np.testing.assert_allclose(*means, atol=1e-5)
