import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz

PerAxis, PerBlock, PerGroup, PerTensor = jqz.PerAxis, jqz.PerBlock, jqz.PerGroup, jqz.PerTensor

#: granularity, shape, length of a block along each axis
CASES = [
    (PerTensor(), (), ()),
    (PerTensor(), (5,), (5,)),
    (PerTensor(), (2, 3, 4), (2, 3, 4)),
    (PerTensor(), (1, 1), (1, 1)),
    (PerAxis(-1), (3, 4), (3, 1)),
    (PerAxis(0), (3, 4), (1, 4)),
    (PerAxis((0, -1)), (2, 3, 4), (1, 3, 1)),
    (PerAxis((0, 1)), (3, 2), (1, 1)),
    (PerGroup(4), (8, 3), (4, 1)),
    (PerGroup(4), (10, 3), (4, 1)),
    (PerGroup(4, axis=-1), (2, 7), (1, 4)),
    (PerGroup(16, axis=0), (5, 2), (16, 1)),
    (PerGroup(1), (3, 2), (1, 1)),
    (PerGroup(3, axis=0), (7,), (3,)),
    (PerGroup(2, axis=1), (2, 5, 3), (1, 2, 1)),
    (PerBlock((2, 2)), (4, 4), (2, 2)),
    (PerBlock((2, 3)), (5, 7), (2, 3)),
    (PerBlock((4, 2)), (3, 6, 5), (1, 4, 2)),
    (PerBlock((3,)), (2, 8), (1, 3)),
]


def _blocks(shape, block):
    """Index in the grid, and slices of the values, of every block."""
    counts = [-(-n // b) for n, b in zip(shape, block, strict=True)]
    for index in itertools.product(*map(range, counts)):
        yield index, tuple(slice(i * b, (i + 1) * b) for i, b in zip(index, block, strict=True))


@pytest.mark.parametrize(("granularity", "shape", "block"), CASES, ids=str)
def test_reduce_and_expand_against_loops(granularity, shape, block):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    counts = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
    assert granularity.grid_shape(shape) == counts

    def reduce(blocks, axes, others):
        assert others.shape == blocks.shape
        mean = jnp.mean(blocks, axis=axes, keepdims=True)
        return {"max": jnp.max(blocks, axis=axes, keepdims=True), "pair": jnp.stack([mean, -mean], -1)} | {
            "sum": jnp.sum(blocks * others, axis=axes, keepdims=True)
        }

    y = np.arange(x.size, dtype=np.float32).reshape(shape)
    out = granularity.reduce(reduce, jnp.asarray(x), jnp.asarray(y))
    wide = granularity.expand(out["max"], shape)
    assert out["max"].shape == counts
    assert out["pair"].shape == (*counts, 2)
    for index, place in _blocks(shape, block):
        np.testing.assert_array_equal(out["max"][index], x[place].max())
        np.testing.assert_allclose(out["sum"][index], np.sum(x[place] * y[place]), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(out["pair"][index], [x[place].mean(), -x[place].mean()], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(np.broadcast_to(wide, shape)[place], x[place].max())


@pytest.mark.parametrize(
    ("granularity", "shape", "grid"),
    [
        (PerTensor(), (0,), (1,)),
        (PerTensor(), (0, 3), (1, 1)),
        (PerAxis(-1), (0, 3), (1, 3)),
        (PerAxis(-1), (3, 0), (1, 0)),
        (PerAxis(0), (0, 3), (0, 1)),
        (PerGroup(4, axis=0), (0, 3), (0, 3)),
        (PerGroup(4, axis=0), (3, 0), (1, 0)),
        (PerGroup(4, axis=0), (9, 0), (3, 0)),
        (PerBlock((2, 2)), (0, 3), (0, 2)),
        (PerBlock((2, 2)), (5, 0), (3, 0)),
    ],
    ids=str,
)
def test_empty_arrays(granularity, shape, grid):
    assert granularity.grid_shape(shape) == grid
    out = granularity.reduce(lambda b, axes: jnp.max(b, axis=axes, keepdims=True), jnp.zeros(shape))
    assert out.shape == grid
    np.testing.assert_array_equal(out, np.zeros(grid))
    assert np.broadcast_shapes(granularity.expand(out, shape).shape, shape) == shape


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        (PerAxis((0, -1)), (3, 4, 5)),
        (PerGroup(2), (3, 5, 4)),
        (PerGroup(2, axis=1), (3, 5, 4)),
        (PerBlock((2, 3)), (3, 5, 4)),
    ],
    ids=str,
)
def test_expand_works_after_leading_axes_were_sliced_away(granularity, shape):
    x = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)
    grid = granularity.reduce(lambda b, axes: jnp.max(b, axis=axes, keepdims=True), x)
    whole = jnp.broadcast_to(granularity.expand(grid, shape), shape)
    for i in range(shape[0]):
        layer = jnp.broadcast_to(granularity.expand(grid[i], shape[1:]), shape[1:])
        np.testing.assert_array_equal(layer, whole[i])
    mapped = jax.vmap(lambda g: jnp.broadcast_to(granularity.expand(g, shape[1:]), shape[1:]))(grid)
    np.testing.assert_array_equal(mapped, whole)


def test_expand_keeps_trailing_axes_of_the_grid():
    levels = jnp.arange(12.0).reshape(2, 2, 3)
    wide = PerGroup(2).expand(levels, (4, 2))
    assert wide.shape == (4, 2, 3)
    np.testing.assert_array_equal(wide[1], levels[0])
    np.testing.assert_array_equal(wide[2], levels[1])


def test_only_blocks_smaller_than_an_axis_are_groups():
    assert [g.groups for g in (PerTensor(), PerAxis(0), PerGroup(2), PerBlock((2,)))] == [False, False, True, True]


@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerAxis(-1), PerAxis((0, 2)), PerGroup(32), PerGroup(8, axis=0), PerBlock((2, 3))]
)
def test_repr_hash_and_equality(granularity):
    again = eval(repr(granularity), vars(jqz))
    assert again == granularity
    assert hash(again) == hash(granularity)
    assert granularity != PerGroup(7)


def test_errors_say_what_to_write():
    with pytest.raises(ValueError, match=r"PerAxis\(2\) needs axis 2, but the values have rank 2.*Use PerTensor\(\)"):
        PerAxis(2).grid_shape((3, 4))
    with pytest.raises(ValueError, match=r"PerGroup\(size=4, axis=-2\) needs axis -2, but the values have rank 1"):
        PerGroup(4).grid_shape((8,))
    with pytest.raises(ValueError, match=r"PerBlock\(\(2, 2\)\) needs rank 2 or more"):
        PerBlock((2, 2)).grid_shape((8,))
    with pytest.raises(ValueError, match="wanted a positive integer"):
        PerGroup(0)
    with pytest.raises(ValueError, match="wanted positive integers"):
        PerBlock((2, -1))
    with pytest.raises(ValueError, match="wanted positive integers"):
        PerBlock(())
    with pytest.raises(ValueError, match="wanted an axis or a tuple of axes"):
        PerAxis(())


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(-1), PerGroup(4)], ids=str)
def test_a_grid_that_does_not_fit_is_refused(granularity):
    with pytest.raises(ValueError, match=r"cannot expand a grid of shape \(2, 2\) to \(10, 5\)"):
        granularity.expand(jnp.ones((2, 2)), (10, 5))
    with pytest.raises(ValueError, match="cannot expand"):
        granularity.expand(jnp.ones(3), (10, 3))
