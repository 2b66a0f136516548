"""Places where an integer runtime rounds, besides the operands of products: sums, means, softmax, results.

A runtime's tensors are codes between any two of its operators, while here whole expressions wait for the
next product. Where a grid is given for such a place, the value is rounded on it; its name is where it stands, such
as ``Block_0/(add lhs)``.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from jqz import _paths
from jqz._activations import coder
from jqz._observer import Observer, covering
from jqz._pending import Waiting, moved_codes
from jqz._requant import Requant
from jqz._scheme import Scheme
from jqz._sites import Seen
from jqz._stacked import Stacked
from jqz._values import Activation, Pending, Value, decode
from jqz._walk import Equation, Rule, Walk

#: What happens to a value that waits, at the place of a name.
Place = Callable[[Walk, str, Value], Value]

#: Of these, the operand is rounded: sums, functions of numbers, and the maximum that softmax begins with.
OF_ONE = ("reduce_sum", "reduce_window_sum", "reduce_max", "tanh", "logistic")


def rounded(requant: Requant) -> Place:
    """Rounds on the grid that is given for a place, if there is one."""
    code = coder(requant)

    def place(walk: Walk, name: str, x: Value) -> Value:
        if (moved := moved_codes(x, requant)) is not None:
            return moved
        if name not in walk.given:
            return x
        site = walk.given[name].tree
        return Activation(None, code(x, site.scheme, site.grid), site.scheme, name)

    return place


def watched(observer: Observer, scheme: Scheme, requant: Requant) -> Place:
    """Records what comes by where no grid is given, and rounds it on the grid that it suggests."""
    given, code = rounded(requant), coder(requant)

    def place(walk: Walk, name: str, x: Value) -> Value:
        if name in walk.given or moved_codes(x, requant) is not None:
            return given(walk, name, x)
        real = decode(x)
        seen = observer.update(real)
        walk.records[name] = Stacked(Seen(seen, real.ndim))
        return Activation(None, code(x, covering(scheme), seen.grid(scheme, real.ndim)), covering(scheme), name)

    return place


def rules(place: Place) -> dict[str, Rule]:
    """The rule table: rules that replace operands by what ``place`` makes of them, and decline."""

    def at(eqn: Equation, side: int, name: str) -> None:
        x = eqn.operands[side]
        if isinstance(x, Waiting) and x.dtype == jnp.float32:  # others are codes already
            eqn.replace(side, place(eqn.walk, name, x))

    def add(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        if all(isinstance(v, Pending | Activation) for v in operands):
            name = eqn.walk.name(eqn.label)
            for side in (0, 1):
                at(eqn, side, _paths.operand(name, side))
        return None

    def of_one(eqn: Equation, x: Value, *_: Value) -> Sequence[Value] | None:
        if isinstance(x, Pending | Activation):
            at(eqn, 0, eqn.walk.name(eqn.label))
        return None

    return {"add": add, "add_any": add, **dict.fromkeys(OF_ONE, of_one)}


def result(place: Place, walk: Walk, value: Value) -> Value:
    """What a function returns, as codes where a grid is given."""
    if not isinstance(value, Pending | Activation):
        return value
    name = walk.name(_paths.product("", "result"))
    waits = isinstance(value, Waiting) and value.dtype == jnp.float32
    return place(walk, name, value) if waits else value
