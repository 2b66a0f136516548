"""Places between products where a grid is given: what is rounded there, and what is not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
import jqz.export

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
