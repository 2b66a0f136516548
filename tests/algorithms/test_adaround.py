"""Learned rounding against all ways to round up or down, in NumPy and float64."""

import itertools

import jax
import jax.numpy as jnp
import layers
import numpy as np
import pytest

import jqz
from jqz._soft_rounding import neighbours
from jqz.algorithms import adaround


def setting(terms=9, outputs=12):
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.normal(size=(40, terms)) @ (np.eye(terms) + 0.5 * rng.normal(size=(terms, terms))), jnp.float32)
    params = {"w": jnp.asarray(rng.normal(size=(terms, outputs)), jnp.float32)}
    policy = jqz.Policy(jqz.Symmetric(3, layers.CHANNEL), inputs=jqz.Identity())
    return params, x, policy, jqz.observe(lambda p, x: x @ p["w"], policy, jqz.observers.Gram())(params, x)


def errors(x, values, w):
    return np.sum((np.asarray(x, np.float64) @ (np.asarray(values, np.float64) - np.asarray(w, np.float64))) ** 2, 0)


def test_finds_nearly_the_best_of_all_ways():
    params, x, policy, stats = setting()
    w = np.asarray(params["w"], np.float64)
    q, plain = adaround(params, policy, stats, steps=600)["w"], jqz.quantize(params, policy)["w"]
    scale = np.asarray(q.grid.scale, np.float64)
    low = np.floor(w / scale)
    codes = np.asarray(q.codes, np.float64)
    assert np.isin(codes - low, (0, 1)).all()
    ups = np.array(list(itertools.product((0, 1), repeat=len(w))))
    ways = np.clip(low[None] + ups[:, :, None], -3, 3) * scale - w
    best = np.einsum("nto,tu,nuo->no", ways, np.asarray(x, np.float64).T @ np.asarray(x, np.float64), ways).min(0)
    found, nearest = errors(x, q.dequantize(), w), errors(x, plain.dequantize(), w)
    assert (found >= best * (1 - 1e-4)).all()
    assert (found - best).sum() < 0.15 * (nearest - best).sum()
    assert np.mean(found < best * 1.001) > 0.5


NEIGHBOURS = (
    jqz.Symmetric(2, codes=jqz.schemes.Full(), range=jqz.ranges.MSE()),
    jqz.Asymmetric(8),
    jqz.Asymmetric(3, layers.CHANNEL, anchor=jqz.schemes.Minimum()),
    jqz.PowerOfTwo(bits=3),
    jqz.PowerOfTwo(bits=3, codebook=jqz.schemes.NNabla(zero=jqz.schemes.WithoutZero())),
    jqz.Codebook(2),
    jqz.AdditivePowerOfTwo(4),
    jqz.Symmetric(8) >> jqz.PowerOfTwo(3),
)


@pytest.mark.parametrize("scheme", NEIGHBOURS, ids=repr)
def test_neighbours_are_the_levels_on_both_sides(scheme):
    w = jnp.asarray(np.random.default_rng(2).normal(size=(40, 3)), jnp.float32)

    @jax.jit
    def run(w):
        grid = scheme.calibrate(w)
        every = jnp.arange(2**scheme.bits, dtype=jnp.int32).astype(scheme.code_dtype)
        if jnp.issubdtype(scheme.code_dtype, jnp.signedinteger):
            every = (jnp.arange(2**scheme.bits, dtype=jnp.int32) - 2 ** (scheme.bits - 1)).astype(scheme.code_dtype)
        full = jnp.broadcast_to(every[:, None, None], (len(every), *w.shape))
        decode = jax.vmap(lambda codes: scheme.decode(codes, grid))
        levels = decode(full)
        used = jax.vmap(lambda v: scheme.encode(v, grid))(levels) == full
        return neighbours(w, grid, scheme, w.dtype), levels, used, scheme.decode(scheme.encode(w, grid), grid)

    (_, _, values, beyond), levels, used, plain = jax.tree.map(np.asarray, run(w))
    w = np.asarray(w)
    np.testing.assert_array_equal(values, plain)
    below = np.max(np.where(used & (levels <= w), levels, -np.inf), axis=0)
    above = np.min(np.where(used & (levels > w), levels, np.inf), axis=0)
    both = np.isfinite(below) & np.isfinite(above) & (values != w)
    assert both.mean() > 0.3
    np.testing.assert_array_equal(np.minimum(values, beyond)[both], below[both])
    np.testing.assert_array_equal(np.maximum(values, beyond)[both], above[both])
    np.testing.assert_array_equal(beyond[~both], values[~both])


def test_dead_inputs_and_few_rows_keep_nearest_rounding():
    params, x, policy, _ = setting()
    x = x[:1].at[:, 3:].set(0)
    stats = jqz.observe(lambda p, x: x @ p["w"], policy, jqz.observers.Gram())(params, x)
    q, plain = adaround(params, policy, stats, steps=600)["w"], jqz.quantize(params, policy)["w"]
    np.testing.assert_array_equal(q.codes[3:], plain.codes[3:])
    assert (errors(x, q.dequantize(), params["w"]) <= errors(x, plain.dequantize(), params["w"]) * (1 + 1e-5)).all()


def test_errors_say_what_to_do():
    params, _, policy, stats = setting()
    with pytest.raises(ValueError, match=r"steps=0 and warm_up=0\.2, wanted"):
        adaround(params, policy, stats, steps=0)
    with pytest.raises(TypeError, match=r"adaround: got stats=NoneType.*observers\.Gram"):
        adaround(params, policy, None)
