import jax
import jax.numpy as jnp
import pytest

import jqz


@pytest.mark.parametrize(
    ("shape", "grid"),
    [((), ()), ((5,), (2,)), ((0,), (0,)), ((5, 3), (2, 3)), ((2, 9, 3), (2, 3, 3)), ((3, 3, 8, 2), (3, 3, 2, 2))],
    ids=str,
)
def test_groups_run_along_the_input_axis(shape, grid):
    granularity = jqz.PerInputGroup(4)
    assert granularity.grid_shape(shape) == grid
    x = jnp.ones(shape)
    sums = granularity.reduce(lambda blocks, axes: jnp.sum(blocks, axes, keepdims=True), x)
    assert sums.shape == grid
    assert granularity.expand(sums, shape).shape in (shape, grid)
    if len(shape) >= 2:
        same = jqz.PerGroup(4, axis=-2)
        assert granularity.block(shape) == same.block(shape)
        assert (granularity.expand(sums, shape) == same.expand(sums, shape)).all()


def test_members_of_a_stack_decode_by_themselves():
    x = jax.random.normal(jax.random.key(0), (3, 9, 2))
    q = jqz.quantize(x, jqz.Symmetric(bits=4, granularity=jqz.PerInputGroup(4)))
    assert (jax.vmap(lambda member: member.dequantize())(q) == jqz.dequantize(q)).all()


@pytest.mark.parametrize("size", [0, -1, 2.0, "4"])
def test_size_is_a_positive_integer(size):
    with pytest.raises(ValueError, match=r"PerInputGroup: got size=.*Use PerInputGroup\(size=32\)"):
        jqz.PerInputGroup(size)
