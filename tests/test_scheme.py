"""The contract itself, and chains; what every scheme obeys is in test_laws.py."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz import _scheme

A, B, C = jqz.Symmetric(bits=8), jqz.Symmetric(bits=5, granularity=jqz.PerAxis(-1)), jqz.PowerOfTwo(bits=4)
TABLE = jqz.Codebook(bits=3)


def _levels_of(affine, codes):
    zero_point = 0 if affine.zero_point is None else affine.zero_point
    return (affine.levels(codes).astype(jnp.int32) - zero_point).astype(jnp.float32)


def _normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_chain_is_flat_associative_and_has_a_neutral_element():
    assert (A >> B) >> C == A >> (B >> C) == jqz.chain(A, B, C)
    assert hash((A >> B) >> C) == hash(jqz.chain(A, B, C))
    assert jqz.chain(A) is A
    assert jqz.chain() == jqz.Identity()
    identity = jqz.Identity()
    assert identity >> A == A >> identity == A
    assert jqz.chain(identity, A, identity, B) == A >> B
    assert jqz.chain(identity, identity) == identity
    assert B >> A != A >> B != A
    assert repr(A >> B) == "Symmetric(bits=8) >> Symmetric(bits=5, granularity=PerAxis(-1))"


def test_chain_refuses_what_is_no_scheme():
    with pytest.raises(TypeError, match=r"chain: got 4, wanted schemes. Use chain\(Symmetric\(bits=8\)"):
        jqz.chain(A, 4)
    with pytest.raises(TypeError, match="unsupported operand"):
        A >> 4


@pytest.mark.parametrize("chain", [A >> C, B >> A, A >> B >> C, TABLE >> B, A >> TABLE], ids=str)
def test_chain_encodes_codes_of_codes(chain):
    """encode is the last after ... after the first, decode the first after ... after the last."""
    x = _normal(9, 6)
    grid, values, codes = chain.calibrate(x), x, None
    for stage, part in zip(chain.stages, grid, strict=True):
        jax.tree.map(np.testing.assert_array_equal, stage.calibrate(values), part)
        codes = stage.encode(values, part)
        values = codes.astype(jnp.float32)
    np.testing.assert_array_equal(chain.encode(x, grid), codes)
    assert chain.bits == chain.stages[-1].bits
    assert chain.code_dtype == chain.stages[-1].code_dtype == codes.dtype
    q = jqz.quantize(x, chain)
    assert len(jax.tree.leaves(q.grid)) == sum(len(jax.tree.leaves(part)) for part in grid)
    back = chain.stages[-1].decode(codes, grid[-1])
    for stage, part in zip(chain.stages[-2::-1], grid[-2::-1], strict=True):
        back = stage.decode(back if stage.linear else jnp.round(back).astype(stage.code_dtype), part)
    np.testing.assert_allclose(chain.decode(codes, grid), back, rtol=1e-6)


def test_the_issue_s_chain_stores_four_bits_of_scaled_powers():
    x = _normal(64, 32)
    q = jqz.quantize(x, jqz.Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4))
    assert jqz.bits_per_weight(q) < 4.1
    values = np.unique(np.abs(np.asarray(jqz.dequantize(q), np.float64)))
    exponents = np.log2(values[values > 0] / values[-1])
    np.testing.assert_allclose(exponents, np.rint(exponents), atol=1e-5)
    affine = q.scheme.affine(q.grid)
    assert affine.zero_point is None
    assert set(np.abs(np.asarray(affine.levels(q.codes), int)).ravel()) <= {0, *(2**k for k in range(7))}
    assert affine.limit <= 128
    np.testing.assert_allclose(affine.scale * _levels_of(affine, q.codes), jqz.dequantize(q), rtol=1e-6)


GROUPS = [jqz.PerTensor(), jqz.PerAxis(-1), jqz.PerAxis(0), jqz.PerGroup(4), jqz.PerGroup(3), jqz.PerBlock((4, 2))]


@pytest.mark.parametrize(("outer", "inner"), [*itertools.product(GROUPS, GROUPS)], ids=str)
def test_affine_of_a_chain_of_any_granularities_is_right_or_none(outer, inner):
    x = _normal(10, 6)
    chain = jqz.Symmetric(bits=8, granularity=outer) >> jqz.Symmetric(bits=4, granularity=inner)
    grid = chain.calibrate(x)
    codes = chain.encode(x, grid)
    affine = chain.affine(grid)
    shapes = [part.scale.shape for part in grid]
    together = np.all([1 in pair or pair[0] == pair[1] for pair in zip(*shapes, strict=True)])
    if not together or len({g for g in (outer, inner) if g.groups}) == 2:
        assert affine is None
        return
    values = chain.granularity.expand(affine.scale, x.shape) * _levels_of(affine, codes)
    np.testing.assert_allclose(values, chain.decode(codes, grid), rtol=1e-6)


def test_affine_of_a_chain_needs_linear_codes_about_zero():
    x = _normal(8, 4)
    for chain in (TABLE >> A, jqz.Asymmetric(bits=8) >> A, A >> TABLE):
        assert chain.affine(chain.calibrate(x)) is None
    shifted = A >> jqz.Asymmetric(bits=4)
    grid = shifted.calibrate(x + 1)
    codes, affine = shifted.encode(x + 1, grid), shifted.affine(grid)
    np.testing.assert_allclose(affine.scale * _levels_of(affine, codes), shifted.decode(codes, grid), rtol=1e-6)


def test_a_table_s_codes_never_leave_the_table():
    """The power of two nearest to code 7 is 8, which a table of 8 levels does not have."""
    levels = tuple(float(v) for v in range(8))
    chain = jqz.Codebook(bits=3, levels=jqz.schemes.GivenLevels(levels)) >> jqz.PowerOfTwo(bits=4)
    values = jqz.fake_quantize(jnp.asarray(levels), chain)
    assert jnp.isfinite(values).all()
    assert float(values.max()) <= max(levels)


def test_slope_of_a_chain_is_the_product():
    """Values that any stage clips get no gradient, as they would not by that stage alone."""
    x = jnp.asarray([-1.0, -0.6, -0.1, 0.3, 0.5, 1.0])
    clip = jqz.Symmetric(bits=4, range=jqz.ranges.Given(-64.0, 64.0))  # of codes up to 127
    weight = jnp.arange(1.0, 7.0)

    def gradient(scheme):
        return jax.grad(lambda x: (weight * jqz.fake_quantize(x, scheme)).sum())(x).tolist()

    assert gradient(A >> A) == weight.tolist()
    assert gradient(A >> clip) == [0, 0, 3, 4, 5, 0]
    first = jqz.Symmetric(bits=8, range=jqz.ranges.Given(-0.5, 0.5))
    assert gradient(first >> A) == [0, 0, 3, 4, 5, 0]
    assert gradient(A >> clip >> A) == [0, 0, 3, 4, 5, 0]


def test_keys_reach_every_stochastic_stage():
    random = jqz.Symmetric(bits=3, rounding=jqz.rounding.Stochastic())
    keyed = (A >> random >> random).with_key(jax.random.key(0))
    assert keyed.stages[0] == A
    keys = [jax.random.key_data(stage.rounding.key).tolist() for stage in keyed.stages[1:]]
    assert keys[0] != keys[1]
    own = jqz.Symmetric(bits=3, rounding=jqz.rounding.Stochastic(jax.random.key(5)))
    assert own.with_key(jax.random.key(0)) is own
    assert A.with_key(jax.random.key(0)) is A


@_scheme.scheme
class _Halves(_scheme.Scheme):
    """The least that an author writes."""

    bits: int = 8
    granularity: jqz.Granularity = jqz.PerTensor()

    def calibrate(self, x):
        return ()

    def encode(self, x, grid):
        return jnp.clip(jnp.round(2 * x), -128, 127).astype(self.code_dtype)

    def decode(self, codes, grid):
        return codes.astype(jnp.float32) / 2


def test_three_methods_make_a_scheme():
    x, scheme = _normal(5, 3), _Halves()
    np.testing.assert_array_equal(jqz.fake_quantize(x, scheme), np.round(2 * np.asarray(x)) / 2)
    np.testing.assert_array_equal(jqz.dequantize(jqz.quantize(x, scheme)), jqz.fake_quantize(x, scheme))
    np.testing.assert_array_equal(jax.grad(lambda x: jqz.fake_quantize(x, scheme).sum())(x), jnp.ones((5, 3)))
    assert jqz.quantize({"kernel": x}, scheme)["kernel"].shape == (5, 3)
    assert scheme.affine(()) is None
    assert (repr(scheme), repr(_Halves(bits=4))) == ("_Halves(bits=8)", "_Halves(bits=4)")
    assert isinstance(scheme >> A, _scheme.Chain)
    with pytest.raises(dataclasses.FrozenInstanceError):
        scheme.bits = 3
    with pytest.raises(TypeError, match="abstract"):
        _scheme.Scheme()


def test_simulate_on_a_given_grid():
    grid = A.calibrate(jnp.asarray([2.54]))
    value, pull = jax.vjp(lambda x, scale: A.simulate(x, grid._replace(scale=scale)), jnp.asarray([0.031]), grid.scale)
    np.testing.assert_allclose(value, [0.04], rtol=1e-6)
    to_x, to_scale = pull(jnp.asarray([3.0]))
    assert (to_x.tolist(), to_scale.tolist()) == ([3.0], [0.0])


def test_shared_helpers_refuse():
    for bits in (1, 17, 2.0, True, "4", None):
        with pytest.raises(ValueError, match=r"Symmetric: got bits=.*wanted an integer from 2 to 16"):
            jqz.Symmetric(bits=bits)
    with pytest.raises(TypeError, match="got dtype int32, wanted a floating dtype"):
        A.calibrate(jnp.ones(3, jnp.int32))
    with pytest.raises(TypeError, match="wanted a floating dtype"):
        jqz.Identity().calibrate(jnp.ones(3, jnp.int32))


def test_grids_are_as_wide_as_the_work():
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        assert A.calibrate(jnp.ones(3, dtype)).scale.dtype == jnp.float32
    with jax.enable_x64(True):
        assert A.calibrate(jnp.ones(3, jnp.float64)).scale.dtype == jnp.float64
