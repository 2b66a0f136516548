import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import teacher

import jqz
from jqz.observers import EMA, MinMax
from jqz.training import moving_ranges

POLICY = jqz.Policy({"**/kernel": jqz.Symmetric(bits=4)}, inputs=jqz.Asymmetric(bits=4))


def test_ranges_are_averages_over_batches():
    """decay * average + (1 - decay) * batch, from the first batch on, of what meets the rounded weights."""
    params, x, _ = teacher.task()
    batches = [x[:64], 2 * x[64:128], x[128:192] - 1]
    ranges = moving_ranges(teacher.model, POLICY, EMA(0.8))
    state = jax.jit(ranges.init)(params, batches[0])
    low, high = batches[0].min(), batches[0].max()
    apply, in_training = jax.jit(ranges.apply), jax.jit(jqz.simulated(teacher.model, POLICY))
    for batch in batches[1:]:
        before = state
        y, state = apply(params, state, batch)
        wanted = in_training(params, ranges.sites(before), batch)
        np.testing.assert_allclose(y, wanted, atol=1e-5)
        low, high = (0.8 * old + 0.2 * new for old, new in ((low, batch.min()), (high, batch.max())))
    np.testing.assert_allclose(state.stats["a/kernel"].observer.low, low, rtol=1e-5)
    np.testing.assert_allclose(state.stats["a/kernel"].observer.high, high, rtol=1e-5)
    assert (int(state.steps), int(state.stats["b/kernel"].observer.batches)) == (2, 3)


def test_hidden_activations_are_measured_behind_rounded_ones():
    params, x, _ = teacher.task()
    ranges = moving_ranges(teacher.model, POLICY, MinMax())
    state = jax.jit(ranges.init)(params, x)
    (_, after), fake = jax.jit(ranges.apply)(params, state, x), jqz.fake_quantize(params, POLICY)
    site = ranges.sites(state)["a/kernel"]
    hidden = site.scheme.simulate(jnp.asarray(x), site.grid) @ fake["a"]["kernel"] + params["a"]["bias"][None]
    seen = max(float(hidden.max()), float(state.stats["b/kernel"].observer.high))
    assert float(after.stats["b/kernel"].observer.high) == pytest.approx(seen, rel=1e-5)


def test_activations_wait():
    params, x, _ = teacher.task()
    ranges = moving_ranges(teacher.model, POLICY, delay=2)
    state, apply = jax.jit(ranges.init)(params, x), jax.jit(ranges.apply)
    weights_only = teacher.model(jqz.fake_quantize(params, POLICY), x)
    both = jax.jit(jqz.simulated(teacher.model, POLICY))(params, ranges.sites(state), x)
    for wanted in (weights_only, weights_only, both):
        y, state = apply(params, state, x)
        np.testing.assert_allclose(y, wanted, atol=1e-3)
    assert not np.allclose(weights_only, both, atol=1e-2)
    assert int(state.stats["a/kernel"].observer.batches) == 4


def test_gradients_stop_outside_the_range_and_in_the_state():
    params, _, _ = teacher.task()
    ranges = moving_ranges(lambda params, x: x @ params["kernel"], POLICY)
    kernel = {"kernel": params["b"]["kernel"]}
    state = ranges.init(kernel, np.ones((1, 32), np.float32))
    wide = jnp.linspace(-1, 2, 32)[None]
    grad = jax.jit(jax.grad(lambda x: ranges.apply(kernel, state, x)[0].sum()))(wide)
    inside = (wide >= 0) & (wide <= 1.0000001)
    rows = jqz.fake_quantize(kernel, POLICY)["kernel"].sum(1)[None]
    np.testing.assert_allclose(grad, np.where(inside, rows, 0), rtol=1e-5, atol=1e-6)
    of_state = jax.jit(jax.grad(lambda x: ranges.apply(kernel, state, x)[1].stats["kernel"].observer.high.sum()))(wide)
    assert (of_state == 0).all()


def test_layers_of_a_scan_have_a_range_each():
    kernels = {"layers": {"kernel": jnp.stack([3 * jnp.eye(4)] * 2)}}

    def model(params, x):
        return jax.lax.scan(lambda x, layer: (x @ layer["kernel"], None), x, params["layers"])[0]

    ranges = moving_ranges(model, POLICY, MinMax())
    state = jax.jit(ranges.init)(kernels, jnp.ones((2, 4)))
    _, state = jax.jit(ranges.apply)(kernels, state, 2 * jnp.ones((2, 4)))
    np.testing.assert_allclose(state.stats["layers/kernel"].observer.high, [2, 3], rtol=0.01)


def test_refusals():
    with pytest.raises(TypeError, match="wanted a Policy with inputs"):
        moving_ranges(teacher.model, jqz.Policy(jqz.Symmetric(bits=8)))
    with pytest.raises(TypeError, match="wanted an Observer"):
        moving_ranges(teacher.model, POLICY, EMA)
    with pytest.raises(ValueError, match="Use delay=0"):
        moving_ranges(teacher.model, POLICY, delay=-1)


def test_training_beats_rounding_and_runs_on_integers():
    params, x, _ = teacher.task()
    ranges = moving_ranges(teacher.model, POLICY, EMA(0.9), delay=30)
    start = jax.jit(ranges.init)(params, x)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, 150))

    def loss(params, state):
        y, state = ranges.apply(params, state, x)
        return teacher.error(y), state

    def step(carry, _):
        params, moments, state = carry
        grads, state = jax.grad(loss, has_aux=True)(params, state)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments, state), None

    @jax.jit
    def run(params, state):
        return jax.lax.scan(step, (params, optimizer.init(params), state), None, length=150)[0]

    trained, _, state = run(jax.tree.map(jnp.asarray, params), start)

    def deployed(params, state):
        return jax.jit(jqz.quantized(teacher.model, ranges.sites(state)))(jqz.quantize(params, POLICY), x)

    rounded = float(teacher.error(deployed(params, start)))
    on_codes = deployed(trained, state)
    assert float(teacher.error(on_codes)) < 0.5 * rounded
    in_training = jax.jit(jqz.simulated(teacher.model, POLICY))(trained, ranges.sites(state), x)
    assert np.median(np.abs(on_codes - in_training)) <= 1e-5
