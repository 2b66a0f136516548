"""A function of any arguments, evaluated by the rules of a walk."""

import typing
from collections.abc import Callable

import jax
import numpy as np

from jqz import _paths
from jqz._interpret import interpret, trace
from jqz._qtensor import QTensor
from jqz._values import Coded, Lazy, Stored, Value, decode
from jqz._walk import Walk


def walk_through(
    fn: Callable[..., typing.Any],
    args: typing.Any,
    kwargs: typing.Any,
    walk: Walk,
    finish: Callable[[Walk, Value], Value] | None = None,
) -> typing.Any:
    """Traces a function on the shapes of its arguments and evaluates its jaxpr by the rules of a walk.

    ``finish`` is told the results, and what it makes of them is decoded.
    """
    program = traced(fn, args, kwargs)
    results = interpret(program.jaxpr, [_value(*one) for one in program.operands], walk)
    if finish is not None:
        results = [finish(walk, v) for v in results]
    return program.structure.unflatten([v.tensor if isinstance(v, Stored) else decode(v) for v in results])


class Traced(typing.NamedTuple):
    """A function's jaxpr, the structure of its result, and its operands: paths and arrays among the arguments."""

    jaxpr: typing.Any
    structure: typing.Any
    operands: list[tuple[typing.Any, typing.Any]]

    def of_first(self) -> dict[int, str]:
        """The operands that are leaves of the first argument: their numbers and their names in it."""
        return {i: _paths.name(at[2:]) for i, (at, _) in enumerate(self.operands) if (at[0].idx, at[1].idx) == (0, 0)}


def traced(fn: Callable[..., typing.Any], args: typing.Any, kwargs: typing.Any) -> Traced:
    """Traces a function on the shapes of the arrays among its arguments; what else it gets stays as it is."""
    flat, treedef = jax.tree_util.tree_flatten_with_path((tuple(args), kwargs), is_leaf=is_leaf)
    places = [i for i, (_, leaf) in enumerate(flat) if is_array(leaf)]

    def on_arrays(*arrays: jax.Array) -> typing.Any:
        leaves = [leaf for _, leaf in flat]
        for i, array in zip(places, arrays, strict=True):
            leaves[i] = array
        args, kwargs = treedef.unflatten(leaves)
        return fn(*args, **kwargs)

    jaxpr, structure = trace(on_arrays, *(_abstract(flat[i][1]) for i in places))
    return Traced(jaxpr, structure, [flat[i] for i in places])


def is_leaf(leaf: typing.Any) -> bool:
    """Whether an argument is one value, though it may be a tree."""
    return isinstance(leaf, QTensor | Lazy)


def is_array(leaf: typing.Any) -> bool:
    """Whether a leaf of the arguments is traced, or reaches the function as it is."""
    return isinstance(leaf, QTensor | Lazy | jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic)


def _abstract(leaf: typing.Any) -> typing.Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_leaf(leaf) else leaf


def _value(path: typing.Any, leaf: typing.Any) -> Value:
    """A QTensor under the path that a policy knows it by: without the number or name of the argument."""
    return Coded(leaf, _paths.name(path[2:])) if isinstance(leaf, QTensor) else leaf
