import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jqz
from jqz import _packing, _transform

S8, S4 = jqz.Symmetric(bits=8), jqz.Symmetric(bits=4)
PER_CHANNEL = jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1))
CLIPPED = jqz.Symmetric(bits=3, range=jqz.ranges.OCTAV())


def _normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _tree():
    return {
        "a": {"kernel": _normal(6, 4), "bias": _normal(4)},
        "b": [{"kernel": _normal(4, 4, seed=1)}, {"kernel": _normal(4, 2, seed=2)}],
        "step": jnp.int32(3),
    }


def _is_q(x):
    return isinstance(x, jqz.QTensor)


POLICY = jqz.Policy({"b/1/**": None, "b/**/kernel": PER_CHANNEL, "**/kernel": S8})


def test_quantize_replaces_what_the_policy_selects():
    tree = _tree()
    q = jqz.quantize(tree, POLICY)
    assert [q["a"]["kernel"].scheme, q["b"][0]["kernel"].scheme] == [S8, PER_CHANNEL]
    assert q["a"]["bias"] is tree["a"]["bias"]
    assert q["b"][1]["kernel"] is tree["b"][1]["kernel"]
    assert q["step"] is tree["step"]
    assert jax.tree.structure(jqz.dequantize(q)) == jax.tree.structure(tree)


def test_dequantize_is_fake_quantize_is_each_leaf_by_itself():
    tree = _tree()
    back, fake = jqz.dequantize(jqz.quantize(tree, POLICY)), jqz.fake_quantize(tree, POLICY)
    alone = {**tree, "a": {**tree["a"], "kernel": S8.simulate(tree["a"]["kernel"])}}
    alone["b"] = [{"kernel": PER_CHANNEL.simulate(tree["b"][0]["kernel"])}, tree["b"][1]]
    for other in (back, fake):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), other, alone)
    assert fake["step"] is tree["step"]


def test_dequantize_leaves_other_trees_alone():
    tree = _tree()
    again = jqz.dequantize(tree)
    assert all(x is y for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(again), strict=True))


def test_containers_survive():
    Pair = collections.namedtuple("Pair", "kernel bias")
    tree = {"x": Pair(_normal(3, 3), _normal(3)), "y": (None, [_normal(2, 2)])}
    q = jqz.quantize(tree, S4)
    assert isinstance(q["x"], Pair)
    assert _is_q(q["x"].kernel)
    assert q["y"][0] is None
    assert _is_q(q["y"][1][0])
    numpy = jqz.quantize({"kernel": np.ones((2, 2), np.float32)}, S4)
    assert jqz.dequantize(numpy)["kernel"].tolist() == [[1, 1], [1, 1]]


def test_one_compiled_call_for_a_whole_tree():
    """Not a dispatch a leaf: one program for coding, one for decoding, none when shapes are seen again."""
    jax.clear_caches()
    tree = {str(i): {"kernel": _normal(5 + i % 2, 7, seed=i)} for i in range(12)}
    q = jqz.quantize(tree, PER_CHANNEL)
    jqz.dequantize(q)
    assert _transform._quantize_leaves._cache_size() == 1
    assert _transform._dequantize_leaves._cache_size() == 1
    jqz.dequantize(jqz.quantize(jax.tree.map(lambda x: x * 2, tree), PER_CHANNEL))
    assert _transform._quantize_leaves._cache_size() == 1
    assert _transform._dequantize_leaves._cache_size() == 1


def test_under_jit_and_vmap():
    tree = _tree()
    q, back = jax.jit(lambda t: (jqz.quantize(t, POLICY), jqz.dequantize(jqz.quantize(t, POLICY))))(tree)
    assert q["b"][0]["kernel"].scheme == PER_CHANNEL
    eager = jqz.dequantize(jqz.quantize(tree, POLICY))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), back, eager)
    stack = {"kernel": _normal(3, 4, 5)}
    mapped = jax.vmap(lambda t: jqz.dequantize(jqz.quantize(t, S4)))(stack)
    for i in range(3):
        np.testing.assert_allclose(mapped["kernel"][i], jqz.fake_quantize(stack["kernel"][i], S4), rtol=1e-6, atol=1e-7)


