"""A program cut where a single activation is all that the rest of it needs.

The pieces between such places are blocks: a layer of a chain, a residual block with its shortcut. Each runs by itself,
from what comes out of the one before it.
"""

import dataclasses
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import jax

from jqz import _paths
from jqz._evaluate import is_array, is_leaf, traced
from jqz._interpret import bind
from jqz._walk import PRODUCTS

_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class _Constant(typing.NamedTuple):
    """An operand that the program holds."""

    value: typing.Any


class _Step(typing.NamedTuple):
    """An equation on values by number."""

    eqn: typing.Any
    operands: tuple[int | _Constant, ...]
    results: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A piece of a program: the weights that it is the first to use, and what it takes and makes.

    Attributes:
      weights: their paths, in the order of the program.
      steps: its equations, and those on parameters and arguments alone that it needs.
      inputs: what it takes from the block before, by number; none for the first.
      outputs: what it makes.
    """

    weights: tuple[str, ...]
    steps: tuple[_Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def __call__(self, arguments: Sequence[jax.Array], before: Sequence[jax.Array]) -> list[jax.Array]:
        """What it makes, from the arrays among the program's arguments, in order, and what the block before made."""
        env: dict[int, jax.Array] = dict(enumerate(arguments)) | dict(zip(self.inputs, before, strict=True))
        for eqn, operands, results in self.steps:
            arrays = [v.value if isinstance(v, _Constant) else env[v] for v in operands]
            with eqn.ctx.manager:
                env.update(zip(results, bind(eqn, arrays), strict=True))
        return [env[v] for v in self.outputs]


def arrays_of(params: typing.Any, args: Sequence[typing.Any]) -> list[typing.Any]:
    """The arrays among parameters and arguments, in the order in which blocks take them."""
    return [leaf for leaf in jax.tree.leaves((params, *args), is_leaf=is_leaf) if is_array(leaf)]


def blocks(
    fn: Callable[..., typing.Any],
    params: typing.Any,
    args: Sequence[typing.Any],
    weights: Collection[str],
    together: Iterable[Sequence[str]] = (),
) -> list[Block]:
    """The blocks of ``fn(params, *args)``, in order; nothing is executed.

    Only what depends on the ``weights``, by path, and on the arguments counts as an activation. Calls are entered;
    loops and branches are not, so that all that is in one is of one block.

    Args:
      fn: a pure function.
      params: its parameters, float leaves.
      args: arguments of the shapes to run on.
      weights: paths of parameters.
      together: groups of globs; what stands from the first weight that one of a group names to the last is one block.
    """
    found = traced(fn, (params, *args), {})
    program = _Program(len(found.operands))
    outputs = program.inline(found.jaxpr, list(range(len(found.operands))))
    return program.cut(found.of_first(), weights, [v for v in outputs if isinstance(v, int)], together)


