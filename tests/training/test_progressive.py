"""Progressive bits: every stage is its policy, and the last ends better than from the start."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jqz
from jqz import training


def test_every_stage_is_its_policy():
    stages = {0: None, 10: jqz.Policy({"**/a": jqz.Symmetric(bits=4)}), 20: jqz.Symmetric(bits=2)}
    rounded = jax.jit(training.progressive(stages))
    params = {"x": {"a": jax.random.normal(jax.random.key(0), (4, 3)), "b": jnp.full((2, 2), 0.3)}}
    for step, policy in ((0, None), (9, None), (10, stages[10]), (19, stages[10]), (20, stages[20]), (999, stages[20])):
        expected = params if policy is None else jqz.fake_quantize(params, policy)
        got = rounded(params, step)
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.allclose(a, b, atol=1e-6)), got, expected)))
    assert rounded._cache_size() == 1


def test_gradients_go_straight_through():
    w = jnp.asarray([0.9, 0.42, -3.0])
    rounded = training.progressive({0: jqz.Symmetric(bits=8), 5: jqz.Symmetric(bits=2)})
    for step in (0, 5):
        grad = jax.grad(lambda w, s=step: (rounded(w, s) * jnp.arange(3.0)).sum())(w)
        assert grad.tolist() == [0.0, 1.0, 2.0]


def test_bits_may_be_traced():
    bits = training.stepwise({0: 8, 3: 4, 6: 2})
    w = jax.random.normal(jax.random.key(0), (8, 8))
    at = jax.jit(lambda step: jqz.fake_quantize(w, jqz.Symmetric(bits=bits(step))))
    for step, width in ((0, 8), (2, 8), (3, 4), (6, 2), (50, 2)):
        assert jnp.allclose(at(step), jqz.fake_quantize(w, jqz.Symmetric(bits=width)), atol=1e-6)
    assert at._cache_size() == 1


def test_beats_rounding():
    """A student that starts at its teacher, 2 bits by way of 8 and 4."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w": jax.random.normal(keys[0], (16, 24)) / 4, "v": jax.random.normal(keys[1], (24, 4)) / 5}
    x = jax.random.normal(keys[2], (128, 16))
    two = jqz.Symmetric(bits=2, granularity=jqz.PerAxis(-1), range=jqz.ranges.OCTAV())
    stages = {0: jqz.Symmetric(bits=8), 20: jqz.Symmetric(bits=4), 80: two}
    rounded, optimizer = training.progressive(stages), optax.sgd(optax.cosine_decay_schedule(0.2, 300), momentum=0.9)

    def model(p):
        return jax.nn.relu(x @ p["w"]) @ p["v"]

    def loss(p, step):
        return jnp.mean((model(rounded(p, step)) - target) ** 2)

    target = model(params)

    @jax.jit
    def train(p):
        def step(carry, i):
            updates, state = optimizer.update(jax.grad(loss)(carry[0], i), carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (p, optimizer.init(p)), jnp.arange(300))[0][0]

    with jax.numpy_dtype_promotion("standard"):  # optax's schedule needs it
        trained = train(params)
    assert float(loss(trained, 300)) < 0.5 * float(loss(params, 300))


@pytest.mark.parametrize("steps", [[], [1], [-1, 5], [0, 5, 3]])
def test_refuses(steps):
    with pytest.raises(ValueError, match=r"wanted some that rise from 0. Use \{0: 8"):
        training.stepwise(dict.fromkeys(steps, 8))
    with pytest.raises(ValueError, match="got steps"):
        training.progressive(dict.fromkeys(steps))


def test_stages_take_weights_with_learned_grids():
    scheme = jqz.Symmetric(bits=3, gradient=jqz.gradients.LSQ())
    params = jqz.learnable({"w": jnp.array([[0.9, 0.42, -3.0]]), "b": jnp.ones(2)}, scheme)
    rounded = training.progressive({0: None, 10: scheme})
    assert rounded(params, 0)["w"].tolist() == params["w"].value.tolist()
    assert rounded(params, 10)["w"].tolist() == jqz.fake_quantize(params, scheme)["w"].tolist()


@pytest.mark.parametrize("values", [{0: 0.1, 100: 0.01}, {0: 8, 10.5: 4}])
def test_schedules_are_of_integers(values):
    with pytest.raises(TypeError, match=r"stepwise: got .* wanted steps and values that are integers"):
        training.stepwise(values)
    with pytest.raises(ValueError, match="progressive: got steps"):
        training.progressive({5: None})
