"""What may follow an integer product without leaving the integers: bias, normalization, relu, pooling, residuals."""

import dataclasses
import math
import typing
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jqz._pending import (
    Bounded,
    Constant,
    Moved,
    OfCodes,
    OfMeans,
    OfSums,
    Part,
    Scaled,
    Summed,
    Waiting,
    product,
    waiting,
)
from jqz._rescaling import Requant
from jqz._values import Activation, Lazy, Pending, Value, decode, is_weight
from jqz._walk import Equation, Rule

#: So many codes, of at most 255 steps from their zero point, have a sum that float32 holds exactly.
LARGEST_SUM = 2**16
#: So many codes of 16 bits have a sum that int32 holds.
LARGEST_LONG_SUM = 2**15


def rules(requant: Requant) -> dict[str, Rule]:
    """The rule table for values that wait to be rounded by ``requant``."""

    def form(value: Value) -> Waiting | None:
        """The value as an expression; None where its numbers are known already, if numbers will do."""
        known = isinstance(value, Waiting) and value.known and not requant.integer
        return None if known else waiting(value)

    def summand(value: Value, aval: typing.Any) -> Scaled | None:
        """The value as an expression that can be added to and multiplied, in the shape of an elementwise result."""
        inner = form(value)
        if inner is None or (inner.shape != aval.shape and not requant.integer):
            return None
        if inner.shape != aval.shape:
            inner = Moved(aval, (inner,), lambda array: jnp.broadcast_to(array, aval.shape))
        if isinstance(inner, Scaled):
            return inner
        one = jnp.ones((1,) * len(aval.shape), jnp.float32)
        return Scaled(aval, (Part(inner, (one, one)),))

    def guarded(rule: Callable[..., Value | None]) -> Rule:
        """Offers a rule equations on what waits, with one float32 result."""

        def offered(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
            if any(is_weight(v) for v in operands) or not any(isinstance(v, Pending | Activation) for v in operands):
                return None
            if eqn.avals[0].dtype != jnp.float32:
                return None
            result = rule(eqn, *operands)
            return None if result is None else [result]

        return offered

    def add(eqn: Equation, a: Value, b: Value, sign: int = 1) -> Value | None:
        aval = eqn.avals[0]
        left, right = summand(a, aval), summand(b, aval)
        if right is None:
            return None if left is None else left.plus(_ranked(sign * decode(b), aval.ndim))
        right = right if sign == 1 else right.times(jnp.float32(-1))
        return right.plus(_ranked(decode(a), aval.ndim)) if left is None else left.plus(right.offset, right.parts)

    def subtract(eqn: Equation, a: Value, b: Value) -> Value | None:
        return add(eqn, a, b, -1)

    def multiply(eqn: Equation, a: Value, b: Value) -> Value | None:
        aval = eqn.avals[0]
        for x, factor in ((a, b), (b, a)):
            inner = summand(x, aval)
            if inner is not None and _is_small(factor, aval.shape):
                mean = _mean(inner, lambda count: np.float32(1) / np.float32(count), factor)
                return mean or inner.times(_ranked(decode(factor), aval.ndim))
        return None

    def divide(eqn: Equation, a: Value, b: Value) -> Value | None:
        aval = eqn.avals[0]
        inner = summand(a, aval)
        if inner is None or not _is_small(b, aval.shape):
            return None
        return _mean(inner, np.float32, b) or inner.times(1 / _ranked(decode(b), aval.ndim))

    def negate(eqn: Equation, a: Value) -> Value | None:
        inner = summand(a, eqn.avals[0])
        return None if inner is None else inner.times(jnp.float32(-1))

    def bounded(eqn: Equation, low: Value | None, x: Value, high: Value | None) -> Value | None:
        inner = form(x)
        if inner is None or inner.shape != eqn.avals[0].shape:  # it may be the bound that is broadcast to
            return None
        if not all(v is None or _is_small(v, inner.shape) for v in (low, high)):
            return None
        ends = (None if v is None else _ranked(decode(v), inner.ndim) for v in (low, high))
        return Bounded(inner.aval, inner, *ends)

    def maximum(eqn: Equation, a: Value, b: Value) -> Value | None:
        return bounded(eqn, b, a, None) if form(a) is not None else bounded(eqn, a, b, None)

    def minimum(eqn: Equation, a: Value, b: Value) -> Value | None:
        return bounded(eqn, None, a, b) if form(a) is not None else bounded(eqn, None, b, a)

    def passed(eqn: Equation, a: Value) -> Value | None:
        return form(a)

    def together(eqn: Equation, values: Sequence[Value], move: Callable[..., jax.Array]) -> Value | None:
        """Codes move as values do; arrays among them are coded first."""
        inners = [form(v) for v in values]
        if all(inner is None for inner in inners):
            return None
        whole = (_constant(v) if inner is None else inner for inner, v in zip(inners, values, strict=True))
        return Moved(eqn.avals[0], tuple(whole), move)

    def moved(eqn: Equation, *operands: Value) -> Value | None:
        first, *others = operands
        if isinstance(first, Scaled) and not others and (part := _sums(first)):
            aval, [acc] = eqn.avals[0], eqn.bind(part.integers)
            scales = _rank(part.scales[0], aval.ndim), _rank(part.scales[1], aval.ndim)
            return Scaled(aval, (dataclasses.replace(part, integers=acc, scales=scales),))
        return together(eqn, operands, lambda *arrays: eqn.bind(*arrays)[0])

    def select(eqn: Equation, which: Value, *cases: Value) -> Value | None:
        chosen = decode(which)
        return together(eqn, cases, lambda *arrays: eqn.bind(chosen, *arrays)[0])

    def sliced(eqn: Equation, x: Value, *starts: Value) -> Value | None:
        places = [decode(start) for start in starts]
        return together(eqn, [x], lambda array: eqn.bind(array, *places)[0])

    def summed(eqn: Equation, x: Value) -> Value | None:
        inner = form(x)
        if inner is None:
            return None
        window = eqn.params.get("window_dimensions") or [inner.shape[axis] for axis in eqn.params["axes"]]
        largest = LARGEST_LONG_SUM if requant.long else LARGEST_SUM
        if isinstance(x, Activation) and isinstance(inner, Scaled) and math.prod(window) <= largest:
            aval, [codes] = eqn.avals[0], inner.parts  # codes with one scale: the sum is an integer
            acc, scales = eqn.bind(codes.integers)[0], (_rank(codes.scales[0], aval.ndim), _ranked(1, aval.ndim))
            if "axes" in eqn.params and isinstance(codes, OfCodes):
                return Scaled(aval, (OfSums(acc, scales, math.prod(window), codes.zero_point),))
            return product(acc, scales, aval.dtype)
        return Summed(eqn.avals[0], inner, math.prod(window), lambda array: eqn.bind(array)[0])

    return {
        name: guarded(rule)
        for names, rule in {
            ("add", "add_any"): add,
            ("sub",): subtract,
            ("mul",): multiply,
            ("div",): divide,
            ("neg",): negate,
            ("max",): maximum,
            ("min",): minimum,
            ("clamp",): bounded,
            ("copy", "copy_p", "stop_gradient", "convert_element_type", "sharding_constraint"): passed,
            ("reshape", "transpose", "squeeze", "broadcast_in_dim", "slice", "rev"): moved,
            ("concatenate", "pad", "reduce_window_max", "reduce_max"): moved,
            ("dynamic_slice", "gather"): sliced,
            ("select_n",): select,
            ("reduce_sum", "reduce_window_sum"): summed,
        }.items()
        for name in names
    }


def _sums(value: Scaled) -> OfSums | None:
    """The sums of codes, or their means, if the value is just these."""
    [part, *more] = value.parts
    return part if isinstance(part, OfSums) and not more and value.offset is None else None


def _mean(value: Scaled, number: Callable[[int], np.float32], of: Value) -> Scaled | None:
    """The means, where sums of so many codes meet the number that makes means of them; else None."""
    sums = _sums(value)
    if sums is None or isinstance(sums, OfMeans):
        return None
    given = decode(of)
    is_mean = not isinstance(given, Tracer) and np.all(np.asarray(given) == number(sums.count))
    return Scaled(value.aval, (sums.over_count(),)) if is_mean else None


def _constant(value: Value) -> Constant:
    numbers = decode(value)
    return Constant(numbers, numbers)


def _rank(x: jax.Array, ndim: int) -> jax.Array:
    """One number as an array of this rank."""
    return x.reshape((1,) * ndim)


def _ranked(x: jax.typing.ArrayLike, ndim: int) -> jax.Array:
    """A float32 array of this rank, for scalars that broadcast."""
    x = jnp.asarray(x, jnp.float32)
    return x.reshape((1,) * ndim) if x.ndim == 0 else x


def _is_small(x: Value, shape: tuple[int, ...]) -> bool:
    return math.prod(x.shape if isinstance(x, Lazy) else jnp.shape(x)) <= max(1, math.prod(shape) // 2)
