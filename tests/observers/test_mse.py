"""MSE against an exhaustive search on the raw values."""

import jax
import numpy as np
import pytest

import jqz
from jqz.observers import MSE

RNG = np.random.default_rng(1)
limits = jax.jit(lambda x, scheme: MSE().update(x).limits(scheme), static_argnums=1)
VALUES = {
    "normal": RNG.standard_normal(5000),
    "laplace": RNG.laplace(size=5000),
    "relu": np.maximum(RNG.standard_normal(5000), 0),
    "silu": (lambda x: x / (1 + np.exp(-x)))(3 * RNG.standard_normal(5000)),
}


def _symmetric(x, magnitude, bits):
    top = 2 ** (bits - 1) - 1
    step = magnitude / top
    return np.mean((np.clip(np.rint(x / step), -top, top) * step - x) ** 2)


def _asymmetric(x, low, high, bits):
    step = (high - low) / (2**bits - 1)
    zero = np.clip(np.rint(-low / step), 0, 2**bits - 1)
    return np.mean(((np.clip(np.rint(x / step) + zero, 0, 2**bits - 1) - zero) * step - x) ** 2)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_symmetric_clip_is_as_good_as_exhaustive_search(name, bits):
    x = VALUES[name].astype(np.float32)
    low, high = limits(x, jqz.Symmetric(bits=bits))
    wide = x.astype(np.float64)
    best = min(_symmetric(wide, np.abs(wide).max() * share, bits) for share in np.linspace(0.02, 1, 500))
    assert _symmetric(wide, max(-float(low), float(high)), bits) <= 1.03 * best


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("bits", [2, 4])
def test_asymmetric_ends_are_near_an_exhaustive_search(name, bits):
    x = VALUES[name].astype(np.float32)
    low, high = (float(end) for end in limits(x, jqz.Asymmetric(bits=bits)))
    wide = x[:2000].astype(np.float64)
    shares = np.linspace(0.02, 1, 40)
    lows = [0.0] if x.min() == 0 else x.min() * shares
    best = min(_asymmetric(wide, lo, hi, bits) for lo in lows for hi in x.max() * shares)
    assert _asymmetric(wide, low, high, bits) <= 1.1 * best


def test_huge_and_tiny_values_have_finite_errors():
    for scale in (1e-30, 1e30):
        x = (VALUES["normal"] * scale).astype(np.float32)
        _, high = limits(x, jqz.Symmetric(bits=4))
        assert 2.0 < float(high) / scale < 3.0


def test_refuses_no_candidates():
    with pytest.raises(ValueError, match=r"MSE: got candidates=0.*Use MSE\(80\)"):
        MSE(0)
