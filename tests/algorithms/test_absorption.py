"""Absorbed biases against the formula in NumPy, and pairs that must be left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rewritable

from jqz.algorithms import absorb_high_bias


def test_amounts_are_the_least_values_and_the_next_bias_pays():
    _, params, inputs, run = rewritable.CASES["absorb_high_bias"]()
    new = run(absorb_high_bias)
    old, got = ({**tree["params"], "mean": tree["batch_stats"]} for tree in (params, new))
    wide = np.concatenate(inputs).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(1, 2))
    y = np.einsum("bhwcij,ijco->bhwo", windows, np.asarray(old["Conv_0"]["kernel"], np.float64))
    y += np.asarray(old["Conv_0"]["bias"], np.float64)
    amount = np.maximum(y.min((0, 1, 2)), 0)
    assert (amount > 0.5).sum() >= 3
    assert (amount == 0).any()
    np.testing.assert_allclose(got["Conv_0"]["bias"], old["Conv_0"]["bias"] - amount, rtol=1e-4, atol=1e-5)
    # depthwise, and then the mean of a batch norm is subtracted
    paid = old["mean"]["BatchNorm_0"]["mean"] - np.asarray(old["Conv_1"]["kernel"]).sum((0, 1, 2)) * amount
    np.testing.assert_allclose(got["mean"]["BatchNorm_0"]["mean"], paid, rtol=1e-4, atol=1e-4)
    # two readers: one adds a bias, the other has a batch norm
    second = np.asarray(old["BatchNorm_0"]["bias"] - got["BatchNorm_0"]["bias"], np.float64)
    assert (second >= 0).all()
    assert (second > 0.5).any()
    paid = old["Conv_2"]["bias"] + second @ np.asarray(old["Conv_2"]["kernel"])[0, 0]
    np.testing.assert_allclose(got["Conv_2"]["bias"], paid, rtol=1e-4, atol=1e-4)
    paid = old["mean"]["BatchNorm_1"]["mean"] - second @ np.asarray(old["Conv_3"]["kernel"])[0, 0]
    np.testing.assert_allclose(got["mean"]["BatchNorm_1"]["mean"], paid, rtol=1e-4, atol=1e-4)
    for name in ("Conv_0", "Conv_1", "Conv_2", "Conv_3"):
        np.testing.assert_array_equal(got[name]["kernel"], old[name]["kernel"])


PARAMS = {name: jnp.eye(3) + 1 for name in "ab"} | {name: jnp.full(3, 5.0) for name in "cd"}
X = jnp.ones((2, 3))


def hidden(p, x):
    return jax.nn.relu(x @ p["a"] + p["c"][None])


def test_what_falls_below_is_off_by_no_more_than_that():
    def model(p, x):
        return hidden(p, x) @ p["b"] + p["d"][None]

    low = absorb_high_bias(model, PARAMS, [X])
    np.testing.assert_allclose(low["c"], 5 - 9, rtol=1e-6)
    x = X.at[1, 0].set(0.9)  # values of the hidden layer fall by 0.2 and twice 0.1
    off = model(low, x) - model(PARAMS, x)
    np.testing.assert_allclose(off, np.array([[0, 0, 0], np.array([0.2, 0.1, 0.1]) @ PARAMS["b"]]), atol=1e-5)


def test_where_no_channel_is_always_on_nothing_changes():
    def model(p, x):
        return hidden(p, x) @ p["b"] + p["d"][None]

    same = absorb_high_bias(model, PARAMS, [X, -9 * X])
    for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "model",
    [
        lambda p, x: hidden(p, x) @ p["b"],
        lambda p, x: jax.nn.relu6(x @ p["a"] + p["c"][None]) @ p["b"] + p["d"][None],
        lambda p, x: (h := hidden(p, x)) @ p["b"] + p["d"][None] + h,
        lambda p, x: jax.nn.relu(y := x @ p["a"] + p["c"][None]) @ p["b"] + p["d"][None] + y,
        lambda p, x: (y := hidden(p, x) @ p["b"]) + p["d"][None] + y,
        lambda p, x: hidden(p, x) @ p["b"] + p["c"][None],
        lambda p, x: jax.nn.relu(2.0 * (x @ p["a"] + p["c"][None])) @ p["b"] + p["d"][None],
    ],
    ids=[
        "no bias to pay", "relu6", "read behind relu", "read before relu", "read before the bias", "bias used twice",
        "scaled after the bias",
    ],
)  # fmt: skip
def test_what_is_no_pair_is_left_alone(model):
    with pytest.raises(ValueError, match="absorb_high_bias: found no bias before relu"):
        absorb_high_bias(model, PARAMS, [X])


def test_zeros_beyond_the_border_do_not_move():
    def model(p, x, padding):
        x = jax.nn.relu(x @ p["a"] + p["c"][None, None])
        y = jax.lax.conv_general_dilated(x, p["k"], (1,), padding, dimension_numbers=("NWC", "WIO", "NWC"))
        return y + p["d"][None, None]

    params = PARAMS | {"k": PARAMS["b"][None]}
    assert (absorb_high_bias(lambda p, x: model(p, x, [(0, 0)]), params, [X[None]])["c"] < 0).all()
    with pytest.raises(ValueError, match="convolutions that do not pad"):
        absorb_high_bias(lambda p, x: model(p, x, [(1, 0)]), params, [X[None]])


def test_what_cannot_be_seen_is_refused():
    with pytest.raises(ValueError, match=r"no batches\. Use batches=\[x\]"):
        absorb_high_bias(hidden, PARAMS, [])
    with pytest.raises(ValueError, match=r"outputs change by .* one of \['c', 'd'\]"):
        absorb_high_bias(lambda p, x: hidden(p, x) @ p["b"] + p["d"][None] + p["c"].sum(), PARAMS, [X])
