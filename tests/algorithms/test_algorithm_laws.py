"""What every rounder and rewriter of ``jqz.algorithms`` obeys; a new one is tested by being listed in its catalogue."""

import functools

import jax
import layers
import numpy as np
import pytest
import rewritable

import jqz
from jqz import algorithms

EVERY = pytest.mark.parametrize("rounder", algorithms.ROUNDERS, ids=lambda f: f.__name__)


@functools.cache
def setting():
    params, inputs = layers.draw()
    watch = jax.jit(jqz.observe(layers.model, layers.POLICY, jqz.observers.Gram()))
    half = {name: len(x) // 2 for name, x in inputs.items()}
    parts = [{n: x[: half[n]] for n, x in inputs.items()}, {n: x[half[n] :] for n, x in inputs.items()}]
    return params, inputs, jqz.merge(*(watch(params, part) for part in parts))


def taken(rounder, tree):
    """The layers whose schemes a rounder takes."""
    return {n: part for n, part in tree.items() if isinstance(layers.POLICY.scheme_at(n), algorithms.ROUNDERS[rounder])}


@functools.cache
def rounded(rounder):
    params, _, stats = setting()
    params = taken(rounder, params)
    policy = jqz.Policy({name: layers.POLICY.scheme_at(name) for name in params}, inputs=jqz.Identity())
    return rounder(params, policy, stats)


@functools.cache
def errors(rounder):
    params, inputs, _ = setting()
    return layers.errors(taken(rounder, params), inputs, rounded(rounder))


@EVERY
def test_never_worse_than_nearest_rounding(rounder):
    assert errors(rounder), "no layer has a scheme that it takes"
    for name, error in errors(rounder).items():
        assert error <= errors(algorithms.nearest)[name] * (1 + 1e-4), name


@EVERY
def test_codes_are_those_of_the_scheme(rounder):
    params, _, _ = setting()
    again = jax.jit(lambda tree: {name: (q.codes, q.scheme.encode(q.dequantize(), q.grid)) for name, q in tree.items()})
    for name, (codes, same) in again(rounded(rounder)).items():
        q, scheme = rounded(rounder)[name], layers.POLICY.scheme_at(name)
        assert (q.scheme, q.shape, q.dtype) == (scheme, params[name].shape, params[name].dtype)
        np.testing.assert_array_equal(codes, same, err_msg=name)


@EVERY
def test_other_leaves_stay(rounder):
    params, _, stats = setting()
    name = next(iter(rounded(rounder)))
    policy = jqz.Policy({name: layers.POLICY.scheme_at(name)}, inputs=jqz.Identity())
    tree = {name: params[name], "bias": np.ones(3, np.float32)}
    out = rounder(tree, policy, stats)
    assert out["bias"] is tree["bias"]
    assert isinstance(out[name], jqz.QTensor)


@pytest.mark.parametrize("rewriter", algorithms.REWRITERS, ids=lambda f: f.__name__)
def test_rewriters_keep_the_function_and_change_weights(rewriter):
    fn, params, x, run = rewritable.CASES[rewriter.__name__]()
    new = run(rewriter)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    moved = 0.0
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(new), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        moved = max(moved, float(np.abs(np.asarray(a) - b).max() / np.abs(a).max()))
    assert moved > 0.1
    run_on = jax.jit(fn)
    for one in x:
        before, after = (np.asarray(run_on(tree, one), np.float64) for tree in (params, new))
        assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
