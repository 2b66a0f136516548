import jax
import jax.numpy as jnp
import numpy as np
import pytest
import teacher

import jqz
from jqz.training import standardize_weights

RNG = np.random.default_rng(0)
W, G = RNG.standard_normal((2, 6, 4)).astype(np.float32)


@pytest.mark.parametrize("granularity", [jqz.PerTensor(), jqz.PerAxis(-1)], ids=str)
def test_values_and_gradients(granularity):
    """Against z = (w - mean) / deviation and its derivative (g - mean(g) - z mean(g z)) / deviation."""
    scheme = jqz.Symmetric(bits=4, granularity=granularity)

    @jax.jit
    def run(w, g):
        value, pull = jax.vjp(lambda w: standardize_weights(w, scheme, epsilon=0.0), w)
        return value, pull(g)[0]

    value, grad = run(W + 3, G)
    axes = 0 if isinstance(granularity, jqz.PerAxis) else None
    w, g = W.astype(np.float64) + 3, G.astype(np.float64)
    z = (w - w.mean(axes, keepdims=True)) / w.std(axes, keepdims=True)
    np.testing.assert_allclose(value, z, rtol=1e-4, atol=1e-5)
    wanted = (g - g.mean(axes, keepdims=True) - z * (g * z).mean(axes, keepdims=True)) / w.std(axes, keepdims=True)
    np.testing.assert_allclose(grad, wanted, rtol=1e-3, atol=1e-4)


def test_constants_become_zero_with_a_finite_gradient():
    value, pull = jax.vjp(lambda w: standardize_weights(w, jqz.Symmetric(bits=4)), jnp.full((3, 2), 7.0))
    assert (value == 0).all()
    assert jnp.isfinite(pull(jnp.ones((3, 2)))[0]).all()
    tree = standardize_weights({"kernel": jnp.asarray(W, jnp.bfloat16), "bias": jnp.ones(4)}, {"**/kernel": None})
    assert tree["kernel"].dtype == jnp.bfloat16
    assert (tree["bias"] == 1).all()


def test_training_apot_beats_rounding():
    """Normalized weights, learned clips; a scale and a shift a channel stand in for batch norm."""
    params, x, _ = teacher.task()
    scheme = jqz.AdditivePowerOfTwo(bits=3, range=jqz.ranges.Given(-3.0, 3.0), gradient=jqz.gradients.RCF())
    policy = {"**/kernel": scheme}
    scales = {name: np.full(layer["kernel"].shape[1], layer["kernel"].std()) for name, layer in params.items()}
    scales = jax.tree.map(np.float32, scales)
    clips = {name: scheme.calibrate(jnp.asarray(layer["kernel"])) for name, layer in params.items()}

    def loss(variables, turn):
        params, scales, clips = variables
        normal = standardize_weights(params, policy)
        a, b = (scheme.simulate(normal[name]["kernel"], clips[name]) * scales[name][None] for name in ("a", "b"))
        return teacher.error(jax.nn.relu(x @ a + params["a"]["bias"][None]) @ b)

    start = (params, scales, clips)
    moved, _ = teacher.train(loss, start)
    assert float(jax.jit(loss)(moved, 0)) < 0.4 * float(jax.jit(loss)(start, 0))


def test_learned_clips_stay_beside_their_weights():
    scheme = jqz.AdditivePowerOfTwo(bits=4, range=jqz.ranges.Given(-1.0, 1.0), gradient=jqz.gradients.RCF())
    params = jqz.learnable({"w": jnp.asarray(RNG.standard_normal((8, 8)), jnp.float32), "b": jnp.ones(3)}, scheme)

    def loss(params):
        return (jqz.fake_quantize(standardize_weights(params, scheme), scheme)["w"] ** 2).sum()

    def written_out(clip):
        x = (params["w"].value - params["w"].value.mean()) / params["w"].value.std()
        return (scheme.simulate(x, clip) ** 2).sum()

    clip = jax.grad(written_out)(params["w"].grid)
    assert clip.scale != 0
    np.testing.assert_allclose(jax.grad(loss)(params)["w"].grid.scale, clip.scale, rtol=1e-4)
