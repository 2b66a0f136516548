"""A product as a matrix product: the rows that meet a weight, how it is a matrix, and where its channels lie."""

import dataclasses
import itertools
import math
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jqz._values import Value, Weight, decode
from jqz._walk import Equation


@dataclasses.dataclass(frozen=True)
class Contraction:
    """How a product sums over a weight: the axes of the weight that it sums over, in the order of a row's terms.

    The other axes, in the order that they have, are the outputs. They are split into ``groups`` of equal length, each
    with rows of its own, as in a grouped convolution.

    >>> import numpy as np
    >>> from jqz._rows import Contraction
    >>> weight = np.arange(12).reshape(2, 3, 2)
    >>> matrix = Contraction((1,)).matrix(weight)
    >>> matrix.shape, matrix[0, 0].tolist()
    ((1, 3, 4), [0, 1, 6, 7])
    >>> bool((Contraction((1,)).weight(matrix, weight.shape) == weight).all())
    True
    """

    axes: tuple[int, ...]
    groups: int = 1

    def terms(self, shape: Sequence[int]) -> int:
        """How many products a sum has."""
        return math.prod(shape[axis] for axis in self.axes)

    def _order(self, ndim: int) -> tuple[int, ...]:
        return (*self.axes, *(axis for axis in range(ndim) if axis not in self.axes))

    def matrix(self, weight: typing.Any) -> typing.Any:
        """A weight as (groups, terms, outputs)."""
        terms = self.terms(weight.shape)
        flat = weight.transpose(self._order(weight.ndim)).reshape(terms, self.groups, -1)
        return flat.transpose(1, 0, 2)

    def weight(self, matrix: typing.Any, shape: Sequence[int]) -> typing.Any:
        """The inverse of ``matrix``, for a weight of this shape."""
        order = self._order(len(shape))
        flat = matrix.transpose(1, 0, 2).reshape([shape[axis] for axis in order])
        return flat.transpose([order.index(axis) for axis in range(len(shape))])


class Place(typing.NamedTuple):
    """Where channels lie in a parameter: along axes of it, the last of which runs fastest."""

    path: str
    axes: tuple[int, ...]

    def along(self, vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """A number for each channel, laid out to broadcast against a parameter of this shape."""
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


def rows(eqn: Equation, x: Value, weight: Value, side: int) -> tuple[jax.Array, Contraction] | None:
    """What meets a weight as (groups, rows, terms), and how the weight is contracted with it.

    None where the weight was changed by more than the order of its axes, or the product is no such one: with batch
    axes on the weight, or ragged. ``side`` is the operand that x is.
    """
    order = weight.order if isinstance(weight, Weight) else None
    if order is None:
        return None
    sliced = len(order) - weight.ndim  # by the scans around it
    if order[:sliced] != tuple(range(sliced)):
        return None
    order = tuple(axis - sliced for axis in order[sliced:])
    if eqn.primitive == "dot_general":
        contracted, batch = eqn.params["dimension_numbers"]
        return None if batch[0] else _of_dot(decode(x), contracted[side], contracted[1 - side], order)
    if eqn.primitive == "conv_general_dilated" and side == 0 and eqn.params["batch_group_count"] == 1:
        return _of_convolution(eqn, decode(x), weight.shape, order)
    return None


def _of_dot(
    x: jax.Array, mine: Sequence[int], its: Sequence[int], order: tuple[int, ...]
) -> tuple[jax.Array, Contraction]:
    free = [axis for axis in range(x.ndim) if axis not in mine]
    terms = math.prod(x.shape[axis] for axis in mine)
    return jnp.transpose(x, (*free, *mine)).reshape(1, -1, terms), Contraction(tuple(order[axis] for axis in its))


def _of_convolution(
    eqn: Equation, x: jax.Array, kernel: tuple[int, ...], order: tuple[int, ...]
) -> tuple[jax.Array, Contraction]:
    """Patches: their terms run over the window first, then over the channels of a group."""
    p = eqn.params
    image, weight, _ = p["dimension_numbers"]
    groups, window = p["feature_group_count"], [kernel[axis] for axis in weight[2:]]
    x = jnp.transpose(x, (image[0], *image[2:], image[1]))
    padding = [(low, high, spread - 1) for (low, high), spread in zip(p["padding"], p["lhs_dilation"], strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *padding, (0, 0, 0)])
    steps = list(zip(x.shape[1:-1], window, p["window_strides"], p["rhs_dilation"], strict=True))
    ends = [n - (k - 1) * apart for n, k, _, apart in steps]
    strides = (1, *p["window_strides"], 1)

    def shifted(offset: tuple[int, ...]) -> jax.Array:
        start = [o * apart for o, (_, _, _, apart) in zip(offset, steps, strict=True)]
        stop = [s + end for s, end in zip(start, ends, strict=True)]
        return jax.lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), strides)

    patches = jnp.stack([shifted(offset) for offset in itertools.product(*map(range, window))], axis=-2)
    patches = patches.reshape(-1, math.prod(window), groups, x.shape[-1] // groups)
    patches = jnp.moveaxis(patches, 2, 0).reshape(groups, patches.shape[0], -1)
    return patches, Contraction(tuple(order[axis] for axis in (*weight[2:], weight[1])), groups)


def output_axes(eqn: Equation, side: int, weight: Weight, other: int) -> dict[int, int]:
    """Which axis of the weight each axis of the result runs over, where it is one."""
    order = typing.cast(tuple[int, ...], weight.order)
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive == "conv_general_dilated":
        return {numbers.out_spec[1]: order[numbers.rhs_spec[0]]} if side == 1 else {}
    contracted, batch = numbers
    if batch[0]:
        return {}
    free = [axis for axis in range(weight.ndim) if axis not in contracted[side]]
    start = other - len(contracted[1 - side]) if side == 1 else 0
    return {start + i: order[axis] for i, axis in enumerate(free)}


def met_axis(eqn: Equation, side: int, weight: Weight, axis: int, length: int) -> int | None:
    """The axis of the moved weight that meets one axis of the other operand, where the product sums over that alone.

    For a convolution of one group it is that of the channels that go in; for a depthwise one that of the channels.
    """
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive == "dot_general":
        contracted, batch = numbers
        its = tuple(contracted[1 - side])
        return contracted[side][0] if its == (axis,) and not batch[0] else None
    groups = eqn.params["feature_group_count"]
    if side == 0 or numbers.lhs_spec[1] != axis or eqn.params["batch_group_count"] != 1:
        return None
    if groups == 1:
        return numbers.rhs_spec[1]
    return numbers.rhs_spec[0] if groups == length == weight.shape[numbers.rhs_spec[0]] else None
