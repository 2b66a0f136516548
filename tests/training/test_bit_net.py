import jax
import jax.numpy as jnp
import numpy as np
import teacher

import jqz
from jqz.training import bit_net_activations, bit_net_weights

W = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)


def test_weights():
    """gamma clip(round(w / gamma), -1, 1) in float64, and a gradient that passes."""
    gamma = np.abs(W.astype(np.float64)).mean()
    value, pull = jax.vjp(lambda w: jqz.fake_quantize(w, bit_net_weights()), jnp.asarray(W))
    np.testing.assert_allclose(value, gamma * np.clip(np.rint(W / gamma), -1, 1), rtol=1e-6)
    np.testing.assert_array_equal(pull(jnp.asarray(W))[0], W)
    by_channel = bit_net_weights(jqz.PerAxis(-1)).calibrate(jnp.asarray(W))
    np.testing.assert_allclose(by_channel.scale[0], np.abs(W).mean(0), rtol=1e-6)


def test_each_token_has_a_scale():
    x = np.random.default_rng(1).standard_normal((2, 3, 8)).astype(np.float32)
    scale = np.abs(x.astype(np.float64)).max(-1, keepdims=True) / 127
    rounded = jqz.fake_quantize(jnp.asarray(x), bit_net_activations())
    np.testing.assert_allclose(rounded, np.rint(x / scale) * scale, rtol=1e-5)


def test_training_beats_rounding_and_runs_on_integers():
    """A scale and a shift a channel, as norms have, stand around the ternary products."""
    params, x, _ = teacher.task()
    policy = jqz.Policy({"**/kernel": bit_net_weights()}, inputs=bit_net_activations((0,)))
    extras = {"a": np.ones(32, np.float32), "b": np.ones(4, np.float32)}

    def model(params, x, extras):
        x = jax.nn.relu((x @ params["a"]["kernel"]) * extras["a"][None] + params["a"]["bias"][None])
        return (x @ params["b"]["kernel"]) * extras["b"][None]

    def loss(variables, turn):
        return teacher.error(jqz.simulated(model, policy)(variables[0], None, x, variables[1]))

    (params, extras), _ = teacher.train(loss, (params, extras))
    in_training = float(jax.jit(loss)((params, extras), 0))
    assert in_training < 0.5 * teacher.rounded_error({"**/kernel": bit_net_weights()})
    on_integers = jax.jit(jqz.quantized(model, inputs=policy))(jqz.quantize(params, policy), x, extras)
    assert float(teacher.error(on_integers)) < 1.01 * in_training
