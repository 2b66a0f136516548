import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import teacher

import jqz
from jqz.training import Width, learn_widths, round_to_widths, size_penalty, widths_to_policy

RNG = np.random.default_rng(0)
X, G = RNG.standard_normal((2, 6, 5)).astype(np.float32)


@pytest.mark.parametrize(("bits", "whole"), [(2.0, 2), (3.3, 3), (5.8, 6), (9.0, 8), (1.0, 2)])
def test_values_and_gradients(bits, whole):
    limit = 1.3
    widths = {"w": Width(jnp.float32(bits), jnp.float32(limit))}

    @jax.jit
    def run(x, widths, g):
        value, pull = jax.vjp(lambda x, widths: round_to_widths({"w": x}, widths)["w"], x, widths)
        return value, *pull(g)

    value, of_x, of_widths = run(X, widths, G)
    x, g, top = X.astype(np.float64), G.astype(np.float64), 2 ** (whole - 1) - 1
    wanted = limit / top * np.clip(np.rint(x / (limit / top)), -top, top)
    np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)
    inside = np.abs(x) <= limit
    np.testing.assert_array_equal(of_x, G * inside)
    by_limit = np.where(inside, (wanted - x) / limit, np.sign(x))
    np.testing.assert_allclose(of_widths["w"].limit, (g * by_limit).sum(), rtol=1e-4, atol=1e-5)
    by_bits = (g * np.where(inside, -(wanted - x) * np.log(2) * 2 ** (whole - 1) / top, 0)).sum()
    by_bits = 0 if (bits >= 8 and by_bits < 0) or (bits <= 2 and by_bits > 0) else by_bits
    np.testing.assert_allclose(of_widths["w"].bits, by_bits, rtol=1e-3, atol=1e-5)


def test_gradients_are_those_of_a_held_rounding_error():
    """value = x + step e with e = round(x / step) - x / step held; by differences in float64."""
    limit, x = 1.3, np.linspace(-1.29, 1.29, 31)

    def step(bits, limit):
        return limit / (2 ** (bits - 1) - 1)

    error = np.rint(x / step(5, limit)) - x / step(5, limit)
    widths = {"w": Width(jnp.float32(5), jnp.float32(limit))}
    values = lambda widths: round_to_widths({"w": jnp.asarray(x, jnp.float32)}, widths)["w"]  # noqa: E731
    got = jax.jit(jax.jacobian(values))(widths)["w"]
    by_bits = error * (step(5 + 1e-6, limit) - step(5 - 1e-6, limit)) / 2e-6
    by_limit = error * (step(5, limit + 1e-6) - step(5, limit - 1e-6)) / 2e-6
    np.testing.assert_allclose(got.bits, by_bits, atol=1e-5)
    np.testing.assert_allclose(got.limit, by_limit, atol=1e-5)


def test_bits_come_back_from_their_bounds():
    params = {"w": jnp.asarray(X)}
    widths = {"w": Width(jnp.float32(9.0), jnp.float32(2.0))}
    grad = jax.grad(lambda widths: size_penalty(params, widths, 10.0))(widths)["w"].bits
    assert float(grad) == pytest.approx(2 * (30 * 8 / 8 / 10 - 1) * 30 / 8 / 10)
    low = {"w": Width(jnp.float32(1.5), jnp.float32(2.0))}
    assert float(jax.grad(lambda widths: size_penalty(params, widths, 1.0))(low)["w"].bits) == 0
    assert float(size_penalty(params, widths, 30.0)) == 0


def test_a_policy_stores_what_was_trained():
    params = {"a": {"kernel": jnp.asarray(X)}, "b": {"kernel": jnp.asarray(G), "bias": jnp.ones(3)}}
    widths = learn_widths(params, {"**/kernel": jqz.Symmetric(bits=5, range=jqz.ranges.MeanMagnitude())})
    assert set(widths) == {"a/kernel", "b/kernel"}
    widths["a/kernel"] = Width(jnp.float32(2.6), widths["a/kernel"].limit * 1.1)
    coded = jqz.quantize(params, widths_to_policy(widths))
    assert [coded[name]["kernel"].scheme.bits for name in "ab"] == [3, 5]
    trained = round_to_widths(params, widths)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jqz.dequantize(coded), trained)


