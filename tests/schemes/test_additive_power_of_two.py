import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz._ranges import MSE, Given
from jqz.schemes import AdditivePowerOfTwo, NonNegative

#: The sets of the paper, a level being the sum of one element of each, before it is divided by the largest.
PAPER = {
    2: ((0, 2**-1, 2**-2, 2**-3),),
    3: ((0, 2**-1, 2**-2, 2**-4), (0, 2**-3)),
    4: ((0, 2**-1, 2**-3, 2**-5), (0, 2**-2, 2**-4, 2**-6)),
    5: ((0, 2**-1, 2**-3, 2**-6), (0, 2**-2, 2**-4, 2**-7), (0, 2**-5)),
}


def magnitudes(bits):
    """The levels of so many magnitude bits, from 0 to 1."""
    if bits == 1:
        return np.array([0.0, 1.0])
    sums = np.unique([sum(terms) for terms in itertools.product(*PAPER[bits])])
    assert len(sums) == 2**bits
    return sums / sums.max()


def by_hand(x, levels):
    """Brute force in float64: the nearest level, of two the smaller magnitude."""
    distance = np.abs(np.asarray(x, np.float64).reshape(-1, 1) - levels)
    chosen = np.where(distance == distance.min(1, keepdims=True), -np.abs(levels), -np.inf).argmax(1)
    return levels[chosen].reshape(np.shape(x))


@functools.partial(jax.jit, static_argnums=0)
def _decoded(scheme, x):
    grid = scheme.calibrate(x)
    return scheme.decode(scheme.encode(x, grid), grid)


def decoded(scheme, x):
    return np.asarray(_decoded(scheme, jnp.asarray(x)))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_levels_are_those_of_the_paper_and_values_go_to_the_nearest(bits):
    levels = magnitudes(bits - 1)
    middles = (levels[1:] + levels[:-1]) / 2
    rng = np.random.default_rng(bits)
    x = np.concatenate([levels, middles * (1 + 1e-5), middles * (1 - 1e-5), rng.uniform(0, 1, 200), [1.0]])
    x = (3 * np.concatenate([x, -x])).astype(np.float32)
    got = decoded(AdditivePowerOfTwo(bits=bits), x)
    np.testing.assert_allclose(got, 3 * by_hand(x / 3, np.concatenate([levels, -levels])), rtol=1e-6)
    assert len(np.unique(got)) == 2**bits - 1


def test_halfway_goes_to_the_smaller_magnitude():
    # levels 0 1 2 4 in steps of 1/4: exact in floating point
    x = np.float32([0.125, 0.375, 0.75, -0.125, -0.375, -0.75, 1])
    assert decoded(AdditivePowerOfTwo(bits=3), x).tolist() == [0, 0.25, 0.5, 0, -0.25, -0.5, 1]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_non_negative_levels_spend_no_bit_on_a_sign(bits):
    scheme = AdditivePowerOfTwo(bits=bits, signs=NonNegative())
    x = np.random.default_rng(bits).uniform(-0.3, 1, 2000).astype(np.float32)
    x[0] = 1
    np.testing.assert_allclose(decoded(scheme, x), by_hand(x, magnitudes(bits)), rtol=1e-6)
    q = jqz.quantize(jnp.asarray(x), scheme)
    assert q.codes.dtype == jnp.uint8
    assert sorted(set(q.codes.tolist())) == list(range(2**bits))
    affine = scheme.affine(q.grid)
    levels = np.asarray(affine.levels(q.codes))
    assert levels.dtype == np.int8
    np.testing.assert_array_equal(np.float32(levels) * np.asarray(affine.scale), jqz.dequantize(q))


@pytest.mark.parametrize(("bits", "limit"), [(2, 1), (3, 4), (4, 10), (5, 48), (6, 100)])
def test_every_code_comes_back_and_has_an_integer_level(bits, limit):
    scheme = AdditivePowerOfTwo(bits=bits)
    x = jnp.linspace(-0.7, 0.7, 200)
    grid = scheme.calibrate(x)
    most = 2 ** (bits - 1) - 1
    codes = jnp.clip(jnp.arange(-31, 32, dtype=jnp.int8), -most, most)  # one shape for all widths
    values = scheme.decode(codes, grid)
    assert len(np.unique(values)) == 2 * most + 1
    np.testing.assert_array_equal(scheme.encode(values, grid), codes)
    affine = scheme.affine(grid)
    assert affine.zero_point is None
    assert affine.limit == limit == int(affine.levels(codes).max())
    assert affine.levels(codes).dtype == jnp.int8
    np.testing.assert_array_equal(np.float32(affine.levels(codes)) * np.asarray(affine.scale), values)


