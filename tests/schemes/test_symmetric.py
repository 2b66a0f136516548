"""Symmetric grids against float64 NumPy, and where their gradients stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz


def oracle(x, bits, full=False, magnitude=None):
    """Codes and values by the formula, in float64."""
    high = 2 ** (bits - 1) - 1
    scale = np.float64(np.float32((np.abs(x).max() if magnitude is None else magnitude) / np.float32(high)))
    codes = np.clip(np.rint(x.astype(np.float64) / scale), -high - full, high)
    return codes, codes * scale


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8, 12, 16])
def test_codes_and_values_follow_the_formula(bits):
    x = np.random.default_rng(bits).standard_normal((17, 9)).astype(np.float32)
    q = jqz.quantize(x, jqz.Symmetric(bits=bits))
    codes, values = oracle(x, bits)
    # a quotient within one part in 1e6 of a half may fall either way: its scale is a float32
    near_tie = np.abs(np.abs(x / (values.max() / codes.max())) % 1 - 0.5) < 1e-3 / 2**bits
    assert (np.asarray(q.codes) == codes)[~near_tie].all()
    np.testing.assert_allclose(jqz.dequantize(q), np.where(near_tie, np.asarray(jqz.dequantize(q)), values), rtol=1e-6)
    assert q.codes.dtype == (jnp.int8 if bits <= 8 else jnp.int16)


def test_full_grid_reaches_one_code_further_down():
    scheme = jqz.Symmetric(bits=3, codes=jqz.schemes.Full(), range=jqz.ranges.Given(-3.0, 3.0))
    q = jqz.quantize(jnp.array([-9.0, -4.0, -3.0, 3.0, 9.0]), scheme)
    assert q.codes.tolist() == [-4, -4, -3, 3, 3]


def test_ties_are_correctly_rounded_quotients():
    """25.5 steps of a scale that is no power of two: a reciprocal in float32 would move some of them."""
    scale = np.float32(1.0) / np.float32(127)
    ties = (np.arange(-126, 126, dtype=np.float32) + np.float32(0.5)) * scale
    x = np.concatenate([ties, [np.float32(1.0)]])
    q = jax.jit(lambda x: jqz.quantize(x, jqz.Symmetric(bits=8)).codes)(x)
    np.testing.assert_array_equal(q, np.rint((x / scale).astype(np.float32)))


def test_huge_values_keep_their_codes():
    q = jqz.quantize(jnp.array([3e38, -3e38, 1e38]), jqz.Symmetric(bits=2))
    assert q.codes.tolist() == [1, -1, 0]


def test_gradient_passes_where_nothing_clips_and_stops_where_something_does():
    x = jnp.array([-4.0, -1.0, 0.5, 1.0, 4.0])
    whole = jax.grad(lambda x: jqz.fake_quantize(x, jqz.Symmetric(bits=4)).sum())(x)
    clipped = jqz.Symmetric(bits=4, range=jqz.ranges.Given(-1.0, 1.0))
    assert whole.tolist() == [1, 1, 1, 1, 1]
    assert jax.grad(lambda x: jqz.fake_quantize(x, clipped).sum())(x).tolist() == [0, 1, 1, 1, 0]


def test_a_given_grid_clips_even_where_the_range_would_not():
    scheme = jqz.Symmetric(bits=4)
    grid = scheme.calibrate(jnp.array([-1.0, 1.0]))
    x = jnp.array([-4.0, 0.5, 4.0])
    assert jax.grad(lambda x: scheme.simulate(x, grid).sum())(x).tolist() == [0, 1, 0]


def test_a_sweep_over_bits_compiles_once():
    x = jax.random.normal(jax.random.key(0), (64,))
    count = 0

    @jax.jit
    def sweep(bits):
        nonlocal count
        count += 1
        return jqz.fake_quantize(x, jqz.Symmetric(bits=bits))

    for bits in (2, 3, 4, 8):
        np.testing.assert_allclose(sweep(bits), jqz.fake_quantize(x, jqz.Symmetric(bits=bits)), rtol=1e-6)
    assert count == 1


@pytest.mark.parametrize("bits", [0, 1, 17, 2.5, True, None])
def test_refuses_other_widths(bits):
    with pytest.raises(ValueError, match=r"Symmetric: got bits=.* wanted an integer from 2 to 16. Use Binary\(\)"):
        jqz.Symmetric(bits=bits)
