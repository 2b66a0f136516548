"""Which layers add their outputs up."""

import math
import typing
from collections.abc import Callable

import jax

from jqz import _paths
from jqz._interpret import trace
from jqz._walk import PRODUCTS

_ADDS = ("add", "sub", "add_any")


class _Flow(typing.NamedTuple):
    """What a value in a program came from: a weight itself, or the outputs of these weights' products."""

    weight: str | None = None
    sources: frozenset[str] = frozenset()


_NOTHING = _Flow()


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
    leaves, treedef = jax.tree.flatten((params, *args))
    paths = [_paths.name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    arrays = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")]

    def on_arrays(*values: typing.Any) -> typing.Any:
        whole = list(leaves)
        for i, value in zip(arrays, values, strict=True):
            whole[i] = value
        params, *args = treedef.unflatten(whole)
        return fn(params, *args)

    jaxpr, _ = trace(on_arrays, *(jax.ShapeDtypeStruct(leaves[i].shape, leaves[i].dtype) for i in arrays))
    groups: list[set[str]] = []
    _follow(jaxpr, [_Flow(paths[i]) if i < len(paths) else _NOTHING for i in arrays], groups)
    return tuple(sorted(tuple(sorted(group)) for group in groups if len(group) > 1))


def _follow(jaxpr: typing.Any, flows: list[_Flow], groups: list[set[str]]) -> list[_Flow]:
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    env = dict(zip(inner.invars, flows, strict=True))

    def read(atom: typing.Any) -> _Flow:
        return _NOTHING if hasattr(atom, "val") else env.get(atom, _NOTHING)

    for eqn in inner.eqns:
        operands = [read(v) for v in eqn.invars]
        body = next((eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params), None)
        if (
            body is not None
            and len(getattr(body, "jaxpr", body).invars) == len(operands)
            and eqn.primitive.name != "scan"
        ):
            results = _follow(body, operands, groups)
        else:
            results = [_result(eqn, v, operands, groups) for v in eqn.outvars]
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in inner.outvars]


def _result(eqn: typing.Any, out: typing.Any, operands: list[_Flow], groups: list[set[str]]) -> _Flow:
    weights = [f.weight for f in operands if f.weight is not None]
    if eqn.primitive.name in PRODUCTS:
        return _Flow(sources=frozenset(weights))
    if weights and not any(f.sources for f in operands) and len(operands) == 1:
        return operands[0]  # a weight on its way: converted, transposed, reshaped
    alike = [f.sources for f, v in zip(operands, eqn.invars, strict=True) if _size(v) == _size(out)]
    met = [sources for sources in alike if sources]
    union = frozenset().union(*met)
    if eqn.primitive.name in _ADDS and len(met) == 2:
        joined = set(union).union(*(group for group in groups if group & union))
        groups[:] = [group for group in groups if not group & union] + [joined]
    return _Flow(sources=union)


def _size(variable: typing.Any) -> int:
    return math.prod(variable.aval.shape)