def test_refusals():
    params = {"w": jnp.asarray(X)}
    for scheme in (jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1)), jqz.Ternary()):
        with pytest.raises(ValueError, match=r"learn_widths: 'w' has the scheme .*Use Symmetric\(bits=8, range="):
            learn_widths(params, scheme)
    with pytest.raises(ValueError, match="wanted 2 <= least <= most <= 8"):
        learn_widths(params, jqz.Symmetric(bits=8), least=1)
    widths = learn_widths(params, jqz.Symmetric(bits=8))
    with pytest.raises(ValueError, match=r"widths for \['w'\], which the tree lacks"):
        round_to_widths({"v": params["w"]}, widths)


def test_training_keeps_the_budget_and_beats_rounding():
    params, x, _ = teacher.task()
    start = learn_widths(params, {"**/kernel": jqz.Symmetric(bits=6, range=jqz.ranges.MeanMagnitude())})
    budget = 3 * (8 * 32 + 32 * 4) / 8

    def loss(variables, turn):
        params, widths = variables
        return teacher.error(teacher.model(round_to_widths(params, widths), x)) + 3 * size_penalty(*variables, budget)

    optimizer = optax.multi_transform(
        {"weights": optax.adam(optax.cosine_decay_schedule(0.01, 200)), "widths": optax.adam(0.03)},
        ("weights", "widths"),
    )
    (trained, widths), _ = teacher.train(loss, (params, start), optimizer, steps=200)
    policy = widths_to_policy(widths)
    coded = jqz.quantize(trained, policy)
    stored = sum(coded[name]["kernel"].size * coded[name]["kernel"].scheme.bits / 8 for name in "ab")
    assert stored <= budget
    rounded = teacher.rounded_error({"**/kernel": jqz.Symmetric(bits=3, range=jqz.ranges.MeanMagnitude())})
    assert teacher.rounded_error(policy, trained) < 0.5 * rounded


def test_a_limit_stays_positive_and_comes_back():
    """Adam overshoots where limits are small: what is used is positive, and a gradient leads back."""
    params = {"k": 0.02 * jax.random.normal(jax.random.key(1), (64, 64))}
    widths = learn_widths(params, jqz.Symmetric(8))
    optimizer = optax.adam(1e-2)
    state = optimizer.init(widths)

    def loss(widths):
        return ((round_to_widths(params, widths)["k"] - 0.1 * params["k"]) ** 2).sum()

    @jax.jit
    def step(widths, state):
        updates, state = optimizer.update(jax.grad(loss)(widths), state, widths)
        return optax.apply_updates(widths, updates), state

    with jax.numpy_dtype_promotion("standard"):  # for optax.adam
        for _ in range(60):
            widths, state = step(widths, state)
    assert abs(widths["k"].limit) < 0.1
    policy = widths_to_policy(widths)
    np.testing.assert_array_equal(jqz.fake_quantize(params, policy)["k"], round_to_widths(params, widths)["k"])
    below = {"k": Width(jnp.array(4.0), jnp.array(-0.1))}
    slope = jax.grad(lambda w: -round_to_widths(jax.tree.map(jnp.abs, params), w)["k"].sum())(below)["k"]
    assert slope.limit < 0  # which leads up
    assert jax.grad(lambda w: round_to_widths(jax.tree.map(jnp.abs, params), w)["k"].sum())(below)["k"].limit == 0


def test_widths_of_another_tree_are_refused():
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    widths = learn_widths(params, jqz.Symmetric(4))
    with pytest.raises(ValueError, match="rule 'a' matches none"):
        jqz.quantize({"params": params}, widths_to_policy(widths))
    with pytest.raises(ValueError, match=r"size_penalty: there are widths for .'b'., which the tree lacks"):
        size_penalty({"a": params["a"]}, widths, 10.0)
    one = jnp.array([1.0, -0.4])
    assert jqz.quantize(one, widths_to_policy(learn_widths(one, jqz.Symmetric(4)))).scheme.bits == 4
