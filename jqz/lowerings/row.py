"""One row times a matrix of codes: what decoding a token does."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

#: Rows of the matrix whose products XLA adds up in registers, and how far apart the first and last of them may be.
UNROLLED, REACH = 16, 128
#: Sums that run side by side, to hide the latency of an addition.
CHAINS = 4

#: Maps what is stored to integers, elementwise.
Plane = Callable[[jax.Array], jax.Array]


def suits(length: int, groups: int) -> bool:
    """Whether rows of this many terms, in this many groups, run fast here."""
    return length % (groups * UNROLLED) == 0


def times(x: jax.Array, stored: jax.Array, planes: Sequence[Plane], scale: jax.Array) -> list[jax.Array]:
    """``x`` times the decoded matrix of each plane.

    XLA has no dot of floats with codes: it decodes the matrix into memory first, which costs several times as
    much as reading it. Sums of a few rows, one element of the result beside the other, become vector
    arithmetic on the codes as they are read.

    Args:
      x: floats (length,).
      stored: what planes read, (length, width).
      planes: each reads integers (length, width) from it: a byte may hold several.
      scale: (groups, planes, width); a group is as many consecutive rows as another. ``suits(length, groups)``.

    Returns:
      For each plane, the row (width,).

    >>> levels = jnp.ones((16, 2), jnp.int8)
    >>> times(jnp.arange(16.0), levels, [lambda w: w], jnp.ones((1, 1, 2)))[0].tolist()
    [120.0, 120.0]
    """

    def decoded(x: jax.Array, stored: jax.Array, scale: jax.Array) -> list[jax.Array]:
        def matrix(i: int, plane: Plane) -> jax.Array:
            levels = plane(stored).astype(x.dtype).reshape(len(scale), -1, stored.shape[1])
            return (levels * scale[:, i, None]).reshape(stored.shape)

        return [x @ matrix(i, plane) for i, plane in enumerate(planes)]

    def on_codes(x: jax.Array, stored: jax.Array, scale: jax.Array) -> list[jax.Array]:
        groups, width = len(scale), stored.shape[1]
        inside = len(x) // groups
        shape = groups, inside // (REACH if inside % REACH == 0 else inside), UNROLLED, -1
        parts, terms = stored.reshape(*shape, width), x.reshape(*shape, 1)
        sums = []
        for i, plane in enumerate(planes):
            total = _sum([terms[:, :, u] * plane(parts[:, :, u]).astype(x.dtype) for u in range(UNROLLED)])
            sums.append((total if groups == 1 else total * scale[:, i, None, None]).reshape(-1, width))
        # behind the barrier the sums are memory, and a dot with ones adds them up; fused, they would be slow
        rows = [jnp.ones(len(s), x.dtype) @ s for s in lax.optimization_barrier(sums)]
        return [row * scale[0, i] for i, row in enumerate(rows)] if groups == 1 else rows

    return lax.platform_dependent(x, stored, scale, cpu=on_codes, default=decoded)


def _sum(terms: Sequence[jax.Array]) -> jax.Array:
    chains = [functools.reduce(jnp.add, terms[i::CHAINS]) for i in range(CHAINS)]
    return (chains[0] + chains[1]) + (chains[2] + chains[3])
