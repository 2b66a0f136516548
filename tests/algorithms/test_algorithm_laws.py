"""What every rounder and rewriter of ``jqz.algorithms`` obeys; a new one is tested by being listed in its catalogue."""

import functools

import jax
import jax.numpy as jnp
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


def few_bits(bits, seed=0):
    """A layer whose weights, and decoded levels, are bfloat16; its squared error and the worst output's."""
    keys = jax.random.split(jax.random.key(seed), 3)
    w = jax.random.normal(keys[0], (32, 64)).astype(jnp.bfloat16)
    x = (jax.random.normal(keys[1], (256, 32)) @ jax.random.normal(keys[2], (32, 32))).astype(jnp.bfloat16)
    policy = jqz.Policy(jqz.Symmetric(bits, jqz.PerAxis(-1)), inputs=jqz.Identity())
    stats = jax.jit(jqz.observe(lambda p, x: x @ p["w"], policy, jqz.observers.Gram()))({"w": w}, x)

    def error(q):
        d = (np.asarray(q["w"].dequantize(), np.float64) - np.asarray(w, np.float64)).T
        return np.einsum("oi,ij,oj->o", d, np.asarray(stats["w"].observer.products, np.float64), d)

    return {"w": w}, policy, stats, error


@pytest.mark.parametrize("bits", [4, 8, 10])
@pytest.mark.parametrize("rounder", [algorithms.gptq, algorithms.adaround, algorithms.entropy_constrained])
def test_never_worse_than_nearest_rounding_where_levels_are_narrow(rounder, bits):
    bits = min(bits, 8) if rounder is algorithms.entropy_constrained else bits  # which takes no more
    params, policy, stats, error = few_bits(bits)
    ours, nearest = error(rounder(params, policy, stats)), error(jqz.quantize(params, policy))
    assert ours.sum() <= nearest.sum() * (1 + 1e-3)
    if rounder is algorithms.gptq:
        assert (ours <= nearest * (1 + 1e-3)).all()


@pytest.mark.parametrize("rounder", [algorithms.gptq, algorithms.adaround, algorithms.entropy_constrained])
def test_statistics_of_nothing_or_nan_are_refused(rounder):
    params, policy = {"w": jnp.ones((4, 4))}, jqz.Policy(jqz.Symmetric(4), inputs=jqz.Identity())

    def model(p, x, used):
        return jax.lax.cond(used, lambda x: x @ p["w"], lambda x: x, x)

    watch = jax.jit(jqz.observe(model, policy, jqz.observers.Gram()))
    with pytest.raises(ValueError, match=r"'w'.* has NaN or infinite values"):
        rounder(params, policy, watch(params, jnp.full((2, 4), jnp.nan), True))
    with pytest.raises(ValueError, match="nothing has met 'w'"):
        rounder(params, policy, watch(params, jnp.ones((2, 4)), False))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rewriters_take_narrow_parameters(dtype):
    """Channels that pass through casts, as in norms whose parameters are narrow, are followed."""

    def norm(p, x):
        y = x - p["mean"].astype(jnp.float32)[None]
        y = y * jax.lax.rsqrt(p["var"].astype(jnp.float32) + 1e-3)[None]
        return y * (1 + p["scale"].astype(jnp.float32))[None] + p["bias"].astype(jnp.float32)[None]

    def model(p, x):
        y = jax.nn.relu(norm(p["norm"], x @ p["a"].astype(jnp.float32)))
        return y @ p["b"].astype(jnp.float32)

    rng = np.random.default_rng(0)
    norms = {n: rng.uniform(0.5, 1.5, 8) for n in ("mean", "var", "scale", "bias")}
    params = {"a": rng.normal(size=(6, 8)), "b": rng.normal(size=(8, 4)), "norm": norms}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    x = jnp.asarray(rng.normal(size=(64, 6)), jnp.float32)
    equal = algorithms.equalize(model, params, x, tolerance=0.03)  # parameters come back in few bits
    assert jnp.any(equal["b"] != params["b"])
    again = algorithms.reestimate_batch_norm(model, params, [x])
    assert again["norm"]["var"].dtype == dtype
    y = x @ params["a"].astype(jnp.float32)
    np.testing.assert_allclose(again["norm"]["mean"].astype(jnp.float32), y.mean(0), atol=0.02)
    q = jqz.quantize(params, jqz.Policy({"a": jqz.Symmetric(3), "b": jqz.Symmetric(3)}))
    assert algorithms.correct_bias(model, params, q, [x])["norm"]["bias"].dtype == dtype


TAKE_BATCHES = {
    "reestimate_batch_norm": lambda m, p, x: algorithms.reestimate_batch_norm(m, p, x),
    "correct_bias": lambda m, p, x: algorithms.correct_bias(m, p, p, x),
    "smooth_quant": lambda m, p, x: algorithms.smooth_quant(m, p, x),
    "awq": lambda m, p, x: algorithms.awq(m, p, jqz.Symmetric(4), x),
    "absorb_high_bias": lambda m, p, x: algorithms.absorb_high_bias(m, p, x),
    "reconstruct": lambda m, p, x: algorithms.reconstruct(m, p, jqz.quantize(p, jqz.Symmetric(4)), x),
    "sensitivity": lambda m, p, x: algorithms.sensitivity(m, p, x, [jqz.Symmetric(4)]),
    "search": lambda m, p, x: jqz.search(m, p, x, [jqz.Symmetric(4)], jqz.budgets.AverageBits(4)),
    "convert": lambda m, p, x: jqz.convert(m, p, x, jqz.Policy(jqz.Symmetric(8), inputs=jqz.Symmetric(8))),
}


@pytest.mark.parametrize("who", TAKE_BATCHES)
def test_an_array_is_no_list_of_batches(who):
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    with pytest.raises(TypeError, match=rf"{who}: got .* as batches, wanted a list of them. Use batches=\[x\]"):
        TAKE_BATCHES[who](lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, jnp.ones((3, 4)))


def test_flags_go_with_the_arguments():
    def model(p, x, train, name="n"):
        assert train is False
        assert name in ("n", "m")
        return ((x - x.mean(-1, keepdims=True)) * p["scale"][None] + p["bias"][None]) @ p["w"] + p["c"][None]

    rng = np.random.default_rng(0)
    sizes = {"scale": (8,), "bias": (8,), "w": (8, 4), "c": (4,)}
    params = {name: jnp.asarray(rng.uniform(0.5, 1.5, size), jnp.float32) for name, size in sizes.items()}
    x = jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)
    q = jqz.quantize(params, jqz.Policy({"w": jqz.Symmetric(3)}))
    plain = algorithms.correct_bias(functools.partial(model, train=False), params, q, [x])
    np.testing.assert_array_equal(algorithms.correct_bias(model, params, q, [(x, False, "m")])["c"], plain["c"])
    algorithms.smooth_quant(model, params, [(x, False)])
    algorithms.awq(model, params, {"**/w": jqz.Symmetric(3)}, [(x, False)])
    assert algorithms.sensitivity(model, params, [(x, False)], [jqz.Symmetric(4)]).paths == ("w",)
    with pytest.raises(ValueError, match="smooth_quant: batches differ in"):
        algorithms.smooth_quant(model, params, [(x, False), (x, True)])
