"""What a walk over a program is: its rules, what it knows by name, and an equation as a rule sees it."""

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence

import jax

from jqz._stacked import Stacked
from jqz._values import Value, decode

Rule = Callable[..., Sequence[Value] | None]
Rules = Mapping[str, Rule]


@dataclasses.dataclass
class Walk:
    """One walk over a program: its rules, what they are given by name, and what they record by name.

    A scan hands each step its slice of what is given, and stacks what is recorded. A record has ``merge(other)``
    and ``empty()``, its neutral element, for the loops and branches that it may or may not come from. Primitives
    in ``always`` are offered to their rules whatever their operands are, in every body; ``forms`` are rules for
    equations on plain arrays. ``scope`` is where it is, ``calls`` are the equations around it, innermost first.
    """

    rules: Rules
    given: dict[str, Stacked] = dataclasses.field(default_factory=dict)
    records: dict[str, Stacked] = dataclasses.field(default_factory=dict)
    names: dict[str, int] = dataclasses.field(default_factory=dict)
    log: dict[str, "Note"] | None = None
    steps: int = 1
    #: Without them, functions with derivatives of their own and checkpoints are walked as their bodies.
    derivatives: bool = True
    always: frozenset[str] = frozenset()
    scope: tuple[str, ...] = ()
    calls: tuple[typing.Any, ...] = ()
    forms: Rules = dataclasses.field(default_factory=dict)

    def name(self, path: str) -> str:
        """A name for the next use of a weight: its path; ``path#2`` where it is used a second time."""
        self.names[path] = self.names.get(path, 0) + 1
        return path if self.names[path] == 1 else f"{path}#{self.names[path]}"

    def within(self, given: dict[str, Stacked] | None = None, steps: int = 1) -> "Walk":
        """The same walk inside a body that is traced by itself: it records into a dict of its own."""
        given = self.given if given is None else given
        return dataclasses.replace(self, given=given, records={}, names=dict(self.names), steps=self.steps * steps)

    def absorb(self, inner: "Walk", records: dict[str, Stacked]) -> None:
        """Takes over the names that a body used, and its records as they came out of it."""
        self.names = dict(inner.names)
        self.records.update(records)


class Note(typing.NamedTuple):
    """What an audit keeps of a product: its equation, how it ran and why."""

    eqn: typing.Any
    how: str
    why: str
    path: str | None
    steps: int


#: The primitives that an audit reports, and what it calls them.
PRODUCTS = {
    "dot_general": "dot", "conv_general_dilated": "conv", "ragged_dot": "ragged dot", "ragged_dot_general": "ragged dot"
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Equation:
    """An equation as a rule sees it; ``label`` names where it stands, for one without weights."""

    primitive: str
    params: Mapping[str, typing.Any]
    avals: tuple[typing.Any, ...]
    label: str
    bind: Callable[..., Sequence[jax.Array]]
    walk: Walk
    operands: list[Value]
    said: dict[str, str] = dataclasses.field(default_factory=dict)
    #: The line of the program that the equation comes from.
    source: Callable[[], str] = lambda: "an unknown line"

    def say(self, **kwargs: str) -> None:
        """Tells an audit ``how`` the equation ran, ``why``, and under which ``name``."""
        self.said.update(kwargs)

    def on(self, *operands: Value) -> jax.Array:
        """The single result of the original primitive, or a form of it, on decoded operands."""
        return self.bind(*map(decode, operands))[0]

    def replace(self, index: int, value: Value) -> None:
        """Lets whoever reads this operand later read ``value`` instead."""
        self.operands[index] = value


def either(*tables: Rules) -> Rules:
    """One table; an equation that the first rule of a name declines is offered to the next."""
    merged: dict[str, Rule] = {}
    for table in tables:
        for name, rule in table.items():
            merged[name] = _first(merged[name], rule) if name in merged else rule
    return merged


def _first(one: Rule, other: Rule) -> Rule:
    def rule(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        results = one(eqn, *operands)
        return other(eqn, *eqn.operands) if results is None else results  # the first may have replaced some

    return rule
