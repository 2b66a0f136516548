"""Range and density per bit: cases worked by hand, figures derived apart from this code, and the paper's ordering."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance

import jqz
from jqz.analysis import BitEfficiency, bit_efficiency, mean_efficiency
from jqz.schemes import INQ

#: Quantiles in place of draws: the same figures each time.
GRID = (np.arange(65_536) + 0.5) / 65_536
SAMPLES = {"gauss": stats.norm.ppf(GRID).astype(np.float32), "laplace": stats.laplace.ppf(GRID).astype(np.float32)}

#: sample -> bits -> coverage, density: by a scalar program on random samples of this size.
SYMMETRIC = {
    "gauss": {8: (0.923, 0.999), 6: (0.796, 0.998), 4: (0.637, 0.993), 3: (0.525, 0.969), 2: (0.326, 0.930)},
    "laplace": {8: (0.850, 0.999), 6: (0.732, 0.997), 4: (0.587, 0.978), 3: (0.483, 0.934), 2: (0.301, 0.726)},
}


def measured(name, scheme, bits):
    x = jnp.asarray(SAMPLES[name])
    return bit_efficiency(x, jqz.fake_quantize(x, scheme), bits)


@pytest.mark.parametrize("name", SAMPLES)
def test_symmetric_grids_have_the_derived_figures(name):
    scores = {}
    for bits, (coverage, density) in SYMMETRIC[name].items():
        found = measured(name, jqz.Symmetric(bits=bits), bits)
        assert found.coverage == pytest.approx(coverage, rel=0.03)  # the largest of random draws differs
        assert found.density == pytest.approx(density, abs=0.04 if bits == 2 else 0.01)
        scores[bits] = found.score
    assert max(scores, key=scores.__getitem__) == 3


@pytest.mark.parametrize("name", SAMPLES)
def test_powers_of_two_are_the_most_efficient(name):
    """As the paper says; INQ's codebook at 5 bits is that of Dense() with half the exponents."""
    best = max(measured(name, jqz.Symmetric(bits=bits), bits).score for bits in (2, 3, 4, 6, 8))
    powers = measured(name, jqz.PowerOfTwo(bits=5, codebook=INQ()), 5)
    assert powers.density == pytest.approx({"gauss": 0.979, "laplace": 0.986}[name], abs=0.003)
    every = measured(name, jqz.PowerOfTwo(bits=None), 5.17)
    assert every.score > best * 0.99
    assert every.range_per_bit > measured(name, jqz.Symmetric(bits=6), 6).range_per_bit


def test_by_hand():
    # 64 values at -1, -1/4, 1/4 and 1, rounded to -1, 0, 0, 1
    w = np.repeat([-1.0, -0.25, 0.25, 1.0], 16)
    found = bit_efficiency(w, np.where(np.abs(w) < 0.5, 0, w), 2)
    # linear 2 / 2; octaves (1 + log2(1 / 1)) / (1 + log2(1 / (1/4))) = 1/3
    assert found.coverage == pytest.approx(math.sqrt(1 / 3))
    # bins of 2 / 512: p has a quarter in four bins; q has 1/4 on [-1, -1/2], 1/2 on [-1/2, 1/2], 1/4 on [1/2, 1]
    p = np.zeros(512)
    p[[0, 192, 320, 511]] = 0.25
    q = np.repeat([0.25 / 128, 0.5 / 256, 0.5 / 256, 0.25 / 128], 128)
    assert found.density == pytest.approx(1 - distance.jensenshannon(p, q, base=2) ** 2)
    assert found.efficiency == found.coverage * found.density
    assert found.score == 16 * found.efficiency
    assert found.range_per_bit == found.coverage / 2
    assert found.density_per_bit == found.density / 2
    assert dataclasses.replace(found, bits=math.log2(3)).score > found.score


def test_levels_beyond_the_values_keep_their_mass():
    """Rounding in the logarithm puts 1.45 on 2, whose cell by distance begins at 1.5: q still sums to 1."""
    w = np.linspace(0.5, 1.45, 4096)
    r = np.exp2(np.round(np.log2(w)))
    edges = np.linspace(0.5, 1.45, 513)
    share = np.array([(r == level).mean() for level in (0.5, 1, 2)])
    ends = np.array([0.5, 0.75, 1.45])
    q = np.diff(np.interp(edges, ends, [0, share[0], share[0] + share[1]]))
    q[-1] += share[2]
    p = np.histogram(w, 512)[0] / w.size
    assert q.sum() == pytest.approx(1)
    assert bit_efficiency(w, r, 2).density == pytest.approx(1 - distance.jensenshannon(p, q, base=2) ** 2)


def test_edges():
    w = np.linspace(-1, 1, 1000)
    assert bit_efficiency(np.full(32, 3.0), np.full(32, 2.0), 4).efficiency == 1
    assert bit_efficiency(w, np.zeros(1000), 1).coverage == 0
    fine = bit_efficiency(w, w, 32)
    assert fine.score == pytest.approx(1, abs=0.01)
    assert bit_efficiency(np.where(np.abs(w) < 0.5, 0, w), np.where(np.abs(w) < 0.5, 0, w), 32).coverage == 1
    half = bit_efficiency(jnp.asarray(w, jnp.bfloat16), jnp.asarray(w, jnp.float16), 16)
    assert 0 < half.efficiency <= 1
    with pytest.raises(ValueError, match="at least 32"):
        bit_efficiency(w[:31], w[:31], 4)
    with pytest.raises(ValueError, match="1000 values and 999"):
        bit_efficiency(w, w[:-1], 4)
    with pytest.raises(ValueError, match="NaN"):
        bit_efficiency(np.where(w > 0.5, np.nan, w), w, 4)
    with pytest.raises(ValueError, match="bits=0"):
        bit_efficiency(w, w, 0)
    with pytest.raises(ValueError, match="no tensors"):
        mean_efficiency([])


def test_a_model_averages_efficiency_and_bits_apart():
    parts = [BitEfficiency(0.5, 0.8, 0.4, 4.0, 100), BitEfficiency(1.0, 1.0, 1.0, 8.0, 300)]
    whole = mean_efficiency(parts)
    assert whole.score == pytest.approx(32 * (0.4 * 100 + 1.0 * 300) / (4 * 100 + 8 * 300))
    assert whole.weights == 400


def test_domination_is_a_partial_order():
    a, b, c = (BitEfficiency(r, d, r * d, 4, 64) for r, d in ((0.8, 0.9), (0.7, 0.9), (0.6, 0.95)))
    assert a.dominates(b)
    assert not b.dominates(a)
    assert not a.dominates(c)
    assert not c.dominates(a)
    assert a.dominates(a)


def test_nothing_exceeds_the_float_tensor():
    rng = np.random.default_rng(0)
    w = rng.standard_normal(4096)
    for count in (1, 2, 3, 16, 200):
        levels = np.sort(rng.standard_normal(count) * 3)
        found = bit_efficiency(w, levels[np.abs(w[:, None] - levels).argmin(1)], 4)
        assert 0 <= found.coverage <= 1
        assert 0 <= found.density <= 1
