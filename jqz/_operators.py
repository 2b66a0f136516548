"""From a quantized function to the operators of an integer runtime: one more table of rules for the walk."""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Container, Sequence

import jax
import jax.numpy as jnp

from jqz import _graph as g
from jqz import _islands as islands
from jqz import _paths
from jqz._activations import meet
from jqz._evaluate import walk_through
from jqz._inference import given_sites
from jqz._islands import foldable, shiftable, waits
from jqz._nodes import (
    Builder,
    Known,
    Linear,
    Moved,
    Node,
    Real,
    Same,
    Softened,
    Stage,
    at,
    bounded,
    channels_last,
    coded,
    doubt,
    grid_at,
    is_constant,
    located,
    moved,
    origin,
    ranked,
    refuse,
    transposed,
)
from jqz._sources import Pooled, Product, Total, site, weights
from jqz._values import Value
from jqz._walk import Equation, Rule, Walk, either
from jqz.kernels import places, structure
from jqz.lowerings.convolution import Convolution


def convolution(build: Builder) -> Rule:
    """The rule for convolutions."""

    def rule(eqn: Equation, *operands: Value) -> Sequence[Value]:
        met, how = meet(eqn, operands, lambda path: None), Convolution.of(eqn.params)
        if eqn.params["batch_group_count"] != 1 or set(how.lhs_dilation) != {1} or len(how.strides) != 2:
            refuse(eqn, "wanted a convolution of images, neither transposed nor grouped by batch.")
        if any(min(ends) < 0 for ends in how.padding):
            refuse(eqn, "wanted no negative padding. Use a slice before.")
        spec, met = how.numbers, site(eqn, build, met, operands)
        if met.side != 0:
            refuse(eqn, "wanted a convolution by a kernel.")
        x, w = met.x, weights(eqn, met, (spec.rhs_spec[0], *spec.rhs_spec[2:], spec.rhs_spec[1]))
        last = (spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1])
        out = (spec.out_spec[0], *spec.out_spec[2:], spec.out_spec[1])
        shape = eqn.avals[0].shape
        inner = tuple(shape[axis] for axis in out)

        def lay(build: Builder, grid: g.Grid | None, numbers: dict[str, typing.Any]) -> int:
            result = build.tensor(inner, grid)
            image = _tensor(build, transposed(x, last), x)
            build.operators.append(
                g.Convolution(
                    (image,), result, codes=w.levels, strides=how.strides, padding=how.padding,
                    dilation=how.rhs_dilation, groups=how.groups, limit=w.limit, **numbers,
                )
            )  # fmt: skip
            back = tuple(out.index(axis) for axis in range(len(out)))
            return _turned(build, result, grid, inner, back)

        axis = spec.out_spec[1]
        source = Product(x, lay, axis, len(w.scale))
        return [Linear(source, shape, channels_last(len(shape), axis, w.scale))]

    return rule


