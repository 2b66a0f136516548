"""The one engine: walk a jaxpr, offer each equation to a table of rules, decode for all others.

A rule gets the equation and its operands, of which at least one is not a plain array, and returns the
results, or None to decline. A primitive without a rule gets decoded operands: unknown primitives cost
speed, never correctness. What is then left on plain arrays is offered to a second table, of other forms for the
same arithmetic. Calls, ``scan``, ``while``, ``cond``, ``checkpoint`` and custom derivatives are
walked through wherever such an operand enters them, or a primitive of the second table stands in them.

Everything that differs between JAX versions stands in this file.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from jqz import _paths, _ste
from jqz._stacked import Stacked
from jqz._values import Coded, Lazy, Pending, Stored, Value, Weight, decode, is_weight
from jqz._walk import PRODUCTS, Equation, Note, Walk

#: What labels call a primitive, whatever the version of JAX does.
_KINDS: dict[str, str] = {**PRODUCTS, "pjit": "jit"}


def trace(fn: Callable[..., typing.Any], *args: typing.Any) -> tuple[typing.Any, typing.Any]:
    """The jaxpr of a function of arrays and ShapeDtypeStructs, and the structure of its result."""
    structure = []

    def flat(*args):
        leaves, treedef = jax.tree.flatten(fn(*args))
        structure.append(treedef)
        return leaves

    return jax.make_jaxpr(flat)(*args), structure[-1]


def interpret(jaxpr: typing.Any, operands: list[Value], walk: Walk) -> list[Value]:
    """Evaluates a (closed) jaxpr on values; results may be lazy, and rules may replace ``operands``."""
    inner, consts = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
    env: dict[typing.Any, Value] = dict(zip([*inner.constvars, *inner.invars], [*consts, *operands], strict=True))

    def read(atom: typing.Any) -> Value:
        return atom.val if hasattr(atom, "val") else env[atom]

    for eqn in inner.eqns:
        values = [read(v) for v in eqn.invars]
        results = _evaluate(eqn, values, walk)
        env.update((atom, v) for atom, v in zip(eqn.invars, values, strict=True) if not hasattr(atom, "val"))
        env.update(zip(eqn.outvars, results, strict=True))
    operands[:] = [env[v] for v in inner.invars]
    return [read(v) for v in inner.outvars]


def _evaluate(eqn: typing.Any, operands: list[Value], walk: Walk) -> Sequence[Value]:
    name = eqn.primitive.name
    lazy = any(isinstance(v, Lazy) for v in operands)
    logged = walk.log is not None and name in PRODUCTS
    said: dict[str, str] = {}

    def plain(*arrays: jax.Array) -> Sequence[jax.Array]:
        results = walk.forms[name](equation(), *arrays) if name in walk.forms else None
        return bind(eqn, arrays) if results is None else results

    def equation() -> Equation:
        avals = tuple(v.aval for v in eqn.outvars)
        label, source = _label(eqn, walk), functools.partial(_source_line, (eqn, *walk.calls))
        return Equation(name, eqn.params, avals, label, plain, walk, operands, said, source)

    with eqn.ctx.manager:
        weights = [v.path for v in operands if is_weight(v)]
        offered = name in walk.rules and (lazy or name in walk.always)
        results = walk.rules[name](equation(), *operands) if offered else None
        if results is None and name in _HIGHER_ORDER and (lazy or walk.log is not None or _holds(eqn.params, walk)):
            outer, walk.scope, walk.calls = (walk.scope, walk.calls), _scope(eqn, walk), (eqn, *walk.calls)
            results = _HIGHER_ORDER[name](eqn, operands, walk)
            walk.scope, walk.calls = outer
            return results
        if logged:
            _note(eqn, walk, weights, said)
        return plain(*map(decode, operands)) if results is None else results


def _holds(params: Mapping[str, typing.Any], walk: Walk) -> bool:
    """Whether a primitive that a walk seeks on plain arrays stands in the jaxprs of an equation, or in theirs."""
    if not walk.always and not walk.forms:
        return False
    jaxprs = [getattr(j, "jaxpr", j) for p in params.values() for j in (p if isinstance(p, tuple | list) else [p])]
    eqns = [eqn for j in jaxprs for eqn in getattr(j, "eqns", ())]
    return any(
        e.primitive.name in walk.always or e.primitive.name in walk.forms or _holds(e.params, walk) for e in eqns
    )


def _scope(eqn: typing.Any, walk: Walk) -> tuple[str, ...]:
    """The named scopes around an equation, those of the calls that it stands in included; no transformations."""
    return (*walk.scope, *(part.name for part in eqn.source_info.name_stack.stack if type(part).__name__ == "Scope"))


def _label(eqn: typing.Any, walk: Walk) -> str:
    kind: str = eqn.primitive.name
    return _paths.product("/".join(_scope(eqn, walk)), _KINDS.get(kind, kind))


def _source_line(eqns: Sequence[typing.Any]) -> str:
    """The innermost line outside JAX, Flax and this package that an equation, or a call around it, comes from."""
    inside = ("/jax/", "/flax/", "/equinox/", "/jqz/_", "/jqz/kernels/")
    frames = (frame for eqn in eqns for frame in getattr(eqn.source_info.traceback, "frames", ()))
    lines = [frame for frame in frames if not any(part in frame.file_name for part in inside)]
    return f"{lines[0].file_name}:{lines[0].line_num}" if lines else "an unknown line"


def _note(eqn: typing.Any, walk: Walk, weights: list[str], said: dict[str, str]) -> None:
    assert walk.log is not None
    path = weights[0] if weights else None
    name = said.get("name") or walk.name(" x ".join(weights) or _label(eqn, walk))
    why = "no coded weight" if path is None else "weight-only: activations stay float"
    walk.log[name] = Note(eqn, said.get("how", "float"), said.get("why", why), path, walk.steps)


def bind(eqn: typing.Any, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """The results of an equation on arrays."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair before JAX 0.11
    out = eqn.primitive.bind(*functions, *arrays, **params)
    return out if eqn.primitive.multiple_results else [out]


