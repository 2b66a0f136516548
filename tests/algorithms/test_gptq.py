"""GPTQ and coordinate descent against NumPy in float64."""

import jax.numpy as jnp
import layers
import numpy as np
import pytest

import jqz
from jqz.algorithms import gptq
from jqz.algorithms.gptq import AsStored, LargestFirst


def _round(row, scale, high):
    return np.clip(np.rint(row / scale), -high, high) * scale


def oracle(w, x, scale, high, damping=0.01, order=None, sweeps=0):
    """GPTQ as it is published, row by row of a (terms, outputs) weight, then coordinate descent."""
    w, x = np.asarray(w, np.float64), np.asarray(x, np.float64)
    gram, terms = x.T @ x, len(w)
    order = np.arange(terms) if order is None else order
    h = (gram + damping * np.mean(np.diag(gram)) * np.eye(terms))[order][:, order]
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    left, q = w[order].copy(), np.zeros_like(w)
    for i in range(terms):
        q[order[i]] = _round(left[i], scale, high)
        left[i:] -= np.outer(upper[i, i:], (left[i] - q[order[i]]) / upper[i, i])
    nearest = _round(w, scale, high)
    errors = [np.sum((x @ (v - w)) ** 2, axis=0) for v in (q, nearest)]
    q = np.where(errors[0] < errors[1], q, nearest)
    for _ in range(sweeps):
        for i in order:
            q[i] = _round(q[i] - (gram[i] @ (q - w)) / gram[i, i], scale, high)
    return q


def setting(rows=60, terms=20, outputs=7):
    rng = np.random.default_rng(3)
    x = jnp.asarray(
        rng.normal(size=(rows, terms)) @ (np.eye(terms) + 0.2 * rng.normal(size=(terms, terms))), jnp.float32
    )
    params = {"w": jnp.asarray(rng.normal(size=(terms, outputs)), jnp.float32)}
    policy = jqz.Policy(jqz.Symmetric(3, layers.CHANNEL), inputs=jqz.Identity())
    return params, x, policy, jqz.observe(lambda p, x: x @ p["w"], policy, jqz.observers.Gram())(params, x)


@pytest.mark.parametrize(("order", "sweeps"), [(AsStored(), 0), (LargestFirst(), 3)])
def test_is_the_published_algorithm(order, sweeps):
    params, x, policy, stats = setting()
    q = gptq(params, policy, stats, order=order, sweeps=sweeps, block=8)["w"]
    places = np.argsort(-np.sum(np.asarray(x, np.float64) ** 2, axis=0)) if isinstance(order, LargestFirst) else None
    wanted = oracle(params["w"], x, np.asarray(q.grid.scale, np.float64), 3, order=places, sweeps=sweeps)
    np.testing.assert_allclose(q.dequantize(), wanted, atol=1e-6)


def test_fewer_rows_than_terms_and_dead_terms():
    """A singular Gram matrix is damped until it can be factored; a dead term is rounded to nearest."""
    params, x, policy, _ = setting()
    x = jnp.tile(x[:2] * 1e4, (1, 1)).at[:, 4].set(0)
    stats = jqz.observe(lambda p, x: x @ p["w"], policy, jqz.observers.Gram())(params, x)
    q = gptq(params, policy, stats, damping=1e-12, sweeps=0)["w"]
    plain = jqz.quantize(params, policy)["w"]
    np.testing.assert_array_equal(q.codes[4], plain.codes[4])
    errors = [np.linalg.norm(np.asarray(x, np.float64) @ (v.dequantize() - params["w"])) for v in (q, plain)]
    assert errors[0] < errors[1]


def test_errors_say_what_to_do():
    params, x, policy, stats = setting()
    with pytest.raises(ValueError, match=r"gptq: 'v' has shape \(20, 7\); the statistics have nothing of 'v'"):
        gptq({"v": params["w"]}, policy, stats)
    with pytest.raises(TypeError, match=r"gptq: got stats=NoneType.*observers\.Gram"):
        gptq(params, policy, None)
    with pytest.raises(ValueError, match=r"gptq: 'w' has shape \(3, 7\); the statistics are of rows of 20 terms"):
        gptq({"w": params["w"][:3]}, policy, stats)
    with pytest.raises(ValueError, match="damping"):
        gptq(params, policy, stats, damping=0.0)
    ranges = jqz.observe(lambda p, x: x @ p["w"], policy)(params, x)
    with pytest.raises(ValueError, match="not of Gram"):
        gptq(params, policy, ranges)
    changed = jqz.observe(lambda p, x: x @ p["w"].reshape(5, 28).reshape(20, 7), policy, jqz.observers.Gram())(
        params, x
    )
    with pytest.raises(ValueError, match="reshapes"):
        gptq(params, policy, changed)


def test_arguments_are_named():
    for arguments, error in [
        ({"block": 0}, ValueError),
        ({"sweeps": -1}, ValueError),
        ({"order": "largest"}, TypeError),
    ]:
        with pytest.raises(error, match="gptq: got"):
            gptq({}, jqz.Symmetric(4), {}, **arguments)
