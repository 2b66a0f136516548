"""What is in a tree comes back: every kind of leaf, every scheme of the catalogue."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from trees import same

import jqz
from jqz import schemes
from jqz._expression import classes_of
from jqz.files import lazy
from jqz.files.tree import DTYPES, describe, rebuild

LISTED = [scheme for variants in schemes.CATALOGUE.values() for scheme in variants]
CHAINS = [jqz.Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4), jqz.Symmetric(bits=8) >> jqz.Ternary()]
X = np.random.default_rng(0).normal(size=(12, 9)).astype(np.float32)


def _through(tree, compress=None, classes=()):
    node, arrays = describe(tree, compress)
    return rebuild(node, {name: lazy.value(array) for name, array in arrays.items()}, classes)


@pytest.fixture(scope="module")
def catalogue():
    """The array coded by every scheme, in one program."""
    return jqz.quantize({repr(s): X for s in (*LISTED, *CHAINS)}, {repr(s): s for s in (*LISTED, *CHAINS)})


@pytest.mark.parametrize("compress", [None, jqz.files.Entropy()], ids=repr)
def test_every_scheme(catalogue, compress):
    back = _through(catalogue, compress)
    same(back, catalogue)
    for name, q in back.items():
        assert q.scheme == catalogue[name].scheme
        assert (q.shape, q.dtype) == (X.shape, np.float32)


def test_what_comes_back_decodes(catalogue):
    same(jqz.dequantize(_through(catalogue)), jqz.dequantize(catalogue))


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype(name):
    bits = np.arange(48, dtype=np.uint8).reshape(3, 16) % (2 if name == "bool" else 48)
    whole = (bits % 4).astype(DTYPES[name]) if "int" in name else bits.view(DTYPES[name])
    tree = {"m": whole, "scalar": whole[0, 0], "empty": whole[:0]}
    same(_through(tree), tree)


def test_containers_and_numbers():
    tree = {"a": [1, (2.5, None), {}, [], ()], 3: "text", "": True, "z": {"n": float("inf"), "c": 1 - 2j, "k": -0.0}}
    assert _through(tree) == tree
    assert np.isnan(_through([float("nan")])[0])
    assert repr(_through(tree)) == repr(tree)
    same(_through(jnp.ones(2)), np.ones(2, np.float32))
    assert _through(None) is None


def test_names_that_meet():
    tree = {"a": {"b": X}, "a/b": 2 * X, "__metadata__": 3 * X, 1: {2: 4 * X}, "1": {"2": 5 * X}}
    node, arrays = describe(tree, None)
    assert sorted(arrays) == ["1/2", "1/2#2", "__metadata__#2", "a/b", "a/b#2"]
    back = rebuild(node, {name: lazy.value(array) for name, array in arrays.items()})
    assert list(back) == list(tree)
    for wanted, got in ((X, back["a"]["b"]), (2 * X, back["a/b"]), (4 * X, back[1][2]), (5 * X, back["1"]["2"])):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_prng_keys(impl):
    keys = jax.random.split(jax.random.key(7, impl=impl), 3)
    back = _through({"k": keys})["k"]
    assert back.dtype == keys.dtype
    np.testing.assert_array_equal(jax.random.key_data(back), jax.random.key_data(keys))


def test_value_dtypes_and_odd_shapes():
    for x in (jnp.ones((3, 5), jnp.bfloat16), jnp.float16(2), jnp.zeros((0, 4)), jnp.ones(7)):
        q = jqz.quantize(x, jqz.Symmetric(bits=3))
        same(_through({"q": q}), {"q": q})


def test_stacked_and_sliced():
    """A grid may have more or fewer axes than its scheme would give it: vmap and scan make such ones."""
    scheme = jqz.Symmetric(bits=4, granularity=jqz.PerAxis((0, -1)))
    q = jqz.quantize(jnp.ones((2, 4, 6)), scheme)
    same(_through(q), q)
    layer = jax.tree.map(lambda a: a[0], q)
    same(_through(layer), layer)
    grouped = jqz.Symmetric(bits=4, granularity=jqz.PerGroup(2, axis=0))
    stack = jax.vmap(lambda x: jqz.quantize(x, grouped))(jnp.ones((2, 4, 6)))
    same(_through(stack), stack)


def test_learnable_and_sites():
    params = {"w": jnp.asarray(X), "b": jnp.ones(9)}
    scheme = jqz.Symmetric(bits=3, gradient=jqz.gradients.LSQ())
    learned = jqz.learnable(params, scheme)
    same(_through(learned), learned)
    policy = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Asymmetric(bits=8))
    sites = jqz.calibrate(jqz.observe(lambda p, x: x @ p["w"], policy)(params, jnp.ones((2, 12))), policy)
    back = _through(sites)
    same(back, sites)
    assert back["w"].scheme == sites["w"].scheme


def test_linen_variables_and_frozen_dicts():
    from flax.core import freeze

    variables = nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 4)))
    same(_through(variables), variables)
    same(_through(freeze(variables)), variables)


def test_nnx_state():
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    graph, state = nnx.split(model)
    back = _through(state)
    wanted = nnx.to_pure_dict(state)
    assert jax.tree.structure(back) == jax.tree.structure(wanted)
    other = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(5)), nnx.Dropout(0.5, rngs=nnx.Rngs(6)))
    nnx.update(other, jax.device_put(back))
    np.testing.assert_array_equal(other.layers[0].kernel[...], model.layers[0].kernel[...])

    coded = jqz.quantize(state, {"**/kernel": jqz.Symmetric(bits=8)})
    x, run = jnp.ones((2, 4)), jqz.quantized(lambda state, x: nnx.merge(graph, state).layers[0](x))
    wanted = run(coded, x)
    nnx.replace_by_pure_dict(coded, _through(coded))
    np.testing.assert_array_equal(run(coded, x), wanted)


@dataclasses.dataclass(frozen=True)
class Halves(jqz.Scheme):
    bits: int = 4
    granularity: jqz.Granularity = jqz.PerTensor()

    def calibrate(self, x):
        return ()

    def encode(self, x, grid):
        return jnp.clip(jnp.round(x * 2), -8, 7).astype(self.code_dtype)

    def decode(self, codes, grid):
        return codes.astype(jnp.float32) / 2


def test_schemes_of_ones_own():
    q = {"w": jqz.quantize(jnp.asarray(X), Halves() >> jqz.Ternary())}
    same(_through(q, classes=[Halves]), q)
    with pytest.raises(ValueError, match=r"'w': .*Halves.* is unknown. .* schemes=\[Halves\]"):
        _through(q)


def test_what_a_scheme_hides_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Hidden(Halves):
        def __repr__(self):
            return "Hidden(bits=8)"

    assert Hidden in classes_of(Hidden())
    with pytest.raises(ValueError, match="'w' would not read back as it is"):
        describe({"w": jqz.quantize(jnp.asarray(X), Hidden())}, None)
    q = jqz.quantize(jnp.asarray(X), jqz.Symmetric(bits=8))
    with pytest.raises(ValueError, match="would not read back"):
        describe(dataclasses.replace(q, grid=(q.grid,)), None)


class Point(typing.NamedTuple):
    x: float


@pytest.mark.parametrize(
    ("leaf", "why"),
    [
        (Point(1.0), "'a/0' is Point, wanted .*_asdict"),
        (object(), "'a/0' is object"),
        (np.array(["text"]), "has dtype <U4"),
        ({1.5: 2}, "has the key 1.5"),
        (np.array([object()]), "has dtype object"),
    ],
)
def test_refusals(leaf, why):
    with pytest.raises(TypeError, match=why):
        describe({"a": [leaf]}, None)
