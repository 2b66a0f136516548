"""Pooling by slices against the primitive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jqz.lowerings import pooling
from jqz.lowerings.pooling import Windows

STEM = Windows((1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)), (1,) * 4, (1,) * 4)
CASES = {
    "a stem": ((2, 8, 8, 3), STEM),
    "global": ((2, 5, 4), Windows((1, 5, 1), (1, 1, 1), ((0, 0),) * 3, (1,) * 3, (1,) * 3)),
    "padded unevenly": ((9, 8), Windows((2, 3), (1, 3), ((1, 0), (1, 2)), (1, 1), (1, 1))),
    "dilated": ((9, 8), Windows((2, 3), (1, 3), ((2, 0), (-1, 3)), (2, 1), (2, 3))),
    "too many places": ((70,), Windows((66,), (1,), ((0, 0),), (1,), (1,))),
    "nothing": ((2, 2), Windows((3, 3), (1, 1), ((0, 0),) * 2, (1, 1), (1, 1))),
}


@pytest.mark.parametrize("name", CASES)
def test_every_window(name):
    shape, windows = CASES[name]
    whole = np.random.default_rng(0).integers(-100, 101, shape)
    x = jnp.asarray(np.minimum(whole, 60), jnp.float32)  # equals, as a relu6 makes them
    codes = jnp.asarray(whole, jnp.int8)
    differentiable = {*windows.base_dilation, *windows.window_dilation} == {1}  # JAX knows no other gradients

    def primitive(start, combine, x):
        return windows.reduced(x, x.dtype.type(start), combine)

    @jax.jit
    def run(x, codes):
        results = []
        for least, most in (
            (functools.partial(primitive, 0, lax.add), functools.partial(primitive, -np.inf, lax.max)),
            (lambda x: pooling.sum_pool(x, windows), lambda x: pooling.max_pool(x, windows)),
        ):
            y, pull = jax.vjp(least, x)
            g = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
            results.append([y, most(x), pull(g), jax.vjp(most, x)[1](g) if differentiable else ()])
        return results, (windows.reduced(codes, np.int8(-128), lax.max), pooling.max_pool(codes, windows))

    (wanted, got), (wanted_codes, got_codes) = run(x, codes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5), got, wanted)
    np.testing.assert_array_equal(got_codes, wanted_codes)


@pytest.mark.parametrize("x", [[1.0, np.nan], [np.nan, 1.0], [np.nan, np.nan], [-np.inf, -np.inf]])
def test_nan_and_infinity(x):
    windows = Windows((2,), (1,), ((0, 0),), (1,), (1,))
    np.testing.assert_array_equal(pooling.max_pool(jnp.array(x), windows), [np.max(x)])
