import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz import _packing, _qtensor

BITS = [2, 3, 4, 7, 8, 12]


def _values(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _coded(*shape, bits=4, granularity=jqz.PerAxis(-1), seed=0):
    return jqz.quantize(_values(*shape, seed=seed), jqz.Symmetric(bits=bits, granularity=granularity))


@pytest.mark.parametrize("bits", BITS)
def test_shape_and_bytes(bits):
    q = _coded(3, 5, 7, bits=bits)
    assert (q.shape, q.ndim, q.size, q.dtype) == ((3, 5, 7), 3, 105, jnp.float32)
    assert q.codes.shape == q.shape
    assert q.codes.dtype == (jnp.int8 if bits <= 8 else jnp.int16)
    row = _packing.packed_length(7, bits) if bits <= 8 else 7 * 2
    assert q.payload.nbytes == 15 * row
    assert q.size_bytes == 15 * row + 7 * 4
    if bits < 8:
        assert q.payload.dtype == jnp.uint8
        assert row < 7 or bits == 7


@pytest.mark.parametrize("bits", [3, 8])
def test_is_a_pytree_that_jit_takes_and_gives(bits):
    q = _coded(4, 6, bits=bits)
    leaves, treedef = jax.tree.flatten(q)
    assert [leaf.shape for leaf in leaves] == [q.payload.shape, (1, 6)]
    again = jax.tree.unflatten(treedef, leaves)
    assert (again.scheme, again.dtype, again.shape) == (q.scheme, q.dtype, q.shape)
    through = jax.jit(lambda q: q)(q)
    np.testing.assert_array_equal(through.codes, q.codes)
    np.testing.assert_array_equal(jax.jit(jqz.QTensor.dequantize)(q), jqz.dequantize(q))
    assert jax.eval_shape(lambda q: q, q).shape == (4, 6)
    named = jax.tree_util.tree_leaves_with_path({"w": q})
    assert [jax.tree_util.keystr(path) for path, _ in named] == ["['w'].payload", "['w'].grid.scale"]


def test_schemes_are_part_of_the_structure():
    a, b = _coded(4, 6, bits=4), _coded(4, 6, bits=3)
    assert jax.tree.structure(a) != jax.tree.structure(b)
    assert jax.tree.structure(a) == jax.tree.structure(_coded(4, 6, bits=4, seed=1))
    traces = []

    @jax.jit
    def decode(q):
        traces.append(q.scheme)
        return q.dequantize()

    for q in (a, _coded(4, 6, bits=4, seed=1), b):
        decode(q)
    assert traces == [a.scheme, b.scheme]


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize(
    "granularity", [jqz.PerAxis((0, -1)), jqz.PerGroup(2), jqz.PerBlock((3, 2)), jqz.PerAxis((0,))], ids=str
)
def test_a_stack_slices_under_scan_and_vmap(bits, granularity):
    stack = _coded(3, 5, 7, bits=bits, granularity=granularity)
    whole = jqz.dequantize(stack)
    _, scanned = jax.lax.scan(lambda carry, layer: (carry, layer.dequantize()), 0, stack)
    np.testing.assert_array_equal(scanned, whole)
    np.testing.assert_array_equal(jax.vmap(lambda layer: layer.dequantize())(stack), whole)
    layer = jax.tree.map(lambda leaf: leaf[1], stack)
    assert layer.shape == (5, 7)
    np.testing.assert_array_equal(layer.dequantize(), whole[1])
    np.testing.assert_array_equal(layer.codes, stack.codes[1])


def test_vmap_stacks_tensors():
    x = _values(3, 5, 7)
    scheme = jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1))
    stack = jax.vmap(lambda x: jqz.quantize(x, scheme))(x)
    assert stack.shape == (3, 5, 7)
    assert stack.grid.scale.shape == (3, 1, 7)
    per_layer = jqz.quantize(x, jqz.Symmetric(bits=4, granularity=jqz.PerAxis((0, -1))))
    np.testing.assert_array_equal(stack.codes, per_layer.codes)
    np.testing.assert_array_equal(jax.vmap(jqz.dequantize)(stack), jqz.dequantize(per_layer))


