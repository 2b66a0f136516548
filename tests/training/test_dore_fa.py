import jax
import jax.numpy as jnp
import numpy as np
import pytest
import teacher

import jqz
from jqz.training import dore_fa_activations, dore_fa_gradient, dore_fa_squash, dore_fa_weights

RNG = np.random.default_rng(0)
W = RNG.standard_normal((6, 5)).astype(np.float32)
G = RNG.standard_normal((6, 5)).astype(np.float32)


def _weights(w, bits):
    """quantize_k as published, in float64."""
    bent = np.tanh(w.astype(np.float64))
    unit = bent / (2 * np.abs(bent).max()) + 0.5
    return 2 * np.rint(unit * (2**bits - 1)) / (2**bits - 1) - 1


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights(bits):
    scheme = dore_fa_weights(bits)
    squashed = dore_fa_squash(jnp.asarray(W), scheme)
    np.testing.assert_allclose(jqz.fake_quantize(squashed, scheme), _weights(W, bits), atol=2e-6)
    np.testing.assert_array_equal(jqz.dequantize(jqz.quantize(squashed, scheme)), jqz.fake_quantize(squashed, scheme))


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_gradient_of_weights(bits):
    """Straight through the rounding; through tanh and through the maximum by the quotient rule."""

    @jax.jit
    def pull(w, g):
        fake = lambda w: jqz.fake_quantize(dore_fa_squash(w, dore_fa_weights(bits)), dore_fa_weights(bits))  # noqa: E731
        return jax.vjp(fake, w)[1](g)[0]

    bent, g = np.tanh(W.astype(np.float64)), G.astype(np.float64)
    place = np.unravel_index(np.abs(bent).argmax(), bent.shape)
    top = abs(bent[place])
    by_bent = g / top
    by_bent[place] -= np.sign(bent[place]) * (g * bent).sum() / top**2
    np.testing.assert_allclose(pull(jnp.asarray(W), jnp.asarray(G)), by_bent * (1 - bent**2), rtol=1e-4, atol=1e-5)


