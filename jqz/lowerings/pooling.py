"""Maxima and sums over windows."""

import dataclasses
import functools
import itertools
import math
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

#: Windows of more places are left to XLA.
PLACES = 64


@dataclasses.dataclass(frozen=True)
class Windows:
    """The parameters of ``lax.reduce_window`` that describe its windows: one number, or pair, for each axis."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    base_dilation: tuple[int, ...]
    window_dilation: tuple[int, ...]

    def reduced(self, x: jax.Array, start: typing.Any, combine: typing.Any) -> jax.Array:
        """The primitive."""
        return lax.reduce_window(
            x, start, combine, self.size, self.strides, self.padding, self.base_dilation, self.window_dilation
        )


def max_pool(x: jax.Array, windows: Windows) -> jax.Array:
    """The maximum of each window, NaN where there is one; the gradient goes to the first maximum.

    >>> pairs = Windows((2,), (2,), ((0, 0),), (1,), (1,))
    >>> max_pool(jnp.array([1.0, 3.0, 5.0, 4.0]), pairs).tolist()
    [3.0, 5.0]
    """
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    least = -np.inf if floating else np.iinfo(x.dtype).min

    def larger(a: jax.Array, b: jax.Array) -> jax.Array:
        # lax.max would split the gradient between equals, of which there are many after a relu
        return jnp.where((a >= b) | (a != a), a, b) if floating else lax.max(a, b)

    return _pool(x, windows, x.dtype.type(least), lax.max, larger)


def sum_pool(x: jax.Array, windows: Windows) -> jax.Array:
    """The sum of each window.

    >>> pairs = Windows((2,), (2,), ((0, 0),), (1,), (1,))
    >>> sum_pool(jnp.array([1.0, 3.0, 5.0, 4.0]), pairs).tolist()
    [4.0, 9.0]
    """
    return _pool(x, windows, x.dtype.type(0), lax.add, lax.add)


def _pool(
    x: jax.Array, windows: Windows, start: typing.Any, primitive: typing.Any, combine: Callable[..., jax.Array]
) -> jax.Array:
    """A reduction over windows as one of shifted slices, which XLA vectorizes and fuses with what follows."""

    def plain(x: jax.Array) -> jax.Array:
        return windows.reduced(x, start, primitive)

    w = windows
    extents = [(n - 1) * d + 1 + sum(p) for n, d, p in zip(x.shape, w.base_dilation, w.padding, strict=True)]
    reach = [(k - 1) * d + 1 for k, d in zip(w.size, w.window_dilation, strict=True)]
    counts = [(n - r) // s + 1 for n, r, s in zip(extents, reach, w.strides, strict=True)]
    if not x.size or min(counts, default=0) < 1 or not 1 < math.prod(w.size) <= PLACES:
        return plain(x)

    def sliced(x: jax.Array) -> jax.Array:
        config = [(*p, d - 1) for p, d in zip(w.padding, w.base_dilation, strict=True)]
        # without the barrier XLA computes what produced x once for each place of the window
        x = lax.optimization_barrier(lax.pad(x, start, config))
        parts = []
        for place in itertools.product(*map(range, w.size)):
            low = [k * d for k, d in zip(place, w.window_dilation, strict=True)]
            high = [a + (n - 1) * s + 1 for a, n, s in zip(low, counts, w.strides, strict=True)]
            parts.append(lax.slice(x, low, high, w.strides))
        return functools.reduce(combine, parts)

    return lax.platform_dependent(x, cpu=sliced, default=plain)
