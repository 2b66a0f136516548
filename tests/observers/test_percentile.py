"""The growing histogram, and percentiles on it, against NumPy on the raw values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz.observers import Percentile

RNG = np.random.default_rng(0)
update = jax.jit(lambda o, x: o.update(x))
limits = jax.jit(lambda o, scheme: o.limits(scheme), static_argnums=1)
VALUES = {
    "normal": RNG.standard_normal(20000),
    "one-sided": np.maximum(RNG.standard_normal(20000), 0),
    "negative": -RNG.exponential(size=20000),
    "heavy tails": RNG.standard_t(4, 20000),
    "far from zero": 100 + RNG.standard_normal(20000),
    "tiny": RNG.standard_normal(20000) * 1e-30,
    "huge": RNG.standard_normal(20000) * 1e37,
}


@pytest.mark.parametrize("name", VALUES)
def test_counts_are_those_of_numpy(name):
    """Every value lies in its bin, none is lost, and the largest magnitude fills more than half of its side."""
    x = VALUES[name].astype(np.float32)
    seen = Percentile(bins=256)
    for part in np.split(x, [10, 11, 500]):
        seen = update(seen, part)
    edges = (np.arange(257) - 128) * np.ldexp(1.0, int(seen.exponent))
    np.testing.assert_array_equal(seen.counts, np.histogram(x.astype(np.float64), edges)[0])
    assert int(seen.counts.sum()) == x.size
    assert 64 <= np.abs(x).max() / np.ldexp(1.0, int(seen.exponent)) < 128
    assert (float(seen.low), float(seen.high)) == (x.min(), x.max())


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(3, np.float32),
        np.array([1.0], np.float32),
        np.array([-1.0, 0.5], np.float32),
        np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max, np.finfo(np.float32).tiny, 0], np.float32),
    ],
)
def test_ends_of_the_range_are_counted(x):
    seen = Percentile(bins=16).update(jnp.asarray(x))
    assert int(seen.counts.sum()) == x.size
    index = np.floor(x.astype(np.float64) / np.ldexp(1.0, int(seen.exponent))).astype(int) + 8
    np.testing.assert_array_equal(seen.counts, np.bincount(index, minlength=16))


def test_a_negative_value_that_vanishes_among_large_ones_stays_negative():
    seen = Percentile(bins=16).update(jnp.array([-1e-30, 1e30]))
    assert seen.counts.tolist() == [0] * 7 + [1] + [0] * 6 + [1, 0]


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("percent", [99.9, 99.0, 75.0])
def test_limits_lie_within_a_bin_of_the_percentiles(name, percent):
    x = VALUES[name].astype(np.float32)
    seen = update(Percentile(percent), x)
    bin_ = np.ldexp(1.0, int(seen.exponent))
    wide = x.astype(np.float64)
    low, high = limits(seen, jqz.Asymmetric(bits=8))
    np.testing.assert_allclose([low, high], np.percentile(wide, [100 - percent, percent]), rtol=0, atol=1.01 * bin_)
    low, high = limits(seen, jqz.Symmetric(bits=8))
    wanted = np.percentile(np.abs(wide), percent)
    np.testing.assert_allclose(max(-low, high), wanted, rtol=0, atol=1.01 * bin_)


def test_a_share_that_leaves_only_zeros_covers_everything():
    x = jnp.zeros(1000).at[:2].set(jnp.array([-1.0, 2.0]))
    for scheme, wanted in ((jqz.Asymmetric(), [-1, 2]), (jqz.Symmetric(), [-1, 2])):
        assert np.asarray(Percentile(99.0).update(x).limits(scheme)).tolist() == wanted


def test_all_values_are_covered_by_one_hundred_percent():
    x = VALUES["heavy tails"].astype(np.float32)
    low, high = Percentile(100).update(x).limits(jqz.Asymmetric())
    np.testing.assert_allclose([low, high], [x.min(), x.max()])


def test_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="Percentile: got percent=50"):
        Percentile(50)
    for bins in (8, 100, 0):
        with pytest.raises(ValueError, match=rf"Percentile: got bins={bins}.*Use Percentile\(bins=4096\)"):
            Percentile(bins=bins)