def test_values_that_are_not_finite_are_named_outside_jit():
    tree = _tree()
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        tree["b"][0]["kernel"] = _normal(4, 4).at[1, 2].set(bad)
        for scheme in (S8, CLIPPED, S8 >> S4, jqz.Symmetric(bits=8, range=jqz.ranges.Given(-1.0, 1.0))):
            with pytest.raises(ValueError, match="quantize: 'b/0/kernel' holds NaN or infinite values"):
                jqz.quantize(tree, scheme)
    with pytest.raises(ValueError, match="quantize: the array holds NaN"):
        jqz.quantize(jnp.asarray([jnp.nan]), S8)
    jax.jit(lambda t: jqz.quantize(t, S8))(tree)  # a traced value cannot be looked at
    assert jnp.isnan(jqz.fake_quantize(jnp.asarray([jnp.nan, 1.0]), S8)).any()  # a diverging run shows as one


def test_large_leaves_are_looked_at_value_by_value():
    """XLA's maximum passes over NaN in large arrays, and a sum of large values is not finite."""
    large = jnp.full((300, 300), 3e38)
    for scheme in (S8, PER_CHANNEL, CLIPPED):
        assert jqz.quantize(large, scheme).shape == large.shape
        for bad in (jnp.nan, -jnp.inf):
            with pytest.raises(ValueError, match="quantize: the array holds NaN or infinite values"):
                jqz.quantize(jnp.ones((300, 300)).at[7, 299].set(bad), scheme)


def test_errors_name_the_leaf_and_its_shape():
    grouped = jqz.Symmetric(bits=4, granularity=jqz.PerAxis(2))
    for verb in (jqz.quantize, jqz.fake_quantize):
        with pytest.raises(ValueError, match=rf"{verb.__name__}: 'a/kernel' has shape \(6, 4\); PerAxis\(2\) needs"):
            verb(_tree(), jqz.Policy({"a/kernel": grouped}))
        with pytest.raises(ValueError, match=rf"{verb.__name__}: PerAxis\(2\) needs axis 2"):
            verb(jnp.ones((2, 2)), grouped)
    with pytest.raises(TypeError, match="fake_quantize: 'x' is str, wanted an array"):
        jqz.fake_quantize({"x": "text"}, lambda path, leaf: S8)


def test_stochastic_rounding_takes_a_key_for_each_leaf():
    scheme = jqz.Symmetric(bits=4, rounding=jqz.rounding.Stochastic())
    tree = {"a": {"kernel": _normal(20, 20)}, "b": {"kernel": _normal(20, 20)}}
    key = jax.random.key(3)
    q = jqz.quantize(tree, scheme, key=key)
    assert q["a"]["kernel"].scheme == scheme  # the key is not stored
    assert (q["a"]["kernel"].codes != q["b"]["kernel"].codes).any()
    again = jqz.quantize(tree, scheme, key=key)
    np.testing.assert_array_equal(q["a"]["kernel"].codes, again["a"]["kernel"].codes)
    fake = jqz.fake_quantize(tree, scheme, key=key)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), fake, jqz.dequantize(q))
    other = jqz.quantize(tree, scheme, key=jax.random.key(4))
    assert (q["a"]["kernel"].codes != other["a"]["kernel"].codes).any()
    values = np.asarray(tree["a"]["kernel"])
    off = np.abs(np.asarray(fake["a"]["kernel"]) - values) / float(q["a"]["kernel"].grid.scale[0, 0])
    assert off.max() <= 1 + 1e-5
    with pytest.raises(ValueError, match=r"quantize: 'a/kernel' has shape \(20, 20\); Stochastic: got no key"):
        jqz.quantize(tree, scheme)
    chained = jqz.quantize(tree, scheme >> scheme, key=key)["a"]["kernel"]
    assert chained.scheme == scheme >> scheme


def test_a_stored_scheme_holds_no_arrays():
    x = _normal(4, 4)
    with pytest.raises(TypeError, match=r"(?s)quantize: the array has the scheme .*an array.*key=key.*int\(bits\)"):
        jqz.quantize(x, jqz.Symmetric(bits=4, rounding=jqz.rounding.Stochastic(jax.random.key(0))))
    with pytest.raises(TypeError, match="quantize: 'w' has the scheme"):
        jqz.quantize({"w": x}, lambda path, leaf: jqz.Symmetric(bits=jnp.int32(4)))
    jqz.fake_quantize(x, jqz.Symmetric(bits=4, rounding=jqz.rounding.Stochastic(jax.random.key(0))))


def test_one_compilation_sweeps_bit_widths():
    x = _normal(50)
    traces = []

    @jax.jit
    def sweep(bits):
        traces.append(bits)
        return jqz.fake_quantize(x, jqz.Symmetric(bits=bits))

    for bits in (2, 5, 8, 12):
        np.testing.assert_allclose(sweep(bits), jqz.fake_quantize(x, jqz.Symmetric(bits=bits)), rtol=1e-6, atol=1e-7)
    assert len(traces) == 1


