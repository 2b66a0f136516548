"""From a net to the operators that a file holds."""

import typing
from collections.abc import Container

import jax
import jax.numpy as jnp

from jqz import _graph as g
from jqz import _paths
from jqz._complete import complete
from jqz._operators import graph_of
from jqz._runtime import Integers, Interface, Numbers, as_codes, narrow


def target_graph(
    net: typing.Any,
    example: typing.Any,
    interface: Interface,
    numbers: Numbers = Integers(),
    without: Container[str] = (),
) -> g.Graph:
    """The operators of a net once it is complete, with the interface and on the numbers that a file is to have.

    ``without`` are primitives that the target does not compute, refused where they stand, ``"float32"`` if it
    computes on codes alone, and ``"int16"`` if it has no codes of 16 bits.
    """
    for name, got, kind, use in (
        ("interface", interface, Interface, "Values()"),
        ("numbers", numbers, Numbers, "Integers()"),
    ):
        if not isinstance(got, kind):
            raise TypeError(f"export: got {name}={got!r}. Use {name}={use}; a class needs its parentheses.")
    if not hasattr(net, "qparams") or not hasattr(net, "sites"):
        raise TypeError(
            f"export: got {type(net).__name__}, wanted a Net. Use jqz.convert(fn, params, batches, policy)."
        )
    for leaf in jax.tree.leaves(example):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"export: got an input of {jnp.result_type(leaf)}, wanted float32. Look up indices before the net."
            )
    beside = [name for name in net.sites if _paths.RESIDUAL in name]
    if beside:
        raise ValueError(
            f"export: {beside[0]!r} has codes of its own beside those that the product reads, wanted one tensor for "
            'all readers. Use inputs without a rule for "**/(residual)".'
        )
    graph = graph_of(complete(net, example), example, without)
    if "int16" in without and any(tensor.grid is not None and tensor.grid.long for tensor in graph.tensors):
        raise ValueError("export: activations of 16 bits are for tflite alone. Use inputs=Asymmetric(bits=8).")
    return narrow(numbers.of(as_codes(graph, interface)))


def write_each(writer: typing.Any, graph: g.Graph) -> None:
    """Hands each operator to the writer's method of its name, such as ``_on_maxpool``."""
    for operator in graph.operators:
        getattr(writer, f"_on_{type(operator).__name__.lower()}")(operator)
