"""Which layers add their outputs up."""

import typing
from collections.abc import Callable

from jqz._flow import flow


def residual_ties(fn: Callable[..., typing.Any], params: typing.Any, *args: typing.Any) -> tuple[tuple[str, ...], ...]:
    """Groups of weights whose products meet in a sum, as those at the two ends of a residual do.

    Integer hardware adds such outputs on one grid, and is simpler where their layers have one width: pass the result
    as ``ties`` to ``jqz.search``. Values are followed through elementwise operations, calls and reshapes, from one
    product to the next; loops and branches are not entered. Nothing is executed.

    Args:
      fn: a pure function of ``(params, *args)``.
      params: parameters, or ShapeDtypeStructs.
      args: as for ``fn``.

    >>> import jax, jax.numpy as jnp
    >>> from jqz.algorithms import residual_ties
    >>> def model(params, x):
    ...     x = x @ params["stem"]
    ...     return (x + jax.nn.relu(x @ params["up"]) @ params["down"]) @ params["head"]
    >>> shapes = {"stem": (3, 4), "up": (4, 8), "down": (8, 4), "head": (4, 2)}
    >>> residual_ties(model, {name: jnp.zeros(shape) for name, shape in shapes.items()}, jnp.zeros((1, 3)))
    (('down', 'stem'),)

    References: HAWQ-V3, arXiv:2011.10680, section 3.
    """
    groups = flow(fn, params, *args).sums
    return tuple(sorted(tuple(sorted(group)) for group in groups if len(group) > 1))
