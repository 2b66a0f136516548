"""Activations on their way from what makes their channels to the products that sum over them.

A walk with these rules follows channels through whatever keeps them apart, and notes what else is done to them.
"""

import dataclasses
import math
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jqz._channels import Channels, named
from jqz._interpret import scan_operands
from jqz._rows import Place, met_axis, output_axes
from jqz._steps import step_of, unrolled_scan
from jqz._values import Pending, Value, Valued, Weight, decode
from jqz._walk import Equation, Rule


@dataclasses.dataclass(eq=False)
class Source:
    """What makes channels, what is added on the way, and what sums over them, as far as the walk has seen them.

    ``block`` neighbours may be mixed; ``normed`` says that a norm divides by their magnitude, and ``spoilt`` that
    they are also used otherwise.
    """

    firsts: list[Place]
    by_weight: bool
    block: int
    shifts: list[Place] = dataclasses.field(default_factory=list)
    seconds: list[Place] = dataclasses.field(default_factory=list)
    normed: bool = False
    spoilt: bool = False
    into: "Source | None" = None

    def root(self) -> "Source":
        """The link that this one has become a part of."""
        return self if self.into is None else self.into.root()

    def absorb(self, other: "Source") -> None:
        """What both carry is added."""
        if other is not self:
            self.firsts += other.firsts
            self.shifts += other.shifts
            self.seconds += other.seconds
            self.by_weight &= other.by_weight
            self.normed |= other.normed
            self.block = min(self.block, other.block)
            other.into = self


