import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import teacher

import jqz
from jqz.schemes import Geometric, GivenTop
from jqz.training import ShiftAndSign, deep_shift_clip, deep_shift_join, deep_shift_split

SCHEME = jqz.PowerOfTwo(bits=4, top=GivenTop(0))
POLICY = {"**/kernel": SCHEME}
W = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32) / 4


def test_splitting_rounds_the_logarithm():
    pair = deep_shift_split(jnp.asarray(W), SCHEME)
    wanted = np.sign(W) * 2.0 ** np.clip(np.rint(np.log2(np.abs(W.astype(np.float64)))), -6, 0)
    np.testing.assert_array_equal(deep_shift_join(pair), wanted)
    geometric = jqz.PowerOfTwo(bits=8, rounding=Geometric(), top=GivenTop(0))
    fine = deep_shift_join(deep_shift_split(jnp.asarray(W), geometric))
    np.testing.assert_array_equal(fine, jqz.fake_quantize(jnp.asarray(W), geometric))


def test_gradients_are_those_of_the_paper():
    shift = jnp.array([-0.4, -0.6, -2.5, -9.0, 3.0, -1.0, -1.0])
    sign = jnp.array([1.0, -0.7, 0.2, -1.0, 0.9, 0.5, -3.0])
    value, pull = jax.vjp(deep_shift_join, ShiftAndSign(shift, sign, SCHEME))
    wanted = np.array([1, -0.5, 0, -(2.0**-6), 1, 0, -0.5])
    np.testing.assert_array_equal(value, wanted)
    g = np.arange(1, 8, dtype=np.float32)
    (grads,) = pull(jnp.asarray(g))
    np.testing.assert_allclose(grads.shift, g * wanted * np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(grads.sign, g)


def test_what_comes_out_is_on_the_grid():
    tree = deep_shift_split({"d": {"kernel": jnp.asarray(W).at[0, 0].set(0), "bias": jnp.ones(5)}}, POLICY)
    tree = jax.tree.map(lambda leaf: 1.7 * leaf, tree)
    weights = deep_shift_join(tree)
    decoded = jqz.dequantize(jqz.quantize(weights, POLICY))
    jax.tree.map(np.testing.assert_array_equal, decoded, weights)
    assert decoded["d"]["kernel"][0, 0] == 0
    np.testing.assert_allclose(weights["d"]["bias"], 1.7, rtol=1e-6)
    clipped = deep_shift_clip(tree)
    assert (np.asarray(clipped["d"]["kernel"].shift) >= -6).all()
    assert (np.abs(clipped["d"]["kernel"].sign) <= 1).all()
    jax.tree.map(np.testing.assert_array_equal, deep_shift_join(clipped), weights)


def test_half_types():
    pair = deep_shift_split(jnp.asarray(W, jnp.bfloat16), SCHEME)
    assert deep_shift_join(pair).dtype == pair.shift.dtype == pair.sign.dtype == jnp.bfloat16
    grads = jax.grad(lambda pair: deep_shift_join(pair).astype(jnp.float32).sum())(pair)
    assert grads.shift.dtype == jnp.bfloat16


@pytest.mark.parametrize("scheme", [jqz.PowerOfTwo(bits=4), jqz.Symmetric(bits=4)], ids=str)
def test_refuses_other_schemes(scheme):
    with pytest.raises(ValueError, match=r"deep_shift_split: 'w' has the scheme .*Use PowerOfTwo\(bits=4, top="):
        deep_shift_split({"w": jnp.ones((2, 2))}, scheme)


def test_training_beats_rounding():
    params, x, _ = teacher.task()
    scheme = jqz.PowerOfTwo(bits=3, top=GivenTop(0))

    def loss(tree, turn):
        return teacher.error(teacher.model(deep_shift_join(tree), x))

    def clipped(updates, state, params):
        inside = deep_shift_clip(optax.apply_updates(params, updates))
        return jax.tree.map(lambda new, old: new - old, inside, params), state

    clip = optax.GradientTransformation(lambda params: (), clipped)
    optimizer = optax.chain(optax.adam(optax.cosine_decay_schedule(0.02, 150)), clip)
    tree, _ = teacher.train(loss, deep_shift_split(params, {"**/kernel": scheme}), optimizer)
    assert float(jax.jit(loss)(tree, 0)) < 0.5 * teacher.rounded_error({"**/kernel": scheme})


def test_training_weights_beats_rounding():
    """DeepShift-Q."""
    params, x, _ = teacher.task()
    policy = {"**/kernel": jqz.PowerOfTwo(bits=3, rounding=Geometric(), top=GivenTop(0))}

    def loss(params, turn):
        return teacher.error(teacher.model(jqz.fake_quantize(params, policy), x))

    params, _ = teacher.train(loss, params)
    assert float(jax.jit(loss)(params, 0)) < 0.5 * teacher.rounded_error(policy)


def test_a_shift_that_diverges_shows():
    pair = deep_shift_split(jnp.array([0.5, -0.25]), SCHEME)
    for broken in (
        ShiftAndSign(jnp.array([jnp.nan, -1.0]), pair.sign, SCHEME),
        ShiftAndSign(pair.shift, jnp.array([jnp.nan, 1.0]), SCHEME),
    ):
        assert jnp.isnan(deep_shift_join(broken)).tolist() == [True, False]
