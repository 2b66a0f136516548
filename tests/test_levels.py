import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz import _levels

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 31, 256])
def test_nearest_by_brute_force(count):
    levels = np.sort(RNG.standard_normal(count)).astype(np.float32)
    x = np.concatenate([RNG.standard_normal(500) * 1.5, levels]).astype(np.float32)
    codes = np.asarray(jax.jit(_levels.nearest)(jnp.asarray(x), jnp.asarray(levels)))
    distance = np.abs(x[:, None].astype(np.float64) - levels)
    assert codes.dtype == np.uint8
    chosen = np.take_along_axis(distance, codes[:, None].astype(int), 1)[:, 0]
    assert (chosen <= distance.min(axis=1) + 1e-7).all()
    assert codes[500:].tolist() == list(range(count))
    assert np.array_equal(_levels.lookup(jnp.asarray(codes), jnp.asarray(levels)), levels[codes])


@pytest.mark.parametrize(
    "granularity", [jqz.PerTensor(), jqz.PerAxis(-1), jqz.PerAxis(0), jqz.PerGroup(4), jqz.PerBlock((4, 3))], ids=repr
)
@pytest.mark.parametrize("count", [4, 32])
def test_a_table_for_each_block(granularity, count):
    shape = (10, 7)
    x = RNG.standard_normal(shape).astype(np.float32)
    tables = np.sort(RNG.standard_normal((*granularity.grid_shape(shape), count)).astype(np.float32))
    codes = jax.jit(_levels.nearest, static_argnums=2)(x, tables, granularity)
    values = np.asarray(jax.jit(_levels.lookup, static_argnums=2)(codes, tables, granularity))
    codes = np.asarray(codes)
    block = granularity.block(shape)
    for i in range(shape[0]):
        for j in range(shape[1]):
            table = tables[i // block[0], j // block[1]]
            assert codes[i, j] == np.argmin(np.abs(table - x[i, j]))
            assert values[i, j] == table[codes[i, j]]


def test_halfway_and_equal_levels_take_the_lower():
    levels = jnp.array([-1.0, 0.0, 0.0, 0.0, 2.0, 2.0])
    x = jnp.array([-0.5, -0.4, 0.0, 1.0, 1.1, 2.0, 9.0])
    assert _levels.nearest(x, levels).tolist() == [0, 1, 1, 1, 4, 4, 4]


def test_midpoints_of_huge_and_adjacent_numbers():
    top = np.finfo(np.float32).max
    one = np.float32(1)
    levels = jnp.array([-top, -top / 2, top / 2, top])
    assert np.isfinite(jax.jit(_levels.midpoints)(levels)).all()
    assert jax.jit(_levels.nearest)(levels, levels).tolist() == [0, 1, 2, 3]
    adjacent = jnp.array([one, np.nextafter(one, np.float32(2)), np.nextafter(-one, np.float32(9))]).sort()
    assert _levels.nearest(adjacent, adjacent).tolist() == [0, 1, 2]


def test_codes_beyond_the_table_mean_its_end():
    assert _levels.lookup(jnp.array([1, 2, 200], jnp.uint8), jnp.array([3.0, 4.0])).tolist() == [4, 4, 4]
