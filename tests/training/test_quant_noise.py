import jax
import jax.numpy as jnp
import numpy as np
import pytest
import teacher

import jqz
from jqz.training import quant_noise

W = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
SCHEME = jqz.Symmetric(bits=3, granularity=jqz.PerAxis(-1), range=jqz.ranges.MeanMagnitude())


def test_values_are_rounded_or_exact_and_so_are_gradients():
    g = np.random.default_rng(1).standard_normal(W.shape).astype(np.float32)

    def with_gradient(fn):
        def run(w):
            value, pull = jax.vjp(fn, w)
            return value, pull(g)[0]

        return map(np.asarray, jax.jit(run)(W))

    value, grad = with_gradient(lambda w: quant_noise(w, SCHEME, jax.random.key(0), 0.3))
    rounded, through = with_gradient(SCHEME.simulate)
    chosen = np.asarray(value) != W
    assert abs(chosen.mean() - 0.3) < 4.5 * (0.21 / W.size) ** 0.5
    np.testing.assert_allclose(value, np.where(chosen, rounded, W), rtol=1e-6)
    assert (through[chosen] != g[chosen]).any()  # clipped values stop
    np.testing.assert_array_equal(grad, np.where(chosen, through, g))


@pytest.mark.parametrize("units", [jqz.PerGroup(8, axis=0), jqz.PerBlock((16, 6)), jqz.PerAxis(-1)], ids=str)
def test_units_are_drawn_whole(units):
    chosen = np.asarray(jax.jit(lambda w: quant_noise(w, SCHEME, jax.random.key(0), 0.5, units))(W)) != W
    block = units.block(W.shape)
    shares = chosen.reshape(64 // block[0], block[0], 48 // block[1], block[1]).mean((1, 3))
    assert set(np.unique(shares)) == {0, 1}
    assert 0.2 < shares.mean() < 0.8


def test_rates_at_the_ends_may_be_traced_and_leaves_draw_by_themselves():
    tree = {"a": jnp.asarray(W), "b": jnp.asarray(W), "scale": jnp.float32(3.3)}
    run = jax.jit(lambda rate: quant_noise(tree, {"**{a,b,scale}": jqz.Symmetric(bits=3)}, jax.random.key(0), rate))
    none, some, full = run(0.0), run(0.5), run(1.0)
    wanted = jqz.fake_quantize(tree, {"**{a,b,scale}": jqz.Symmetric(bits=3)})
    jax.tree.map(np.testing.assert_array_equal, none, tree)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-6), full, wanted)
    assert (some["a"] != some["b"]).any()


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_refuses_other_rates(rate):
    with pytest.raises(ValueError, match=r"quant_noise: got rate=.*Use rate=0\.5"):
        quant_noise(jnp.ones((2, 2)), SCHEME, jax.random.key(0), rate)


def test_training_beats_rounding():
    params, x, _ = teacher.task()
    policy = {"**/kernel": jqz.Symmetric(bits=3, granularity=jqz.PerAxis(-1), range=jqz.ranges.MeanMagnitude())}

    def loss(params, turn):
        key = jax.random.fold_in(jax.random.key(0), turn)
        return teacher.error(teacher.model(quant_noise(params, policy, key, 0.5), x))

    trained, _ = teacher.train(loss, params)
    assert teacher.rounded_error(policy, trained) < 0.6 * teacher.rounded_error(policy)


@pytest.mark.parametrize("rate", [1.5, np.float32(1.5), jnp.array(-0.5), np.array([0.5, 0.5])])
def test_a_rate_is_a_probability(rate):
    with pytest.raises(ValueError, match=r"quant_noise: got rate=.* wanted a probability"):
        quant_noise(W, SCHEME, jax.random.key(0), rate=rate)
