"""What every transformation of ``jqz.training`` obeys; a new one is tested by being listed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jqz
from jqz import training

POLICY = jqz.Policy({"**/kernel": jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1))})

TRANSFORMATIONS = {
    "inq": training.inq(optax.sgd(0.1, momentum=0.9), POLICY, {1: 0.3, 3: 1.0}),
    "inq, random": training.inq(
        optax.sgd(0.1), POLICY, {1: 0.3, 3: 1.0}, partition=training.RandomOrder(jax.random.key(0))
    ),
    "prune": optax.chain(optax.sgd(0.1), training.prune(POLICY, training.Polynomial(0.5, end=4), every=2)),
    "prune, global": training.prune(POLICY, optax.constant_schedule(0.4), threshold=training.GlobalThreshold()),
    "state": training.quantize_state(optax.sgd(0.1, momentum=0.9), jqz.Symmetric(bits=4), smallest=0),
    "state, stochastic": training.quantize_state(
        optax.sgd(0.1, momentum=0.9), jqz.Symmetric(bits=4), smallest=0, key=jax.random.key(0)
    ),
    "oscillations frozen": optax.chain(optax.sgd(0.3), training.freeze_oscillations(POLICY, 0.01, 0.1)),
    "oscillations dampened": optax.chain(training.dampen_oscillations(POLICY, 0.1), optax.sgd(0.1)),
}


@pytest.fixture(params=TRANSFORMATIONS)
def optimizer(request):
    return TRANSFORMATIONS[request.param]


def params_and_grads(steps=5):
    rng = np.random.default_rng(0)
    shapes = {"a": {"kernel": (6, 4), "bias": (4,)}, "b": [{"kernel": (3, 2, 4)}]}

    def draw(*lead):
        return jax.tree.map(
            lambda shape: jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )

    return draw(), draw(steps)


def stepping(optimizer):
    @jax.jit
    def step(params, state, grad):
        updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    return step


def bits_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_a_checkpoint_of_arrays_resumes_to_the_bit(optimizer):
    params, grads = params_and_grads()
    step, state = stepping(optimizer), optimizer.init(params)
    saved = None
    for i in range(5):
        params, state = step(params, state, jax.tree.map(lambda g, i=i: g[i], grads))
        if i == 2:
            leaves, treedef = jax.tree.flatten((params, state))
            assert all(isinstance(leaf, jax.Array) for leaf in leaves)
            saved = [np.asarray(leaf) for leaf in leaves], treedef
    again = jax.tree.unflatten(saved[1], [jnp.asarray(leaf) for leaf in saved[0]])
    for i in (3, 4):
        again = step(*again, jax.tree.map(lambda g, i=i: g[i], grads))
    assert bits_of(again) == bits_of((params, state))


def test_scan_carries_the_state(optimizer):
    params, grads = params_and_grads()
    step, state = stepping(optimizer), optimizer.init(params)
    (scanned, _), _ = jax.lax.scan(lambda carry, g: (step(*carry, g), None), (params, state), grads)
    for i in range(5):
        params, state = step(params, state, jax.tree.map(lambda g, i=i: g[i], grads))
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(params), strict=True):
        assert jnp.allclose(a, b, atol=1e-6)


def test_updates_have_the_form_of_the_gradients(optimizer):
    params, grads = params_and_grads(1)
    for dtype in (jnp.float32, jnp.bfloat16):
        p, g = jax.tree.map(lambda leaf, d=dtype: leaf.astype(d), (params, jax.tree.map(lambda g: g[0], grads)))
        state = jax.eval_shape(optimizer.init, p)
        updates, after = jax.eval_shape(optimizer.update, g, state, p)
        assert jax.tree.map(lambda u: (u.shape, u.dtype), updates) == jax.tree.map(lambda u: (u.shape, u.dtype), g)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert [(a.shape, a.dtype) for a in jax.tree.leaves(after)] == [
            (a.shape, a.dtype) for a in jax.tree.leaves(state)
        ]


def test_nnx_optimizers_hold_the_state(optimizer):
    def two_steps():
        model = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
        wrapper = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
        for _ in range(2):
            wrapper.update(model, nnx.grad(lambda model: (model(jnp.ones((2, 6))) ** 2).sum())(model))
        return nnx.state(model)

    assert nnx.eval_shape(two_steps)["kernel"].shape == (6, 4)