def test_a_packed_axis_cannot_be_sliced_away():
    q = _coded(7, granularity=jqz.PerTensor())
    with pytest.raises(ValueError, match=r"the packed axis was sliced away.*Use dequantize before slicing"):
        jax.vmap(lambda q: q.codes, in_axes=(jax.tree.map(lambda leaf: 0 if leaf.size > 1 else None, q),))(q)


def test_functions_that_want_an_array_say_what_to_do():
    q = _coded(4, 6)
    for use in (jnp.sum, jnp.asarray, lambda q: jnp.ones((2, 4)) @ q, lambda q: jnp.dot(jnp.ones((2, 4)), q)):
        with pytest.raises(TypeError, match=r"a QTensor met a JAX function; wrap the model: quantized\(model.apply\)"):
            use(q)
    with pytest.raises(TypeError, match=r"a QTensor met a NumPy function; decode it first: np.asarray\(dequantize"):
        np.asarray(q)
    with pytest.raises(TypeError):
        q * 2


def test_no_gradient_flows_through_codes():
    q = _coded(4, 6)
    with pytest.raises(TypeError, match="uint8"):
        jax.grad(lambda q: q.dequantize().sum())(q)
    # with respect to the grid alone, it does
    gradient = jax.grad(lambda grid: _qtensor.QTensor(q.payload, grid, q.scheme, q.dtype, q.length).dequantize().sum())
    np.testing.assert_allclose(gradient(q.grid).scale, q.codes.sum(0, keepdims=True, dtype=jnp.int32))


def test_repr():
    q = _coded(4, 6)
    assert repr(q) == "QTensor(shape=(4, 6), dtype=float32, scheme=Symmetric(bits=4, granularity=PerAxis(-1)))"
    assert "QTensor" in repr(jax.eval_shape(lambda q: q, q))
    assert "Symmetric(bits=4" in str(jax.tree.structure(q)) or "QTensor" in str(jax.tree.structure(q))


def test_trees_of_placeholders():
    q = _coded(4, 6)
    for placeholder in (None, 0, object(), "x"):
        filled = jax.tree.map(lambda _, p=placeholder: p, q)
        assert "QTensor(" in repr(filled)
    axes = jax.tree.map(lambda _: 0, q)
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), q)
    assert jax.vmap(lambda q: q.dequantize(), in_axes=(axes,))(stack).shape == (2, 4, 6)
    assert jax.tree.structure(jax.tree.map(jnp.shape, q, is_leaf=_qtensor.is_qtensor)) != jax.tree.structure(q)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_values_come_back_in_their_dtype_from_a_wide_grid(dtype):
    x = _values(4, 6).astype(dtype)
    q = jqz.quantize(x, jqz.Symmetric(bits=8))
    assert q.dtype == dtype
    assert q.grid.scale.dtype == jnp.float32
    assert q.dequantize().dtype == dtype
    wide = np.asarray(jqz.fake_quantize(x.astype(jnp.float32), jqz.Symmetric(bits=8)))
    got = np.asarray(q.dequantize().astype(jnp.float32))
    np.testing.assert_allclose(got, wide, rtol=2 * float(jnp.finfo(dtype).eps))


def test_narrow_dtypes_saturate():
    x = jnp.asarray([65504.0, 1.0], jnp.float16)
    q = jqz.quantize(x, jqz.Symmetric(bits=8, range=jqz.ranges.Given(-7e4, 7e4)))
    assert float(q.scheme.decode(q.codes, q.grid)[0]) > 65520  # infinity in float16
    assert q.dequantize().tolist() == [65504, 0]
    assert jqz.fake_quantize(x, q.scheme).tolist() == [65504, 0]


def test_identity_stores_the_values():
    x = _values(2, 3)
    q = jqz.quantize(x, jqz.Identity())
    assert q.size_bytes == 24
    np.testing.assert_array_equal(q.dequantize(), x)


def test_scalars_and_empty_arrays():
    for shape in ((), (0,), (0, 3), (3, 0), (1,)):
        q = jqz.quantize(jnp.full(shape, -0.5), jqz.Symmetric(bits=3))
        assert q.shape == q.codes.shape == q.dequantize().shape == shape
        np.testing.assert_array_equal(q.dequantize(), jnp.full(shape, -0.5))
