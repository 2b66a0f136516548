"""Clip search against its definition in NumPy and float64, on layers of every kind, and under what rounds behind it."""

import jax
import jax.numpy as jnp
import layers
import numpy as np
import pytest

import jqz
from jqz.algorithms import adaround, gptq, search_clips

KINDS = ("dense", "groups", "grouped", "stack")


def observed(params, inputs, policy):
    return jax.jit(jqz.observe(layers.model, policy, jqz.observers.Gram()))(params, inputs)


def setting(names=KINDS):
    params, inputs = layers.draw()
    params = {name: params[name] for name in names}
    policy = jqz.Policy({name: layers.POLICY.scheme_at(name) for name in names}, inputs=jqz.Identity())
    return params, inputs, policy, observed(params, inputs, policy)


def simulated(w, share, top):
    """Rounded to ``2 top + 1`` levels up to a share of the largest magnitude."""
    scale = share * np.abs(w).max() / top
    return np.clip(np.rint(w / scale), -top, top) * scale


def test_is_the_search_for_each_block():
    """Groups of uneven length, inputs correlated within them: each block by its own change of the outputs."""
    rng, groups = np.random.default_rng(0), (slice(0, 16), slice(16, 32), slice(32, 40))
    x = np.concatenate([rng.normal(size=(200, 4)) @ rng.normal(size=(4, g.stop - g.start)) for g in groups], axis=1)
    w = rng.standard_t(4, size=(40, 6))
    policy = jqz.Policy({"w": jqz.Symmetric(3, jqz.PerGroup(16))}, inputs=jqz.Identity())
    fn, params = lambda p, x: x @ p["w"], {"w": jnp.asarray(w, jnp.float32)}
    stats = jqz.observe(fn, policy, jqz.observers.Gram())(params, jnp.asarray(x, jnp.float32))
    found = search_clips(params, policy, stats, least=0.4, candidates=6)
    scales = np.asarray(found["w"].grid.scale, np.float64)
    shares = 1 - 0.6 * np.arange(7) / 6
    chosen = set()
    for k, rows in enumerate(groups):
        for out in range(6):
            block = w[rows, out]
            costs = [np.sum((x[:, rows] @ (simulated(block, share, 3) - block)) ** 2) for share in shares]
            best = shares[int(np.argmin(costs))] * np.abs(block).max() / 3
            whole = np.abs(block).max() / 3
            assert scales[k, out] == pytest.approx(best, rel=1e-5) or scales[k, out] == pytest.approx(whole, rel=1e-5)
            chosen.add(round(scales[k, out] / whole, 2))
    assert len(chosen) > 3


def test_outputs_are_never_worse_and_mostly_better():
    params, inputs, policy, stats = setting()
    plain = layers.errors(params, inputs, jqz.quantize(params, policy))
    clipped = layers.errors(params, inputs, jqz.quantize(search_clips(params, policy, stats), policy))
    assert all(clipped[name] <= plain[name] * (1 + 1e-4) for name in KINDS)
    assert sum(clipped[name] < 0.9 * plain[name] for name in KINDS) >= 3


@pytest.mark.parametrize("rounder", [gptq, adaround])
def test_rounders_keep_to_the_grids_found(rounder):
    params, inputs, policy, stats = setting()
    found = search_clips(params, policy, stats)
    coded = rounder(found, policy, stats)
    for name in KINDS:
        np.testing.assert_array_equal(coded[name].grid.scale, found[name].grid.scale)
    both, alone = (layers.errors(params, inputs, q) for q in (coded, jqz.quantize(found, policy)))
    assert all(both[name] <= alone[name] * (1 + 1e-4) for name in KINDS)


def test_nothing_below_the_whole_range_is_tried_at_one():
    params, _, policy, stats = setting(("dense",))
    found = search_clips(params, policy, stats, least=1.0)
    np.testing.assert_array_equal(found["dense"].grid.scale, jqz.quantize(params, policy)["dense"].grid.scale)


def test_dead_and_constant_weights():
    params, _, policy, stats = setting(("dense",))
    flat = {"dense": params["dense"].at[:, 0].set(0).at[:, 1].set(2.0)}
    out = jqz.dequantize(jqz.quantize(search_clips(flat, policy, stats), policy))["dense"]
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out[:, 0], 0)


def test_refusals():
    params, _, policy, stats = setting(("dense",))
    with pytest.raises(ValueError, match=r"least=0.*Use least=0.5"):
        search_clips(params, policy, stats, least=0)
    with pytest.raises(TypeError, match="stats=None"):
        search_clips(params, policy, None)
    with pytest.raises(ValueError, match=r"'dense'.*no range to clip.*Use jqz.Symmetric"):
        search_clips(params, jqz.PowerOfTwo(bits=3), stats)
