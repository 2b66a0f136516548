"""EMA against the recursion in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqz.observers import EMA

BATCHES = np.random.default_rng(0).standard_normal((7, 4)) * 10


def _recursion(batches, decay, reduce):
    average = reduce(batches[0])
    for batch in batches[1:]:
        average = decay * average + (1 - decay) * reduce(batch)
    return average


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("cuts", [(), (1,), (3,), (1, 2, 6), (0, 4)])
def test_merging_is_appending_batches(decay, cuts):
    parts = np.split(BATCHES.astype(np.float32), cuts)
    update = jax.jit(lambda o, x: o.update(x))
    seen = [functools.reduce(update, part, EMA(decay)) for part in parts]
    one = functools.reduce(lambda a, b: a.merge(b), seen)
    wanted = [_recursion(BATCHES, decay, reduce) for reduce in (np.min, np.max)]
    np.testing.assert_allclose(one.limits(None), wanted, rtol=1e-5)
    assert int(one.batches) == 7


def test_order_counts():
    a, b = EMA(0.5).update(jnp.ones(1)), EMA(0.5).update(3 * jnp.ones(1))
    assert float(a.merge(b).high) == float(b.merge(a).high) == 2
    a = a.update(jnp.ones(1))
    assert float(a.merge(b).high) == 2
    assert float(b.merge(a).high) == 1.5


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2])
def test_refuses_a_decay_that_is_none(decay):
    with pytest.raises(ValueError, match=r"EMA: got decay=.*Use EMA\(decay=0\.9\)"):
        EMA(decay)
