"""A scan as its steps, each with parameters under paths of its own: what a scan stacks, layers have one by one."""

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jqz._interpret import interpret, scan_operands
from jqz._scheme import work_dtype
from jqz._values import Value, decode
from jqz._walk import Walk

#: Between a path and the number of a step; no path of a tree holds it.
_MARK = "\0"


def step_of(path: str, step: int) -> str:
    """The path of what one step of a scan gets of a parameter, or of a step of an outer scan."""
    return f"{path}{_MARK}{step}"


def whole_path(path: str) -> str:
    """The parameter that a path is a step of, or is."""
    return path.split(_MARK)[0]


def steps_in(path: str) -> tuple[int, ...]:
    """The numbers of the steps, the outermost scan first; none for a parameter that is no step of one."""
    return tuple(map(int, path.split(_MARK)[1:]))


def parts(leaves: Mapping[str, jax.Array], paths: Iterable[str]) -> dict[str, jax.Array]:
    """The leaves of these paths, cut from the parameters that they are steps of, in their work dtype."""

    def part(path: str) -> jax.Array:
        whole = leaves[whole_path(path)]
        return (whole[steps_in(path)] if steps_in(path) else whole).astype(work_dtype(whole))

    return {path: part(path) for path in paths}


def joined(leaves: Mapping[str, jax.Array], changed: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The parameters that other values for some paths make of ``leaves``."""
    out = {path: leaf for path, leaf in changed.items() if not steps_in(path)}
    stacks: dict[str, np.ndarray] = {}
    for path in changed.keys() - out.keys():
        name = whole_path(path)
        stacks.setdefault(name, np.array(out.get(name, leaves[name])))[steps_in(path)] = changed[path]
    return {**out, **{name: jnp.asarray(stack) for name, stack in stacks.items()}}


def unrolled_scan(
    params: Mapping[str, typing.Any], operands: Sequence[Value], walk: Walk, part: Callable[[Value, int], Value]
) -> list[Value]:
    """A scan as its steps, one after the other; ``part(x, step)`` is what a step gets of an operand that is sliced.

    What goes from step to step may stay lazy.
    """
    consts, carry, xs = scan_operands(params, operands)
    order, stacked = range(params["length"]), {}
    for step in reversed(order) if params["reverse"] else order:
        results = interpret(params["jaxpr"], [*consts, *carry, *(part(x, step) for x in xs)], walk)
        carry, stacked[step] = results[: len(carry)], [decode(v) for v in results[len(carry) :]]
    return [*carry, *(jnp.stack(column) for column in zip(*(stacked[step] for step in order), strict=True))]
