"""Dots of int8 codes."""

import functools
import typing

import jax
import jax.numpy as jnp
from jax import lax


def wide_dtype(x: jax.Array) -> jnp.dtype:
    """What products of arrays of this dtype add up in: int8 in int32, floats in their own."""
    return jnp.dtype(jnp.int32) if x.dtype == jnp.int8 else x.dtype


def dot(lhs: jax.Array, rhs: jax.Array, numbers: typing.Any) -> jax.Array:
    """``lax.dot_general``: int8 codes to int32, floats to their own dtype.

    A single row of codes falls off XLA's fast path on CPU, so it is doubled and cut.

    >>> dot(jnp.ones((1, 3), jnp.int8), jnp.ones((3, 2), jnp.int8), (((1,), (0,)), ((), ()))).tolist()
    [[3, 3]]
    """
    plain = functools.partial(
        lax.dot_general,
        dimension_numbers=numbers,
        preferred_element_type=wide_dtype(lhs),
    )
    (contracted, _), (batched, _) = numbers
    free = [i for i in range(lhs.ndim) if i not in (*contracted, *batched)]
    if lhs.dtype != jnp.int8 or batched or not free or any(lhs.shape[i] != 1 for i in free):
        return plain(lhs, rhs)

    def doubled(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.slice_in_dim(plain(lax.concatenate([lhs, lhs], free[0]), rhs), 0, 1, axis=0)

    return lax.platform_dependent(lhs, rhs, cpu=doubled, default=plain)
