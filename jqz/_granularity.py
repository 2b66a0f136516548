"""Which values share one grid: per tensor, per axis, per group, per block.

Everything follows from one number per axis, the length of a block. A grid array keeps the
rank of the values it belongs to and has ``ceil(length / block)`` entries along each axis::

    values (64, 10)      PerTensor()               grid (1, 1)
                         PerAxis(-1)               grid (1, 10)
                         PerGroup(32, axis=0)      grid (2, 10)
                         PerBlock((32, 5))         grid (2, 2)
"""

import abc
import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp


class Granularity(abc.ABC):
    """Splits an array into blocks that share a grid.

    >>> import jqz
    >>> [g.block((64, 10)) for g in (jqz.PerTensor(), jqz.PerAxis(-1), jqz.PerGroup(32, axis=0))]
    [(64, 10), (64, 1), (32, 1)]
    """

    #: A block may be a part of an axis, so a grid's shape does not tell how to expand it.
    groups: typing.ClassVar[bool] = False

    @abc.abstractmethod
    def block(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The block's length along each axis of an array of this shape."""

    def period(self, axis: int, ndim: int) -> int | None:
        """How many values an entry serves along an axis that groups split, counted from the shapes alone."""
        return None

    def grid_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a grid array for values of this shape."""
        return tuple(-(-n // b) if b else 1 for n, b in zip(shape, self.block(shape), strict=True))

    def reduce(self, fn: Callable[..., typing.Any], x: jax.Array, *others: jax.Array) -> typing.Any:
        """Applies ``fn(blocks, axes, *others)`` to every block of ``x`` and of other arrays of its shape.

        ``fn`` reduces ``axes`` and keeps them with length 1; it may return any pytree of such
        arrays, each of which comes back in the grid's shape. An uneven last group is reduced
        by itself, so no padding ever enters a statistic. An empty block is reduced as if it
        held one zero.
        """
        block = self.block(x.shape)
        if 0 in block:
            shape = [n if b else 1 for n, b in zip(x.shape, block, strict=True)]
            x, others = jnp.zeros(shape, x.dtype), tuple(jnp.zeros(shape, other.dtype) for other in others)
            block = tuple(b or 1 for b in block)
        for axis, (n, b) in enumerate(zip(x.shape, block, strict=True)):
            if n > b and n % b:
                cut = n - n % b
                ends = ((0, cut), (cut, n))
                cuts = [[jax.lax.slice_in_dim(array, *end, axis=axis) for array in (x, *others)] for end in ends]
                parts = [self.reduce(fn, *part) for part in cuts]
                return jax.tree.map(lambda *leaves, axis=axis: jnp.concatenate(leaves, axis), *parts)
        split, axes, grid_shape = [], [], []
        for n, b in zip(x.shape, block, strict=True):
            if b == 1 or n == 1:  # every value is a block
                split.append(n)
                grid_shape.append(n)
            elif 0 < n <= b:  # one block: reduce the whole axis
                axes.append(len(split))
                split.append(n)
                grid_shape.append(1)
            else:
                axes.append(len(split) + 1)
                split += [n // b, b]
                grid_shape.append(n // b)
        out = fn(x.reshape(split), tuple(axes), *(array.reshape(split) for array in others))
        # a leaf may carry trailing axes of its own (the levels of a codebook)
        return jax.tree.map(lambda leaf: leaf.reshape(*grid_shape, *leaf.shape[len(split) :]), out)

    def expand(self, grid: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Repeats a grid array until it broadcasts against values of ``shape``.

        Works from the shapes alone wherever they tell enough, so a tensor whose leading axes
        were sliced away by ``scan`` or ``vmap`` still decodes.
        """
        if grid.ndim < len(shape):
            raise ValueError(f"{self!r} cannot expand a grid of shape {grid.shape} to {shape}.")
        for axis, n in enumerate(shape):
            have = grid.shape[axis]
            if have in (1, n):
                continue
            period = self.period(axis, len(shape))
            if period is None or -(-n // period) != have:
                raise ValueError(
                    f"{self!r} cannot expand a grid of shape {grid.shape} to {shape}: "
                    f"axis {axis} holds {have} entries, which do not fit {n} values."
                )
            wide = jnp.broadcast_to(
                jnp.expand_dims(grid, axis + 1), (*grid.shape[: axis + 1], period, *grid.shape[axis + 1 :])
            ).reshape(*grid.shape[:axis], have * period, *grid.shape[axis + 1 :])
            grid = wide if have * period == n else jax.lax.slice_in_dim(wide, 0, n, axis=axis)
        return grid


def _normalize(who: Granularity, axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(
                f"{who!r} needs axis {axis}, but the values have rank {ndim}. "
                "Use PerTensor(), another axis, or map this path to None."
            )
    return tuple(axis % ndim for axis in axes)


@typing.final
@dataclasses.dataclass(frozen=True)
class PerTensor(Granularity):
    """One grid for the whole array.

    >>> import jqz
    >>> jqz.PerTensor().grid_shape((64, 10))
    (1, 1)
    """

    def block(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape)

    def __repr__(self) -> str:
        return "PerTensor()"


@typing.final
@dataclasses.dataclass(frozen=True, init=False)
class PerAxis(Granularity):
    """One grid for each index along the given axes (output channels are the last axis in Flax).

    A stack of scanned layers of shape (layer, in, out) wants ``PerAxis((0, -1))``: one grid
    for each layer and output channel.

    >>> import jqz
    >>> jqz.PerAxis(-1).grid_shape((3, 3, 16, 32))
    (1, 1, 1, 32)
    """

    axes: tuple[int, ...]

    def __init__(self, axes: int | tuple[int, ...]):
        axes = (axes,) if isinstance(axes, int) else tuple(axes)
        if not axes or not all(isinstance(a, int) for a in axes):
            raise ValueError(f"PerAxis: got {axes!r}, wanted an axis or a tuple of axes. Use PerAxis(-1).")
        object.__setattr__(self, "axes", axes)

    def block(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        kept = _normalize(self, self.axes, len(shape))
        return tuple(1 if axis in kept else n for axis, n in enumerate(shape))

    def __repr__(self) -> str:
        return f"PerAxis({self.axes[0] if len(self.axes) == 1 else self.axes})"


@typing.final
@dataclasses.dataclass(frozen=True)
class PerGroup(Granularity):
    """One grid for each ``size`` consecutive values along ``axis``; the last group may be shorter.

    The default axis, -2, is the reduction axis of a Flax kernel (in, out).

    >>> import jqz
    >>> jqz.PerGroup(32).grid_shape((70, 10))
    (3, 10)
    """

    size: int
    axis: int = -2
    groups = True

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"PerGroup: got size={self.size!r}, wanted a positive integer. Use PerGroup(size=32).")

    def block(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        (axis,) = _normalize(self, (self.axis,), len(shape))
        return tuple(self.size if a == axis else 1 for a in range(len(shape)))

    def period(self, axis: int, ndim: int) -> int | None:
        return self.size


@typing.final
@dataclasses.dataclass(frozen=True)
class PerBlock(Granularity):
    """One grid for each block of the trailing axes, e.g. ``PerBlock((32, 32))``; edge blocks may be smaller.

    >>> import jqz
    >>> jqz.PerBlock((32, 4)).grid_shape((3, 64, 10))
    (3, 2, 3)
    """

    shape: tuple[int, ...]
    groups = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.shape or not all(isinstance(n, int) and n > 0 for n in self.shape):
            raise ValueError(f"PerBlock: got {self.shape!r}, wanted positive integers. Use PerBlock((32, 32)).")

    def block(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) < len(self.shape):
            raise ValueError(
                f"{self!r} needs rank {len(self.shape)} or more, but the values have rank {len(shape)}. "
                "Use PerTensor(), or map this path to None."
            )
        return (1,) * (len(shape) - len(self.shape)) + self.shape

    def period(self, axis: int, ndim: int) -> int | None:
        back = ndim - axis
        return self.shape[-back] if back <= len(self.shape) else None

    def __repr__(self) -> str:
        return f"PerBlock({self.shape})"
