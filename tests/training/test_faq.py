"""Fine-tuning after quantization: its pieces by their formulas, and that it recovers what rounding loses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jqz
from jqz import training


def test_optimizer_is_sgd_with_decay_by_hand():
    params = {"w": jnp.full((1, 1), 2.0), "b": jnp.full(1, 2.0)}
    optimizer = training.faq_optimizer(0.5, steps=4, end=0.0625, momentum=0.5, weight_decay=0.1)
    state = optimizer.init(params)
    w, b, trace_w, trace_b = 2.0, 2.0, 0.0, 0.0
    for step in range(6):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        rate = 0.5 * 0.5**step
        trace_w, trace_b = 1 + 0.1 * w + 0.5 * trace_w, 1 + 0.5 * trace_b
        w, b = w - rate * trace_w, b - rate * trace_b
        assert float(params["w"][0, 0]) == pytest.approx(w, rel=1e-5)
        assert float(params["b"][0]) == pytest.approx(b, rel=1e-5)


def test_recovers_what_rounding_loses():
    """A pretrained network in 4 bits, weights and activations, on fixed grids."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w": {"kernel": jax.random.normal(keys[0], (16, 32)) / 4}}
    params["v"] = {"kernel": jax.random.normal(keys[1], (32, 4)) / 5}
    x = jax.random.normal(keys[2], (256, 16)).at[0, 0].set(40.0)  # an outlier

    def model(p, x):
        return jax.nn.relu(x @ p["w"]["kernel"]) @ p["v"]["kernel"]

    policy = jqz.Policy({"**/kernel": jqz.Symmetric(4, jqz.PerAxis(-1))}, inputs=jqz.Symmetric(bits=4))
    sites = training.faq_sites(model, policy, params, [x[:128], (x[128:],)], percent=99.9)
    limit = float(sites["w/kernel"].grid.scale.reshape(()) * 7)
    assert limit == pytest.approx(float(np.percentile(abs(np.asarray(x)), 99.9)), rel=0.05)
    target, optimizer = model(params, x), training.faq_optimizer(0.2, steps=150)
    apply = jqz.simulated(model, policy)

    def loss(p):
        return jnp.mean((apply(p, sites, x[1:]) - target[1:]) ** 2)

    @jax.jit
    def tune(p):
        def step(carry, _):
            value, grads = jax.value_and_grad(loss)(carry[0])
            updates, state = optimizer.update(grads, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), value

        (p, _), losses = jax.lax.scan(step, (p, optimizer.init(p)), None, length=150)
        return p, losses

    tuned, losses = tune(params)
    assert float(losses[-1]) < 0.7 * float(losses[0])
    assert 0.95 < float(training.cosine_similarity(tuned, params)) < 1
    net = jax.jit(jqz.quantized(model, sites))(jqz.quantize(tuned, policy), x[1:])
    assert float(jnp.mean((net - target[1:]) ** 2)) < 0.7 * float(losses[0])


def test_refuses():
    policy = jqz.Policy({"**": jqz.Symmetric(bits=4)}, inputs=jqz.Symmetric(bits=4))
    with pytest.raises(ValueError, match="faq_sites: got no batches"):
        training.faq_sites(lambda p, x: x @ p, policy, jnp.ones((2, 2)), [])
    with pytest.raises(ValueError, match="faq_optimizer: got steps=0"):
        training.faq_optimizer(0.1, 0)


def test_a_learning_rate_that_falls_by_itself_is_refused():
    with pytest.raises(TypeError, match=r"faq_optimizer: got learning_rate=.*, wanted a number: it falls by itself"):
        training.faq_optimizer(optax.constant_schedule(0.1), 10)


def test_the_angle_to_a_rounded_tree():
    x = jax.random.normal(jax.random.key(0), (8, 8))
    q = jqz.quantize({"w": x, "b": 0.5}, jqz.Policy({"w": jqz.Symmetric(bits=3)}))
    a, b = (np.append(np.asarray(w, np.float64), 0.5) for w in (x, q["w"].dequantize()))
    expected = a @ b / np.sqrt(a @ a * (b @ b))
    np.testing.assert_allclose(training.cosine_similarity({"w": x, "b": 0.5}, q), expected, rtol=1e-5)
    for other in ({}, {"v": x}):
        with pytest.raises(ValueError, match="cosine_similarity: got trees of"):
            training.cosine_similarity(other, {"w": x} if other else {})
