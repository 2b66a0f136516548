"""Where the outputs of a model's layers go, read from its jaxpr."""

import dataclasses
import math
import typing
from collections.abc import Callable

from jqz._evaluate import traced
from jqz._walk import PRODUCTS

_ADDS = ("add", "sub", "add_any")
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Value(typing.NamedTuple):
    """What a value in a program came from.

    ``weight`` is the path of the weight that it is. ``sources`` are the weights whose products it is an elementwise
    function of, ``last`` those that it depends on with no other product in between.
    """

    weight: str | None = None
    sources: frozenset[str] = frozenset()
    last: frozenset[str] = frozenset()


@dataclasses.dataclass
class Flow:
    """What was found: weights in the order of their products, groups that add up, and those that end the model."""

    order: list[str] = dataclasses.field(default_factory=list)
    sums: list[set[str]] = dataclasses.field(default_factory=list)
    ends: frozenset[str] = frozenset()


def flow(fn: Callable[..., typing.Any], params: typing.Any, *args: typing.Any) -> Flow:
    """Follows the outputs of each weight's product through a function; nothing is executed.

    Calls are entered; loops and branches are not.
    """
    program = traced(fn, (params, *args), {})
    found, named = Flow(), program.of_first()
    values = _follow(program.jaxpr, [Value(named.get(i)) for i in range(len(program.operands))], found)
    found.ends = frozenset().union(*(value.last for value in values))
    return found


def _follow(jaxpr: typing.Any, values: list[Value], found: Flow) -> list[Value]:
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    env = dict(zip(inner.invars, values, strict=True))

    def read(atom: typing.Any) -> Value:
        return Value() if hasattr(atom, "val") else env.get(atom, Value())

    for eqn in inner.eqns:
        operands = [read(v) for v in eqn.invars]
        body = None if eqn.primitive.name == "scan" else next((eqn.params[k] for k in _BODIES if k in eqn.params), None)
        if body is not None and len(getattr(body, "jaxpr", body).invars) == len(operands):
            results = _follow(body, operands, found)
        else:
            results = [_result(eqn, out, operands, found) for out in eqn.outvars]
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in inner.outvars]


def _result(eqn: typing.Any, out: typing.Any, operands: list[Value], found: Flow) -> Value:
    weights = [v.weight for v in operands if v.weight is not None]
    if eqn.primitive.name in PRODUCTS:
        found.order += [path for path in weights if path not in found.order]
        # a product of two activations follows the weights behind both
        last = frozenset(weights) or frozenset().union(*(v.last for v in operands))
        return Value(sources=frozenset(weights), last=last)
    if weights and len(operands) == 1:
        return operands[0]  # a weight on its way: converted, transposed, reshaped
    same = [v.sources for v, atom in zip(operands, eqn.invars, strict=True) if _size(atom) == _size(out) and v.sources]
    sources = frozenset().union(*same)
    if eqn.primitive.name in _ADDS and len(same) == 2:
        joined = set(sources).union(*(group for group in found.sums if group & sources))
        found.sums = [group for group in found.sums if not group & sources] + [joined]
    return Value(sources=sources, last=frozenset().union(*(v.last for v in operands)))


def _size(variable: typing.Any) -> int:
    return math.prod(getattr(variable.aval, "shape", ()))
