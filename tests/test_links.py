"""Links that a walk finds in networks of known structure, and what it must not take for one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rewritable

import jqz
from jqz import _links, algorithms
from jqz._rows import Place
from jqz._steps import whole_path


def found(fn, params, x):
    return {
        link.first.path: (sorted(place.path for place in link.seconds), sorted(p.path for p in link.shifts), link.block)
        for link in _links.find(fn, params, (x,))
    }


def test_a_transformer_has_links_behind_norms_and_through_attention():
    fn, params, inputs = rewritable.drawn(rewritable.Transformer(), (2, 5, 8))
    attention = "params/MultiHeadDotProductAttention_0"
    assert found(fn, params, inputs[0]) == {
        "params/LayerNorm_0/scale": (
            [f"{attention}/{part}/kernel" for part in ("key", "query", "value")],
            ["params/LayerNorm_0/bias"],
            1,
        ),
        # two heads of 4 channels: only those of one head may be mixed
        f"{attention}/value/kernel": ([f"{attention}/out/kernel"], [f"{attention}/value/bias"], 4),
        "params/LayerNorm_1/scale": (["params/Dense_1/kernel"], ["params/LayerNorm_1/bias"], 1),
    }


def test_convolutions_are_linked_in_a_chain():
    fn, params, inputs = rewritable.drawn(rewritable.Convolutions(), (2, 6, 6, 3))
    chain = [*(f"params/Conv_{i}/kernel" for i in range(3)), "params/Dense_0/kernel"]
    for i, (first, second) in enumerate(itertools.pairwise(chain)):
        shifts = sorted([f"batch_stats/BatchNorm_{i}/mean", f"params/BatchNorm_{i}/bias"])
        assert found(fn, params, inputs[0])[first] == ([second], shifts, 1)


PARAMS = {name: jnp.asarray(np.random.default_rng(i).normal(size=(4, 4)), jnp.float32) for i, name in enumerate("abcd")}
X = jnp.ones((2, 4))


@pytest.mark.parametrize(
    ("fn", "wanted"),
    [
        (lambda p, x: (x @ p["a"]) @ p["b"], {"a": (["b"], [], 4)}),
        (lambda p, x: jax.nn.silu(x @ p["a"]) * (x @ p["b"]) @ p["c"], {"b": (["c"], [], 1)}),
        (lambda p, x: (x @ p["a"]).reshape(2, 2, 2).swapaxes(0, 1) @ p["b"][:2], {}),
        (lambda p, x: (x @ p["a"]).reshape(2, 2, 2).reshape(2, 4) @ p["b"], {"a": (["b"], [], 4)}),
        (lambda p, x: jax.nn.relu((y := x @ p["a"]) @ p["b"]) @ p["c"] + y @ p["d"], {"a": (["b", "d"], [], 4)}),
        (lambda p, x: (y := x @ p["a"]) @ p["b"] + y, {}),
        (lambda p, x: x @ p["a"] @ p["b"] @ p["b"], {}),
        (lambda p, x: p["a"][jnp.array([0, 1])] + (x @ p["a"]) @ p["b"], {}),
        (lambda p, x: jax.nn.softmax(x @ p["a"]) @ p["b"], {}),
        (lambda p, x: x @ p["a"] @ (p["b"] * 2), {}),
    ],
    ids=[
        "linear", "gated", "heads apart", "reshaped and back", "two readers", "residual", "weight used twice",
        "table looked up", "softmax", "weight changed",
    ],
)  # fmt: skip
def test_what_is_a_link_and_what_is_none(fn, wanted):
    links = found(fn, PARAMS, X)
    if "d" in str(wanted):
        links.pop("b")  # relu passes a scale too
    assert links == wanted


def test_a_residual_stream_is_one_link_if_its_norms_have_no_scale():
    fn, params, inputs = rewritable.drawn(rewritable.RootMeanSquare(), (2, 5), tokens=11)
    ones = frozenset(f"params/RMSNorm_{i}/scale" for i in range(3))
    stream, heads = _links.find_rotatable(fn, params, (inputs[0],), ones)
    attention = "params/MultiHeadDotProductAttention_0"
    assert {place.path for place in stream.firsts} == {
        "params/Embed_0/embedding", "params/down/kernel", f"{attention}/out/kernel"
    }  # fmt: skip
    assert set(stream.shifts) == {
        Place("params/positions", (1,)),
        Place("params/down/bias", (0,)),
        Place(f"{attention}/out/bias", (0,)),
    }
    readers = [f"{attention}/{part}/kernel" for part in ("query", "key", "value")]
    readers += [f"params/{name}/kernel" for name in ("gate", "up", "head")]
    assert sorted(stream.seconds) == sorted(Place(path, (0,)) for path in readers)
    assert (stream.block, stream.normed) == (8, True)
    assert heads.first.path == f"{attention}/value/kernel"
    scales = [link.first.path for link in _links.find(fn, params, (inputs[0],)) if not link.by_weight]
    assert sorted(scales) == sorted(ones)
    without = _links.find_rotatable(fn, params, (inputs[0],), frozenset())
    assert [link.first for link in without] == [heads.first]


def test_scales_of_norms_are_found_however_they_are_written():
    def normed(p, x):
        x = x @ p["a"]
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True)) * p["scale"][None] @ p["b"]

    params = {**PARAMS, "scale": jnp.arange(1.0, 5.0)}
    assert found(normed, params, X) == {"scale": (["b"], [], 4)}
    (link,) = _links.find_rotatable(normed, params, (X,), frozenset({"scale"}))
    assert link.places == (Place("a", (1,)), Place("b", (0,)))
    assert not _links.find_rotatable(normed, params, (X,), frozenset())


# --- layers that a scan stacks: what is made of them is what is made of the same layers one by one --------------------


def _norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * scale[None]


def _layer(x, p):
    y = _norm(x, p["norm"])
    x = x + jax.nn.relu(y @ p["up"] + p["shift"][None]) @ p["down"]
    return x + (x @ p["narrow"]) @ p["wide"]


DEPTH, WIDTH = 3, 8
SHAPES = {"norm": (8,), "up": (8, 16), "shift": (16,), "down": (16, 8), "narrow": (8, 4), "wide": (4, 8)}


def _stacked_layers():
    """Parameters, the function with a scan and the one without, and an input."""
    rng = np.random.default_rng(3)
    layers = {name: rng.normal(size=(DEPTH, *shape)) / 3 for name, shape in SHAPES.items()}
    layers["up"] *= np.exp(rng.normal(size=(DEPTH, 1, 16)))
    layers["norm"] = rng.uniform(0.5, 2, (DEPTH, 8))
    ends = {"enter": rng.normal(size=(5, 8)), "norm": rng.uniform(0.5, 2, 8), "leave": np.eye(8)[:, :3]}
    params = {"layers": layers, **ends}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)

    def scanned(params, x):
        x = jax.lax.scan(lambda x, p: (_layer(x, p), None), x @ params["enter"], params["layers"])[0]
        return _norm(x, params["norm"]) @ params["leave"]

    def plain(params, x):
        x = x @ params["enter"]
        for i in range(DEPTH):
            x = _layer(x, params[f"layer{i}"])
        return _norm(x, params["norm"]) @ params["leave"]

    return params, scanned, plain, jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)


def _one_by_one(params):
    layers = {f"layer{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(DEPTH)}
    return {**{name: leaf for name, leaf in params.items() if name != "layers"}, **layers}


FOUR = jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1))
STACKED = jqz.Symmetric(bits=4, granularity=jqz.PerAxis((0, -1)))
REWRITERS = {
    "smooth_quant": lambda fn, params, x, weight: algorithms.smooth_quant(fn, params, [x]),
    "awq": lambda fn, params, x, weight: algorithms.awq(fn, params, jqz.Policy({"**/{up,down}": weight}), [x]),
    "equalize": lambda fn, params, x, weight: algorithms.equalize(fn, params, x),
    "hadamard": lambda fn, params, x, weight: algorithms.hadamard(fn, params, jax.random.key(0), x),
}


@pytest.mark.parametrize("name", REWRITERS)
def test_layers_of_a_scan_are_rewritten_as_layers_one_by_one(name):
    params, scanned, plain, x = _stacked_layers()
    wanted = REWRITERS[name](plain, _one_by_one(params), x, FOUR)
    got = REWRITERS[name](scanned, params, x, STACKED)
    for path, leaf in jax.tree_util.tree_leaves_with_path(_one_by_one(got)):
        expected = wanted
        for key in path:
            expected = expected[key.key]
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-6, err_msg=jax.tree_util.keystr(path))
    moved = [np.abs(got["layers"][part] - params["layers"][part]).max((1, 2)) for part in ("up", "down")]
    assert (np.stack(moved) > 0.01).all(), "a layer stayed as it was"


def test_a_stack_that_is_also_used_whole_is_left_alone():
    params, scanned, _, x = _stacked_layers()

    def both(params, x):
        return scanned(params, x) + jnp.einsum("bi,lio->blo", x[:, :4], params["layers"]["wide"]).sum(1)[:, :3]

    stacks = {whole_path(path) for link in _links.find(both, params, (x,)) for path in link.paths}
    assert "layers/up" in stacks
    assert "layers/wide" not in stacks
    assert "layers/wide" in {whole_path(p) for link in _links.find(scanned, params, (x,)) for p in link.paths}
