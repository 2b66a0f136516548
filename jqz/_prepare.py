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
    """A function of (known, rest) in two steps: ``after(before(known), known, rest)``."""

    before: Callable[..., list[jax.Array]]
    after: Callable[..., typing.Any]


def split(fn: Callable[..., typing.Any], known: typing.Any, rest: typing.Any) -> Split:
    """Splits ``fn(known, rest)`` for arguments of these shapes.

    What depends on ``known`` alone moves into ``before``, as far as its results are small.

    >>> import jax.numpy as jnp
    >>> steps = split(lambda w, x: x * jnp.sum(w), jnp.ones(3), jnp.float32(2))
    >>> kept = steps.before(jnp.ones(3))
    >>> [k.tolist() for k in kept], steps.after(kept, jnp.ones(3), jnp.float32(5)).tolist()
    ([3.0], 15.0)
    """
    closed, structure = trace(fn, known, rest)
    jaxpr, count = closed.jaxpr, len(jax.tree.leaves(known))
    early, late = _divide(jaxpr, count)
    given = {*jaxpr.constvars, *jaxpr.invars}
    made = {v for eqn in early for v in eqn.outvars} - {v for eqn in late for v in eqn.outvars}
    needed = [v for eqn in late for v in eqn.invars] + list(jaxpr.outvars)
    kept = list(dict.fromkeys(v for v in needed if not hasattr(v, "val") and v in made and v not in given))

    def before(known: typing.Any) -> list[jax.Array]:
        variables, arguments = [*jaxpr.constvars, *jaxpr.invars[:count]], [*closed.consts, *jax.tree.leaves(known)]
        env = dict(zip(variables, arguments, strict=True))
        _evaluate(early, env)
        return [env[v] for v in kept]

    def after(values: Sequence[jax.Array], known: typing.Any, rest: typing.Any) -> typing.Any:
        arguments = [*closed.consts, *jax.tree.leaves((known, rest))]
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], arguments, strict=True))
        env.update(zip(kept, values, strict=True))
        _evaluate(late, env)
        return structure.unflatten([v.val if hasattr(v, "val") else env[v] for v in jaxpr.outvars])

    return Split(before, after)


def _divide(jaxpr: typing.Any, count: int) -> tuple[list[typing.Any], list[typing.Any]]:
    """The equations to evaluate early, and those to evaluate late; those whose results are too large are both."""
    unknown = set(jaxpr.invars[count:])
    early, late = [], []
    for eqn in jaxpr.eqns:
        waits = bool(eqn.effects) or any(v in unknown for v in eqn.invars if not hasattr(v, "val"))
        (late if waits else early).append(eqn)
        if waits:
            unknown.update(eqn.outvars)
    again: list[typing.Any] = []
    needed = {v for eqn in late for v in eqn.invars if not hasattr(v, "val")}
    for eqn in reversed(early):
        large = any(v in needed and math.prod(v.aval.shape) > KEPT for v in eqn.outvars)
        if large:
            again.append(eqn)
            needed.update(v for v in eqn.invars if not hasattr(v, "val"))
    return early, [*reversed(again), *late]


def _evaluate(eqns: Sequence[typing.Any], env: dict[typing.Any, typing.Any]) -> None:
    for eqn in eqns:
        with eqn.ctx.manager:
            results = bind(eqn, [v.val if hasattr(v, "val") else env[v] for v in eqn.invars])
        env.update(zip(eqn.outvars, results, strict=True))