# --- equations that hold jaxprs ---------------------------------------------------------------------------------------


def _call(eqn: typing.Any, operands: list[Value], walk: Walk) -> list[Value]:
    """A call is its body: results may stay lazy across it."""
    body = next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params)
    return interpret(body, operands, walk)


def _custom(eqn: typing.Any, operands: list[Value], walk: Walk) -> Sequence[Value]:
    """A function with its own derivative keeps it; where a weight passes through, its value is walked."""
    if not walk.derivatives:
        return _call(eqn, operands, walk)
    arrays = [decode(v) for v in operands]
    if not any(is_weight(v) for v in operands) and not _holds(eqn.params, walk):
        return bind(eqn, arrays)
    results = _call(eqn, jax.tree.map(jax.lax.stop_gradient, operands), walk)
    # the author's derivative, at the operands' own values; where no gradient is taken, XLA drops this second half
    return [_with_gradient(v, s) for v, s in zip(results, bind(eqn, arrays), strict=True)]


def _with_gradient(value: Value, source: jax.Array) -> Value:
    if isinstance(value, Weight):
        return dataclasses.replace(value, value=_ste.straight_through(source, value.value))
    if is_weight(value) or not jnp.issubdtype(source.dtype, jnp.floating):
        return value
    return _ste.straight_through(source, decode(value))


