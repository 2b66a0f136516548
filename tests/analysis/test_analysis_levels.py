"""Levels against scipy's entropy, the paper's definitions worked by hand, and a network of the paper's size."""

import math

import numpy as np
import pytest
from scipy import stats

import jqz
from jqz.analysis import average_levels, levels
from jqz.schemes import Geometric


def test_by_hand():
    used = levels([-4.0, -0.5, 0.0, 0.0, 0.25, 0.25, 0.25, 2.0])
    assert (used.count, used.weights) == (5, 8)
    assert used.bits == math.log2(5)
    assert used.span_bits == 4  # 2**-2 to 2**2: five octaves, three bits, and a sign
    assert used.entropy == pytest.approx(stats.entropy([1, 1, 2, 3, 1], base=2))
    assert used.utilization(4) == used.entropy / 4
    assert levels([0.0, -0.0]) == levels([0.0, 0.0])
    assert levels([3.0, 3.0]).entropy == 0
    assert str(levels([3.0, 3.0]).entropy) == "0.0"
    assert levels([0.0]).span_bits == 1
    for empty in ([], [np.inf]):
        with pytest.raises(ValueError, match="levels: got"):
            levels(empty)


def test_codes_of_every_width_fit_it():
    x = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    for bits in (2, 4, 8):
        used = levels(jqz.quantize(x, jqz.Symmetric(bits=bits)).codes)
        assert used.bits <= bits
        assert used.entropy <= used.bits
        assert used.utilization(bits) <= 1


def test_average_bit_levels_of_a_network_like_the_papers():
    """ResNet-20 with Laplace weights: 4.95, rounded up 5.45, entropy 3.83 by a scalar program.

    The paper prints 4 to 5 for such a network, under a definition that it does not give.
    """
    rng = np.random.default_rng(0)
    shapes = [432, *[2304] * 6, 4608, *[9216] * 5, 18432, *[36864] * 5, 640]
    assert sum(shapes) == 268_336
    scheme = jqz.PowerOfTwo(bits=None, rounding=Geometric())  # value by value: all tensors at once
    values = jqz.fake_quantize(rng.laplace(0, 0.05, sum(shapes)).astype(np.float32), scheme)
    found = average_levels([levels(part) for part in np.split(np.asarray(values), np.cumsum(shapes)[:-1])])
    assert found.bits == pytest.approx(4.95, abs=0.1)
    assert found.whole_bits == pytest.approx(5.45, abs=0.25)
    assert found.entropy == pytest.approx(3.83, abs=0.05)
    assert found.weighted_bits > found.bits  # large tensors reach further down
    assert found.span_bits >= found.bits


def test_averages():
    two, four = levels([0, 1]), levels([0, 1, 2, 3, 0, 1])
    found = average_levels([two, four])
    assert found.bits == 1.5
    assert found.weighted_bits == pytest.approx((2 * 1 + 6 * 2) / 8)
    assert average_levels([levels([0, 1, 2])]).whole_bits == 2
    with pytest.raises(ValueError, match="no tensors"):
        average_levels([])
