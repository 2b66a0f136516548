"""Dots of codes against dots of wide integers."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jqz.lowerings.dot import dot


@pytest.mark.parametrize(("lhs", "rhs", "numbers"), [
    ((1, 5), (5, 3), (((1,), (0,)), ((), ()))),
    ((5, 1), (3, 5), (((0,), (1,)), ((), ()))),
    ((1, 1, 5), (5, 3), (((2,), (0,)), ((), ()))),
    ((5,), (5, 3), (((0,), (0,)), ((), ()))),
    ((2, 1, 5), (2, 5, 3), (((2,), (1,)), ((0,), (0,)))),
    ((4, 5), (5, 3), (((1,), (0,)), ((), ()))),
])  # fmt: skip
def test_every_dot(lhs, rhs, numbers):
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.integers(-127, 128, shape), jnp.int8) for shape in (lhs, rhs))
    wanted = lax.dot_general(a.astype(jnp.int32), b.astype(jnp.int32), numbers)
    np.testing.assert_array_equal(dot(a, b, numbers), wanted)
