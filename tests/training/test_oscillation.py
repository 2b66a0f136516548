import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import teacher

import jqz
from jqz._gradients import LSQ
from jqz.training import freeze_oscillations

GIVEN = jqz.Symmetric(bits=3, range=jqz.ranges.Given(-3.0, 3.0))  # scale 1


def _algorithm(start, path, threshold, momentum):
    """Algorithm 1 of the paper, weight by weight in float64; the weights after each step."""
    states = []
    for w, steps in zip(start, path.T, strict=True):
        level = average = np.clip(np.rint(w), -3, 3)
        direction = frequency = 0.0
        frozen, weights = False, []
        for step in steps:
            new = w + step
            if not frozen:
                now = np.clip(np.rint(new), -3, 3)
                reversal = float((now - level) * direction < 0)
                frequency = momentum * reversal + (1 - momentum) * frequency
                if now != level:
                    direction = np.sign(now - level)
                level = now
                if frequency > threshold:
                    frozen, level = True, np.rint(average)
                average = momentum * level + (1 - momentum) * average
            w = level if frozen else new
            weights.append(w)
        states.append(weights)
    return np.array(states).T


@pytest.mark.parametrize(("threshold", "momentum"), [(0.3, 0.4), (0.05, 0.1), (np.inf, 0.1)])
def test_follows_the_algorithm(threshold, momentum):
    rng = np.random.default_rng(0)
    start, path = rng.uniform(-3, 3, 12), rng.normal(0, 0.6, (40, 12))
    wanted = _algorithm(start.astype(np.float32), path.astype(np.float32), threshold, momentum)
    hold = freeze_oscillations(GIVEN, float(threshold), momentum)

    @jax.jit
    def run(w, path):
        def step(carry, change):
            w, state = carry
            updates, state = hold.update(change, state, w)
            w = optax.apply_updates(w, updates)
            return (w, state), w

        return jax.lax.scan(step, (w, hold.init(w)), path)

    (_, state), got = run(jnp.asarray(start, jnp.float32), jnp.asarray(path, jnp.float32))
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    frozen = wanted[-1] == wanted[-2]
    np.testing.assert_array_equal(state.leaves.frozen, frozen)
    assert frozen.any() == np.isfinite(threshold)
    assert int(state.steps) == 40


def test_the_frequency_by_hand():
    """Up, down, nothing, up: the second and the last change are reversals."""
    hold = freeze_oscillations(GIVEN, float("inf"), momentum=0.5)
    w, state = jnp.array([0.4]), hold.init(jnp.array([0.4]))
    seen = []
    for step in (0.2, -0.2, 0.01, 0.19):
        updates, state = hold.update(jnp.array([step]), state, w)
        w = optax.apply_updates(w, updates)
        seen.append(float(state.leaves.frequency[0]))
    assert seen == [0, 0.5, 0.25, 0.625]


def test_schedules_and_leaves_without_a_scheme():
    params = {"d": {"kernel": jnp.array([[0.4, 2.0]]), "bias": jnp.zeros(2)}}
    hold = freeze_oscillations({"**/kernel": GIVEN}, lambda count: jnp.where(count < 2, 1.0, 0.2), momentum=0.5)
    state = hold.init(params)
    assert state.leaves["d"]["bias"] is None
    frozen = []
    for step in (0.2, -0.2, 0.0):
        change = {"d": {"kernel": jnp.array([[step, 0.0]]), "bias": jnp.ones(2)}}
        updates, state = hold.update(change, state, params)
        params = optax.apply_updates(params, updates)
        frozen.append(state.leaves["d"]["kernel"].frozen.tolist())
    assert frozen == [[[False, False]], [[False, False]], [[True, False]]]
    assert params["d"]["bias"].tolist() == [3, 3]
    np.testing.assert_allclose(params["d"]["kernel"], [[0, 2]], atol=1e-6)


def test_held_levels_follow_a_learned_scale():
    scheme = jqz.Symmetric(bits=3, gradient=LSQ())
    params = jqz.learnable(jnp.array([[0.3, 3.0]]), scheme)
    hold = freeze_oscillations(scheme, -1.0)  # at once
    grown = jax.tree.map(jnp.zeros_like, params)
    updates, _ = hold.update(jax.tree.map(lambda z: z + 0.5, grown), hold.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(moved.grid.scale, [[1.5]])
    np.testing.assert_allclose(moved.value, [[0, 4.5]])


def test_refusals():
    with pytest.raises(ValueError, match=r"freeze_oscillations: 'w' .*wanted one of integer levels.*map this path"):
        freeze_oscillations(jqz.NormalFloat(), 0.1).init({"w": jnp.ones((2, 2))})
    hold = freeze_oscillations(GIVEN, 0.1)
    with pytest.raises(ValueError, match="got no params"):
        hold.update(jnp.ones(2), hold.init(jnp.ones(2)))


def test_training_with_freezing_beats_rounding_and_stops_reversals():
    params, x, _ = teacher.task()
    scheme = jqz.Symmetric(bits=3, granularity=jqz.PerAxis(-1), range=jqz.ranges.MeanMagnitude(), gradient=LSQ())
    policy = {"**/kernel": scheme}

    def loss(params, turn):
        return teacher.error(teacher.model(jqz.fake_quantize(params, policy), x))

    def trained(threshold):
        hold = freeze_oscillations(policy, threshold, 0.05)
        params_, state = teacher.train(loss, jqz.learnable(params, policy), optax.chain(optax.adam(0.005), hold))
        return float(loss(params_, 0)), state[-1].leaves

    frozen, state = trained(optax.cosine_decay_schedule(0.4, 150, 0.1))
    free, counted = trained(float("inf"))
    assert frozen < 0.5 * teacher.rounded_error(policy)
    assert frozen < 1.2 * free
    shares = [float((one["a"]["kernel"].frequency > 0.05).mean()) for one in (state, counted)]
    assert shares[0] < 0.5 * shares[1]


def test_a_zero_point_that_moves_moves_no_weight():
    """Levels count from that of zero: a weight that stands still has not changed, a frozen one stays where it is."""
    hold = freeze_oscillations(jqz.Asymmetric(3), threshold=0.025)
    w = jnp.array([-1.2, 0.3, 0.7, 0.0, 2.5])
    state, seen = hold.init(w), []
    for i in range(8):
        updates, state = hold.update(jnp.array([(-0.2, 0.2)[i % 2], 0, 0, 0, 0]), state, w)
        w = optax.apply_updates(w, updates)
        seen.append(w)
    assert not state.leaves.frozen[1:4].any()
    np.testing.assert_array_equal(seen[-1][1:4], np.float32([0.3, 0.7, 0.0]))


def test_a_state_of_other_parameters_is_refused():
    hold = freeze_oscillations(GIVEN, threshold=0.5)
    state, x = hold.init({"a": jnp.ones((2, 2))}), {"b": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="freeze_oscillations: updates or state have another structure than params"):
        hold.update(x, state, x)
