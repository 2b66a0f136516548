"""What an exported net computes in float32 between codes, as ``kernels.places`` says that inference does."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from jqz import _graph as g
from jqz import _paths
from jqz._nodes import (
    Builder,
    Known,
    Linear,
    Moved,
    Node,
    Real,
    at,
    constant,
    is_constant,
    refuse,
    transposed,
)
from jqz._sources import Product
from jqz._values import Lazy, Value, decode
from jqz._walk import Equation
from jqz.kernels import places


def waits(value: Value) -> bool:
    """Whether a value is codes, or waits to be."""
    return isinstance(value, Known | Linear | Moved) and not value.floats


def foldable(x: Value, c: Value) -> bool:
    """Whether the product with a constant goes into the operator that makes a value."""
    if not is_constant(c):
        return False
    if isinstance(x, Linear) and isinstance(x.source, Product) and x.floats:
        return x.source.fits(jnp.asarray(c))
    return waits(x) or (isinstance(x, Linear) and jnp.size(c) == 1)


def shiftable(x: Value, c: Value) -> bool:
    """Whether the sum with a constant goes into the operator that makes a value, or a bound does."""
    return foldable(x, c) and (waits(x) or isinstance(x.source, Product))


def real(eqn: Equation, build: Builder, side: int) -> Real:
    """An operand that is made in float32, once for all that read it."""
    value = eqn.operands[side]
    if not isinstance(value, Real):
        value = Real(value.real(build), value.shape, value.raw)
        eqn.replace(side, value)
    return value


def _round(eqn: Equation, build: Builder) -> None:
    """Rounds the operands that wait, at their places, before something is computed in float32."""
    if "float32" in build.without:
        refuse(eqn, "no operator computes this.")
    sides = [side for side, v in enumerate(eqn.operands) if waits(v)]
    if not sides:
        return
    if any(isinstance(v, Node) and v.raw for v in eqn.operands):
        refuse(eqn, "an input in float32 meets codes. Put a product before.")
    name = eqn.walk.name(places.label(eqn))
    for side in sides:
        at(eqn, build, side, name if len(eqn.operands) == 1 else _paths.operand(name, side))


def in_float(eqn: Equation, build: Builder, *_: Value) -> Real:
    """The result of a function of numbers."""
    shape, boolean = eqn.avals[0].shape, eqn.avals[0].dtype == jnp.bool_
    if not boolean and eqn.avals[0].dtype != jnp.float32:
        refuse(eqn, "activations are float32 or int8.")
    _round(eqn, build)
    inputs, raw = [], True
    for side, value in enumerate(eqn.operands):
        if isinstance(value, Known):
            inputs.append(build.real(value))
            raw = False
        elif isinstance(value, Node):
            inputs.append(real(eqn, build, side).index)
            raw &= value.raw
        else:
            array = jnp.asarray(decode(value))
            wanted = array if array.dtype == jnp.bool_ else array.astype(jnp.float32)
            inputs.append(constant(build, wanted))
    result = build.emit(g.Function, inputs, shape, None, eqn.primitive, boolean=boolean)
    return Real(result, shape, raw, jnp.dtype(bool if boolean else jnp.float32))


def power(build: Builder, eqn: Equation, x: Value) -> Real:
    """A product of equal factors."""
    exponent = eqn.params.get("y", 2)
    if exponent < 1:
        refuse(eqn, "wanted a positive exponent.")
    _round(eqn, build)
    known = eqn.operands[0]
    base = Real(build.real(known), x.shape) if isinstance(known, Known) else real(eqn, build, 0)
    index = base.index
    for _ in range(exponent - 1):
        index = build.emit(g.Function, [index, base.index], x.shape, None, "mul")
    return Real(index, x.shape, base.raw)


#: erf(x) = x P(x**2) / Q(x**2) for magnitudes up to 4, highest powers first: to 4e-7.
_NUMERATOR = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
              -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
_DENOMINATOR = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
                -1.42647390514189e-02)  # fmt: skip


def error_function(build: Builder, eqn: Equation, x: Value) -> Real:
    """erf, as sums, products and a quotient where there is no operator for it; erfc as what is left of 1."""
    _round(eqn, build)
    known = eqn.operands[0]
    source = Real(build.real(known), x.shape) if isinstance(known, Known) else real(eqn, build, 0)
    shape, ones = source.shape, (1,) * x.ndim

    def call(name: str, *inputs: int) -> int:
        return build.emit(g.Function, inputs, shape, None, name)

    def number(value: float) -> int:
        return constant(build, jnp.full(ones, value, jnp.float32))

    def polynomial(square: int, coefficients: tuple[float, ...]) -> int:
        first, *others = map(number, coefficients)
        value = call("mul", square, first)
        for other in others[:-1]:
            value = call("mul", call("add", value, other), square)
        return call("add", value, others[-1])

    if "erf" in build.without:
        inner = call("clamp", number(-4), source.real(build), number(4))
        square = call("mul", inner, inner)
        ratio = call("div", polynomial(square, _NUMERATOR), polynomial(square, _DENOMINATOR))
        value = call("mul", inner, ratio)
    else:
        value = call("erf", source.real(build))
    return Real(call("sub", number(1), value) if eqn.primitive == "erfc" else value, shape, source.raw)


def total(eqn: Equation, build: Builder, x: Value) -> Real:
    """Sums in float32."""
    _round(eqn, build)
    known = eqn.operands[0]
    source = Real(build.real(known), x.shape) if isinstance(known, Known) else real(eqn, build, 0)
    shape = eqn.avals[0].shape
    axes = tuple(eqn.params["axes"])
    return Real(build.emit(g.Sum, [source.real(build)], shape, None, jnp.float32(1), axes), shape, source.raw)


def spread(eqn: Equation, build: Builder, x: Value) -> Real:
    """Values repeated along axes of length 1, which whatever reads them does."""
    if not isinstance(x, Node) or not x.floats:
        refuse(eqn, "no operator repeats codes.")
    shape, axes = eqn.avals[0].shape, eqn.params["broadcast_dimensions"]
    narrow = tuple(x.shape[axes.index(axis)] if axis in axes else 1 for axis in range(len(shape)))
    source = real(eqn, build, 0)
    if build.tensors[source.index].shape != narrow:
        source = Real(build.emit(g.Reshape, [source.real(build)], narrow, None), narrow, source.raw)
    return Real(source.index, shape, source.raw)


def enter(eqn: Equation, build: Builder) -> None:
    """On the way into a function such as gelu, rounds what it reads and goes on in float32."""
    if "float32" not in build.without and any(map(waits, eqn.operands)) and places.is_function(eqn.params):
        _round(eqn, build)
        for side, value in enumerate(eqn.operands):
            if isinstance(value, Known):
                eqn.replace(side, Real(build.real(value), value.shape))


def matrices(eqn: Equation, build: Builder, a: Value, b: Value) -> Node:
    """A product of two activations, in float32: of stacks of matrices, as in attention."""
    (left, right), (batch, other) = eqn.params["dimension_numbers"]
    if len(left) != 1 or a.ndim > 5:
        refuse(eqn, "wanted a product of stacks of matrices.")
    _round(eqn, build)
    both = []
    for side, (value, contract, stacked) in enumerate(((a, left, batch), (b, right, other))):
        known = eqn.operands[side]
        source = Real(build.real(known), value.shape) if isinstance(known, Known) else real(eqn, build, side)
        free = [axis for axis in range(value.ndim) if axis not in (*contract, *stacked)]
        if len(free) != 1:
            refuse(eqn, "wanted a product of stacks of matrices.")
        order = (*stacked, *free, *contract) if side == 0 else (*stacked, *contract, *free)
        both.append(transposed(source, order).real(build))
    shape, raw = eqn.avals[0].shape, all(v.raw for v in (a, b))
    return Real(build.emit(g.MatMul, both, shape, None), shape, raw)


def on_nodes(rule: Callable[..., Value], eqn: Equation, *operands: Value) -> Sequence[Value] | None:
    """Offers a rule equations on what depends on inputs; weights among them are constants."""
    if not any(isinstance(v, Node) for v in operands):
        return None
    coded = any(isinstance(v, Lazy) and not isinstance(v, Node) for v in operands)
    if coded and any(isinstance(v, Node) and waits(v) and not isinstance(v, Known) for v in operands):
        refuse(eqn, "a bias or scale in codes meets a sum that is not rounded yet. Map its path to None.")
    return [rule(eqn, *(v if isinstance(v, Node) else decode(v) for v in operands))]