class _Program:
    """A jaxpr without calls."""

    def __init__(self, count: int):
        self.inputs = count
        self.count = count
        self.steps: list[_Step] = []

    def inline(self, jaxpr: typing.Any, operands: list[int | _Constant]) -> list[int | _Constant]:
        """Adds the steps of a jaxpr; calls are replaced by their bodies."""
        inner, consts = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
        values = [*map(_Constant, consts), *operands]
        env: dict[typing.Any, int | _Constant] = dict(zip([*inner.constvars, *inner.invars], values, strict=True))

        def read(atom: typing.Any) -> int | _Constant:
            return _Constant(atom.val) if hasattr(atom, "val") else env[atom]

        for eqn in inner.eqns:
            taken, body = [read(v) for v in eqn.invars], _body(eqn)
            if body is not None:
                env.update(zip(eqn.outvars, self.inline(body, taken), strict=True))
                continue
            made = tuple(range(self.count, self.count + len(eqn.outvars)))
            self.count += len(made)
            self.steps.append(_Step(eqn, tuple(taken), made))
            env.update(zip(eqn.outvars, made, strict=True))
        return [read(v) for v in inner.outvars]

    def cut(
        self,
        named: Mapping[int, str],
        weights: Collection[str],
        outputs: Sequence[int],
        together: Iterable[Sequence[str]],
    ) -> list[Block]:
        """The blocks, each with the weights that it is the first to use."""
        uses: dict[int, frozenset[str]] = {n: frozenset({p} & set(weights)) for n, p in named.items()}
        data = {n for n in range(self.inputs) if n not in named}
        moved: set[int] = set()
        fresh: list[list[str]] = []  # weights that each step is the first to use
        seen: set[str] = set()
        for _, operands, results in self.steps:
            taken = [v for v in operands if isinstance(v, int)]
            used = frozenset().union(*(uses.get(v, frozenset()) for v in taken if v not in data))
            fresh.append([])
            if any(v in data for v in taken):
                data.update(results)
                if used or any(v in moved for v in taken):
                    moved.update(results)
                    fresh[-1] = [path for path in named.values() if path in used - seen]
                    seen |= used
            else:
                uses.update(dict.fromkeys(results, used))
        ends = self._ends(moved, outputs)
        pieces = _pieces(ends, fresh, [list(group) for group in together])
        return self._blocks(pieces, [v for v in dict.fromkeys(outputs) if v in moved])

    def _ends(self, moved: set[int], outputs: Sequence[int]) -> list[tuple[int, int]]:
        """After which steps a single moved value is alive, and which."""
        last = {v: i for i, step in enumerate(self.steps) for v in step.operands if isinstance(v, int) and v in moved}
        last |= {v: len(self.steps) for v in outputs if v in moved}
        alive: set[int] = set()
        found = []
        for i, (_, _, results) in enumerate(self.steps):
            alive = {v for v in (*alive, *results) if last.get(v, -1) > i}
            if len(alive) == 1:
                found.append((i, next(iter(alive))))
        return found

    def _blocks(self, pieces: list[tuple[tuple[str, ...], int, int | None]], outputs: Sequence[int]) -> list[Block]:
        found, before = [], ()
        for weights, stop, value in pieces:
            after = tuple(outputs) if value is None else (value,)
            found.append(Block(weights, self._needed(after, before, stop), before, after))
            before = after
        return found

    def _needed(self, after: Sequence[int], before: Sequence[int], stop: int) -> tuple[_Step, ...]:
        """The steps between two places."""
        wanted, steps = set(after), []
        for step in reversed(self.steps[:stop]):
            if wanted & set(step.results) and not set(before) & set(step.results):
                wanted |= {v for v in step.operands if isinstance(v, int)}
                steps.append(step)
        return tuple(reversed(steps))


def _pieces(
    ends: list[tuple[int, int]], fresh: list[list[str]], together: list[list[str]]
) -> list[tuple[tuple[str, ...], int, int | None]]:
    """For each piece its weights, the number of steps until its end, and the value there; None for the results."""
    cuts, start = [], 0
    for i, value in ends:
        new = [path for paths in fresh[start : i + 1] for path in paths]
        cuts.append((new, i + 1, value))
        start = i + 1
    cuts.append(([path for paths in fresh[start:] for path in paths], len(fresh), None))
    merged: list[tuple[list[str], int, int | None]] = []
    for new, stop, value in cuts:  # what has no weights belongs to the piece before it
        if new or not merged:
            merged.append((new, stop, value))
        else:
            merged[-1] = (merged[-1][0], stop, value)
    for globs in together:
        named = [
            i for i, piece in enumerate(merged) if any(_paths.matches(g, path) for g in globs for path in piece[0])
        ]
        if not named:
            every = [path for piece in merged for path in piece[0]]
            near = ", ".join(map(repr, _paths.nearest(globs[0], every)))
            raise ValueError(f"reconstruct: together={tuple(globs)!r} names no rounded weight. Nearest paths: {near}.")
        first, last = named[0], named[-1] + 1
        inside = merged[first:last]
        merged[first:last] = [([path for piece in inside for path in piece[0]], *inside[-1][1:])]
    return [(tuple(new), stop, value) for new, stop, value in merged if new]


def _body(eqn: typing.Any) -> typing.Any:
    """The body of a call that may stand in its place; a function with a derivative of its own keeps it."""
    name = eqn.primitive.name
    body = None if name == "scan" else next((eqn.params[key] for key in _BODIES if key in eqn.params), None)
    if body is None or len(getattr(body, "jaxpr", body).invars) != len(eqn.invars):
        return None
    return None if name.startswith("custom_") and not _has_two_products(body) else body


def _has_two_products(body: typing.Any) -> bool:
    eqns = getattr(body, "jaxpr", body).eqns
    inside = [_body(eqn) for eqn in eqns]
    return sum(eqn.primitive.name in PRODUCTS for eqn in eqns) > 1 or any(map(_has_two_products, filter(None, inside)))