def dot(build: Builder) -> Rule:
    """The rule for products with a matrix."""

    def rule(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        met = meet(eqn, operands, lambda path: None)
        if all(isinstance(v, Node) for v in operands):
            if met is not None:
                refuse(eqn, f"products of two activations are float32 in files. Leave {met.name!r} out of inputs.")
            return [islands.matrices(eqn, build, *operands)]
        if not any(isinstance(v, Node) for v in operands):
            return None
        contract, batch = eqn.params["dimension_numbers"]
        met = site(eqn, build, met, operands)
        if batch[0] or len(contract[0]) != 1 or met.weight.ndim != 2:
            refuse(eqn, "wanted a product of one axis with a matrix.")
        x, (inner,), (summed,) = met.x, contract[1 - met.side], contract[met.side]
        w = weights(eqn, met, (1 - inner, inner))
        free = tuple(axis for axis in range(x.ndim) if axis != summed)
        wide = (*(x.shape[axis] for axis in free), len(w.scale))
        axis = len(wide) - 1 if met.side == 0 else 0
        back = tuple(range(len(wide))) if met.side == 0 else (len(wide) - 1, *range(len(wide) - 1))

        def lay(build: Builder, grid: g.Grid | None, numbers: dict[str, typing.Any]) -> int:
            rows = _tensor(build, transposed(x, (*free, summed)), x)
            result = build.tensor(wide, grid)
            build.operators.append(g.Dense((rows,), result, codes=w.levels, limit=w.limit, **numbers))
            return _turned(build, result, grid, wide, back)

        shape = eqn.avals[0].shape
        return [Linear(Product(x, lay, axis, len(w.scale)), shape, channels_last(len(shape), axis, w.scale))]

    return rule


def _tensor(build: Builder, value: Node, x: Known | Real) -> int:
    """The number of the tensor of what was moved of a product's operand."""
    return value.on(build, x.grid) if isinstance(x, Known) else value.real(build)


def _turned(
    build: Builder, index: int, grid: g.Grid | None, shape: tuple[int, ...], permutation: tuple[int, ...]
) -> int:
    """The number of a product's result with its axes in another order."""
    if grid is None:
        return transposed(Real(index, shape), permutation).real(build)
    return transposed(Known(index, grid, shape), permutation).on(build, grid)


def rules(build: Builder) -> dict[str, Rule]:
    """The rule table."""

    def in_float(eqn: Equation, *values: Value) -> Real:
        return islands.in_float(eqn, build, *values)

    def affine(eqn: Equation, value: Value, c: Value) -> Linear:
        if isinstance(value, Linear) and isinstance(value.source, Same | Total):
            refuse(eqn, "a sum of codes, or what has bounds, is scaled or shifted. Put a product between.")
        if isinstance(value, Linear) and jnp.size(c) > 1 and not (value.low is None and value.high is None):
            refuse(eqn, "what has bounds is scaled or shifted by channels. Put a product between.")
        if not isinstance(value, Linear) or value.shape != eqn.avals[0].shape:
            refuse(eqn, "only what a product, sum or mean has made is scaled or shifted; put this operation before it.")
        return value

    def folds(x: Value, c: Value) -> bool:
        return is_constant(c) and not isinstance(x, Known)  # codes themselves are scaled and shifted in float32

    def add(eqn: Equation, a: Value, b: Value) -> Value:
        if is_constant(a) or is_constant(b):
            x, c = (b, a) if is_constant(a) else (a, b)
            return affine(eqn, x, c).plus(ranked(c, x.ndim)) if folds(x, c) and shiftable(x, c) else in_float(eqn, a, b)
        if not (waits(a) and waits(b)):
            return in_float(eqn, a, b)
        if a.shape != b.shape:
            refuse(eqn, "wanted two tensors of one shape.")
        name = eqn.walk.name(eqn.label)
        both = [at(eqn, build, side, _paths.operand(name, side)) for side in (0, 1)]
        return Linear(Total(*both), a.shape, jnp.ones((1,) * a.ndim, jnp.float32))

    def subtract(eqn: Equation, a: Value, b: Value) -> Value:
        if isinstance(b, Softened) and b.stage.what == "maximum" and isinstance(a, Known | Real):
            if isinstance(a, Known):
                eqn.walk.name(eqn.label)  # as inference names it
            return Softened(a.shape, Stage("difference", a, b.stage.axes))
        if folds(a, b) and shiftable(a, b):
            return affine(eqn, a, b).plus(-1 * ranked(b, a.ndim))
        if folds(b, a) and shiftable(b, a):
            return affine(eqn, b, a).times(jnp.float32(-1)).plus(ranked(a, b.ndim))
        return in_float(eqn, a, b)

    def multiply(eqn: Equation, a: Value, b: Value) -> Value:
        x, c = (b, a) if is_constant(a) else (a, b)
        return affine(eqn, x, c).times(ranked(c, x.ndim)) if folds(x, c) and foldable(x, c) else in_float(eqn, a, b)

    def divide(eqn: Equation, a: Value, b: Value) -> Value:
        if isinstance(a, Softened) and isinstance(b, Softened) and (a.stage.what, b.stage.what) == ("power", "sum"):
            x = a.stage.x
            if a.stage.axes != (x.ndim - 1,):
                refuse(eqn, "wanted a softmax over the last axis.")
            real = build.real(x) if isinstance(x, Known) else x.index
            return Real(build.emit(g.Softmax, [real], x.shape, None), x.shape, x.raw)
        return affine(eqn, a, b).times(1 / ranked(b, a.ndim)) if folds(a, b) and foldable(a, b) else in_float(eqn, a, b)

    def negate(eqn: Equation, x: Value) -> Value:
        return in_float(eqn, x) if x.floats or isinstance(x, Known) else affine(eqn, x, 1).times(jnp.float32(-1))

    def bound(eqn: Equation, low: Value | None, x: Value, high: Value | None) -> Value:
        if isinstance(x, Softened) and high is None:
            return x  # the maximum over an axis and minus infinity
        if not all(v is None or (is_constant(v) and math.prod(jnp.shape(v)) == 1) for v in (low, high)):
            refuse(eqn, "wanted one number as a bound.")
        if not isinstance(x, Known | Linear | Moved):
            refuse(eqn, "only what a product, sum or mean has made is clipped.")
        return bounded(x, *(None if v is None else jnp.asarray(v, jnp.float32).reshape(()) for v in (low, high)))

    def maximum(eqn: Equation, a: Value, b: Value) -> Value:
        x, c = (b, a) if is_constant(a) else (a, b)
        plain = isinstance(x, Softened) or shiftable(x, c)
        return bound(eqn, c, x, None) if plain else in_float(eqn, a, b)

    def minimum(eqn: Equation, a: Value, b: Value) -> Value:
        x, c = (b, a) if is_constant(a) else (a, b)
        return bound(eqn, None, x, c) if shiftable(x, c) else in_float(eqn, a, b)

    def clamp(eqn: Equation, low: Value, x: Value, high: Value) -> Value:
        if shiftable(x, low) and shiftable(x, high):
            return bound(eqn, low, x, high)
        return in_float(eqn, low, x, high)

    def passed(eqn: Equation, x: Value) -> Value:
        same = x.dtype == eqn.avals[0].dtype == jnp.float32
        return x if same else refuse(eqn, "activations are float32 or int8.")

    def reshape(eqn: Equation, x: Value) -> Value:
        if isinstance(x, Softened) and x.stage.what in ("maximum", "sum"):
            return Softened(eqn.avals[0].shape, x.stage)
        if math.prod(eqn.avals[0].shape) != math.prod(x.shape):
            return islands.spread(eqn, build, x)
        shape = eqn.avals[0].shape
        if isinstance(x, Linear) and isinstance(x.source, Pooled) and x.offset is None and x.source.keeps(shape):
            return Linear(dataclasses.replace(x.source, shape=shape), shape, x.factor.reshape((1,) * len(shape)))
        return moved(eqn, [x], g.Reshape)

    def transpose(eqn: Equation, x: Value) -> Value:
        return transposed(x, eqn.params["permutation"])

    def cut(eqn: Equation, x: Value) -> Value:
        start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
        return moved(eqn, [x], g.Slice, tuple(start), tuple(limit), tuple(eqn.params["strides"] or (1,) * len(start)))

    def take(eqn: Equation, x: Value, indices: Value) -> Value:
        dims, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
        (axis, *more), shape = dims.start_index_map, tuple(jnp.shape(indices))
        others = tuple(i for i in range(x.ndim) if i != axis)
        whole = tuple(1 if i == axis else n for i, n in enumerate(x.shape))
        plain = not more and dims.collapsed_slice_dims == (axis,) and dims.offset_dims == others and whole == sizes
        if not plain or is_constant(x) or not is_constant(indices) or len(shape) != 2:
            refuse(eqn, "wanted entries of one axis, at places that depend on no input.")
        shape, wanted = eqn.avals[0].shape, jnp.asarray(indices, jnp.int32).reshape(-1)
        inside = jnp.clip(wanted, 0, x.shape[axis] - 1)
        if jax.lax.GatherScatterMode.from_any(eqn.params["mode"]) != jax.lax.GatherScatterMode.CLIP:
            doubt(eqn, build, jnp.any(inside != wanted), f"wanted places from 0 to {x.shape[axis] - 1}.")

        def move(build: Builder, inputs: tuple[int, ...], grid: g.Grid | None) -> int:
            return build.emit(g.Take, inputs, shape, grid, inside, axis)

        return Moved((x,), shape, move)

    def concatenate(eqn: Equation, *values: Value) -> Value:
        if any(is_constant(v) for v in values):
            refuse(eqn, "constants stand beside activations.")
        return moved(eqn, values, g.Concatenate, eqn.params["dimension"])

    def pad(eqn: Equation, x: Value, filler: Value) -> Value:
        config = eqn.params["padding_config"]
        if is_constant(x) or any(between or min(low, high) < 0 for low, high, between in config):
            refuse(eqn, "wanted to pad an activation at its ends.")
        if not is_constant(filler):
            refuse(eqn, "wanted to pad an activation by zeros.")
        doubt(
            eqn, build, jnp.any(filler != 0), "wanted zeros around it. For pooling use nn.max_pool(..., padding=...)."
        )
        return moved(eqn, [x], g.Pad, tuple((low, high) for low, high, _ in config))

    def windows(eqn: Equation) -> tuple[tuple[int, ...], tuple[int, ...], g.Padding]:
        p = eqn.params
        ends = (*(p["window_dimensions"][i] for i in (0, -1)), *(p["window_strides"][i] for i in (0, -1)))
        dilated = {*p["base_dilation"], *p["window_dilation"]} != {1}
        if len(p["padding"]) != 4 or dilated or set(ends) != {1} or any(map(any, (p["padding"][0], p["padding"][-1]))):
            refuse(eqn, "wanted windows over the two middle axes of (batch, height, width, channels).")
        return tuple(p["window_dimensions"][1:3]), tuple(p["window_strides"][1:3]), tuple(p["padding"][1:3])

    def max_pool(eqn: Equation, x: Value) -> Value:
        return moved(eqn, [x], g.MaxPool, *windows(eqn))

    def reduce_max(eqn: Equation, x: Value) -> Value:
        stage = at(eqn, build, 0, eqn.walk.name(eqn.label)) if waits(x) else islands.real(eqn, build, 0)
        return Softened(eqn.avals[0].shape, Stage("maximum", stage, tuple(eqn.params["axes"])))

    def exponential(eqn: Equation, x: Value) -> Value:
        if not isinstance(x, Softened) or x.stage.what != "difference":
            return in_float(eqn, x)
        return Softened(x.shape, x.stage._replace(what="power"))

    def summed(eqn: Equation, x: Value) -> Value:
        shape = eqn.avals[0].shape
        if isinstance(x, Softened) and x.stage.what == "power":
            return Softened(shape, x.stage._replace(what="sum"))
        if places.sums_in_float(eqn.primitive, eqn.params, x.ndim) or (x.floats and eqn.primitive == "reduce_sum"):
            return islands.total(eqn, build, x)
        if x.floats:
            known: Known | Real = islands.real(eqn, build, 0)
        else:
            known = at(eqn, build, 0, eqn.walk.name(eqn.label))
        one = jnp.ones((1,) * len(shape), jnp.float32)
        if eqn.primitive == "reduce_sum":
            return Linear(Pooled(known, g.Sum, (tuple(eqn.params["axes"]),), shape), shape, one)
        window, strides, padding = windows(eqn)
        if any(map(any, padding)):
            whole = ((0, 0), *padding, (0, 0))
            wide = tuple(n + sum(ends) for n, ends in zip(known.shape, whole, strict=True))
            if not isinstance(known, Known):
                refuse(eqn, "wanted no padding here.")
            known = Known(build.emit(g.Pad, [known.index], wide, known.grid, whole), known.grid, wide)
        return Linear(Pooled(known, g.SumPool, (window, strides), shape), shape, one)

    def call(eqn: Equation, *operands: Value) -> None:
        islands.enter(eqn, build)

    table: dict[tuple[str, ...], Callable[..., Value]] = {
        ("add", "add_any"): add,
        ("sub",): subtract,
        ("mul",): multiply,
        ("div",): divide,
        ("neg",): negate,
        ("max",): maximum,
        ("min",): minimum,
        ("clamp",): clamp,
        ("copy", "copy_p", "stop_gradient", "convert_element_type"): passed,
        ("reshape", "squeeze", "broadcast_in_dim"): reshape,
        ("transpose",): transpose,
        ("slice",): cut,
        ("gather",): take,
        ("concatenate",): concatenate,
        ("pad",): pad,
        ("reduce_window_max",): max_pool,
        ("reduce_max",): reduce_max,
        ("exp",): exponential,
        ("reduce_sum", "reduce_window_sum"): summed,
        tuple({*places.FUNCTIONS, *places.CHOICES} - {"exp", "integer_pow", "square", "erf", "erfc"}): in_float,
        ("erf", "erfc"): functools.partial(islands.error_function, build),
        ("integer_pow", "square"): functools.partial(islands.power, build),
    }
    one_by_one = {name: functools.partial(islands.on_nodes, rule) for names, rule in table.items() for name in names}
    bodies = dict.fromkeys(places.BODIES, call)
    every = {**one_by_one, "conv_general_dilated": convolution(build), "dot_general": dot(build)}
    return {**{name: located(rule) for name, rule in every.items()}, **bodies}


class _Closed(dict[str, Rule]):
    """A table with a rule for every primitive that has no body: it refuses those that no operator computes."""

    BODIES = frozenset(
        {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2"}
    )

    def __contains__(self, name: object) -> bool:
        return name not in self.BODIES or super().__contains__(name)

    def __missing__(self, name: str) -> Rule:
        return _none


def _none(eqn: Equation, *operands: Value) -> None:
    if any(isinstance(v, Node) for v in operands):
        refuse(eqn, "no operator computes this.")


def graph_of(net: typing.Any, example: typing.Any, without: Container[str] = ()) -> g.Graph:
    """The operators of a ``Net`` for inputs like ``example`` (an array, or a tuple of arguments), with NumPy arrays.

    ``without`` are primitives that the target has no operators for, and ``"float32"`` if it computes nothing in that.
    """
    args = example if isinstance(example, tuple) else (example,)
    (leaves, treedef), told = jax.tree.flatten(args), list[str]()

    def numbers(qparams: typing.Any, sites: typing.Any) -> tuple[g.Graph, list[jax.Array]]:
        build, outputs = Builder(without), []
        table = {name: _none if name in without and name != "erf" else rule for name, rule in rules(build).items()}
        table = {**dict.fromkeys(structure.RULES, _none), **table}
        walk = Walk(_Closed(either(structure.RULES, table)), given_sites("export", sites), derivatives=False)
        nodes = [Real(build.tensor(leaf.shape, None), tuple(leaf.shape), True) for leaf in leaves]

        def finish(walk: Walk, value: Value) -> Value:
            if is_constant(value):
                raise ValueError("export: a result does not depend on the inputs. Return those alone that do.")
            if value.floats:
                outputs.append(value.real(build))
            else:
                name, source = walk.name(_paths.product("", "result")), origin(value)
                value = coded(build, value, grid_at(None, walk, name) if source is None else source.grid)
                outputs.append(build.emit(g.Convert, [value.index], value.shape, None))
            return jnp.int32(outputs[-1])

        walk_through(net.fn, (qparams, *treedef.unflatten(nodes)), {}, walk, finish)
        told.extend(why for _, why in build.doubts)
        graph = g.Graph(build.operators, build.tensors, tuple(node.index for node in nodes), tuple(outputs))
        return graph, [wrong for wrong, _ in build.doubts]

    graph, wrong = jax.device_get(jax.jit(numbers)(net.qparams, net.sites))
    if why := next((why for one, why in zip(wrong, told, strict=True) if one), None):
        raise ValueError(why)
    return graph