def sqnr(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return 10 * np.log10((x**2).sum() / ((x - y) ** 2).sum())


@pytest.mark.parametrize(("bits", "gauss", "laplace"), [(5, 22.3, 21.7), (4, 19.1, 17.1), (3, 13.2, 11.6)])
def test_sqnr_with_the_best_scale(bits, gauss, laplace):
    rng = np.random.default_rng(1)
    scheme = AdditivePowerOfTwo(bits=bits, range=MSE())
    for x, wanted in ((rng.standard_normal(32768), gauss), (rng.laplace(size=32768), laplace)):
        assert sqnr(x, decoded(scheme, x.astype(np.float32))) == pytest.approx(wanted, abs=0.2)


def test_groups_have_scales_of_their_own():
    x = (np.random.default_rng(2).standard_normal((6, 5)) * 10.0 ** np.arange(5)).astype(np.float32)
    got = decoded(AdditivePowerOfTwo(bits=4, granularity=jqz.PerAxis(-1)), x)
    for i in range(5):
        np.testing.assert_array_equal(got[:, i], decoded(AdditivePowerOfTwo(bits=4), x[:, i]))
    got = decoded(AdditivePowerOfTwo(bits=4, granularity=jqz.PerGroup(4, axis=0)), x[:, :1])
    for part in (slice(0, 4), slice(4, 6)):
        np.testing.assert_array_equal(got[part], decoded(AdditivePowerOfTwo(bits=4), x[part, :1]))


def test_gradient():
    x = jnp.array([-2.0, -0.1, -0.0, 0.0, 0.4, 1.0, 1.01, 3.0])

    def gradient(scheme):
        return jax.grad(lambda x: (2 * scheme.simulate(x)).sum())(x).tolist()

    assert gradient(AdditivePowerOfTwo(bits=4, range=Given(-1.0, 1.0))) == [2] * 8
    assert gradient(AdditivePowerOfTwo(bits=4, range=Given(0.0, 1.0), signs=NonNegative())) == [0, 0, 2, 2, 2, 2, 0, 0]


def test_zero_constant_empty_scalar():
    scheme = AdditivePowerOfTwo(bits=4)
    assert decoded(scheme, np.float32([0, -0.0, 1e-39])).tolist() == [0, 0, 0]
    assert scheme.calibrate(jnp.zeros(3)).scale.tolist() == [1]
    np.testing.assert_allclose(decoded(scheme, np.full(4, -0.3, np.float32)), -0.3, rtol=1e-6)
    assert decoded(scheme, np.zeros((0, 3), np.float32)).shape == (0, 3)
    np.testing.assert_allclose(decoded(scheme, np.float32(0.7)), 0.7, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_extreme_magnitudes(bits):
    largest = np.float32([3.4e38, 1e38, 1e20, 1e-20, 1e-30, 1e-31, 1e-38])
    x = np.stack([largest, -largest / 2, largest / 3], axis=1)
    y = decoded(AdditivePowerOfTwo(bits=bits, granularity=jqz.PerAxis(0)), x)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y[:5, 0], largest[:5], rtol=1e-6)
    assert (y[5:] == 0).all()  # below 2**-100 a block counts as zeros


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_follow_the_values(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray([1.0, -0.3, 0.79, 0.02], dtype)
        q = jqz.quantize(x, AdditivePowerOfTwo(bits=4))
        assert q.grid.scale.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
        assert q.codes.tolist() == [7, -3, 6, 0]
        y = jqz.dequantize(q)
        assert y.dtype == x.dtype
        np.testing.assert_allclose(np.float64(y), [1, -0.3, 0.8, 0], rtol=float(jnp.finfo(dtype).eps))
        np.testing.assert_array_equal(y, jqz.fake_quantize(x, q.scheme))


def test_chain_after_symmetric():
    x = jnp.asarray(np.random.default_rng(3).standard_normal((30, 6)), jnp.float32)
    scheme = jqz.Symmetric(bits=8) >> AdditivePowerOfTwo(bits=5)
    q = jqz.quantize(x, scheme)
    affine = scheme.affine(q.grid)
    np.testing.assert_allclose(
        np.float32(affine.levels(q.codes)) * np.asarray(affine.scale), jqz.dequantize(q), rtol=1e-6
    )
    assert sqnr(x, jqz.dequantize(q)) > 17


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad):
    for scheme in (AdditivePowerOfTwo(bits=4), AdditivePowerOfTwo(bits=4, range=MSE(candidates=4))):
        with pytest.raises(ValueError, match="'w' holds NaN or infinite values"):
            jqz.quantize({"w": jnp.ones(5000).at[1].set(bad)}, {"**/w": scheme})


def test_widths_are_checked():
    for fields in ({"bits": 1}, {"bits": 7}, {"bits": 6, "signs": NonNegative()}, {"bits": 2.0}):
        with pytest.raises(ValueError, match=r"AdditivePowerOfTwo: got bits=.*Use Symmetric\(bits\) for more"):
            AdditivePowerOfTwo(**fields)
    with pytest.raises(TypeError, match=r"got traced bits.*Use int\(bits\)"):
        jax.jit(lambda bits: AdditivePowerOfTwo(bits=bits).bits)(jnp.int32(4))
