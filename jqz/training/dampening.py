"""A pull on each weight toward the middle of its level, against oscillation."""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jqz._policy import PolicyLike
from jqz._scheme import work_dtype
from jqz._transform import Selected, map_selected

#: A number, or a function of the steps taken.
Schedule = float | Callable[[jax.Array], typing.Any]


class DampenOscillationsState(typing.NamedTuple):
    """Steps taken."""

    steps: jax.Array


def dampen_oscillations(policy: PolicyLike, strength: Schedule) -> optax.GradientTransformation:
    """Adds the gradient of strength * sum((w - rounded(w))**2) over the selected weights that are inside the range.

    The first link of an ``optax.chain``, before the optimizer. A weight at the edge of a level is pulled to its
    middle, so that it jumps less often; those beyond the range of the grid are left to the loss. Start without, and
    raise the strength, or weights stay where they began. ``freeze_oscillations`` usually does as well or better,
    and without a strength to find.

    Args:
      policy: as for ``quantize``. ``learnable`` leaves use their own grids, which get no gradient from it.
      strength: a number, or a schedule of the step, such as a cosine from 0 to 0.1.

    Returns:
      An optax transformation, state ``DampenOscillationsState``.

    Raises:
      ValueError: (by update) ``params`` are missing, or as ``quantize``.

    >>> import jax.numpy as jnp, jqz
    >>> from jqz.training import dampen_oscillations
    >>> dampen = dampen_oscillations(jqz.Symmetric(bits=3, range=jqz.ranges.Given(-3.0, 3.0)), strength=0.5)
    >>> w = jnp.array([1.25, -2.0, 9.0])
    >>> dampen.update(jnp.zeros(3), dampen.init(w), w)[0].tolist()
    [0.25, 0.0, 0.0]

    References: arXiv:2203.11086, section 4.1.
    """

    def init(params: typing.Any) -> DampenOscillationsState:
        del params
        return DampenOscillationsState(jnp.zeros((), jnp.int32))

    def update(updates: typing.Any, state: typing.Any, params: typing.Any = None):
        if params is None:
            raise ValueError("dampen_oscillations: got no params. Use optimizer.update(grads, state, params).")
        force = 2 * (strength(state.steps) if callable(strength) else strength)

        def pulled(leaf: Selected, change: typing.Any) -> typing.Any:
            x = leaf.value.astype(work_dtype(leaf.value))
            grid = leaf.scheme.calibrate(x) if leaf.grid is None else leaf.grid
            inside = leaf.scheme.slope(x, grid)
            off = x - leaf.scheme.decode(leaf.scheme.encode(x, grid), grid)
            pull = (force * (off if inside is None else jnp.where(inside != 0, off, 0))).astype(leaf.value.dtype)
            return dataclasses.replace(change, value=change.value + pull) if leaf.grid is not None else change + pull

        updates = map_selected("dampen_oscillations", params, policy, pulled, updates)
        return updates, DampenOscillationsState(state.steps + 1)

    return optax.GradientTransformation(init, update)
