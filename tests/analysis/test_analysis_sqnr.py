"""SQNR against NumPy and the noise of a uniform quantizer, and what counts as a surprise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz.analysis import sqnr, sqnr_db
from jqz.analysis.sqnr import SQNR

W = jax.random.normal(jax.random.key(7), (96, 128))


def test_is_the_ratio_in_decibels():
    w, r = np.asarray(W, np.float64), np.asarray(jqz.fake_quantize(W, jqz.Symmetric(bits=5)), np.float64)
    assert sqnr_db(W, jqz.fake_quantize(W, jqz.Symmetric(bits=5))) == pytest.approx(
        10 * math.log10((w**2).mean() / ((w - r) ** 2).mean())
    )
    assert sqnr_db(W, W) == math.inf
    assert sqnr_db(np.zeros(3), np.ones(3)) == -math.inf
    with pytest.raises(ValueError, match="shapes"):
        sqnr_db(W, W.T)


def test_a_fine_uniform_grid_has_noise_of_a_twelfth_of_its_square():
    step = float(jnp.abs(W).max()) / 127
    predicted = 10 * math.log10(float(jnp.mean(W**2)) / (step**2 / 12))
    found = sqnr(W, jqz.Symmetric(bits=8))
    assert found.measured_db == pytest.approx(predicted, abs=0.1)
    assert found.gaussian_db == pytest.approx(predicted, abs=1.5)  # the largest of random draws differs
    assert found.laplace_db == pytest.approx(predicted - 5, abs=2)


@pytest.mark.parametrize(
    "scheme",
    [
        jqz.Symmetric(bits=4),
        jqz.Symmetric(bits=4, granularity=jqz.PerGroup(32, axis=0)) >> jqz.PowerOfTwo(bits=4),
        jqz.NormalFloat(bits=3, granularity=jqz.PerAxis(-1)),
    ],
    ids=repr,
)
def test_gaussian_tensors_are_no_surprise(scheme):
    by_channel = W * jnp.exp2(jnp.arange(128.0) % 7)[None]
    assert abs(sqnr(by_channel, scheme).surprise_db) < (6 if scheme.granularity == jqz.PerTensor() else 0.5)
    assert abs(sqnr(W, scheme).surprise_db) < 0.5


def test_outliers_and_levels_are():
    assert sqnr(W.at[3, 4].set(40.0), jqz.Symmetric(bits=4)).surprise_db < -3
    assert sqnr(jqz.fake_quantize(W, jqz.Symmetric(bits=4)), jqz.Symmetric(bits=4)).surprise_db > 100
    assert SQNR(10.0, 14.0, 12.0).surprise_db == -2
    assert SQNR(13.0, 14.0, 12.0).surprise_db == 0
    assert SQNR(15.5, 14.0, 12.0).surprise_db == 1.5