def _checkpoint(eqn: typing.Any, operands: list[Value], walk: Walk) -> list[Value]:
    if not walk.derivatives:
        return _call(eqn, operands, walk)
    inner = walk.within()

    def body(*operands):
        inner.__dict__.update(walk.within().__dict__)
        results = _arrays(interpret(eqn.params["jaxpr"], list(operands), inner), eqn.outvars)
        return results, inner.records

    remat = jax.checkpoint(body, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    results, records = remat(*operands)
    walk.absorb(inner, records)
    return results


def _settled(operands: list[Value]) -> list[Value]:
    """Operands of an equation whose body is traced by itself, where an expression of outer values is no use."""
    return [decode(v) if isinstance(v, Pending) else v for v in operands]


def scan_operands(params: Mapping[str, typing.Any], operands: Sequence[Value]) -> list[list[Value]]:
    """What all steps of a scan get, what goes from step to step, and what each gets a slice of."""
    if "num_consts" in params:
        n_consts, n_carry = params["num_consts"], params["num_carry"]
    else:  # JAX 0.12 keeps the three groups as a tree
        n_consts, n_carry = (len(group) for group in params["ft_in"].unpack()[:2])
    ends = n_consts, n_consts + n_carry
    return [list(operands[: ends[0]]), list(operands[slice(*ends)]), list(operands[ends[1] :])]


def _scan(eqn: typing.Any, operands: list[Value], walk: Walk) -> list[jax.Array]:
    params, length = eqn.params, eqn.params["length"]
    consts, first, xs = scan_operands(params, _settled(operands))
    n_carry = len(first)
    sliced, rebuild = _sliceable(xs, length)
    mine = {name: given for name, given in walk.given.items() if given.lengths[:1] == (length,)}
    body_outs = getattr(params["jaxpr"], "jaxpr", params["jaxpr"]).outvars
    inner, sources = walk.within(), []

    def body(carry, slices):
        sliced, trees = slices
        given = {name: Stacked(tree, mine[name].lengths[1:]) for name, tree in trees.items()}
        inner.__dict__.update(walk.within({**walk.given, **given}, length).__dict__)
        values = rebuild(sliced)
        results = interpret(params["jaxpr"], [*consts, *carry, *values], inner)
        sources[:] = [_source(v, values, xs, length) for v in results[n_carry:]]
        before = [*carry, *(None if i is None else values[i] for i in sources)]
        results = _arrays(results, body_outs, before)
        return results[:n_carry], (results[n_carry:], inner.records)

    trees = {name: given.tree for name, given in mine.items()}
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (sliced, trees))
    carry = _carried(first, lambda carry: jax.eval_shape(body, carry, one)[0])
    carry, (stacked, records) = jax.lax.scan(
        body, carry, (sliced, trees), length=length, reverse=params["reverse"], unroll=params["unroll"]
    )
    stacked = [v if i is None else _restacked(v, xs[i], length) for v, i in zip(stacked, sources, strict=True)]
    scanned = {v.path for v in xs if is_weight(v)}

    def own(name: str) -> bool:  # layers have weights of their own; steps of a recurrence do not
        path = name.split("#")[0].removesuffix(f"/{_paths.RESIDUAL}")
        return bool(scanned) if _paths.names_product(path) else path in scanned

    walk.absorb(
        inner,
        {name: Stacked(r.tree, (length, *r.lengths)) if own(name) else r.folded(length) for name, r in records.items()},
    )
    return [*carry, *stacked]


def _source(value: Value, slices: Sequence[Value], xs: Sequence[Value], length: int) -> int | None:
    """Which scanned tensor a step has written to, if it left alone what all steps share."""

    def shared_stays(before: Value, x: Value) -> bool:
        leaves = zip(*(jax.tree.leaves(v.tensor) for v in (value, before, x)), strict=True)
        return all(a is b or whole.shape[0] == length for a, b, whole in leaves)

    pairs = enumerate(zip(slices, xs, strict=True)) if isinstance(value, Stored) else ()
    return next((i for i, (before, x) in pairs if value.same(before) and shared_stays(before, x)), None)


def _restacked(value: Value, x: Value, length: int) -> Value:
    """A scanned tensor after all steps have written to it."""
    leaves, treedef = jax.tree.flatten(x.tensor)
    after = [a if b.shape[0] == length else b for a, b in zip(jax.tree.leaves(value.tensor), leaves, strict=True)]
    return Stored(treedef.unflatten(after), x.path)


def _sliceable(values: Sequence[Value], length: int) -> tuple[list[typing.Any], Callable[..., list[Value]]]:
    """Splits scanned values into arrays to slice and what every step shares.

    A lazy value is sliced leaf by leaf: its codes along the leading axis, and so is every grid array with one
    entry a step; a grid shared by all steps (leading length 1) goes to each of them whole.
    """

    def slices(value: Value) -> bool:  # a packed rank-1 tensor or groups along the scanned axis do not
        return value.ndim >= 2 and all(leaf.shape[0] in (1, length) for leaf in jax.tree.leaves(value))

    def sliceable(value: Value) -> Value:
        if not isinstance(value, Lazy) or slices(value):
            return value
        return Weight(value.decode(), value.path) if is_weight(value) and value.ndim >= 2 else value.decode()

    flat = [jax.tree.flatten(sliceable(v)) for v in values]
    scanned = [[leaf for leaf in leaves if leaf.shape[0] == length] for leaves, _ in flat]

    def rebuild(sliced: list[list[jax.Array]]) -> list[Value]:
        out = []
        for (leaves, treedef), parts in zip(flat, sliced, strict=True):
            parts = iter(parts)
            out.append(treedef.unflatten([next(parts) if leaf.shape[0] == length else leaf[0] for leaf in leaves]))
        return out

    return scanned, rebuild


