"""Training of grids under fixed codes: gradients as sums over weights, and the pipeline of Deep Compression."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jqz
from jqz import training

SPARSE = jqz.Codebook(bits=2, granularity=jqz.PerAxis(-1), levels=jqz.schemes.SparseKMeans())


def sparse(shape, share=0.5, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=shape)
    return jnp.asarray(np.where(abs(w) > np.quantile(abs(w), share), w, 0), jnp.float32)


def pull(q, outer):
    """The gradient of sum(outer * values) by the grid."""
    return jax.jit(jax.grad(lambda t: (jqz.dequantize(training.rebuild(q, t)) * outer).sum()))(training.trainable(q))


def test_a_centroid_gets_the_sum_of_its_weights():
    q = jqz.quantize(sparse((6, 10)), jqz.Codebook(3, jqz.PerAxis(0), jqz.schemes.SparseKMeans()))
    outer = np.random.default_rng(1).normal(size=(6, 10))
    grad = pull(q, jnp.asarray(outer, jnp.float32)).levels
    for row in range(6):
        for k in range(8):
            members = np.asarray(q.codes[row]) == k
            expected = 0.0 if float(q.grid.levels[row, 0, k]) == 0 else outer[row][members].sum()
            assert float(grad[row, 0, k]) == pytest.approx(expected, abs=1e-5)


def test_a_scale_gets_the_sum_of_its_levels():
    w, outer = np.random.default_rng(2).normal(size=(2, 5, 3))
    q = jqz.quantize(jnp.asarray(w, jnp.float32), jqz.Asymmetric(bits=4, granularity=jqz.PerAxis(-1)))
    trained = training.trainable(q)
    assert trained.zero_point is None  # an integer
    grad = pull(q, jnp.asarray(outer, jnp.float32))
    levels = np.asarray(q.codes, int) - np.asarray(q.grid.zero_point)
    assert np.allclose(grad.scale, (levels * outer).sum(axis=0, keepdims=True), atol=1e-4)


def test_what_is_not_coded_trains_too():
    q = jqz.quantize({"w": sparse((3, 4)), "b": jnp.ones(4), "n": jnp.arange(3)}, SPARSE)
    trained = training.trainable(q)
    assert trained["n"] is None
    assert trained["b"].tolist() == [1.0] * 4
    rebuilt = training.rebuild(q, jax.tree.map(lambda x: 2 * x, trained))
    assert rebuilt["b"].tolist() == [2.0] * 4
    assert rebuilt["n"] is q["n"]
    assert jnp.array_equal(rebuilt["w"].codes, q["w"].codes)
    assert jnp.allclose(jqz.dequantize(rebuilt)["w"], 2 * jqz.dequantize(q)["w"])


def test_prune_cluster_train():
    """A student that starts at its teacher, with 60 % zeros and 2 bits: each step of the pipeline brings it nearer."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w": jax.random.normal(keys[0], (16, 24)) / 4, "v": jax.random.normal(keys[1], (24, 4)) / 5}
    x = jax.random.normal(keys[2], (128, 16))

    def model(p):
        return jax.nn.relu(x @ p["w"]) @ p["v"]

    def loss(p):
        return jnp.mean((model(p) - target) ** 2)

    def descend(optimizer, loss, start, steps=150):
        def step(carry, _):
            updates, state = optimizer.update(jax.grad(loss)(carry[0]), carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), None, length=steps)[0][0])(start)

    target = model(params)
    plain = jqz.quantize(params, jqz.Symmetric(bits=2))
    prune = training.prune(SPARSE, training.Polynomial(0.6, end=100), every=10)
    params = descend(optax.chain(optax.sgd(0.2, momentum=0.9), prune), loss, params)
    q = jqz.quantize(params, SPARSE)
    zeros = {name: np.asarray(w == 0) for name, w in params.items()}
    assert [int(z.sum()) for z in zeros.values()] == [round(0.6 * z.size) for z in zeros.values()]
    trained = descend(
        optax.sgd(0.02, momentum=0.9), lambda t: loss(jqz.dequantize(training.rebuild(q, t))), training.trainable(q)
    )
    final = training.rebuild(q, trained)
    values = jqz.dequantize(final)
    for name, w in values.items():
        assert (np.asarray(w)[zeros[name]] == 0).all()
        assert max(len(np.unique(channel)) for channel in w.T) <= 4
    assert jqz.size_bytes(final) == (16 * 24 + 24 * 4) // 4 + (24 + 4) * 4 * 4
    assert float(loss(values)) < 0.8 * float(loss(jqz.dequantize(q)))
    assert float(loss(values)) < 0.5 * float(loss(jqz.dequantize(plain)))
