import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import teacher

import jqz
from jqz.training import dampen_oscillations

W = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)


@pytest.mark.parametrize(
    "scheme",
    [
        jqz.Symmetric(bits=3, granularity=jqz.PerAxis(-1), range=jqz.ranges.MeanMagnitude()),
        jqz.Symmetric(bits=3, range=jqz.ranges.MeanMagnitude(), gradient=jqz.gradients.LSQ()),
    ],
    ids=str,
)
def test_adds_the_gradient_of_the_squared_distance(scheme):
    """On a fixed grid: 2 strength (w - rounded) inside, nothing beyond the ends."""
    params = jqz.learnable({"kernel": jnp.asarray(W), "bias": jnp.ones(4)}, {"**/kernel": scheme})
    dampen = dampen_oscillations({"**/kernel": scheme}, lambda steps: jnp.where(steps == 0, 0.25, 0.5))
    updates, state = jax.jit(dampen.update)(jax.tree.map(jnp.ones_like, params), dampen.init(params), params)
    rounded = np.asarray(jax.jit(scheme.simulate)(W), np.float64)
    inside = np.abs(W) <= 3.0001 * np.asarray(jax.jit(scheme.calibrate)(W).scale)
    got = updates["kernel"].value if scheme.learns else updates["kernel"]
    np.testing.assert_allclose(got, 1 + 2 * 0.25 * (W - rounded) * inside, rtol=1e-4, atol=1e-5)
    assert updates["bias"].tolist() == [1, 1, 1, 1]
    if scheme.learns:
        assert (updates["kernel"].grid.scale == 1).all()
    again, _ = jax.jit(dampen.update)(jax.tree.map(jnp.zeros_like, params), state, params)
    twice = again["kernel"].value if scheme.learns else again["kernel"]
    np.testing.assert_allclose(twice, 2 * (np.asarray(got) - 1), rtol=1e-3, atol=1e-5)


def test_needs_params():
    dampen = dampen_oscillations(jqz.Symmetric(bits=3), 0.1)
    with pytest.raises(ValueError, match="got no params"):
        dampen.update(jnp.ones(2), dampen.init(jnp.ones(2)))


def test_training_beats_rounding_and_ends_near_the_levels():
    params, x, _ = teacher.task()
    policy = {"**/kernel": jqz.Symmetric(bits=3, granularity=jqz.PerAxis(-1), range=jqz.ranges.MeanMagnitude())}

    def loss(params, turn):
        return teacher.error(teacher.model(jqz.fake_quantize(params, policy), x))

    def distance(params):
        return float(jnp.abs(params["a"]["kernel"] - jqz.fake_quantize(params, policy)["a"]["kernel"]).mean())

    optimizer = optax.chain(dampen_oscillations(policy, optax.linear_schedule(0.0, 0.02, 150)), optax.adam(0.003))
    trained, _ = teacher.train(loss, params, optimizer)
    assert float(jax.jit(loss)(trained, 0)) < 0.6 * teacher.rounded_error(policy)
    assert distance(trained) < 0.7 * distance(params)
