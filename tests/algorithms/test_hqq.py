"""Half-quadratic quantization against its published iteration, in NumPy and float64."""

import jax.numpy as jnp
import layers
import numpy as np
import pytest

import jqz
from jqz.algorithms import hqq
from jqz.algorithms.hqq import Zero
from jqz.schemes import Minimum

NORM, BETA, GROWTH = 0.7, 10.0, 1.01


def published(w, bits, iterations):
    """The values of the best of the iterates for a column, one group; errors in steps."""
    scale = (w.max() - w.min()) / (2**bits - 1)
    x = w / scale
    zero, beta, best = -x.min(), BETA, None
    for _ in range(iterations + 1):
        codes = np.clip(np.rint(x + zero), 0, 2**bits - 1)
        error = x - (codes - zero)
        cost = np.mean(np.abs(error) ** NORM)
        if best is None or cost < best[0]:
            best = cost, (codes - zero) * scale
        size = np.maximum(np.abs(error), 1e-30)
        forgiven = np.sign(error) * np.maximum(size - size ** (NORM - 1) / beta, 0)
        zero, beta = np.mean(codes - (x - forgiven)), beta * GROWTH
    return best


@pytest.mark.parametrize("bits", [4, 2])
def test_is_the_published_algorithm(bits):
    w = np.random.default_rng(bits).laplace(size=(96, 5)) + 0.3
    scheme = jqz.Asymmetric(bits, jqz.PerGroup(32), anchor=Minimum())
    q = hqq(jnp.asarray(w, jnp.float32), scheme, fit=Zero(), iterations=4)
    values = np.asarray(jqz.dequantize(q), np.float64)
    plain = np.asarray(jqz.fake_quantize(jnp.asarray(w, jnp.float32), scheme))
    for rows in (slice(0, 32), slice(32, 64), slice(64, 96)):
        for column in range(5):
            _, wanted = published(w[rows, column], bits, 4)
            np.testing.assert_allclose(values[rows, column], wanted, atol=2e-6)
    assert np.abs(values - plain).max() > 0.01


def costs(w, scheme, **kwargs):
    """The sum that is minimized, in steps of the first grid, of nearest rounding and of hqq, for each column."""
    plain, fitted = jqz.quantize(w, scheme), hqq(w, scheme, **kwargs)
    steps = np.asarray(plain.grid.scale, np.float64)
    return [np.sum(np.abs((np.asarray(jqz.dequantize(q), np.float64) - w) / steps) ** NORM, 0) for q in (plain, fitted)]


@pytest.mark.parametrize(
    "scheme", [jqz.Symmetric(3, layers.CHANNEL), jqz.Asymmetric(3, layers.CHANNEL)], ids=["scale", "scale, exact zero"]
)
def test_lowers_what_it_minimizes(scheme):
    w = jnp.asarray(np.random.default_rng(0).laplace(size=(64, 40)), jnp.float32)
    plain, fitted = costs(w, scheme)
    assert (fitted <= plain * (1 + 1e-5)).all()
    assert fitted.sum() < 0.95 * plain.sum()
    q = hqq(w.at[0].set(0), scheme)
    assert (jqz.dequantize(q)[0] == 0).all()


def test_fitting_the_scale_too_is_better():
    w = jnp.asarray(np.random.default_rng(0).laplace(size=(64, 40)), jnp.float32)
    scheme = jqz.Asymmetric(2, layers.CHANNEL, anchor=Minimum())
    assert costs(w, scheme)[1].sum() < 0.95 * costs(w, scheme, fit=Zero())[1].sum()


def test_what_has_nothing_to_fit_is_kept_exactly():
    """Blocks of zeros, of one value, and of as many values as levels; far from zero and tiny."""
    w = jnp.array([[0.0, 5.0, 1.0, 1e6, 1e-20], [0.0, 5.0, 2.0, 1e6 + 1, 3e-20]])
    for anchor in (Minimum(), jqz.schemes.ZeroPoint()):
        scheme = jqz.Asymmetric(2, layers.CHANNEL, anchor=anchor)
        values, plain = jqz.dequantize(hqq(w, scheme)), jqz.fake_quantize(w, scheme)
        error, wanted = np.abs(values - w).sum(0), np.abs(plain - w).sum(0)
        assert (error <= wanted * (1 + 1e-3) + 4e-7 * np.abs(w).max(0)).all(), (error, wanted)


def test_errors_say_what_to_do():
    w = jnp.ones((4, 4))
    with pytest.raises(ValueError, match=r"hqq: .*PowerOfTwo\(bits=4\), wanted Symmetric, or Asymmetric.*or gptq"):
        hqq(w, jqz.PowerOfTwo(bits=4))
    with pytest.raises(ValueError, match=r"Zero\(\) has nothing to fit in a grid of Symmetric\(bits=4\), wanted"):
        hqq({"w": w}, jqz.Symmetric(bits=4), fit=Zero())
    with pytest.raises(ValueError, match="norm"):
        hqq(w, jqz.Symmetric(bits=4), norm=2.0)
    with pytest.raises(TypeError, match=r"hqq: got stats=list"):
        hqq(w, jqz.Symmetric(bits=4), [])
