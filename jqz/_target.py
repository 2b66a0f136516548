"""From a net to the operators that a file holds."""

import typing
from collections.abc import Container

from jqz import _graph as g
from jqz._complete import complete
from jqz._operators import graph_of
from jqz._runtime import Integers, Interface, Numbers, as_codes


def target_graph(
    net: typing.Any,
    example: typing.Any,
    interface: Interface,
    numbers: Numbers = Integers(),
    primitives: Container[str] | None = None,
) -> g.Graph:
    """The operators of a net once it is complete, with the interface and on the numbers that a file is to have.

    ``primitives`` are those of JAX that the target computes, if not all; others are refused where they stand.
    """
    return numbers.of(as_codes(graph_of(complete(net, example), example, primitives), interface))


def write_each(writer: typing.Any, graph: g.Graph) -> None:
    """Hands each operator to the writer's method of its name, such as ``_maxpool``."""
    for operator in graph.operators:
        getattr(writer, f"_{type(operator).__name__.lower()}")(operator)
