"""Places between products where a grid is given: what is rounded there, and what is not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
import jqz.export
from jqz.kernels import places

POLICY = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Asymmetric(bits=8))
PARAMS = {"a": jnp.asarray(np.random.default_rng(0).standard_normal((6, 6)), jnp.float32)}
X = jnp.asarray(np.random.default_rng(1).standard_normal((8, 6)), jnp.float32)


def complete(fn):
    return jqz.export.complete(jqz.convert(fn, PARAMS, [X], POLICY), X)


def grid(net, name):
    affine = net.sites[name].scheme.affine(net.sites[name].grid)
    return np.float32(affine.scale.reshape(())), int(affine.zero_point.reshape(()))


def on_grid(net, name, x):
    scale, zero_point = grid(net, name)
    return (np.clip(np.rint(np.asarray(x) / scale) + zero_point, -128, 127) - zero_point) * scale


def test_a_result_is_on_its_grid():
    net = complete(lambda params, x: x @ params["a"])
    exact = dataclasses.replace(net, sites={"a": net.sites["a"]})(X)
    np.testing.assert_allclose(net(X), on_grid(net, "(result)", exact), atol=1e-6)
    assert np.abs(np.asarray(net(X)) - np.asarray(exact)).max() > 0.1 * grid(net, "(result)")[0]


def test_what_waits_is_rounded_before_it_is_added_and_codes_are_not_again():
    net = complete(lambda params, x: x + jax.nn.relu(x @ params["a"]))
    assert sorted(net.sites) == ["(add rhs)", "(result)", "a"]
    product = dataclasses.replace(net, fn=lambda params, x: jax.nn.relu(x @ params["a"]), sites={"a": net.sites["a"]})
    total = on_grid(net, "a", X) + on_grid(net, "(add rhs)", product(X))
    scale, _ = grid(net, "(result)")
    assert np.abs(np.asarray(net(X)) - on_grid(net, "(result)", total)).max() < 0.01 * scale


@pytest.mark.parametrize("fn", [jnp.mean, jnp.max], ids=["mean", "max"])
def test_reductions_read_codes(fn):
    net = complete(lambda params, x: fn((x @ params["a"]), axis=-1))
    name = "(reduce_sum)" if fn is jnp.mean else "(reduce_max)"
    assert name in net.sites
    product = dataclasses.replace(net, fn=lambda params, x: x @ params["a"], sites={"a": net.sites["a"]})(X)
    wanted = fn(jnp.asarray(on_grid(net, name, product)), axis=-1)
    wanted = on_grid(net, "(result)", wanted) if "(result)" in net.sites else wanted
    step = grid(net, "(result)" if "(result)" in net.sites else name)[0]
    assert np.abs(np.asarray(net(X)) - wanted).max() < 0.01 * step


def _normalized(y):
    y = y - y.mean(-1, keepdims=True)
    return y / jnp.sqrt(jnp.square(y).mean(-1, keepdims=True) + 0.1)


@pytest.mark.parametrize(
    ("fn", "names"),
    [
        (jax.nn.silu, ["(jit)"]),
        (jax.nn.leaky_relu, ["(jit)"]),
        (lambda y: 1 / (y + 9), ["(div rhs)"]),
        (_normalized, ["(reduce_sum)"]),
        (lambda y: y @ y.T, ["(product lhs)", "(product rhs)"]),
    ],
    ids=["silu", "leaky_relu", "quotient", "normalization", "product"],
)
def test_what_has_no_operator_on_codes_reads_codes_and_stays_float(fn, names):
    net = complete(lambda params, x: fn(x @ params["a"]))
    assert [name for name in net.sites if name != "a"] == names
    shift = 9 if names == ["(div rhs)"] else 0
    product = dataclasses.replace(net, fn=lambda params, x: x @ params["a"] + shift, sites={"a": net.sites["a"]})(X)
    coded = jnp.asarray(on_grid(net, names[0], product) - shift, jnp.float32)
    np.testing.assert_allclose(net(X), fn(coded), rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(net(X)) - np.asarray(fn(product - shift))).max() > 1e-4  # it was rounded, once


def test_codes_themselves_are_scaled_in_float32():
    net = complete(lambda params, x: (x @ params["a"], 3 * x + 1))
    np.testing.assert_allclose(net(X)[1], 3 * on_grid(net, "a", X) + 1, atol=1e-5)
    assert sorted(net.sites) == ["(result)", "a"]


def test_products_on_codes_are_no_places():
    names = {"(dot lhs)": False, "a/(ragged dot rhs)#2": False, "(product lhs)": True, "b/(result)": True, "a/b": False}
    assert {name: places.is_place(name) for name in names} == names


def test_moved_codes_keep_their_grid():
    net = complete(lambda params, x: (x @ params["a"]) + jnp.pad(x[:, ::2], ((0, 0), (0, 3))))
    assert sorted(net.sites) == ["(add lhs)", "(result)", "a"]
    product = dataclasses.replace(net, fn=lambda params, x: x @ params["a"], sites={"a": net.sites["a"]})(X)
    shortcut = np.pad(on_grid(net, "a", X)[:, ::2], ((0, 0), (0, 3)))
    wanted = on_grid(net, "(result)", on_grid(net, "(add lhs)", product) + shortcut)
    assert np.abs(np.asarray(net(X)) - wanted).max() < 0.01 * grid(net, "(result)")[0]


def test_a_net_that_has_all_grids_is_returned():
    net = complete(lambda params, x: x @ params["a"])
    assert jqz.export.complete(net, X) is net


def test_a_place_that_sees_no_numbers_is_named():
    net = jqz.convert(lambda params, x: (x @ params["a"]) / jnp.float32(0), PARAMS, [X], POLICY)
    with pytest.raises(ValueError, match=r"site '\(result\)' saw NaN"):
        jqz.export.complete(net, X)
