"""AbsMax and MinMax beyond the laws."""

import jax.numpy as jnp
import pytest

import jqz


@pytest.mark.parametrize(("scheme", "levels"), [(jqz.Symmetric(bits=8), 127 / 2), (jqz.Asymmetric(bits=8), 255 / 5)])
def test_grids_cover_the_extremes(scheme, levels):
    seen = jqz.observers.MinMax().update(jnp.array([[-3.0, 2.0]]))
    scale = seen.grid(scheme, 2).scale
    assert scale.shape == (1, 1)
    assert float(scale[0, 0]) == pytest.approx(3 / 127 if scheme == jqz.Symmetric(bits=8) else 1 / levels)


def test_magnitudes_cover_both_sides():
    low, high = jqz.observers.AbsMax().update(jnp.array([-3.0, 2.0])).limits(jqz.Asymmetric())
    assert (float(low), float(high)) == (-3, 3)
