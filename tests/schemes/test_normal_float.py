import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jqz
from jqz.schemes.normal_float import normal_levels

fake = jax.jit(jqz.fake_quantize, static_argnums=1)
RNG = np.random.default_rng(0)
SAMPLES = {"gauss": RNG.standard_normal(32768), "laplace": RNG.laplace(size=32768)}

#: As printed in the appendix of arXiv:2305.14314.
PUBLISHED = """
-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334
-0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224
0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0
"""


def sqnr_db(x, values):
    x, values = np.asarray(x, np.float64), np.asarray(values, np.float64)
    return 10 * np.log10((x**2).sum() / ((x - values) ** 2).sum())


@pytest.mark.parametrize(("name", "db"), [("gauss", 20.7), ("laplace", 19.7)])
def test_sqnr_in_blocks_of_64(name, db):
    x = jnp.asarray(SAMPLES[name], jnp.float32)
    q = jqz.quantize(x, jqz.NormalFloat())
    assert sqnr_db(x, jqz.dequantize(q)) == pytest.approx(db, abs=0.2)
    assert jqz.bits_per_weight(q) == 4.5


def test_the_levels_of_nf4_are_the_published_ones():
    assert np.float32(normal_levels(4)).tolist() == [float(level) for level in PUBLISHED.split()]


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_are_normal_quantiles(bits):
    n = 2**bits
    # the construction of QLoRA: zero, n / 2 quantiles above it and n / 2 - 1 below
    last = 1 - (1 / (2 * n) + 1 / (2 * (n - 1))) / 2
    above = stats.norm.ppf(np.linspace(last, 0.5, n // 2 + 1)[:-1])
    below = -stats.norm.ppf(np.linspace(last, 0.5, n // 2)[:-1])
    wanted = np.sort([*above, 0, *below]) / above.max()
    np.testing.assert_allclose(normal_levels(bits), wanted, atol=1e-6 if bits == 4 else 1e-7)
    assert len(normal_levels(bits)) == n
    assert normal_levels(bits)[n // 2 - 1] == 0


@pytest.mark.parametrize("bits", [2, 4, 7])
@pytest.mark.parametrize("granularity", [jqz.PerInputGroup(64), jqz.PerAxis(-1), jqz.PerGroup(16, axis=-1)], ids=repr)
def test_by_brute_force(bits, granularity):
    x = RNG.laplace(size=(70, 5)).astype(np.float32)
    q = jqz.quantize(jnp.asarray(x), jqz.NormalFloat(bits=bits, granularity=granularity))
    block = granularity.block(x.shape)
    levels = np.array(normal_levels(bits))
    for i in range(0, 70, block[0]):
        for j in range(0, 5, block[1]):
            place = slice(i, i + block[0]), slice(j, j + block[1])
            scale = np.abs(x[place]).max().astype(np.float64)
            distance = np.abs(x[place][..., None] / scale - levels)
            chosen = np.take_along_axis(distance, np.asarray(q.codes[place])[..., None].astype(int), -1)[..., 0]
            assert (chosen <= distance.min(-1) + 1e-6).all()
            values = np.asarray(jqz.dequantize(q)[place])
            np.testing.assert_allclose(values, scale * levels[np.asarray(q.codes[place])], rtol=3e-7, atol=0)


def test_zero_and_the_largest_magnitude_are_exact():
    x = jnp.array([[-3.1, 0.0, 1.7], [0.2, -0.0, -2.9]])
    values = fake(x, jqz.NormalFloat(granularity=jqz.PerAxis(0)))
    assert values[0, 0] == x[0, 0]
    assert values[1, 2] == x[1, 2]
    assert (values[:, 1] == 0).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e-38, 1e-30, 3e38, -3e38])
def test_constants(value):
    x = jnp.full(100, value, jnp.float32)
    values = np.asarray(fake(x, jqz.NormalFloat()))
    wanted = value if abs(value) > 2.0**-100 else 0
    assert (values == np.float32(wanted)).all()


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (65,), (2, 65, 3)], ids=str)
def test_any_rank(shape):
    q = jqz.quantize(jnp.full(shape, -0.25), jqz.NormalFloat())
    assert q.shape == q.codes.shape == shape
    assert q.grid.scale.shape == jqz.PerInputGroup(64).grid_shape(shape)
    assert (jqz.dequantize(q) == -0.25).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_values_keep_their_dtype(dtype):
    q = jqz.quantize(jnp.asarray(SAMPLES["gauss"][:100], dtype), jqz.NormalFloat())
    assert q.grid.scale.dtype == jnp.float32
    assert jqz.dequantize(q).dtype == dtype


def test_float64_has_a_float64_scale():
    with jax.enable_x64(True):
        x = jnp.asarray(SAMPLES["gauss"][:64])
        q = jqz.quantize(x, jqz.NormalFloat())
        assert q.grid.scale.item() == np.abs(SAMPLES["gauss"][:64]).max()
        assert jqz.dequantize(q).dtype == jnp.float64


def test_a_searched_range_is_better_and_clips_gradients():
    x = jnp.asarray(SAMPLES["laplace"][:4096], jnp.float32)
    plain = jqz.NormalFloat(bits=2, granularity=jqz.PerTensor())
    searched = jqz.NormalFloat(bits=2, granularity=jqz.PerTensor(), range=jqz.ranges.MSE())
    values = fake(x, searched)
    assert sqnr_db(x, values) > sqnr_db(x, fake(x, plain)) + 2
    gradient = jax.grad(lambda x: fake(x, searched).sum())(x)
    assert np.array_equal(gradient, np.abs(x) <= np.abs(values).max())
    assert 0 < int((gradient == 0).sum()) < 800
    assert (jax.grad(lambda x: fake(x, plain).sum())(x) == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_but_shows_in_training(bad):
    x = jnp.ones((70, 3)).at[66, 1].set(bad)
    with pytest.raises(ValueError, match="NaN or infinite"):
        jqz.quantize(x, jqz.NormalFloat())
    assert not jnp.isfinite(fake(x, jqz.NormalFloat())[66, 1])


@pytest.mark.parametrize("bits", [1, 9, 4.0])
def test_bits(bits):
    with pytest.raises(ValueError, match=r"NormalFloat: got bits=.*from 2 to 8"):
        jqz.NormalFloat(bits=bits)
