"""Channels scaled between two weights, so that both use their range."""

import dataclasses
import typing
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jqz._channels import Channels, Handlers, as_args, verify, walk_channels
from jqz._rows import output_axes
from jqz._transform import named_leaves
from jqz._values import Pending, Value, Weight
from jqz._walk import Equation, Rule
from jqz.kernels import structure


def equalize(
    fn: Callable[..., typing.Any], params: typing.Any, batch: typing.Any, *, sweeps: int = 20, tolerance: float = 1e-4
) -> typing.Any:
    """Gives every channel between two weights the same range on both sides of it.

    Where relu(W1 x + b) meets W2 alone, W1 and b may be divided by any s > 0, channel by channel, if W2 is multiplied
    by it. With r1 and r2 the largest magnitudes that W1 and W2 have for a channel, s = sqrt(r1 / r2) makes both
    sqrt(r1 r2). Weights that have two neighbours are visited repeatedly, until nothing moves.

    Pairs are found in the program: products whose result goes to one other product and nowhere else, through what is
    positively homogeneous: biases, batch norms as they infer (folded or not), relu, pooling, scaling. A depthwise
    convolution is the second of one pair and the first of the next. Relu6 is not homogeneous and ends a pair.

    Use it before rounding with one grid a tensor, which an outlying channel spoils: it is what makes 8 bits a tensor
    work for MobileNets. With a grid a channel it gains nothing for weights.

    Args:
      fn: a pure function of ``(params, *args)`` that infers, such as a Linen ``model.apply``.
      params: its float parameters.
      batch: arguments of ``fn`` after the parameters, on which the result is verified: an array or a tuple.
      sweeps: over all pairs, at most.
      tolerance: of the relative difference of the outputs.

    Returns:
      The same tree with other weights, biases and means.

    Raises:
      ValueError: there are no pairs, or the outputs change by more than ``tolerance``.

    >>> import jax, jax.numpy as jnp, jqz.algorithms
    >>> def model(params, x):
    ...     return jax.nn.relu(x @ params["a"]) @ params["b"]
    >>> params = {"a": jnp.array([[100.0, 1.0]]), "b": jnp.array([[1.0], [1.0]])}
    >>> equal = jqz.algorithms.equalize(model, params, jnp.ones((1, 1)))
    >>> equal["a"].tolist(), equal["b"].tolist()
    ([[10.0, 1.0]], [[10.0], [1.0]])

    References: arXiv:1906.04721, section 4.1.
    """
    found: list[_Pair] = []
    readers: dict[int, int] = {}
    uses: dict[str, int] = {}
    args = as_args(batch)

    def look(params: typing.Any) -> typing.Any:
        return walk_channels(fn, params, args, Handlers(), _rules(found, readers, uses), structure.RULES)[0]

    jax.eval_shape(look, params)
    pairs = [
        pair
        for pair in found
        if all(readers[number] == 1 for number in pair.flow.numbers)
        and all(uses.get(path) == 1 for path in (pair.flow.weight, pair.second, *pair.flow.shifts))
    ]
    if not pairs:
        raise ValueError(
            "equalize: found no product whose result goes to one other product alone. Use a function that infers, with "
            "relu between its layers: lambda params, x: model.apply(params, x, train=False)."
        )
    before = dict(named_leaves(params))
    leaves = {path: before[path] for pair in pairs for path in pair.paths}
    for _ in range(sweeps):
        leaves, moved = _sweep(tuple(pair.plan for pair in pairs), leaves)
        if moved < 1e-3:
            break
    return verify("equalize", fn, args, params, leaves, tolerance)


class _Plan(typing.NamedTuple):
    """What is divided along an axis, and what is multiplied along another; hashable."""

    first: tuple[str, int]
    shifts: tuple[str, ...]
    second: tuple[str, int]


def _magnitudes(weight: jax.Array, axis: int) -> jax.Array:
    return jnp.max(jnp.abs(weight), axis=tuple(i for i in range(weight.ndim) if i != axis))


def _along(vector: jax.Array, axis: int, ndim: int) -> jax.Array:
    return vector.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _sweep(plans: tuple[_Plan, ...], leaves: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], float]:
    """Equalizes every pair once; the largest factor that is still off, less 1."""
    leaves, moved = dict(leaves), 0.0
    for (first, axis), shifts, (second, other) in plans:
        r1, r2 = _magnitudes(leaves[first], axis), _magnitudes(leaves[second], other)
        alive = (r1 > 0) & (r2 > 0)
        s = jnp.where(alive, jnp.sqrt(jnp.where(alive, r1, 1) / jnp.where(alive, r2, 1)), 1)
        moved = max(moved, float(jnp.max(jnp.maximum(s, 1 / s))) - 1)
        leaves[first] = leaves[first] / _along(s, axis, leaves[first].ndim)
        leaves[second] = leaves[second] * _along(s, other, leaves[second].ndim)
        for path in shifts:
            leaves[path] = leaves[path] / s
    return leaves, moved