def test_one_bit():
    scheme = dore_fa_weights(1)
    w = jnp.array([-3.0, 0.0, 1.5, 0.5])
    value, pull = jax.vjp(lambda w: jqz.fake_quantize(dore_fa_squash(w, scheme), scheme), w)
    assert value.tolist() == [-1.25, 1.25, 1.25, 1.25]
    assert pull(jnp.array([1.0, 2.0, 3.0, 4.0]))[0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_activations(bits):
    x = np.array([-0.5, 0.0, 0.21, 0.31, 0.49, 0.8, 1.0, 1.7], np.float32)
    value, pull = jax.vjp(lambda x: jqz.fake_quantize(x, dore_fa_activations(bits)), jnp.asarray(x))
    steps = 2**bits - 1
    np.testing.assert_allclose(value, np.rint(np.clip(x.astype(np.float64), 0, 1) * steps) / steps, atol=1e-6)
    np.testing.assert_array_equal(pull(jnp.ones(8))[0], (x >= 0) & (x <= 1))


@pytest.mark.parametrize("bits", [1, 2, 6])
@pytest.mark.parametrize("batch_axes", [(0,), ()])
def test_gradients_are_rounded_at_random(bits, batch_axes):
    key, steps = jax.random.key(3), 2**bits - 1
    g = G.copy()
    g[2] = 0
    got = jax.vjp(lambda x: dore_fa_gradient(x, key, bits, batch_axes), jnp.asarray(W))[1](jnp.asarray(g))[0]
    u = np.asarray(jax.random.uniform(key, g.shape, jnp.float32, -0.5, 0.5), np.float64)
    top = np.abs(g).max(axis=1 if batch_axes else None, keepdims=True).astype(np.float64)
    level = np.rint((g / (2 * np.where(top > 0, top, 1)) + 0.5) * steps + u)
    np.testing.assert_allclose(got, 2 * top * (level / steps - 0.5), atol=1e-5)


def test_rounded_gradients_have_the_right_mean():
    keys = jax.random.split(jax.random.key(0), 4000)
    pull = jax.vmap(lambda key: jax.vjp(lambda x: dore_fa_gradient(x, key, 2), jnp.asarray(W))[1](jnp.asarray(G))[0])
    many = np.asarray(jax.jit(pull)(keys), np.float64)
    gap = (
        2 * np.abs(G).max(1, keepdims=True) / 3
    )  # a level is drawn between two, with a deviation of half a gap or less
    assert (np.abs(many.mean(0) - G) <= 4.5 * 0.5 * gap / 4000**0.5).all()


def test_forward_is_the_identity_and_zeros_stay():
    key = jax.random.key(0)
    np.testing.assert_array_equal(dore_fa_gradient(jnp.asarray(W), key, 2), W)
    assert dore_fa_gradient(jnp.zeros((0, 3)), key, 2).shape == (0, 3)
    assert dore_fa_squash(jnp.zeros((2, 2)), dore_fa_weights(2)).tolist() == [[0, 0], [0, 0]]
    half = jnp.asarray(W, jnp.bfloat16)
    assert dore_fa_squash({"k": half, "bias": half[0]}, {"**/k": dore_fa_weights(2)})["k"].dtype == jnp.bfloat16
    assert jax.grad(lambda x: dore_fa_gradient(x, key, 2).sum().astype(jnp.float32))(half).dtype == jnp.bfloat16


@pytest.mark.parametrize("bits", [0, 17, 2.0])
def test_refuses_other_widths(bits):
    with pytest.raises(ValueError, match=r"dore_fa_gradient: got bits=.*Use bits=6"):
        dore_fa_gradient(jnp.ones((2, 2)), jax.random.key(0), bits)


def test_training_beats_rounding():
    """Two-bit weights of unit scale, 6-bit gradients; a learned scale a layer stands in for batch norm."""
    params, x, _ = teacher.task()
    policy = {"**/kernel": dore_fa_weights(2, jqz.PerAxis(-1))}
    scales = {name: np.abs(layer["kernel"]).mean(0) for name, layer in params.items()}

    def loss(variables, turn):
        weights, scales = variables
        fake = jqz.fake_quantize(dore_fa_squash(weights, policy), policy)
        key = jax.random.fold_in(jax.random.key(0), turn)
        hidden = x @ fake["a"]["kernel"] * scales["a"][None] + fake["a"]["bias"][None]
        hidden = jax.nn.relu(dore_fa_gradient(hidden, key, 6))
        return teacher.error(hidden @ fake["b"]["kernel"] * scales["b"][None])

    variables, _ = teacher.train(loss, (params, scales))
    rounded = teacher.rounded_error({"**/kernel": jqz.Symmetric(bits=2, granularity=jqz.PerAxis(-1))})
    assert float(jax.jit(loss)(variables, 0)) < 0.5 * rounded


@pytest.mark.parametrize("bits", [1, 3])
def test_learned_grids_stay_beside_squashed_weights(bits):
    binary = jqz.Binary()
    scheme = jqz.Symmetric(bits=3, gradient=jqz.gradients.LSQ()) if bits > 1 else binary
    params = jqz.learnable({"w": jnp.asarray(W)}, scheme)
    squashed = dore_fa_squash(params, scheme)
    if bits == 1:  # learns no grid
        assert isinstance(squashed["w"], jax.Array)
        return
    assert squashed["w"].grid is params["w"].grid
    grads = jax.grad(lambda p: (jqz.fake_quantize(dore_fa_squash(p, scheme), scheme)["w"] * G).sum())(params)
    assert grads["w"].grid.scale != 0
    assert jnp.any(grads["w"].value != 0)


def test_axes_of_a_batch_are_axes_of_x():
    with pytest.raises(ValueError, match=r"batch_axes=\(5,\) for x of shape \(6, 5\), wanted axes that it has"):
        dore_fa_gradient(jnp.asarray(W), jax.random.key(0), 2, batch_axes=(5,))
