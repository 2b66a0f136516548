"""Equalized weights: the same function, equal ranges, and pairs that must not be scaled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jqz
from jqz.algorithms import equalize


class Net(nn.Module):
    """A separable convolution with batch norm, a residual, pooling, and a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        x = nn.Conv(6, (3, 3), feature_group_count=6, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.Conv(5, (1, 1))(x)
        y = nn.Conv(5, (1, 1))(nn.relu(nn.Conv(7, (1, 1))(x)))
        x = nn.max_pool(nn.relu(nn.Conv(8, (1, 1))(x + y)), (2, 2), (2, 2))
        return nn.Dense(3)(x.mean((1, 2)))


def largest(weight, axis):
    return np.abs(np.asarray(weight)).max(axis=tuple(i for i in range(weight.ndim) if i != axis % weight.ndim))


def test_the_function_stays_and_ranges_meet():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 6, 6, 3)), jnp.float32)
    variables = jax.jit(Net().init)(jax.random.key(0), x)

    def spoilt(leaf):  # ranges of channels far apart, positive as a variance must be
        return leaf * jnp.asarray(np.exp(rng.normal(size=leaf.shape[-1])), jnp.float32).reshape(
            (1,) * (leaf.ndim - 1) + (-1,)
        )

    variables = jax.tree.map(spoilt, variables)
    equal = equalize(Net().apply, variables, x)
    before, after = (np.asarray(Net().apply(v, x), np.float64) for v in (variables, equal))
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())

    kernels = {name: layer["kernel"] for name, layer in equal["params"].items() if "kernel" in layer}
    # first and second of each pair, and the axis along which the second meets the channels
    pairs = [("Conv_0", "Conv_1", 3), ("Conv_1", "Conv_2", 2), ("Conv_4", "Conv_3", 2), ("Conv_5", "Dense_0", 0)]
    for first, second, axis in pairs:
        np.testing.assert_allclose(largest(kernels[first], -1), largest(kernels[second], axis), rtol=5e-3)
    # the results of these two are added, so neither may be scaled
    for name in ("Conv_2", "Conv_3"):
        np.testing.assert_array_equal(equal["params"][name]["bias"], variables["params"][name]["bias"])


def test_bounds_of_channels_go_with_them():
    """Relu6 ends a pair; with its bound as a parameter of each channel it does not, and clips what it clipped."""

    def model(p, x):
        return jnp.minimum(jax.nn.relu(x @ p["a"]), jnp.broadcast_to(p["bound"], (len(x), 16))) @ p["b"]

    rng = np.random.default_rng(3)
    spread = np.exp(rng.normal(size=16))
    params = {"a": rng.normal(size=(8, 16)) * spread, "b": rng.normal(size=(16, 4)), "bound": np.full(16, 6.0)}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    x = 3 * jnp.asarray(rng.normal(size=(50, 8)), jnp.float32)
    assert 0.1 < np.mean(np.asarray(x @ params["a"]) > 6) < 0.5
    equal = equalize(model, params, x)
    np.testing.assert_allclose(model(equal, x), model(params, x), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(largest(equal["a"], 1), largest(equal["b"], 0), rtol=5e-3)
    np.testing.assert_allclose(equal["bound"] / 6, largest(equal["a"], 1) / largest(params["a"], 1), rtol=1e-4)
    with pytest.raises(ValueError, match="found no product"):
        equalize(lambda p, x: jax.nn.relu6(x @ p["a"]) @ p["b"], params, x)


def test_one_grid_a_tensor_is_enough_then():
    rng = np.random.default_rng(1)
    spread = 10 ** np.linspace(-2, 2, 16)
    params = {"a": rng.normal(size=(8, 16)) * spread, "b": rng.normal(size=(16, 4)) / spread[:, None]}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    x = jnp.asarray(rng.normal(size=(32, 8)), jnp.float32)

    def model(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    def distance(tree):
        rounded = jqz.dequantize(jqz.quantize(tree, jqz.Symmetric(8)))
        return np.linalg.norm(model(rounded, x) - model(params, x))

    assert distance(equalize(model, params, x)) < 0.1 * distance(params)


PARAMS = {"a": jnp.eye(3) * 9, "b": jnp.ones((3, 2))}
X = jnp.ones((2, 3))


@pytest.mark.parametrize(
    "model",
    [
        lambda p, x: jax.nn.relu6(x @ p["a"]) @ p["b"],
        lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"],
        lambda p, x: (jax.nn.relu(x @ p["a"]) @ p["b"], x @ p["a"]),
        lambda p, x: (lambda h: jax.nn.relu(h) @ p["b"] + h.sum())(x @ p["a"]),
    ],
    ids=["relu6", "tanh", "weight used twice", "result used twice"],
)
def test_what_is_no_pair_is_left_alone(model):
    with pytest.raises(ValueError, match="found no product whose result goes to other products alone"):
        equalize(model, PARAMS, X)


def test_what_cannot_be_seen_is_refused():
    with pytest.raises(ValueError, match=r"outputs change by .* one of \['a', 'b'\]"):
        equalize(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"] + p["a"].sum(), PARAMS, X)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_part_of_the_way_is_a_power_of_the_whole(strength):
    rng = np.random.default_rng(1)
    params = {n: jnp.asarray(rng.normal(size=(6, 6)) * np.exp(2 * rng.normal(size=6)), jnp.float32) for n in "abc"}
    x = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)

    def model(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]

    whole, part = equalize(model, params, x), equalize(model, params, x, strength=strength)
    for name in "abc":
        expected = params[name] * (whole[name] / params[name]) ** strength
        np.testing.assert_allclose(part[name], expected, rtol=1e-4)
    np.testing.assert_allclose(model(part, x), model(params, x), rtol=1e-4, atol=1e-3)


def test_strength_is_a_share():
    with pytest.raises(ValueError, match=r"equalize: got strength=1.5.*Use strength=1.0"):
        equalize(lambda p, x: x @ p["a"], {"a": jnp.ones((2, 2))}, jnp.ones((1, 2)), strength=1.5)


def test_other_outputs_are_compared_as_they_are():
    """Choices, nothing at all, and infinity that masks are no reason to refuse."""
    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(8, 16)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(16, 4)), jnp.float32),
    }
    x, mask = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32), jnp.array([0, 0, 0, -jnp.inf])

    def model(p, x):
        y = jax.nn.relu(x @ p["a"]) @ p["b"] + mask[None]
        return y, y > 0, jnp.zeros((0, 3))

    assert jnp.any(equalize(model, params, x)["a"] != params["a"])

    def in_few_bits(p, x):
        p, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (p, x))
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    assert jnp.any(equalize(in_few_bits, params, x)["a"] != params["a"])
    with pytest.raises(ValueError, match="'a' is quantized already: rewrite first, then quantize"):
        equalize(model, jqz.quantize(params, jqz.Policy({"a": jqz.Symmetric(8)})), x)
    with pytest.raises(ValueError, match="equalize: got sweeps=0, wanted at least 1"):
        equalize(model, params, x, sweeps=0)
