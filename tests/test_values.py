"""Lazy values stand for the arrays that they decode to, and integer levels say what their scheme says."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz import _qtensor, _values

VARIANTS = [scheme for variants in jqz.schemes.CATALOGUE.values() for scheme in variants]


def tensor(scheme, shape=(24, 6), dtype=jnp.float32):
    """Values of several magnitudes, and the extremes of their range."""
    x = np.random.default_rng(0).standard_normal(shape) * 10.0 ** np.arange(shape[-1])
    return jqz.quantize(jnp.asarray(x, dtype), scheme, key=jax.random.key(0))


def levelled(q):
    levels = _values.as_levels(_values.Coded(q, "kernel"))
    return [] if levels is None else [levels]


@pytest.mark.parametrize("scheme", VARIANTS, ids=repr)
def test_levels_mean_what_codes_mean_and_keep_to_their_limit(scheme):
    """The guard against overflow trusts that neither levels nor zero points exceed the limit."""
    q = tensor(scheme)
    for levels in levelled(q):
        assert levels.levels.dtype == jnp.int8
        assert levels.shape == q.shape
        assert levels.path == "kernel"
        # a chain multiplies its scales in another order
        np.testing.assert_allclose(levels.decode(), q.dequantize(), rtol=3e-7)
        assert 1 <= levels.limit <= 128
        assert np.abs(np.asarray(levels.levels, int)).max() <= levels.limit
        if levels.zero_point is not None:
            assert levels.zero_point.dtype == jnp.int32
            assert levels.zero_point.shape == levels.scale.shape
            assert np.abs(np.asarray(levels.zero_point)).max() <= levels.limit


def test_the_integer_schemes_have_levels_up_to_8_bits():
    """PowerOfTwo has them up to 4: its highest level is 2 ** (2 ** (bits - 1) - 2)."""
    with_levels = [
        *(jqz.Symmetric(bits=bits) for bits in range(2, 9)),
        *(jqz.Asymmetric(bits=bits) for bits in range(1, 9)),
        *(jqz.FixedPoint(bits=bits) for bits in range(2, 9)),
        *(jqz.PowerOfTwo(bits=bits) for bits in (2, 3, 4)),
        jqz.Binary(),
        jqz.Ternary(),
        jqz.Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4),
        jqz.Symmetric(bits=8) >> jqz.Symmetric(bits=4) >> jqz.Ternary(),
    ]
    without = [jqz.Symmetric(bits=9), jqz.PowerOfTwo(bits=5), jqz.Asymmetric(bits=8, anchor=jqz.schemes.Minimum())]
    for scheme in with_levels + without:
        found = []
        jax.eval_shape(lambda x, s=scheme, found=found: found.extend(levelled(_qtensor.encode(x, s))), jnp.ones((4, 4)))
        assert bool(found) == (scheme in with_levels), scheme


@pytest.mark.parametrize(("granularity", "even"), [
    (jqz.PerGroup(4, axis=0), True), (jqz.PerGroup(5, axis=0), False), (jqz.PerBlock((4, 3)), True),
    (jqz.PerBlock((8, 4)), False), (jqz.PerGroup(24, axis=0), True), (jqz.PerGroup(16, axis=0), False),
])  # fmt: skip
def test_groups_must_be_equal(granularity, even):
    assert bool(levelled(tensor(jqz.Symmetric(bits=8, granularity=granularity)))) == even


def test_a_count_that_divides_is_not_yet_an_equal_group():
    """9 values in groups of 4 have 3 entries, and 3 divides 9."""
    q = tensor(jqz.Symmetric(bits=8, granularity=jqz.PerGroup(4, axis=0)), (9, 2))
    assert q.grid.scale.shape == (3, 2)
    assert not levelled(q)


def test_chains_have_levels_where_one_grouping_expands_all_their_scales():
    tensors, groups = [], [jqz.PerTensor(), jqz.PerAxis(-1), jqz.PerGroup(4, axis=0)]
    for inner, outer in itertools.product(groups, repeat=2):
        tensors.append(jqz.Symmetric(bits=8, granularity=inner) >> jqz.Ternary(granularity=outer))

    @jax.jit
    def decoded(x):
        coded = [_qtensor.encode(x, scheme) for scheme in tensors]
        return [(levels.decode(), q.dequantize()) for q in coded for levels in levelled(q)]

    pairs = decoded(tensor(jqz.Symmetric(bits=8)).dequantize())
    assert len(pairs) == len(tensors)
    for got, wanted in pairs:
        np.testing.assert_allclose(got, wanted, rtol=3e-7)
    two = jqz.Symmetric(bits=8, granularity=jqz.PerGroup(4, 0)) >> jqz.Ternary(granularity=jqz.PerGroup(8, 0))
    assert not levelled(tensor(two))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_levels_of_narrow_tensors_decode_as_those_do(dtype):
    """The highest level may lie beyond the largest number of the dtype, and is held back to it."""
    x = jnp.full((4, 4), jnp.finfo(dtype).max).at[0].set(-1)
    for scheme in (jqz.Symmetric(bits=8), jqz.Asymmetric(bits=3), jqz.FixedPoint(bits=3)):
        q = jqz.quantize(x, scheme)
        (levels,) = levelled(q)
        assert levels.decode().dtype == dtype
        np.testing.assert_array_equal(levels.decode(), q.dequantize())


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1)])
def test_ungrouping_changes_no_value(axes):
    (levels,) = levelled(tensor(jqz.Asymmetric(bits=4, granularity=jqz.PerBlock((4, 3)))))
    fine = levels.ungrouped(axes)
    assert fine.grouped_axes == tuple(sorted({0, 1} - set(axes)))
    np.testing.assert_array_equal(fine.decode(), levels.decode())


def test_casts_round_one_after_the_other():
    q = tensor(jqz.Symmetric(bits=8))
    casts = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16), jnp.dtype(jnp.float32))
    wanted = q.dequantize().astype(jnp.bfloat16).astype(jnp.float16).astype(jnp.float32)
    coded = _values.Coded(q, "kernel", casts)
    levels = _values.as_levels(coded)
    assert levels is not None
    for value in (coded, levels):
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value.decode(), wanted)


def test_values_pass_through_transformations_whole():
    """They are pytrees: jit takes and returns them with their names."""
    q = tensor(jqz.Asymmetric(bits=4))
    coded = _values.Coded(q, "kernel", (jnp.dtype(jnp.float16),))
    for value in (coded, _values.as_levels(coded), _values.Weight(q.dequantize(), "kernel")):
        back = jax.jit(lambda v: v)(value)
        assert type(back) is type(value)
        assert (back.path, back.shape, back.dtype) == (value.path, value.shape, value.dtype)
        np.testing.assert_array_equal(back.decode(), value.decode())


def test_only_weights_are_weights():
    q = tensor(jqz.Symmetric(bits=8))
    coded, x = _values.Coded(q, "kernel"), q.dequantize()
    for value in (coded, _values.as_levels(coded), _values.Weight(x, "kernel")):
        assert _values.is_weight(value)
    for value in (x, 1.0, q):
        assert not _values.is_weight(value)
        assert _values.decode(value) is value
