"""Channels that one parameter makes and others sum over, with nothing between that their scale could disturb.

A walk with these rules finds such links from the program alone. What makes the channels is a weight, or the scale of
a norm; what sums over them are weights of later products, one or several. Dividing the first (and what is added on
the way) by any s > 0, channel by channel, and multiplying the others by it leaves the function as it is. Where nothing
on the way treats channels one by one, they may also be rotated.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jqz._channels import Channels, Handlers, walk_channels
from jqz._inference import observe
from jqz._observer import Observer
from jqz._policy import Policy
from jqz._rows import Contraction, output_axes
from jqz._scheme import Identity, Scheme
from jqz._sites import merge
from jqz._values import Pending, Value, Weight
from jqz._walk import Equation, Rule
from jqz.kernels import structure


class Place(typing.NamedTuple):
    """Where the channels of a link lie in a parameter: along axes of it, the last of which runs fastest."""

    path: str
    axes: tuple[int, ...]

    def along(self, vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """A number for each channel, laid out so that it broadcasts against a parameter of this shape."""
        order = sorted(range(len(self.axes)), key=lambda i: self.axes[i])
        part = vector.reshape([shape[axis] for axis in self.axes]).transpose(order)
        return part.reshape([n if axis in self.axes else 1 for axis, n in enumerate(shape)])

    def channels_first(self, array: jax.Array) -> jax.Array:
        """A parameter as (channels, all else)."""
        rest = [axis for axis in range(array.ndim) if axis not in self.axes]
        size = math.prod(array.shape[axis] for axis in self.axes)
        return array.transpose((*self.axes, *rest)).reshape(size, -1)

    def back(self, matrix: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The inverse of ``channels_first`` for a parameter of this shape."""
        order = (*self.axes, *(axis for axis in range(len(shape)) if axis not in self.axes))
        return matrix.reshape([shape[axis] for axis in order]).transpose([order.index(i) for i in range(len(shape))])

    def largest(self, array: jax.Array) -> jax.Array:
        """The largest magnitude of each channel."""
        return jnp.max(jnp.abs(self.channels_first(array)), axis=1)


class Link(typing.NamedTuple):
    """What makes channels, what is added to them on the way, and the weights that sum over them.

    ``by_weight`` says that the first is the weight of a product, and not the scale of a norm; channels may be rotated
    in runs of ``block`` neighbours.
    """

    first: Place
    shifts: tuple[Place, ...]
    seconds: tuple[Place, ...]
    by_weight: bool
    block: int

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(place.path for place in (self.first, *self.shifts, *self.seconds))

    def largest(self, leaves: Mapping[str, jax.Array]) -> jax.Array:
        """The largest magnitude that any of the weights that sum over a channel has for it."""
        found = [place.largest(leaves[place.path]) for place in self.seconds]
        return jnp.max(jnp.stack(found), axis=0)

    def scaled(self, leaves: Mapping[str, jax.Array], s: jax.Array) -> dict[str, jax.Array]:
        """All of ``leaves``, the channels of this link divided by s on one side and multiplied on the other."""
        out = dict(leaves)
        for place in (self.first, *self.shifts):
            out[place.path] = out[place.path] / place.along(s, out[place.path].shape).astype(out[place.path].dtype)
        for place in self.seconds:
            out[place.path] = out[place.path] * place.along(s, out[place.path].shape).astype(out[place.path].dtype)
        return out


def find(fn: Callable[..., typing.Any], params: typing.Any, args: Sequence[typing.Any]) -> list[Link]:
    """The links in a function of ``(params, *args)``, in the order of the program, outside of loops and branches.

    A link is left out where what it carries is also used otherwise, or a parameter of it is used twice.
    """
    sources: list[_Source] = []
    uses: dict[str, int] = {}

    def look(params: typing.Any) -> typing.Any:
        sources.clear()
        uses.clear()
        return walk_channels(fn, params, args, Handlers(), _rules(sources, uses), structure.RULES)[0]

    jax.eval_shape(look, params)
    links = [source.link() for source in sources if source.seconds and not source.spoilt]
    return [link for link in links if all(uses.get(path) == 1 for path in link.paths)]


def observed(
    fn: Callable[..., typing.Any],
    params: typing.Any,
    links: Iterable[Link],
    batches: Sequence[tuple[typing.Any, ...]],
    observer: Observer,
) -> dict[str, typing.Any]:
    """What an observer by rows has seen, over all batches, of what meets the weights that sum, by their paths."""
    rules: dict[str, Scheme | None] = {place.path: Identity() for link in links for place in link.seconds}
    watch = jax.jit(observe(fn, Policy(rules, inputs=Identity()), observer))
    stats = functools.reduce(merge, [watch(params, *batch) for batch in batches])
    return {path: seen.observer for path, seen in stats.items()}


def met(place: Place, numbers: jax.Array, contraction: Contraction, shape: tuple[int, ...]) -> jax.Array:
    """Numbers (groups, terms) of what meets a weight of this shape, as (channels, all else that a channel meets)."""
    matrix = numbers.reshape(contraction.groups, contraction.terms(shape), 1)
    outputs = math.prod(shape) // matrix.size
    return place.channels_first(contraction.weight(jnp.broadcast_to(matrix, (*matrix.shape[:2], outputs)), shape))