@dataclasses.dataclass(frozen=True, eq=False)
class _Flow(Pending):
    """An activation on its way from one weight to the next, its channels along ``axis``.

    ``shifts`` are the parameters added to it; ``numbers`` those of this value and of what it was made from.
    """

    value: jax.Array
    axis: int
    weight: str
    own: int  # the axis of the weight
    shifts: tuple[str, ...]
    numbers: tuple[int, ...]
    readers: dict[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> typing.Any:
        return self.value.dtype

    def decode(self) -> jax.Array:
        self.readers[self.numbers[-1]] += 1
        return self.value

    def on(self, value: jax.Array, axis: int | None = None, shifts: tuple[str, ...] = ()) -> "_Flow":
        """What was computed from this one."""
        number = len(self.readers)
        self.readers[number] = 0
        return dataclasses.replace(
            self,
            value=value,
            axis=self.axis if axis is None else axis,
            shifts=(*self.shifts, *shifts),
            numbers=(*self.numbers, number),
        )


class _Pair(typing.NamedTuple):
    """A flow and the weight that it goes to, which sums over its channels along an axis."""

    flow: _Flow
    second: str
    axis: int

    @property
    def paths(self) -> tuple[str, ...]:
        return self.flow.weight, self.second, *self.flow.shifts

    @property
    def plan(self) -> _Plan:
        return _Plan((self.flow.weight, self.flow.own), self.flow.shifts, (self.second, self.axis))


def _rules(found: list[_Pair], readers: dict[int, int], uses: dict[str, int]) -> dict[str, Rule]:
    """Rules that follow channels from product to product."""

    def product(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        side = 1 if isinstance(y, Weight) else 0
        weight, other = (y, x) if side else (x, y)
        if not isinstance(weight, Weight) or isinstance(other, Weight):
            return None
        uses[weight.path] = uses.get(weight.path, 0) + 1
        axes = output_axes(eqn, side, weight, other.ndim) if weight.order is not None else {}
        if isinstance(other, _Flow) and axes:
            met = _met(eqn, side, weight, other)
            if met is not None:
                found.append(_Pair(other, weight.path, met))
        out = eqn.on(x, y)
        own = _feature_axis(eqn, out.ndim, axes)
        if own is None:
            return [out]
        number = len(readers)
        readers[number] = 0
        return [_Flow(out, own, weight.path, axes[own], (), (number,), readers)]

    def shifted(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        if isinstance(y, _Flow) and eqn.primitive == "add":
            x, y = y, x
        if not isinstance(x, _Flow) or not isinstance(y, Channels) or y.bare is None or y.axis != x.axis:
            return None
        uses[y.bare] = uses.get(y.bare, 0) + 1
        return [x.on(eqn.on(x, y), shifts=(y.bare,))]

    def scaled(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        if isinstance(y, _Flow) and eqn.primitive == "mul":
            x, y = y, x
        if not isinstance(x, _Flow):
            return None
        by_channel = isinstance(y, Channels) and y.axis == x.axis
        return [x.on(eqn.on(x, y))] if by_channel or (not isinstance(y, Pending) and y.ndim == 0) else None

    def clipped(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        x, y = (y, x) if isinstance(y, _Flow) else (x, y)
        zero = not isinstance(y, Pending | Tracer) and jnp.ndim(y) == 0 and y == 0
        return [x.on(eqn.on(x, y))] if isinstance(x, _Flow) and zero else None

    def reduced(eqn: Equation, x: Value) -> Sequence[Value] | None:
        axes = eqn.params["axes"]
        if not isinstance(x, _Flow) or x.axis in axes:
            return None
        return [x.on(eqn.on(x), x.axis - sum(axis < x.axis for axis in axes))]

    def windowed(eqn: Equation, x: Value, *rest: Value) -> Sequence[Value] | None:
        alone = isinstance(x, _Flow) and not rest and eqn.params["window_dimensions"][x.axis] == 1
        return [x.on(eqn.on(x))] if alone else None

    return {
        "dot_general": product,
        "conv_general_dilated": product,
        "add": shifted,
        "sub": shifted,
        "mul": scaled,
        "div": scaled,
        "max": clipped,
        "reduce_sum": reduced,
        "reduce_max": reduced,
        "reduce_window_max": windowed,
        "reduce_window_sum": windowed,
    }


def _feature_axis(eqn: Equation, ndim: int, axes: dict[int, int]) -> int | None:
    """The axis of a product's result that its one output axis of the weight makes."""
    if eqn.primitive == "conv_general_dilated":
        axis = eqn.params["dimension_numbers"].out_spec[1]
        return axis if axis in axes else None
    return next(iter(axes)) if len(axes) == 1 and ndim else None


def _met(eqn: Equation, side: int, weight: Weight, flow: _Flow) -> int | None:
    """The axis of a weight that meets the channels of a flow, or None where it does not sum over them alone."""
    order = typing.cast(tuple[int, ...], weight.order)
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive == "conv_general_dilated":
        groups = eqn.params["feature_group_count"]
        if side == 0 or numbers.lhs_spec[1] != flow.axis:
            return None
        if groups == 1:
            return order[numbers.rhs_spec[1]]
        depthwise = groups == flow.shape[flow.axis] == weight.shape[numbers.rhs_spec[0]]
        return order[numbers.rhs_spec[0]] if depthwise else None
    mine, its = numbers[0][side], numbers[0][1 - side]
    return order[mine[its.index(flow.axis)]] if flow.axis in its else None
