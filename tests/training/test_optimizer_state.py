"""Optimizer state in few bits, beside the same optimizer in float."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jqz
from jqz import schemes, training

GROUPS = jqz.PerInputGroup(64)
EIGHT = {"**/mu/**": jqz.Float(schemes.E4M3(), GROUPS), "**/nu/**": jqz.Float(schemes.E5M2(), GROUPS)}
POSITIVE = schemes.NNabla(schemes.NonNegative(), schemes.WithoutZero())
FOUR = {"**/mu/**": jqz.NormalFloat(4, GROUPS), "**/nu/**": jqz.PowerOfTwo(4, GROUPS, POSITIVE)}


def remember(scheme, key=None):
    """An optimizer whose state is the last gradient."""
    return training.quantize_state(optax.trace(0.0), scheme, smallest=0, key=key)


def test_stochastic_rounding_takes_the_levels_on_both_sides():
    """With shares that make the mean exact, whether codes are integers, indices of a table or bits of a float."""
    tables = jqz.AdditivePowerOfTwo(bits=4), jqz.NormalFloat(bits=4), jqz.PowerOfTwo(bits=4), FOUR["**/nu/**"]
    floats = jqz.Float(schemes.E4M3()), jqz.Float(schemes.E2M1()), jqz.BlockFloat(schemes.Int8())
    chosen = {repr(scheme): scheme for scheme in (*tables, *floats, jqz.Symmetric(bits=8), jqz.Asymmetric(bits=3))}
    w = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)
    params = dict.fromkeys(chosen, w)

    @jax.jit
    def stored(keys):
        def once(key):
            optimizer = remember(lambda path, leaf: chosen[path.removeprefix("trace/")], key)
            state = training.QuantizedState(optax.trace(0.0).init(params), {}, jax.random.key_data(key))
            coded = jqz.dequantize(optimizer.update(params, state)[1].coded)
            return {name: coded[f"trace/{name}"] for name in chosen}

        def levels(scheme):
            low = -(2 ** (scheme.bits - 1)) if jnp.issubdtype(scheme.code_dtype, jnp.signedinteger) else 0
            codes = jnp.arange(low, low + 2**scheme.bits).astype(scheme.code_dtype)
            return jax.vmap(lambda c: scheme.decode(jnp.full(w.shape, c), scheme.calibrate(w)))(codes)

        return jax.vmap(once)(keys), {name: levels(scheme) for name, scheme in chosen.items()}

    found, every = jax.tree.map(lambda x: np.asarray(x, np.float64), stored(jax.random.split(jax.random.key(1), 400)))
    for name in chosen:
        for place in np.ndindex(w.shape):
            x, levels = float(w[place]), every[name][(slice(None), *place)]
            draws = found[name][(slice(None), *place)]
            below, above = levels[levels <= x], levels[levels >= x]
            if below.size and above.size:
                a, b = below.max(), above.min()
                assert np.minimum(abs(draws - a), abs(draws - b)).max() < 1e-6, name
                spread = ((x - a) * (b - x) / len(draws)) ** 0.5  # of the mean
                assert abs(draws.mean() - x) <= 5 * spread + 1e-6, name
            else:  # beyond the last level
                assert len(set(draws)) == 1, name


def test_shares_by_hand():
    """Levels -1, -1/3, 1/3, 1: 0 takes its two neighbours equally often, 1/2 takes 1 one time in four."""
    scheme = jqz.Codebook(bits=2, levels=schemes.GivenLevels((-3.0, -1.0, 1.0, 3.0)))
    x = jnp.tile(jnp.asarray([0.0, 1.5, 3.0, -9.0]), (5000, 1))
    optimizer = remember(scheme, jax.random.key(0))
    stored = jax.jit(lambda x: optimizer.update(x, optimizer.init(x))[1].coded["trace"].dequantize())(x)
    shares = [float((stored[:, 0] == 1).mean()), float((stored[:, 1] == 3).mean())]
    assert shares == pytest.approx([0.5, 0.25], abs=0.03)
    assert (stored[:, 2:] == jnp.asarray([[3.0, -3.0]])).all()


@pytest.mark.parametrize(("key", "low", "high"), [(None, 0.57, 0.58), (jax.random.key(0), 0.0, 0.2)])
def test_averages_that_change_slowly_need_stochastic_rounding(key, low, high):
    scheme = jqz.Symmetric(bits=4)
    optimizer = training.quantize_state(optax.ema(0.98, debias=False), scheme, smallest=0, key=key)
    grad = jnp.zeros((8, 32)).at[0].set(1.0)
    state = jax.jit(optimizer.init)(grad)
    start = jqz.quantize(jnp.full((8, 32), 4 / 7).at[0].set(1.0), scheme)
    state = state._replace(coded={"ema": start})
    step = jax.jit(lambda state: optimizer.update(grad, state)[1])
    for _ in range(150):
        state = step(state)
    # in float: 4 / 7 * 0.98**150 = 0.028
    assert low <= float(state.coded["ema"].dequantize()[1:].mean()) <= high


def test_sizes_and_what_stays_float():
    params = {"kernel": jnp.ones((128, 64)), "small": jnp.ones((8, 8)), "bias": jnp.ones(4096)}
    size = 128 * 64
    for policy, bits, scale in ((EIGHT, 8, 4), (FOUR, 4, 4)):
        state = jax.jit(training.quantize_state(optax.adam(1e-3), policy).init)(params)
        coded = 2 * (size * bits // 8 + size // 64 * scale)
        assert jqz.size_bytes(state) == coded + 2 * 4 * (64 + 4096) + 4
        assert list(state.coded) == ["0/mu/kernel", "0/nu/kernel"]
    with pytest.raises(ValueError, match=r"quantize_state: rule '\*\*/m/\*\*' matches none .* '0/mu/"):
        training.quantize_state(optax.adam(1e-3), {"**/m/**": jqz.Symmetric(8)}).init(params)


def teacher():
    keys = jax.random.split(jax.random.key(9), 2)
    return {"w": jax.random.normal(keys[0], (64, 64)) / 8, "v": jax.random.normal(keys[1], (64, 8)) / 8}


def train(optimizer, steps=300):
    """The loss at the end of the training of two layers on features of very different size."""
    keys = jax.random.split(jax.random.key(0), 6)
    params = {"w": jax.random.normal(keys[2], (64, 64)) / 8, "v": jax.random.normal(keys[3], (64, 8)) / 8}
    x = jax.random.normal(keys[4], (256, 64)) * jnp.exp(2 * jax.random.normal(keys[5], (1, 64))) / 4

    def model(p):
        return jax.nn.relu(x @ p["w"]) @ p["v"]

    y = model(teacher())

    def step(carry, _):
        value, grads = jax.value_and_grad(lambda p: jnp.mean((model(p) - y) ** 2))(carry[0])
        updates, state = optimizer.update(grads, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), value

    (_, state), losses = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), None, length=steps))(params)
    return float(losses[-1] / losses[0]), state


def test_adam_trains_as_in_float():
    with jax.numpy_dtype_promotion("standard"):
        exact, _ = train(optax.adam(3e-3))
        eight, state = train(training.quantize_state(optax.adam(3e-3), EIGHT, smallest=0, key=jax.random.key(2)))
        four, _ = train(training.quantize_state(optax.adam(3e-3), FOUR, smallest=0, key=jax.random.key(2)))
    assert exact < 0.001
    assert eight < 1.15 * exact
    assert four < 3 * exact
    assert jqz.size_bytes(state) < 0.27 * jqz.size_bytes(optax.adam(3e-3).init(teacher()))


@pytest.mark.parametrize("key", [None, 0])
def test_moments_of_learned_grids_stay_float(key):
    scheme = jqz.Symmetric(4, gradient=jqz.gradients.LSQ())
    params = jqz.learnable({"w": jax.random.normal(jax.random.key(1), (64, 64))}, scheme)
    adam = optax.adam(1e-2)
    few = training.quantize_state(adam, EIGHT, key=None if key is None else jax.random.key(key))
    state, exact = few.init(params), adam.init(params)
    assert jqz.size_bytes(state) < 0.3 * jqz.size_bytes(exact)
    loss = jax.grad(lambda p: (jqz.fake_quantize(p, scheme)["w"] ** 2).sum())
    ours = theirs = params
    with jax.numpy_dtype_promotion("standard"):  # for optax.adam
        for _ in range(3):
            updates, state = jax.jit(few.update)(loss(ours), state, ours)
            ours = optax.apply_updates(ours, updates)
            updates, exact = adam.update(loss(theirs), exact, theirs)
            theirs = optax.apply_updates(theirs, updates)
    np.testing.assert_allclose(ours["w"].grid.scale, theirs["w"].grid.scale, rtol=1e-2)
    np.testing.assert_allclose(ours["w"].value, theirs["w"].value, atol=1e-2)
    assert state.inner[0].mu["w"].grid.scale != 0


def test_a_scheme_that_does_not_fit_is_named():
    policy = {"**/mu/**": jqz.Symmetric(8, jqz.PerAxis(2))}
    with pytest.raises(ValueError, match=r"quantize_state: '0/mu/w' has shape \(64, 64\); PerAxis"):
        training.quantize_state(optax.adam(1e-2), policy).init({"w": jnp.ones((64, 64))})
