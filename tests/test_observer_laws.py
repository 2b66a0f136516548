"""The laws of ``observer_laws.py``, for every observer of the catalogue; and all of them inside a model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import observer_laws
import pytest

import jqz

CASES = [
    pytest.param(observer, law, id=f"{type(observer).__name__}-{law.__name__}")
    for observer in jqz.observers.CATALOGUE
    for law in observer_laws.LAWS
    if type(observer) not in observer_laws.EXEMPT.get(law, {})
]
EVERY = pytest.mark.parametrize("observer", jqz.observers.CATALOGUE, ids=lambda o: type(o).__name__)
POLICY = jqz.Policy({"*": jqz.Symmetric(bits=8)}, inputs=jqz.Asymmetric(bits=8))


@pytest.mark.parametrize(("observer", "law"), CASES)
def test_law(observer, law):
    law(observer)


def _model(params, x):
    """A scanned stack, a recurrent weight, a branch that is not taken and a loop."""
    x = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["stack"])[0]
    x = jax.lax.scan(lambda h, _: (jnp.tanh(h @ params["recurrent"]), None), x, None, length=3)[0]
    x = jax.lax.cond(x.sum() > 1e9, lambda x: x @ params["branch"], lambda x: x, x)
    return jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] @ params["loop"]), (0, x))[1]


@EVERY
def test_observers_follow_scans_branches_and_loops(observer):
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        name: jax.random.normal(key, (4, 4))
        for name, key in zip(("recurrent", "branch", "loop"), keys[:3], strict=True)
    }
    params["stack"] = jax.random.normal(keys[3], (2, 4, 4))
    x = jax.random.normal(keys[4], (3, 4))
    stats = jax.jit(jqz.observe(_model, POLICY, observer))(params, x)
    if observer.by_rows:  # a plain array does not know what it meets
        assert all(seen.observer.contraction.axes == (0,) for seen in stats.values())
        observer = dataclasses.replace(observer, contraction=stats["branch"].observer.contraction)
    assert {name: seen.lengths for name, seen in stats.items()} == {
        "stack": (2,), "recurrent": (), "branch": (), "loop": (),
    }  # fmt: skip
    first, second = x, jnp.tanh(x @ params["stack"][0])
    for i, layer in enumerate((first, second)):
        got = jax.tree.map(lambda leaf, i=i: leaf[i], stats["stack"].observer)
        observer_laws.same(got, observer.update(layer), f"layer {i}")
    steps = [jnp.tanh(second @ params["stack"][1])]
    for _ in range(2):
        steps.append(jnp.tanh(steps[-1] @ params["recurrent"]))
    wanted = observer
    for step in steps:
        wanted = wanted.update(step)
    observer_laws.same(stats["recurrent"].observer, wanted, "recurrent")
    observer_laws.same(stats["branch"].observer, observer.init(x), "a branch not taken", exactly=True)


@EVERY
def test_sites_come_from_every_observer_but_gram(observer):
    def model(params, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["stack"])[0] @ params["head"]

    keys = jax.random.split(jax.random.key(1), 3)
    params = {"stack": jax.random.normal(keys[0], (2, 16, 16)) / 4, "head": jax.random.normal(keys[1], (16, 3))}
    batches = list(jax.random.normal(keys[2], (3, 8, 16)))
    if isinstance(observer, jqz.observers.Gram):
        with pytest.raises(ValueError, match=r"'head'.*say nothing about the range"):
            jqz.convert(model, params, batches, POLICY, observer=observer)
        return
    net = jqz.convert(model, params, batches, POLICY, observer=observer)
    assert net.sites["stack"].grid.scale.shape == (2, 1, 1)
    assert all(np.isfinite(leaf).all() and (leaf > 0).all() for s in net.sites.values() for leaf in s.grid[:1])
    exact = model(params, batches[0])
    assert np.linalg.norm(net(batches[0]) - exact) < 0.2 * np.linalg.norm(exact)


def test_rules_by_path_choose_the_observer():
    def model(params, x):
        return (x @ params["a"]) @ params["b"]

    params, x = {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((2, 3))
    rules = {"b": jqz.observers.Gram(), "**": jqz.observers.AbsMax()}
    stats = jqz.observe(model, POLICY, rules)(params, x)
    assert [type(stats[name].observer).__name__ for name in "ab"] == ["AbsMax", "Gram"]
    with pytest.raises(ValueError, match=r"observe: the observers give 'b' none.*\*\*"):
        jqz.observe(model, POLICY, {"a": jqz.observers.MinMax()})(params, x)
    with pytest.raises(TypeError, match=r"observe: got observer='minmax'"):
        jqz.observe(model, POLICY, "minmax")
    with pytest.raises(TypeError, match=r"MinMax\(\)"):
        jqz.observe(model, POLICY, {"**": jqz.observers.MinMax})


def test_calibrate_names_the_site_that_saw_no_finite_values():
    def model(params, x):
        return jnp.log(x @ params["a"]) @ params["b"]

    params, x = {"a": jnp.eye(3), "b": jnp.eye(3)}, -jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"calibrate: site 'b' saw NaN or infinite values"):
        jqz.calibrate(jqz.observe(model, POLICY)(params, x), POLICY)
    never = {name: seen.empty() for name, seen in jqz.observe(model, POLICY)(params, -x).items()}
    with pytest.raises(ValueError, match=r"calibrate: site 'a' saw nothing"):
        jqz.calibrate(never, POLICY)


def test_calibrate_runs_under_jit():
    def model(params, x):
        return x @ params["w"]

    params, x = {"w": jnp.eye(3)}, jax.random.normal(jax.random.key(0), (4, 3))
    stats = jqz.observe(model, POLICY)(params, x)
    inside = jax.jit(lambda stats: jqz.calibrate(stats, POLICY))(stats)
    for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(jqz.calibrate(stats, POLICY)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