@dataclasses.dataclass(frozen=True, eq=False)
class _Flow(Valued):
    """An activation whose channels lie along ``axes``; whoever reads it as an array spoils its link."""

    axes: tuple[int, ...]
    origin: Source

    @property
    def source(self) -> Source:
        return self.origin.root()

    def decode(self) -> jax.Array:
        self.source.spoilt = True
        return self.value

    def on(self, value: jax.Array, axes: tuple[int, ...] | None = None, block: int | None = None) -> list["_Flow"]:
        """What a rule returns for what it computed from this; channels can be mixed in runs of ``block`` since."""
        if block is not None:
            self.source.block = min(self.source.block, block)
        return [dataclasses.replace(self, value=value, axes=self.axes if axes is None else axes)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Squares(Valued):
    """The squares of a flow, on their way to the sum that a norm makes of them."""

    flow: _Flow

    def decode(self) -> jax.Array:
        self.flow.decode()
        return self.value


@dataclasses.dataclass(frozen=True, eq=False)
class _Even(Valued):
    """An array that is the same all along ``axes``; and everywhere 0, if ``zero``."""

    axes: frozenset[int]
    zero: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class _Table(Valued):
    """A parameter of several axes on its way to what it is added to; ``axes`` are those that it has there."""

    name: str
    axes: tuple[int, ...]


def _carries(value: Value) -> typing.TypeGuard[_Flow]:
    return isinstance(value, _Flow) and not value.source.spoilt


def _even(value: Value, axes: Sequence[int]) -> bool:
    """Whether an operand is the same for all channels that lie along some axes of the other."""
    if isinstance(value, _Even):
        return all(axis in value.axes or value.shape[axis] == 1 for axis in axes)
    return not isinstance(value, Pending) and (jnp.ndim(value) == 0 or all(value.shape[axis] == 1 for axis in axes))


def _is_zero(value: Value) -> bool:
    return not isinstance(value, Pending | Tracer) and jnp.ndim(value) == 0 and bool(value == 0)


def rules(sources: list[Source], uses: dict[str, int], ones: frozenset[str]) -> dict[str, Rule]:
    """Rules that follow channels from what makes them to the products that sum over them."""

    def used(path: str) -> None:
        uses[path] = uses.get(path, 0) + 1

    def started(first: Place, by_weight: bool, value: jax.Array, axes: tuple[int, ...]) -> list[_Flow]:
        sources.append(Source([first], by_weight, math.prod(value.shape[axis] for axis in axes)))
        return [_Flow(value, axes, sources[-1])]

    def product(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        side = 1 if isinstance(y, Weight) else 0
        weight, other = (y, x) if side else (x, y)
        if not isinstance(weight, Weight) or isinstance(other, Weight):
            return mixed(eqn, x, y)
        used(weight.path)
        order = weight.order
        if order is None or len(order) != weight.ndim:  # changed on its way, or a layer of a scanned stack
            return None
        met = _met(eqn, side, weight, other) if _carries(other) else None
        if met is not None:
            other.source.seconds.append(Place(weight.path, met))
            other = other.value
        out = eqn.on(*((other, weight) if side else (weight, other)))
        made = output_axes(eqn, side, weight, other.ndim)
        axes = tuple(sorted(made))
        if not axes:
            return [out]
        flow = started(Place(weight.path, tuple(made[a] for a in axes)), True, out, axes)[0]
        return flow.on(out, block=flow.source.block // eqn.params.get("feature_group_count", 1))

    def mixed(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        """A product with another activation: attention weights, say, which leave channels alone."""
        if eqn.primitive != "dot_general" or not (_carries(x) or _carries(y)):
            return None
        side = 0 if _carries(x) else 1
        flow, other = (x, y)[side], (y, x)[side]
        contracted, batch = (numbers[side] for numbers in eqn.params["dimension_numbers"])
        if any(axis in contracted for axis in flow.axes):
            return None
        free = [axis for axis in range(flow.ndim) if axis not in (*contracted, *batch)]
        ahead = 0 if side == 0 else other.ndim - len(contracted) - len(batch)
        places = {axis: i for i, axis in enumerate(batch)} | {a: len(batch) + ahead + i for i, a in enumerate(free)}
        single = max((i + 1 for i, axis in enumerate(flow.axes) if axis in batch), default=0)
        block = math.prod(flow.shape[axis] for axis in flow.axes[single:])
        out = eqn.on(*((flow.value, other) if side == 0 else (other, flow.value)))
        return flow.on(out, tuple(places[axis] for axis in flow.axes), block)

    def same(eqn: Equation, x: _Flow) -> bool:
        """Whether the result of an elementwise equation has the channels of an operand."""
        return all(eqn.avals[0].shape[axis] == x.shape[axis] for axis in x.axes)

    def shifted(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        if not _carries(x) and eqn.primitive == "add":
            x, y = y, x
        if not _carries(x) or not same(eqn, x):
            return None
        if _carries(y) and y.axes == x.axes and same(eqn, y):
            x.source.absorb(y.source)
            return x.on(eqn.on(x.value, y.value))
        if isinstance(y, _Even) and y.zero:
            return x.on(eqn.on(x.value, y))
        if isinstance(y, Channels) and y.bare is not None and x.axes == (y.axis,):
            place = Place(y.bare, (0,))
        elif isinstance(y, _Table) and set(x.axes) <= set(y.axes) and same(eqn, x):
            place = Place(y.name, tuple(y.axes.index(axis) for axis in x.axes))
        else:
            return None
        used(place.path)
        x.source.shifts.append(place)
        return x.on(eqn.on(x.value, y))

    def scaled(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        if x is y and _carries(x):
            return squared(eqn, x, y) if eqn.primitive == "mul" else None
        if not _carries(x) and eqn.primitive == "mul":
            x, y = y, x
        scale = isinstance(y, Channels) and y.bare is not None and y.bare not in ones
        if _carries(x) and _carries(y) and x.source.normed:
            x, y = y, x  # the norm's scale goes on, what was normed does not
        if _carries(x) and not (x.source.normed and scale):
            neutral = _even(y, x.axes) or (isinstance(y, Channels) and y.bare in ones)
            return x.on(eqn.on(x.value, y), block=None if neutral else 1) if same(eqn, x) else None
        x, y = (y, x) if isinstance(x, Channels) else (x, y)
        if eqn.primitive != "mul" or not isinstance(y, Channels) or y.bare is None or isinstance(x, Channels | Weight):
            return None
        if not jnp.ndim(x):
            return None
        if y.bare in ones and _even(x, (y.axis,)):
            return [_Even(eqn.on(x, y), frozenset({y.axis}))]
        used(y.bare)
        return started(Place(y.bare, (0,)), False, eqn.on(x, y), (y.axis,))

    def squared(eqn: Equation, *same: Value) -> Sequence[Value] | None:
        x, two = same[0], eqn.params.get("y", 2) == 2  # the exponent of integer_pow
        return [_Squares(eqn.on(*(x.value for x in same)), x)] if _carries(x) and two else None

    def clipped(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        x, y = (x, y) if _carries(x) else (y, x)
        if not _carries(x) or not same(eqn, x):
            return None
        if isinstance(y, Channels) and y.bare is not None and x.axes == (y.axis,):  # a bound that goes with the channel
            used(y.bare)
            x.source.shifts.append(Place(y.bare, (0,)))
        elif not _is_zero(y):
            return None
        return x.on(eqn.on(x.value, y), block=1)

    def reduced(eqn: Equation, x: Value) -> Sequence[Value] | None:
        gone = eqn.params["axes"]
        if isinstance(x, _Squares) and set(x.flow.axes) <= set(gone) and _carries(x.flow):
            x.flow.source.normed = True  # a rotation keeps this sum, a scale does not
            return [eqn.on(x.value)]
        if not _carries(x) or set(x.axes) & set(gone):
            return None
        axes = tuple(axis - sum(other < axis for other in gone) for axis in x.axes)
        return x.on(eqn.on(x.value), axes, block=1 if eqn.primitive == "reduce_max" else None)

    def windowed(eqn: Equation, x: Value, *rest: Value) -> Sequence[Value] | None:
        if not _carries(x) or rest or any(eqn.params["window_dimensions"][axis] != 1 for axis in x.axes):
            return None
        return x.on(eqn.on(x.value), block=1 if eqn.primitive == "reduce_window_max" else None)

    def passed(eqn: Equation, x: Value) -> Sequence[Value] | None:
        if not _carries(x) or not jnp.issubdtype(eqn.avals[0].dtype, jnp.floating):
            return None
        return x.on(eqn.on(x.value))

    def transposed(eqn: Equation, x: Value) -> Sequence[Value] | None:
        order = eqn.params["permutation"]
        return x.on(eqn.on(x.value), tuple(order.index(axis) for axis in x.axes)) if _carries(x) else None

    def squeezed(eqn: Equation, x: Value) -> Sequence[Value] | None:
        gone = eqn.params["dimensions"]
        if not _carries(x) or set(x.axes) & set(gone):
            return None
        return x.on(eqn.on(x.value), tuple(axis - sum(other < axis for other in gone) for axis in x.axes))

    def broadcast(eqn: Equation, x: Value, *_: Value) -> Sequence[Value] | None:
        places, shape = eqn.params["broadcast_dimensions"], eqn.params["shape"]
        if _is_zero(x) or isinstance(x, _Even):
            zero = _is_zero(x) or x.zero
            return [_Even(eqn.on(x), frozenset(range(len(shape))), zero)] if zero else None
        table = _Table(x.value, x.path, tuple(range(x.ndim))) if _whole(x) else x
        if not (isinstance(table, _Table) or _carries(table)):
            return None
        axes = tuple(places[axis] for axis in table.axes)
        if any(shape[new] != table.shape[old] for new, old in zip(axes, table.axes, strict=True)):
            return None
        return [dataclasses.replace(table, value=eqn.on(table.value), axes=axes)]

    def reshaped(eqn: Equation, x: Value, *_: Value) -> Sequence[Value] | None:
        new = tuple(eqn.params["new_sizes"])
        more = len(new) - x.ndim
        if _whole(x) and more > 0 and new == (1,) * more + x.shape:
            return [_Table(eqn.on(x), x.path, tuple(range(more, len(new))))]
        if not _carries(x) or eqn.params.get("dimensions") is not None:
            return None
        axes = _reshaped(x.shape, new, x.axes)
        return x.on(eqn.on(x.value), axes) if axes is not None else None

    def sliced(eqn: Equation, x: Value) -> Sequence[Value] | None:
        if not _carries(x) or any(eqn.avals[0].shape[axis] != x.shape[axis] for axis in x.axes):
            return None
        return x.on(eqn.on(x.value))

    def looked_up(eqn: Equation, x: Value, *indices: Value) -> Sequence[Value] | None:
        if not isinstance(x, Weight):
            return None
        used(x.path)
        dims, out = eqn.params["dimension_numbers"], eqn.avals[0]
        rows = tuple(dims.collapsed_slice_dims) == (0,) and tuple(eqn.params["slice_sizes"]) == (1, *x.shape[1:])
        if not rows or not _whole(x) or x.ndim != 2 or tuple(dims.offset_dims) != (out.ndim - 1,):
            return None
        return started(Place(x.path, (1,)), True, eqn.on(x, *indices), (out.ndim - 1,))

    return {
        **dict.fromkeys(("dot_general", "conv_general_dilated"), product),
        **dict.fromkeys(("add", "sub"), shifted),
        **dict.fromkeys(("mul", "div"), scaled),
        **dict.fromkeys(("square", "integer_pow"), squared),
        **dict.fromkeys(("max", "min"), clipped),
        **dict.fromkeys(("reduce_sum", "reduce_max"), reduced),
        **dict.fromkeys(("reduce_window_max", "reduce_window_sum"), windowed),
        **dict.fromkeys(("neg", "copy", "stop_gradient", "convert_element_type"), passed),
        "transpose": transposed,
        "squeeze": squeezed,
        "broadcast_in_dim": broadcast,
        "reshape": reshaped,
        "slice": sliced,
        "gather": looked_up,
        "scan": _scanned,
    }


def _scanned(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
    """A scan over layers, whose parameters are stacked: each layer gets its own, under a path of its own."""
    if not any(map(_whole, scan_operands(eqn.params, operands)[2])):
        return None
    return unrolled_scan(eqn.params, operands, eqn.walk, _part)


def _part(value: Value, step: int) -> Value:
    return named(decode(value)[step], step_of(value.path, step)) if _whole(value) else decode(value)[step]


def _whole(value: Value) -> typing.TypeGuard[Weight]:
    """Whether this is a parameter of several axes as it stands: a step of a scan may get a slice of it."""
    return isinstance(value, Weight) and value.ndim > 1 and value.order == tuple(range(value.ndim))


def _reshaped(old: tuple[int, ...], new: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Where neighbouring axes are after a reshape that keeps them apart from all others, or None."""
    first, last = axes[0], axes[-1]
    if axes != tuple(range(first, last + 1)):
        return None
    before, size = math.prod(old[:first]), math.prod(old[first : last + 1])
    for start in range(len(new)):
        for stop in range(start + 1, len(new) + 1):
            if math.prod(new[:start]) == before and math.prod(new[start:stop]) == size and new[start] != 1:
                return tuple(range(start, stop))
    return None


def _met(eqn: Equation, side: int, weight: Weight, flow: _Flow) -> tuple[int, ...] | None:
    """The axes of a weight that meet the channels of a flow, or None where it does not sum over them alone."""
    order = typing.cast(tuple[int, ...], weight.order)
    if eqn.primitive == "conv_general_dilated":
        axis = met_axis(eqn, side, weight, flow.axes[0], flow.shape[flow.axes[0]]) if len(flow.axes) == 1 else None
        if axis is not None and eqn.params["feature_group_count"] > 1:
            flow.source.block = 1
        return None if axis is None else (order[axis],)
    contracted, batch = eqn.params["dimension_numbers"]
    if batch[0] or any(axis not in contracted[1 - side] for axis in flow.axes):
        return None
    return tuple(order[contracted[side][contracted[1 - side].index(axis)]] for axis in flow.axes)