def test_gradient_of_fake_quantize_goes_straight_through():
    tree = {"kernel": _normal(6, 4), "bias": _normal(4)}
    weight = {"kernel": _normal(6, 4, seed=5), "bias": _normal(4, seed=6)}

    def loss(tree, policy):
        return sum(jax.tree.leaves(jax.tree.map(lambda w, x: (w * x).sum(), weight, jqz.fake_quantize(tree, policy))))

    gradient = jax.jit(jax.grad(lambda t: loss(t, S4)))(tree)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-6), gradient, weight)
    limit = jqz.Symmetric(bits=4, range=jqz.ranges.Given(-0.5, 0.5))
    clipped = jax.grad(lambda t: loss(t, limit))(tree)["kernel"]
    np.testing.assert_array_equal(clipped, jnp.where(jnp.abs(tree["kernel"]) <= 0.5, weight["kernel"], 0))


def test_a_loss_on_codes_is_refused():
    x = _normal(4, 4)
    for take in (jax.grad, lambda f: jax.jit(jax.grad(f)), jax.value_and_grad):
        with pytest.raises(TypeError, match=r"quantize: integer codes have no gradient. Use fake_quantize\(params"):
            take(lambda x: jqz.dequantize(jqz.quantize(x, S4)).sum())(x)
    through = jax.grad(lambda x: (x * jqz.dequantize(jqz.quantize(jax.lax.stop_gradient(x), S4))).sum())(x)
    np.testing.assert_allclose(through, jqz.fake_quantize(x, S4), rtol=1e-6)


def test_training_a_quantized_linen_model():
    """The issue's own lines: straight-through training under jit brings the loss down."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.relu(nn.Dense(16)(x)))

    model, x = Model(), _normal(64, 5)
    y = jnp.argmax(x @ _normal(5, 3, seed=9), -1)
    variables = model.init(jax.random.key(0), x)
    policy = jqz.Policy({"**/Dense_1/kernel": None, "**/kernel": PER_CHANNEL})

    def loss(variables, x, y):
        logits = model.apply(jqz.fake_quantize(variables, policy), x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    step = jax.jit(jax.value_and_grad(loss))
    optimizer = optax.adam(0.02)
    state = optimizer.init(variables)
    first = float(step(variables, x, y)[0])
    for _ in range(60):
        value, gradient = step(variables, x, y)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
            updates, state = optimizer.update(gradient, state)
        variables = optax.apply_updates(variables, updates)
    assert float(value) < first / 4
    qparams = jqz.quantize(variables, policy)
    logits = model.apply(jqz.dequantize(qparams), x)
    np.testing.assert_allclose(
        optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), step(variables, x, y)[0], rtol=1e-5
    )
    assert (logits.argmax(-1) == y).mean() > 0.9


def test_training_a_quantized_nnx_model():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    x = _normal(4, 3)
    graph, state = nnx.split(model)

    def loss(state):
        return (nnx.merge(graph, jqz.fake_quantize(state, {"**/kernel": S4}))(x) ** 2).sum()

    kernel = model.kernel[...]
    gradient = jax.jit(jax.grad(loss))(state)["kernel"]
    fake = jqz.fake_quantize(kernel, S4)
    np.testing.assert_allclose(jax.tree.leaves(gradient)[0], 2 * x.T @ (x @ fake), rtol=1e-4, atol=1e-5)


def test_size_is_what_is_stored():
    tree = _tree()
    floats = 4 * sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert jqz.size_bytes(tree) == floats
    q = jqz.quantize(tree, POLICY)
    rows = 6 * 4 + 4  # 8 bits and one scale
    packed = 4 * _packing.packed_length(4, 4) + 4 * 4  # 4 bits and four scales
    assert jqz.size_bytes(q) == floats - 4 * (24 + 16) + rows + packed
    assert jqz.size_bytes(q) == sum(leaf.nbytes for leaf in jax.tree.leaves(q))
    assert jqz.size_bytes(jnp.ones((5, 3), jnp.int4)) == 8  # nbytes says 15
    assert jqz.size_bytes({"a": np.ones(3), "b": None, "c": 2.5, "key": jax.random.key(0)}) == 24 + 8
    assert jqz.size_bytes({}) == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_bits_per_weight(bits):
    q = jqz.quantize({"kernel": _normal(64, 40), "bias": _normal(40)}, jqz.Symmetric(bits=bits))
    assert jqz.bits_per_weight(q["kernel"]) == pytest.approx(bits + 32 / 2560)
    assert jqz.bits_per_weight(q) == pytest.approx((bits * 2560 + 32 + 32 * 40) / 2600)
    assert jqz.bits_per_weight({}) == 0
