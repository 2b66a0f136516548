"""Arrays that break quantizers, for the laws of ``laws.py``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (34, 3)  # not a multiple of 4 or 32: the last groups are uneven


@functools.cache
def inputs() -> dict[str, np.ndarray]:
    """Arrays that break quantizers, all of one shape and dtype; and one in float64."""
    rng = np.random.default_rng(7)

    def normal():
        return rng.standard_normal(SHAPE).astype(np.float32)

    top = np.finfo(np.float32).max
    sign = rng.choice([-1, 1], SHAPE)
    with_zeros = normal()
    with_zeros[::3] = 0
    with_zeros[:, 2] = 0
    outlier = normal()
    outlier[3, 1] = 1e4
    grades = normal() * np.ldexp(np.float32(1), np.arange(3) * 20 - 30).astype(np.float32)
    huge = (sign * rng.uniform(0.5, 1, SHAPE) * top).astype(np.float32)
    huge[0] = top
    huge[1] = -top
    return {
        "normal": normal(),
        "laplace": rng.laplace(size=SHAPE).astype(np.float32),
        "one-sided": np.abs(normal()),
        "negative": -np.abs(normal()) - 1,
        "zeros": np.zeros(SHAPE, np.float32),
        "signed zeros": np.copysign(np.float32(0), sign).astype(np.float32),
        "constant": np.full(SHAPE, 0.1, np.float32),
        "negative constant": np.full(SHAPE, -3e5, np.float32),
        "zero channels": with_zeros,
        "halves": (rng.integers(-14, 15, SHAPE) / 2).astype(np.float32),
        "outlier": outlier,
        "channels of many magnitudes": grades,
        "all magnitudes": (sign * 10.0 ** rng.uniform(-38, 38.4, SHAPE)).astype(np.float32),
        "denormals": (normal() * 1e-39).astype(np.float32),
        "tiny": (normal() * 1e-36).astype(np.float32),
        "small": (normal() * 1e-28).astype(np.float32),
        "largest": huge,
        "float64": rng.standard_normal(SHAPE),
    }


def zoo() -> dict[str, jax.Array]:
    """A scalar, empty arrays, and float16 values beside the same in float32."""
    rng = np.random.default_rng(3)
    half = (rng.standard_normal((4, 6)) * 0.1).astype(np.float16)
    half[0, 0] = np.finfo(np.float16).max
    half[1] = 0
    tree = {
        "scalar": np.float32(-0.7),
        "no_rows": np.zeros((0, 3), np.float32),
        "no_columns": np.zeros((3, 0), np.float32),
        "half": half,
        "single": half.astype(np.float32),
    }
    return jax.tree.map(jnp.asarray, tree)


def forms() -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes to trace, without values."""
    return {
        "vector": jax.ShapeDtypeStruct((5,), jnp.float32),
        "nothing": jax.ShapeDtypeStruct((0,), jnp.float16),
        "cube": jax.ShapeDtypeStruct((2, 4, 3), jnp.bfloat16),
        "kernel": jax.ShapeDtypeStruct((2, 1, 3, 3), jnp.float32),
    }
