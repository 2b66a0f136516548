"""Entropy against the published procedure, written out bin by bin in float64."""

import itertools

import jax
import numpy as np
import pytest

import jqz
from jqz.observers import Entropy

RNG = np.random.default_rng(2)
update = jax.jit(lambda o, x: o.update(x))
limits = jax.jit(lambda o, scheme: o.limits(scheme), static_argnums=1)
VALUES = {
    "normal": RNG.standard_normal(20000),
    "laplace": RNG.laplace(size=20000),
    "relu": np.maximum(RNG.standard_normal(20000), 0),
    "outlier": np.append(RNG.standard_normal(20000), 40.0),
    "few values": RNG.integers(-3, 4, 1000).astype(float),
}


def _divergence(bins, i, levels):
    """KL(P || Q) of the first i bins, levels at a time."""
    p = bins[:i].astype(np.float64)
    edges = np.linspace(0, i, levels + 1)
    q = np.zeros(i)
    for low, high in itertools.pairwise(edges):
        group = [j for j in range(int(np.ceil(low)), min(int(np.ceil(high)), i)) if bins[j] > 0]
        if group:
            q[group] = bins[group].sum() / len(group)
    p[-1] += bins[i:].sum()
    p, q = p / p.sum(), q / q.sum()
    return np.sum(p[p > 0] * np.log(p[p > 0] / np.maximum(q[p > 0], 1e-12)))


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(("scheme", "levels"), [(jqz.Symmetric(bits=8), 128), (jqz.Symmetric(bits=4), 8)])
def test_threshold_has_the_least_divergence(name, scheme, levels):
    x = VALUES[name].astype(np.float32)
    seen = update(Entropy(bins=512), x)
    width = np.ldexp(1.0, int(seen.exponent))
    bins = np.histogram(np.abs(x.astype(np.float64)), np.arange(257) * width)[0]
    bins[0] = bins[1]
    lost = np.array([_divergence(bins, i, levels) for i in range(128, 257)])
    low, high = (float(end) for end in limits(seen, scheme))
    # where the threshold lies beyond the extremes, the extremes are the limits
    chosen = [i for i in range(128, 257) if np.isclose(max(-low, high), min(i * width, np.abs(x).max()))]
    assert min(lost[np.array(chosen) - 128]) <= lost.min() + 1e-5


def test_one_sided_values_use_all_levels_of_a_grid_that_follows():
    x = VALUES["relu"].astype(np.float32)
    seen = update(Entropy(bins=1024), x)
    width = np.ldexp(1.0, int(seen.exponent))
    bins = np.histogram(x.astype(np.float64), np.arange(513) * width)[0]
    bins[0] = bins[1]
    lost = np.array([_divergence(bins, i, 256) for i in range(256, 513)])
    low, high = (float(end) for end in limits(seen, jqz.Asymmetric(bits=8)))
    assert low == 0
    assert lost[round(high / width) - 256] <= lost.min() + 1e-5 or high == x.max()
