"""Ragged dots against NumPy loops over experts, on integers whose scales and zero points are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz

Symmetric, Asymmetric, PerAxis = jqz.Symmetric, jqz.Asymmetric, jqz.PerAxis
RANGES = {Symmetric: (-127, 127), Asymmetric: (-40, 215)}
EXPERTS, ROWS, SIZES = 4, 9, np.array([3, 0, 4, 1])  # an expert without rows, a row without an expert


def ragged(w, x, sizes):
    return jax.lax.ragged_dot(x, w, sizes)


def by_hand(w, x, sizes):
    out, start = np.zeros((len(x), w.shape[-1])), 0
    for expert, size in enumerate(sizes):
        out[start : start + size] = x[start : start + size] @ w[expert]
        start += size
    return out


def integers(rng, shape, low, high):
    """The first two of every run along the summed axis, 1, are the extremes."""
    values = rng.integers(low, high + 1, shape)
    values[:, 0], values[:, 1] = low, high
    return values


@pytest.mark.parametrize("granularity", [jqz.PerTensor(), PerAxis(0), PerAxis(-1), PerAxis((0, -1))], ids=repr)
def test_integers(granularity):
    rng = np.random.default_rng(0)
    for kind, input_kind in itertools.product(RANGES, RANGES):
        for rows in (jqz.PerTensor(), PerAxis(0)):
            w = integers(rng, (EXPERTS, 5, 6), *RANGES[kind])
            if granularity != jqz.PerTensor():
                axes = granularity.axes
                power = rng.integers(-3, 4, [n if i in axes or i - 3 in axes else 1 for i, n in enumerate(w.shape)])
                w = w * 2.0**power
            x = integers(rng, (ROWS, 5), *RANGES[input_kind])
            if rows != jqz.PerTensor():
                x = x * 2.0 ** rng.integers(-3, 4, (ROWS, 1))
            q = jqz.quantize(jnp.asarray(w, jnp.float32), kind(bits=8, granularity=granularity))
            np.testing.assert_array_equal(q.dequantize(), w)
            run = jqz.quantized(ragged, inputs=input_kind(bits=8, granularity=rows))
            args = q, jnp.asarray(x, jnp.float32), jnp.asarray(SIZES)
            assert "i32[9,6] = ragged_dot_general" in str(jax.make_jaxpr(run)(*args))
            np.testing.assert_array_equal(jax.jit(run)(*args), by_hand(w, x, SIZES))


FLOAT = {
    "a scale for each summed term": (Symmetric(bits=8, granularity=PerAxis(1)), "vary inside the sum"),
    "groups of summed terms": (Symmetric(bits=8, granularity=jqz.PerGroup(4)), "vary inside the sum"),
    "no integer levels": (jqz.NormalFloat(bits=4), "no integer levels"),
}


@pytest.mark.parametrize("name", FLOAT)
def test_where_integers_cannot_go_the_rows_are_rounded_all_the_same(name):
    scheme, why = FLOAT[name]
    rng = np.random.default_rng(0)
    w, x = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((EXPERTS, 8, 6), (ROWS, 8)))
    q, inputs = jqz.quantize({"w": w}, scheme), Symmetric(bits=3, granularity=PerAxis(0))

    def fn(p, x):
        return ragged(p["w"], x, jnp.asarray(SIZES))

    wanted = by_hand(np.asarray(q["w"].dequantize()), np.asarray(inputs.simulate(x)), SIZES)
    np.testing.assert_allclose(jqz.quantized(fn, inputs=inputs)(q, x), wanted, rtol=1e-4, atol=1e-5)
    (product,) = jqz.audit(fn, inputs=inputs)(q, x).products
    assert (product.name, product.kind, product.how) == ("w", "dot", "rounded float")
    assert why in product.why


def test_static_ranges_and_training():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((EXPERTS, 8, 6)), jnp.float32)}
    x = jnp.asarray(rng.standard_normal((ROWS, 8)), jnp.float32)
    policy = jqz.Policy(Symmetric(bits=8, granularity=PerAxis((0, -1))), inputs=Asymmetric(bits=8))

    def fn(p, x):
        return ragged(p["w"], x, jnp.asarray(SIZES))

    sites = jqz.calibrate(jqz.observe(fn, policy)(params, x), policy)
    assert list(sites) == ["w"]
    got = jqz.quantized(fn, sites)(jqz.quantize(params, policy), x)
    np.testing.assert_allclose(got, jqz.simulated(fn, policy)(params, sites, x), rtol=1e-5, atol=1e-5)
    assert np.linalg.norm(got - fn(params, x)) < 0.02 * np.linalg.norm(got)
    gradient = jax.grad(lambda p: jqz.simulated(fn, policy)(p, sites, x).sum())(params)["w"]
    rounded = policy.input_at("w").simulate(x, sites["w"].grid)
    wanted = jax.grad(lambda p: fn(p, rounded).sum())(params)["w"]
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-5)


def test_weight_only():
    rng = np.random.default_rng(0)
    q = jqz.quantize(jnp.asarray(rng.standard_normal((EXPERTS, 8, 6)), jnp.float32), jqz.NormalFloat(bits=4))
    x = jnp.asarray(rng.standard_normal((ROWS, 8)), jnp.float32)
    wanted = by_hand(np.asarray(q.dequantize()), np.asarray(x), SIZES)
    np.testing.assert_allclose(jqz.quantized(ragged)(q, x, jnp.asarray(SIZES)), wanted, rtol=1e-4, atol=1e-5)
