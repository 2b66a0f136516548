"""Places where an integer runtime rounds, besides the operands of products: sums, means, softmax, results.

A runtime's tensors are codes between any two of its operators, while here whole expressions wait for the
next product. Where a grid is given for such a place, the value is rounded on it; its name is where it stands, such
as ``Block_0/(add lhs)``.

What no operator on codes computes is computed in float32 from there to the next product: functions, quotients,
products of two activations, choices, sums over the last axis (of normalizations), and all that follows from these.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jqz import _paths
from jqz._activations import coder
from jqz._observer import Observer, covering
from jqz._pending import Waiting, moved_codes
from jqz._rescaling import Requant
from jqz._scheme import Scheme
from jqz._sites import Seen
from jqz._stacked import Stacked
from jqz._values import Activation, Computed, Levels, Pending, Value, decode
from jqz._walk import PRODUCTS, Equation, Rule, Walk

#: What happens to a value that waits, at the place of a name.
Place = Callable[[Walk, str, Value], Value]

#: Functions of a number.
FUNCTIONS = ("tanh", "logistic", "exp", "log", "sqrt", "rsqrt", "erf", "erfc", "abs", "square", "integer_pow")
#: What chooses numbers, by which it is no longer affine.
CHOICES = ("select_n", "gt", "ge", "lt", "le")
#: On codes as long as one operand is a constant.
BY_CONSTANTS = ("sub", "mul", "div", "max", "min")
#: What moves values, or changes each by constants.
MOVES = (
    "reshape", "squeeze", "broadcast_in_dim", "transpose", "slice", "concatenate", "pad", "reduce_window_max",
    "gather", "clamp", "neg", "copy", "copy_p", "stop_gradient", "convert_element_type",
)  # fmt: skip
SUMS = ("reduce_sum", "reduce_window_sum", "reduce_max")
BODIES = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")
_BY_NUMBER = frozenset({*FUNCTIONS, *CHOICES, *BY_CONSTANTS, *MOVES[:3], *MOVES[-6:], "add", "add_any"})


def sums_in_float(primitive: str, params: Mapping[str, typing.Any], ndim: int) -> bool:
    """Whether a sum is over the last axis alone, as normalizations need it: not a pooling of images."""
    return primitive == "reduce_sum" and tuple(params["axes"]) == (ndim - 1,)


def is_function(params: Mapping[str, typing.Any]) -> bool:
    """Whether a call computes numbers one by one by more than sums, multiples and bounds: gelu, say, but not relu."""
    eqns = list(_equations(params))
    names = {eqn.primitive.name for eqn in eqns}
    products = (eqn for eqn in eqns if eqn.primitive.name in ("mul", "div"))
    both = any(all(not hasattr(v, "val") for v in eqn.invars) for eqn in products)
    return names <= _BY_NUMBER and (both or bool(names & {*FUNCTIONS, *CHOICES}))


def _equations(params: Mapping[str, typing.Any]) -> Iterator[typing.Any]:
    """The equations of a call, those of calls inside it included."""
    for body in params.values():
        for eqn in getattr(getattr(body, "jaxpr", body), "eqns", ()):
            yield from _equations(eqn.params) if eqn.primitive.name in BODIES else (eqn,)


def rounded(requant: Requant) -> Place:
    """Rounds on the grid that is given for a place, if there is one."""
    code = coder(requant)

    def place(walk: Walk, name: str, x: Value) -> Value:
        if (moved := moved_codes(x, requant)) is not None:
            return moved
        if name not in walk.given:
            return x
        site = walk.given[name].tree
        return Activation(None, _of_rank(x.ndim, code(x, site.scheme, site.grid)), site.scheme, name)

    return place


def _of_rank(ndim: int, levels: Levels | None) -> Levels | None:
    """Levels whose one scale has a rank: with a batch of one, JAX multiplies matrices without that axis."""
    if levels is None or levels.scale.ndim == ndim or levels.scale.size != 1:
        return levels
    grid = (None if a is None else a.reshape((1,) * ndim) for a in (levels.scale, levels.zero_point))
    scale, zero_point = grid
    return dataclasses.replace(levels, scale=scale, zero_point=zero_point)


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
    """The rule table: rules that replace operands by what ``place`` makes of them, and decline or compute in float."""

    def at(eqn: Equation, side: int, name: str) -> None:
        x = eqn.operands[side]
        if isinstance(x, Waiting) and x.dtype == jnp.float32:  # others are codes already
            eqn.replace(side, place(eqn.walk, name, x))

    def all_at(eqn: Equation) -> None:
        """Rounds the operands that wait."""
        sides = [side for side, v in enumerate(eqn.operands) if _is_coded(v)]
        if sides:
            name = eqn.walk.name(label(eqn))
            for side in sides:
                at(eqn, side, name if len(eqn.operands) == 1 else _paths.operand(name, side))

    def in_float(eqn: Equation, *_: Value) -> Sequence[Value] | None:
        """Computes in float32 from codes, whatever it is."""
        if not any(map(_follows, eqn.operands)):
            return None
        all_at(eqn)
        return [Computed(eqn.bind(*map(decode, eqn.operands))[0])]

    def after_float(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        """Goes on in float32 where one operand is, and no other waits."""
        floats = any(isinstance(v, Computed) for v in operands) and not any(map(_is_coded, operands))
        return in_float(eqn) if floats else None

    def add(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        if any(isinstance(v, Computed) for v in operands):
            return in_float(eqn)
        if all(map(_is_coded, operands)):
            all_at(eqn)
            return None
        return scaled(eqn, *operands)

    def scaled(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        """Codes themselves are scaled and shifted in float32, what waits when it is rounded."""
        codes = any(isinstance(v, Activation) for v in operands)
        return in_float(eqn) if codes else after_float(eqn, *operands)

    def by_constant(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        if eqn.primitive == "max" and any(map(_is_no_bound, operands)):
            return [next(v for v in operands if not _is_no_bound(v))]
        divides = eqn.primitive == "div" and _follows(operands[1])
        if divides or all(map(_follows, operands)):
            return in_float(eqn)
        return after_float(eqn, *operands) if eqn.primitive in ("max", "min") else scaled(eqn, *operands)

    def summed(eqn: Equation, x: Value, *rest: Value) -> Sequence[Value] | None:
        if isinstance(x, Computed) or (_is_coded(x) and sums_in_float(eqn.primitive, eqn.params, x.ndim)):
            return in_float(eqn)
        if _is_coded(x):
            at(eqn, 0, eqn.walk.name(eqn.label))
        return None

    def call(eqn: Equation, *operands: Value) -> None:
        if any(map(_is_coded, operands)) and is_function(eqn.params):
            all_at(eqn)
            for side, v in enumerate(eqn.operands):
                if _is_coded(v):
                    eqn.replace(side, Computed(decode(v)))

    return {
        **dict.fromkeys(MOVES, after_float),
        **dict.fromkeys((*FUNCTIONS, *CHOICES), in_float),
        **dict.fromkeys(("add", "add_any"), add),
        "neg": scaled,
        **dict.fromkeys(BY_CONSTANTS, by_constant),
        **dict.fromkeys(SUMS, summed),
        **dict.fromkeys(BODIES, call),
        **dict.fromkeys(("dot_general", "conv_general_dilated"), in_float),  # those that no site has made integers
    }


def _is_coded(value: Value) -> bool:
    """Whether a value is codes, or waits to be."""
    return isinstance(value, Pending | Activation) and not isinstance(value, Computed)


def _follows(value: Value) -> bool:
    """Whether a value follows from codes."""
    return isinstance(value, Pending | Activation)


def _is_no_bound(value: Value) -> bool:
    """Whether this is minus infinity, which the maximum of nothing is."""
    return isinstance(value, float | np.ndarray | np.generic) and np.ndim(value) == 0 and float(value) == -np.inf


def is_place(name: str) -> bool:
    """Whether a site is such a place, and neither an operand of a product of two activations nor a residual."""
    kinds = (*(f"({kind}" for kind in PRODUCTS.values()), _paths.RESIDUAL)
    return _paths.names_product(name) and not name.rpartition("/")[2].startswith(kinds)


def label(eqn: Equation) -> str:
    """What the places of an equation are named after: products in float32 are told from those on codes."""
    kinds = {"dot_general": "(dot)", "conv_general_dilated": "(conv)"}
    kind = kinds.get(eqn.primitive)
    return f"{eqn.label.removesuffix(kind)}(product)" if kind else eqn.label


def result(place: Place, walk: Walk, value: Value) -> Value:
    """What a function returns, as codes where a grid is given."""
    if not _is_coded(value):
        return value
    name = walk.name(_paths.product("", "result"))
    waits = isinstance(value, Waiting) and value.dtype == jnp.float32
    return place(walk, name, value) if waits else value
