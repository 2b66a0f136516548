"""TermMax against NumPy: patches of a convolution, rows of a dot."""

import jax
import jax.numpy as jnp
import numpy as np

import jqz
from jqz.observers import TermMax


def test_the_largest_magnitude_of_each_term():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 4, 3)).astype(np.float32)

    def model(params, x):
        y = jax.lax.conv_general_dilated(x, params["a"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y @ params["b"]

    params = {"a": jnp.asarray(rng.standard_normal((2, 2, 3, 5)), jnp.float32), "b": jnp.ones((5, 2))}
    policy = jqz.Policy(jqz.Symmetric(bits=4), inputs=jqz.Symmetric(bits=8))
    stats = jax.jit(jqz.observe(model, policy, TermMax()))(params, x)
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(1, 2))  # (batch, rows, columns, channels, 2, 2)
    seen = np.abs(windows).max(axis=(0, 1, 2)).transpose(1, 2, 0)
    np.testing.assert_allclose(stats["a"].observer.high, seen.reshape(-1), rtol=1e-6)
    behind = np.einsum("bhwcij,ijco->bhwo", windows, np.asarray(params["a"]))
    np.testing.assert_allclose(stats["b"].observer.high, np.abs(behind).max((0, 1, 2)), rtol=1e-5)