@dataclasses.dataclass(eq=False)
class _Source:
    """A link as far as the walk has seen it."""

    first: Place
    by_weight: bool
    block: int
    shifts: list[Place] = dataclasses.field(default_factory=list)
    seconds: list[Place] = dataclasses.field(default_factory=list)
    spoilt: bool = False

    def link(self) -> Link:
        return Link(self.first, tuple(self.shifts), tuple(self.seconds), self.by_weight, self.block)


@dataclasses.dataclass(frozen=True, eq=False)
class _Flow(Pending):
    """An activation whose channels lie along ``axes``; whoever reads it as an array spoils its link."""

    value: jax.Array
    axes: tuple[int, ...]
    source: _Source

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> typing.Any:
        return self.value.dtype

    def decode(self) -> jax.Array:
        self.source.spoilt = True
        return self.value

    def on(self, value: jax.Array, axes: tuple[int, ...] | None = None, block: int | None = None) -> list["_Flow"]:
        """What a rule returns for what it computed from this; channels can be mixed in runs of ``block`` since."""
        if block is not None:
            self.source.block = min(self.source.block, block)
        return [dataclasses.replace(self, value=value, axes=self.axes if axes is None else axes)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Table(Pending):
    """A parameter of several axes on its way to what it is added to; ``axes`` are those that it has there."""

    value: jax.Array
    name: str
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> typing.Any:
        return self.value.dtype

    def decode(self) -> jax.Array:
        return self.value


def _carries(value: Value) -> typing.TypeGuard[_Flow]:
    return isinstance(value, _Flow) and not value.source.spoilt


def _rules(sources: list[_Source], uses: dict[str, int]) -> dict[str, Rule]:
    """Rules that follow channels from what makes them to the products that sum over them."""

    def used(path: str) -> None:
        uses[path] = uses.get(path, 0) + 1

    def started(first: Place, by_weight: bool, value: jax.Array, axes: tuple[int, ...]) -> list[_Flow]:
        sources.append(_Source(first, by_weight, math.prod(value.shape[axis] for axis in axes)))
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
        met = _met(eqn, side, order, weight.shape, other) if _carries(other) else None
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

    def shifted(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        if not _carries(x) and eqn.primitive == "add":
            x, y = y, x
        if not _carries(x):
            return None
        if isinstance(y, Channels) and y.bare is not None and x.axes == (y.axis,):
            place = Place(y.bare, (0,))
        elif isinstance(y, _Table) and y.axes == x.axes:
            place = Place(y.name, tuple(range(len(y.axes))))
        else:
            return None
        used(place.path)
        x.source.shifts.append(place)
        return x.on(eqn.on(x.value, y))

    def scaled(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        if not _carries(x) and eqn.primitive == "mul":
            x, y = y, x
        if _carries(x):
            return x.on(eqn.on(x.value, y), block=None if not isinstance(y, Pending) and jnp.ndim(y) == 0 else 1)
        x, y = (y, x) if isinstance(x, Channels) else (x, y)
        if eqn.primitive != "mul" or not isinstance(y, Channels) or y.bare is None or isinstance(x, Channels | Weight):
            return None
        used(y.bare)
        return started(Place(y.bare, (0,)), False, eqn.on(x, y), (y.axis,)) if jnp.ndim(x) else None

    def clipped(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        x, y = (x, y) if _carries(x) else (y, x)
        zero = not isinstance(y, Pending | Tracer) and jnp.ndim(y) == 0 and y == 0
        return x.on(eqn.on(x.value, y), block=1) if _carries(x) and zero else None

    def reduced(eqn: Equation, x: Value) -> Sequence[Value] | None:
        gone = eqn.params["axes"]
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

    def looked_up(eqn: Equation, x: Value, *_: Value) -> Sequence[Value] | None:
        if isinstance(x, Weight):
            used(x.path)
        return None

    return {
        **dict.fromkeys(("dot_general", "conv_general_dilated"), product),
        **dict.fromkeys(("add", "sub"), shifted),
        **dict.fromkeys(("mul", "div"), scaled),
        "max": clipped,
        **dict.fromkeys(("reduce_sum", "reduce_max"), reduced),
        **dict.fromkeys(("reduce_window_max", "reduce_window_sum"), windowed),
        **dict.fromkeys(("neg", "copy", "stop_gradient", "convert_element_type"), passed),
        "transpose": transposed,
        "squeeze": squeezed,
        "broadcast_in_dim": broadcast,
        "reshape": reshaped,
        "slice": sliced,
        "gather": looked_up,
    }


def _whole(value: Value) -> typing.TypeGuard[Weight]:
    """Whether this is a parameter of several axes as it stands."""
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


def _met(
    eqn: Equation, side: int, order: tuple[int, ...], shape: tuple[int, ...], flow: typing.Any
) -> tuple[int, ...] | None:
    """The axes of a weight that meet the channels of a flow, or None where it does not sum over them alone."""
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive == "conv_general_dilated":
        groups = eqn.params["feature_group_count"]
        if side == 0 or flow.axes != (numbers.lhs_spec[1],) or eqn.params["batch_group_count"] != 1:
            return None
        if groups == 1:
            return (order[numbers.rhs_spec[1]],)
        depthwise = groups == flow.shape[flow.axes[0]] == shape[numbers.rhs_spec[0]]
        if not depthwise:
            return None
        flow.source.block = 1
        return (order[numbers.rhs_spec[0]],)
    contracted, batch = numbers
    if batch[0] or any(axis not in contracted[1 - side] for axis in flow.axes):
        return None
    return tuple(order[contracted[side][contracted[1 - side].index(axis)]] for axis in flow.axes)
