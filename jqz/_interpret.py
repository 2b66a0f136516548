"""The one engine: walk a jaxpr, offer each equation to a table of rules, decode for all others.

A rule gets the equation and its operands, of which at least one is not a plain array, and returns the
results, or None to decline. A primitive without a rule gets decoded operands: unknown primitives cost
speed, never correctness. Calls, ``scan``, ``while``, ``cond``, ``checkpoint`` and custom derivatives are
walked through wherever such an operand enters them.

Everything that differs between JAX versions stands in this file.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence

import jax

from jqz._values import Lazy, Value, decode


@dataclasses.dataclass(frozen=True)
class Equation:
    """An equation as a rule sees it."""

    primitive: str
    params: Mapping[str, typing.Any]
    avals: tuple[typing.Any, ...]
    scope: str
    bind: Callable[..., list[jax.Array]]

    def on(self, *operands: Value) -> jax.Array:
        """The single result of the original primitive on decoded operands."""
        return self.bind(*map(decode, operands))[0]


Rule = Callable[..., Sequence[Value] | None]
Rules = Mapping[str, Rule]


def trace(fn: Callable[..., typing.Any], *args: typing.Any) -> tuple[typing.Any, typing.Any]:
    """The jaxpr of a function of arrays and ShapeDtypeStructs, and the structure of its result."""
    structure = []

    def flat(*args):
        leaves, treedef = jax.tree.flatten(fn(*args))
        structure.append(treedef)
        return leaves

    return jax.make_jaxpr(flat)(*args), structure[-1]


def interpret(jaxpr: typing.Any, operands: Sequence[Value], rules: Rules) -> list[Value]:
    """Evaluates a (closed) jaxpr on values; results may be lazy."""
    inner, consts = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
    env: dict[typing.Any, Value] = dict(zip([*inner.constvars, *inner.invars], [*consts, *operands], strict=True))

    def read(atom: typing.Any) -> Value:
        return atom.val if hasattr(atom, "val") else env[atom]

    for eqn in inner.eqns:
        results = _evaluate(eqn, [read(v) for v in eqn.invars], rules)
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in inner.outvars]


def _evaluate(eqn: typing.Any, operands: list[Value], rules: Rules) -> Sequence[Value]:
    name = eqn.primitive.name
    with eqn.ctx.manager:
        if any(isinstance(v, Lazy) for v in operands):
            if name in rules:
                equation = Equation(
                    name,
                    eqn.params,
                    tuple(v.aval for v in eqn.outvars),
                    str(eqn.source_info.name_stack),
                    lambda *arrays: _bind(eqn, arrays),
                )
                results = rules[name](equation, *operands)
                if results is not None:
                    return results
            if name in _HIGHER_ORDER:
                return _HIGHER_ORDER[name](eqn, operands, rules)
        return _bind(eqn, [decode(v) for v in operands])


def _bind(eqn: typing.Any, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair before JAX 0.11
    out = eqn.primitive.bind(*functions, *arrays, **params)
    return out if eqn.primitive.multiple_results else [out]


# --- equations that hold jaxprs ---------------------------------------------------------------------------------------


def _call(eqn: typing.Any, operands: list[Value], rules: Rules) -> list[Value]:
    """A call is its body: results may stay lazy across it."""
    body = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    return interpret(body, operands, rules)


def _checkpoint(eqn: typing.Any, operands: list[Value], rules: Rules) -> list[jax.Array]:
    def body(*operands):
        return _arrays(interpret(eqn.params["jaxpr"], operands, rules), eqn.outvars)

    remat = jax.checkpoint(body, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    return remat(*operands)


def _scan(eqn: typing.Any, operands: list[Value], rules: Rules) -> list[jax.Array]:
    params = eqn.params
    if "num_consts" in params:
        n_consts, n_carry = params["num_consts"], params["num_carry"]
    else:  # JAX 0.12 keeps the three groups as a tree
        n_consts, n_carry = (len(group) for group in params["ft_in"].unpack()[:2])
    consts, carry = operands[:n_consts], [decode(v) for v in operands[n_consts : n_consts + n_carry]]
    sliced, rebuild = _sliceable(operands[n_consts + n_carry :], params["length"])
    body_outs = getattr(params["jaxpr"], "jaxpr", params["jaxpr"]).outvars

    def body(carry, sliced):
        results = interpret(params["jaxpr"], [*consts, *carry, *rebuild(sliced)], rules)
        results = _arrays(results, body_outs)
        return results[:n_carry], results[n_carry:]

    carry, stacked = jax.lax.scan(
        body, carry, sliced, length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [*carry, *stacked]


def _sliceable(values: Sequence[Value], length: int) -> tuple[list[typing.Any], Callable[..., list[Value]]]:
    """Splits scanned values into arrays to slice and what every step shares.

    A lazy value is sliced leaf by leaf: its codes along the leading axis, and so is every grid array with one
    entry a step; a grid shared by all steps (leading length 1) goes to each of them whole.
    """

    def slices(value: Value) -> bool:  # a packed rank-1 tensor or groups along the scanned axis do not
        return value.ndim >= 2 and all(leaf.shape[0] in (1, length) for leaf in jax.tree.leaves(value))

    flat = [jax.tree.flatten(v if not isinstance(v, Lazy) or slices(v) else decode(v)) for v in values]
    scanned = [[leaf for leaf in leaves if leaf.shape[0] == length] for leaves, _ in flat]

    def rebuild(sliced: list[list[jax.Array]]) -> list[Value]:
        out = []
        for (leaves, treedef), parts in zip(flat, sliced, strict=True):
            parts = iter(parts)
            out.append(treedef.unflatten([next(parts) if leaf.shape[0] == length else leaf[0] for leaf in leaves]))
        return out

    return scanned, rebuild


def _while(eqn: typing.Any, operands: list[Value], rules: Rules) -> list[jax.Array]:
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts = operands[:n_cond], operands[n_cond : n_cond + n_body]

    def cond(carry):
        return decode(interpret(eqn.params["cond_jaxpr"], [*cond_consts, *carry], rules)[0])

    def body(carry):
        return _arrays(interpret(eqn.params["body_jaxpr"], [*body_consts, *carry], rules), eqn.outvars)

    return jax.lax.while_loop(cond, body, [decode(v) for v in operands[n_cond + n_body :]])


def _cond(eqn: typing.Any, operands: list[Value], rules: Rules) -> list[jax.Array]:
    def branch(jaxpr):
        return lambda *operands: _arrays(interpret(jaxpr, operands, rules), eqn.outvars)

    index, *rest = operands
    return jax.lax.switch(decode(index), [branch(j) for j in eqn.params["branches"]], *rest)


def _arrays(values: Sequence[Value], variables: Sequence[typing.Any]) -> list[jax.Array]:
    """Decoded results, in the dtypes that the surrounding equation promises."""
    return [
        jax.lax.convert_element_type(decode(v), var.aval.dtype) if isinstance(v, Lazy) else v
        for v, var in zip(values, variables, strict=True)
    ]


_HIGHER_ORDER: dict[str, Callable[..., Sequence[Value]]] = {
    "jit": _call,
    "pjit": _call,
    "closed_call": _call,
    "core_call": _call,
    "custom_jvp_call": _call,
    "custom_vjp_call": _call,
    "checkpoint": _checkpoint,
    "remat2": _checkpoint,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
