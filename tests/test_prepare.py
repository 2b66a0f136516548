"""Splitting a function by what it can compute beforehand."""

import functools
import re

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

import jqz
from jqz import _convert, _prepare

POLICY = jqz.Policy(jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1)), inputs=jqz.Asymmetric(bits=8))


def count(fn, *args):
    """The equations of a program, calls inlined."""

    def inside(jaxpr):
        inner = [e.params[k] for e in jaxpr.eqns for k in ("jaxpr", "call_jaxpr") if k in e.params]
        return len(jaxpr.eqns) + sum(inside(getattr(j, "jaxpr", j)) for j in inner)

    return inside(jax.make_jaxpr(fn)(*args).jaxpr)


@pytest.mark.parametrize("name", ["mlp", "convolution and batch norm", "attention", "scanned stack", "control flow"])
def test_both_steps_make_the_whole(name):
    case = models.MODELS[name]()
    net = jqz.convert(case.fn, case.variables, [case.x], POLICY)
    whole = jax.jit(jqz.quantized(case.fn, net.sites))(net.qparams, case.x)
    for _ in range(2):
        for a, b in zip(jax.tree.leaves(net(case.x)), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


def test_what_weights_alone_decide_is_computed_once():
    case = models.MODELS["convolution and batch norm"]()
    net = jqz.convert(case.fn, case.variables, [case.x], POLICY)

    def run(known, x):
        return jqz.quantized(case.fn, known[1])(known[0], x)

    known = (net.qparams, net.sites)
    steps = _prepare.split(run, known, case.x)
    values = steps.before(known)
    used = steps.used(known)
    assert len(used) < len(jax.tree.leaves(known))
    assert count(steps.after, values, used, case.x) < 0.6 * count(run, known, case.x)
    np.testing.assert_allclose(steps.after(values, used, case.x), run(known, case.x), rtol=1e-5, atol=1e-5)


def test_large_arrays_are_not_kept():
    def fn(known, x):
        table = jnp.cos(known["large"])  # as large as what it comes from
        return x + table.sum() + jnp.take(table, 3) + known["small"] * 2, known["small"]

    known = {"large": jnp.ones(_prepare.KEPT + 1), "small": jnp.ones(3)}
    steps = _prepare.split(fn, known, jnp.ones(3))
    kept = steps.before(known)
    assert all(k.size <= _prepare.KEPT for k in kept)
    for a, b in zip(steps.after(kept, steps.used(known), jnp.ones(3)), fn(known, jnp.ones(3)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_net_is_a_pytree_inside_other_programs():
    case = models.MODELS["mlp"]()
    net = jqz.convert(case.fn, case.variables, [case.x], POLICY)
    alone = net(case.x)
    np.testing.assert_allclose(jax.jit(lambda net, x: net(x))(net, case.x), alone, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(net)(case.x[:, None])[:, 0], alone, rtol=1e-4, atol=1e-5)
    other = jax.tree.map(lambda leaf: leaf * 2 if leaf.dtype == jnp.float32 else leaf, net)
    assert not np.allclose(other(case.x), alone)  # what was kept is not carried over to other numbers


@pytest.mark.parametrize("limit", [0, 2**20], ids=["shared", "constants"])
def test_large_nets_share_programs_and_small_ones_hold_their_codes(limit, monkeypatch):
    monkeypatch.setattr(_convert, "CONSTANTS", limit)
    case = models.MODELS["mlp"]()
    options = {"xla_cpu_prefer_vector_width": 512}
    convert = functools.partial(jqz.convert, case.fn, batches=[case.x], policy=POLICY, compiler_options=options)
    runs = []
    for net in convert(case.variables), convert(jax.tree.map(lambda leaf: leaf / 2, case.variables)):
        wanted = jax.jit(jqz.quantized(case.fn, net.sites))(net.qparams, case.x)
        for _ in range(2):
            np.testing.assert_allclose(net(case.x), wanted, rtol=1e-5, atol=1e-5)
        runs.append(next(iter(net._kept.values())))
    if limit:
        heads = [re.search(r"@main\((.*)", run.lower((case.x,)).as_text()) for run in runs]
        assert all(head and "%arg1" not in head[1] for head in heads)  # the input is all that it takes
    else:
        assert runs[0].func is runs[1].func


def test_nets_take_numpy_arrays_of_any_precision():
    case = models.MODELS["mlp"]()
    net = jqz.convert(case.fn, case.variables, [case.x], POLICY)
    assert net(np.asarray(case.x, np.float64)).dtype == net(case.x).dtype
