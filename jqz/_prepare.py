"""What a function computes from some of its arguments alone, computed once.

An integer model derives much from its weights before it meets an input: sums that zero points need, scales folded
with normalizations, biases in units of accumulators. None of it changes between calls.
"""

import math
import typing
from collections.abc import Callable, Sequence

import jax

from jqz._interpret import bind, trace

#: Of what is known beforehand, arrays of up to this many elements are kept; larger ones are made at every call.
KEPT = 2**14


class Split(typing.NamedTuple):
    """A function of (known, rest) in two steps: ``after(before(known), used(known), rest)``."""

    before: Callable[..., list[jax.Array]]
    used: Callable[..., list[jax.Array]]
    after: Callable[..., typing.Any]


def split(fn: Callable[..., typing.Any], known: typing.Any, rest: typing.Any) -> Split:
    """Splits ``fn(known, rest)`` for arguments of these shapes.

    What depends on ``known`` alone moves into ``before``, as far as its results are small; ``used`` picks the
    leaves of ``known`` that are needed besides.

    >>> import jax.numpy as jnp
    >>> w, x = {"w": jnp.ones(3), "v": jnp.ones(2)}, jnp.float32(5)
    >>> steps = split(lambda known, x: x * jnp.sum(known["w"]) + known["v"], w, x)
    >>> [k.tolist() for k in steps.before(w)], [k.tolist() for k in steps.used(w)]
    ([3.0], [[1.0, 1.0]])
    >>> steps.after(steps.before(w), steps.used(w), x).tolist()
    [16.0, 16.0]
    """
    closed, structure = trace(fn, known, rest)
    jaxpr, count = closed.jaxpr, len(jax.tree.leaves(known))
    early, late = _divide(jaxpr, count)
    made = {v for eqn in early for v in eqn.outvars} - {v for eqn in late for v in eqn.outvars}
    needed = dict.fromkeys(v for v in (*(v for eqn in late for v in eqn.invars), *jaxpr.outvars) if not _literal(v))
    kept = [v for v in needed if v in made]
    picked = [i for i, v in enumerate(jaxpr.invars[:count]) if v in needed]
    constants = dict(zip(jaxpr.constvars, closed.consts, strict=True))

    def before(known: typing.Any) -> list[jax.Array]:
        env = constants | dict(zip(jaxpr.invars[:count], jax.tree.leaves(known), strict=True))
        _evaluate(early, env)
        return [env[v] for v in kept]

    def used(known: typing.Any) -> list[jax.Array]:
        leaves = jax.tree.leaves(known)
        return [leaves[i] for i in picked]

    def after(kept_values: Sequence[jax.Array], used_values: Sequence[jax.Array], rest: typing.Any) -> typing.Any:
        variables = [*kept, *(jaxpr.invars[i] for i in picked), *jaxpr.invars[count:]]
        env = constants | dict(zip(variables, [*kept_values, *used_values, *jax.tree.leaves(rest)], strict=True))
        _evaluate(late, env)
        return structure.unflatten([v.val if _literal(v) else env[v] for v in jaxpr.outvars])

    return Split(before, used, after)


def _literal(v: typing.Any) -> bool:
    return hasattr(v, "val")


def _divide(jaxpr: typing.Any, count: int) -> tuple[list[typing.Any], list[typing.Any]]:
    """The equations to evaluate early, and those to evaluate late; those whose results are too large are both."""
    unknown = set(jaxpr.invars[count:])
    early, late = [], []
    for eqn in jaxpr.eqns:
        waits = bool(eqn.effects) or any(v in unknown for v in eqn.invars if not _literal(v))
        (late if waits else early).append(eqn)
        if waits:
            unknown.update(eqn.outvars)
    again: list[typing.Any] = []
    needed = {v for eqn in late for v in eqn.invars if not _literal(v)}
    for eqn in reversed(early):
        large = any(v in needed and math.prod(v.aval.shape) > KEPT for v in eqn.outvars)
        if large:
            again.append(eqn)
            needed.update(v for v in eqn.invars if not _literal(v))
    return early, [*reversed(again), *late]


def _evaluate(eqns: Sequence[typing.Any], env: dict[typing.Any, typing.Any]) -> None:
    for eqn in eqns:
        with eqn.ctx.manager:
            results = bind(eqn, [v.val if _literal(v) else env[v] for v in eqn.invars])
        env.update(zip(eqn.outvars, results, strict=True))
