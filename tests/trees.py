"""Trees that should be the same."""

import typing

import jax
import numpy as np


def same(got: typing.Any, wanted: typing.Any) -> None:
    """Asserts the same structure, dtypes, shapes and bytes; leaves may be read in whatever way arrays are."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()