def _while(eqn: typing.Any, operands: list[Value], walk: Walk) -> list[jax.Array]:
    operands = _settled(operands)
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts = operands[:n_cond], operands[n_cond : n_cond + n_body]
    inner = walk.within()

    def cond(state):
        return decode(interpret(eqn.params["cond_jaxpr"], [*cond_consts, *state[0]], walk.within())[0])

    def step(carry):
        inner.__dict__.update(walk.within().__dict__)
        results = interpret(eqn.params["body_jaxpr"], [*body_consts, *carry], inner)
        return _arrays(results, eqn.outvars, carry), inner.records

    def body(state):
        carry, before = state
        results, records = step(carry)
        return results, {name: before[name].merge(r) for name, r in records.items()}

    carry = _carried(operands[n_cond + n_body :], lambda carry: step(carry)[0])
    carry, records = jax.lax.while_loop(cond, body, (carry, _empty(jax.eval_shape(step, carry)[1])))
    walk.absorb(inner, records)
    return carry


def _cond(eqn: typing.Any, operands: list[Value], walk: Walk) -> list[jax.Array]:
    inner = walk.within()

    index, *rest = _settled(operands)
    before = _written(eqn, rest, walk) if any(isinstance(v, Coded) for v in rest) else [None] * len(eqn.outvars)

    def branch(jaxpr):
        def run(*operands):
            inner.__dict__.update(walk.within().__dict__)
            results = interpret(jaxpr, list(operands), inner)
            results = [Stored(v.tensor, v.path) if b is not None else v for v, b in zip(results, before, strict=True)]
            return _arrays(results, eqn.outvars, before), inner.records

        return run

    branches = [branch(j) for j in eqn.params["branches"]]
    nothing: dict[str, Stacked] = {}
    for run in branches:  # a branch that is not taken records the neutral element of what the others do
        nothing.update(_empty(jax.eval_shape(run, *rest)[1]))

    def padded(run):
        def with_all(*operands):
            results, records = run(*operands)
            return results, {**nothing, **records}

        return with_all

    results, records = jax.lax.switch(decode(index), [padded(run) for run in branches], *rest)
    walk.absorb(inner, records)
    return results


def _written(eqn: typing.Any, operands: list[Value], walk: Walk) -> list[Value]:
    """The tensors among the results of a cond that a branch writes to, and the others at least hand on."""

    def run(jaxpr):
        results = interpret(jaxpr, list(operands), walk.within())
        return [v if isinstance(v, Coded) else None for v in results]

    def agreed(values: Sequence[Value]) -> Value:
        one = next((v for v in values if isinstance(v, Stored)), None)
        return one if one is not None and all(one.same(v) for v in values) else None

    outcomes = [jax.eval_shape(lambda j=j: run(j)) for j in eqn.params["branches"]]
    return [agreed(values) for values in zip(*outcomes, strict=True)]


def _empty(records: dict[str, Stacked]) -> dict[str, Stacked]:
    return {name: r.empty() for name, r in records.items()}


def _arrays(
    values: Sequence[Value], variables: Sequence[typing.Any], before: Sequence[Value] | None = None
) -> list[Value]:
    """Decoded results, in the dtypes that the surrounding equation promises.

    Tensors that were written to stay coded, in a loop those that were so ``before``.
    """

    def array(value: Value, variable: typing.Any, i: int) -> Value:
        if isinstance(value, Stored) and (before is None or value.same(before[i])):
            return value
        if not isinstance(value, Lazy):
            return value
        return jax.lax.convert_element_type(decode(value), variable.aval.dtype)

    return [array(v, var, i) for i, (v, var) in enumerate(zip(values, variables, strict=True))]


def _carried(carry: Sequence[Value], step: Callable[[list[Value]], list[Value]]) -> list[Value]:
    """The carry of a loop: tensors that each step writes to and hands on stay coded, all else is decoded."""
    kept = [Stored(v.tensor, v.path) if isinstance(v, Coded) and not v.casts else decode(v) for v in carry]
    while any(isinstance(v, Stored) for v in kept):
        after = jax.eval_shape(step, kept)
        lost = [
            isinstance(b, Stored) and not (isinstance(a, Stored) and b.same(a))
            for b, a in zip(kept, after, strict=True)
        ]
        if not any(lost):
            break
        kept = [decode(v) if gone else v for v, gone in zip(kept, lost, strict=True)]
    return kept


_HIGHER_ORDER: dict[str, Callable[..., Sequence[Value]]] = {
    "jit": _call,
    "pjit": _call,
    "closed_call": _call,
    "core_call": _call,
    "custom_jvp_call": _custom,
    "custom_vjp_call": _custom,
    "checkpoint": _checkpoint,
    "remat2": _checkpoint,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
