"""Weights that jump to and fro between two levels: counting them, and holding them."""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jqz._learnable import Learnable
from jqz._policy import Decision, PolicyLike, resolve
from jqz._scheme import Scheme, work_dtype
from jqz._transform import Selected, map_selected

#: A number, or a function of the steps taken.
Schedule = float | Callable[[jax.Array], typing.Any]


class Oscillation(typing.NamedTuple):
    """What is known of the levels of a leaf; arrays in its shape.

    Attributes:
      level: the integer level, counted from that of zero; that where it is held for frozen weights.
      average: its moving average.
      direction: the sign of its last change, 0 before the first.
      frequency: the moving average of reversals: a step at which it changed in the other direction counts 1.
      frozen: whether it is held.
    """

    level: jax.Array
    average: jax.Array
    direction: jax.Array
    frequency: jax.Array
    frozen: jax.Array


class FreezeOscillationsState(typing.NamedTuple):
    """Steps taken, and an ``Oscillation`` in the place of each leaf that the policy selects, None for the others."""

    steps: jax.Array
    leaves: typing.Any


class _Levels(typing.NamedTuple):
    """The integer levels that values are rounded to, counted from that of zero, and a way back."""

    level: jax.Array
    decode: Callable[[jax.Array], jax.Array]


def _levels(scheme: Scheme, path: str, x: jax.Array, grid: typing.Any) -> _Levels:
    grid = scheme.calibrate(x) if grid is None else grid
    affine = scheme.affine(grid)
    if affine is None:
        raise ValueError(
            f"freeze_oscillations: {path!r} has the scheme {scheme!r}, wanted one of integer levels. "
            "Use Symmetric(bits=4), or map this path to None."
        )

    level = affine.levels(scheme.encode(x, grid)).astype(work_dtype(x))
    if affine.zero_point is not None:  # it may move from step to step, which moves no weight
        level = level - scheme.granularity.expand(affine.zero_point, x.shape).astype(level.dtype)
    return _Levels(level, lambda level: level * scheme.granularity.expand(affine.scale, x.shape))


def freeze_oscillations(
    policy: PolicyLike, threshold: Schedule, momentum: float = 0.01
) -> optax.GradientTransformation:
    """Holds weights that keep jumping between two levels at the level where they were most of the time.

    The last link of an ``optax.chain``: it looks at where the updates lead, in integer levels of the scheme. A
    reversal is a change of level against the direction of the one before; frequency <- momentum * reversal +
    (1 - momentum) * frequency. A weight whose frequency exceeds the threshold stays at round(average level) for
    the rest of the training, whatever the scale does, and the network adapts to it.

    Use it in the last part of training at 2 to 4 bits, and for layers with few weights a channel (depthwise
    convolutions) above all, then re-estimate batch norm. Above 4 bits nothing is gained. With
    ``threshold=float("inf")`` it only counts: see ``frequency`` in its state.

    Args:
      policy: as for ``quantize``; schemes with integer levels. ``learnable`` leaves use their own grids.
      threshold: a number, or a schedule of the step, such as a cosine from 0.1 to 0.01.
      momentum: of the averages.

    Returns:
      An optax transformation, state ``FreezeOscillationsState``.

    Raises:
      ValueError: (by init and update) a scheme has no integer levels, or ``params`` are missing.

    >>> import jax.numpy as jnp, jqz, optax
    >>> from jqz.training import freeze_oscillations
    >>> scheme = jqz.Symmetric(bits=2, range=jqz.ranges.Given(-1.0, 1.0))
    >>> hold = freeze_oscillations(scheme, threshold=0.5, momentum=0.6)
    >>> w = jnp.array([0.45])
    >>> state = hold.init(w)
    >>> for step in (0.1, -0.1, 0.1, -0.1):
    ...     updates, state = hold.update(jnp.array([step]), state, w)
    ...     w = optax.apply_updates(w, updates)
    >>> bool(state.leaves.frozen[0])
    True

    References: arXiv:2203.11086, algorithm 1.
    """

    def start(leaf: Selected) -> Oscillation:
        level = _levels(leaf.scheme, leaf.path, leaf.value, leaf.grid).level
        zero = jnp.zeros_like(level)
        return Oscillation(level, level, zero, zero, zero.astype(bool))

    def init(params: typing.Any) -> FreezeOscillationsState:
        chosen = map_selected("freeze_oscillations", params, policy, start)
        kept = jax.tree.map(lambda n: n if isinstance(n, Oscillation) else None, chosen, is_leaf=_is_oscillation)
        return FreezeOscillationsState(jnp.zeros((), jnp.int32), kept)

    def update(updates: typing.Any, state: typing.Any, params: typing.Any = None):
        if params is None:
            raise ValueError("freeze_oscillations: got no params. Use optimizer.update(grads, state, params).")
        limit = threshold(state.steps) if callable(threshold) else threshold

        decisions, treedef = resolve("freeze_oscillations", policy, params)
        try:
            rows = zip(decisions, treedef.flatten_up_to(updates), treedef.flatten_up_to(state.leaves), strict=True)
        except ValueError as error:
            raise ValueError(
                f"freeze_oscillations: updates or state have another structure than params: {error} "
                "Use the parameters that init was given, and gradients of them."
            ) from error
        moved, seen = [], []
        for decision, change, before in rows:
            if isinstance(before, Oscillation):
                change, before = _step(decision, change, before, limit, momentum)
            moved.append(change)
            seen.append(before)
        return treedef.unflatten(moved), FreezeOscillationsState(state.steps + 1, treedef.unflatten(seen))

    return optax.GradientTransformation(init, update)


def _is_oscillation(node: typing.Any) -> bool:
    return isinstance(node, Oscillation)


def _step(
    decision: Decision, change: typing.Any, seen: Oscillation, limit: typing.Any, momentum: float
) -> tuple[typing.Any, Oscillation]:
    """The change of a leaf where it is not frozen, and what is known of its levels after it."""
    scheme, leaf = typing.cast(Scheme, decision.scheme), decision.leaf
    whole = isinstance(leaf, Learnable)
    old, by = (leaf.value, change.value) if whole else (leaf, change)
    new = old + by
    levels = _levels(scheme, decision.path, new, jax.tree.map(jnp.add, leaf.grid, change.grid) if whole else None)
    turn = jnp.sign(levels.level - seen.level)
    reversal = (turn * seen.direction < 0).astype(turn.dtype)
    frequency = momentum * reversal + (1 - momentum) * seen.frequency
    frozen = seen.frozen | (frequency > limit)
    level = jnp.where(seen.frozen, seen.level, jnp.where(frozen, jnp.round(seen.average), levels.level))
    average = momentum * level + (1 - momentum) * seen.average
    by = jnp.where(frozen, levels.decode(level).astype(new.dtype) - old, by)
    direction = jnp.where(turn == 0, seen.direction, turn)
    return (
        dataclasses.replace(change, value=by) if whole else by,
        Oscillation(level, average, direction, frequency, frozen),
    )
