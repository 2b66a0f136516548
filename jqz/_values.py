"""What a walk carries besides arrays: values that stay coded, or that remember which weight they are.

Each stands for an array of its ``shape`` and ``dtype``, can ``decode`` itself into it, and is a pytree,
so it passes through ``scan``, ``cond`` and ``checkpoint`` like any other.
"""

import abc
import dataclasses
import typing

import jax
import jax.numpy as jnp

from jqz._qtensor import QTensor
from jqz._scheme import Chain, Scheme, narrow


class Lazy(abc.ABC):
    """Stands for an array; ``path`` names the weight that it came from."""

    path: str

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @abc.abstractmethod
    def decode(self) -> jax.Array:
        """The array."""

    @property
    def ndim(self) -> int:
        return len(self.shape)


Value = typing.Any  # jax.Array | Lazy


def decode(value: Value) -> jax.Array:
    """The array that a value stands for."""
    return value.decode() if isinstance(value, Lazy) else value


def _static(**kwargs: typing.Any) -> typing.Any:
    return dataclasses.field(metadata={"static": True}, **kwargs)


def is_weight(value: Value) -> bool:
    """Whether a value is a weight, or was moved from one."""
    return isinstance(value, Weight | Coded | Levels) and not isinstance(value, Stored)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Weight(Lazy):
    """A weight in float, or decoded since its codes could not follow, on its way to what it meets.

    ``order`` says which of its own axes the axes are now, if nothing but their order has changed; None otherwise.
    """

    value: jax.Array
    path: str = _static()
    order: tuple[int, ...] | None = _static(default=None)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> typing.Any:
        return self.value.dtype

    def decode(self) -> jax.Array:
        return self.value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Coded(Lazy):
    """A QTensor as it entered, and the dtypes that it was converted to since."""

    tensor: QTensor
    path: str = _static()
    casts: tuple[typing.Any, ...] = _static(default=())

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> typing.Any:
        return self.casts[-1] if self.casts else self.tensor.dtype

    def decode(self) -> jax.Array:
        return _cast(self.tensor.dequantize(), self.casts)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Stored(Coded):
    """A QTensor that the program writes to, such as a key-value cache: no weight, and a QTensor when it is returned."""

    def same(self, other: Value) -> bool:
        """Whether another value is this tensor at another time."""

        def kind(value: Coded) -> typing.Any:
            leaves, treedef = jax.tree.flatten(value.tensor)
            return value.path, value.casts, treedef, [leaf.shape for leaf in leaves]

        return isinstance(other, Coded) and kind(self) == kind(other)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Levels(Lazy):
    """Integers and what they mean: ``scale * (levels - zero_point)``.

    ``scale`` and ``zero_point`` keep the rank of ``levels``; along each axis they have length 1, the
    full length, or a number of equal groups. The values went through the dtypes ``casts``, each of which
    rounds them when they are decoded; integer arithmetic needs no such rounding.
    """

    levels: jax.Array
    scale: jax.Array
    zero_point: jax.Array | None
    casts: tuple[typing.Any, ...] = _static()
    limit: int = _static()
    path: str = _static()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.levels.shape

    @property
    def dtype(self) -> typing.Any:
        return self.casts[-1]

    @property
    def grouped_axes(self) -> tuple[int, ...]:
        """Axes along which the scale has several entries, but fewer than there are levels."""
        return tuple(i for i, (s, n) in enumerate(zip(self.scale.shape, self.shape, strict=True)) if s not in (1, n))

    def varies_along(self, axes: typing.Iterable[int]) -> bool:
        """Whether scale or zero point differ along one of these axes."""
        return any(self.scale.shape[axis] != 1 for axis in axes)

    def ungrouped(self, axes: typing.Iterable[int]) -> "Levels":
        """The same with an entry for each level along those of these axes that have groups."""
        scale, zero_point = self.scale, self.zero_point
        for axis in set(axes) & set(self.grouped_axes):
            repeats = self.shape[axis] // scale.shape[axis]
            scale = jnp.repeat(scale, repeats, axis)
            zero_point = None if zero_point is None else jnp.repeat(zero_point, repeats, axis)
        return dataclasses.replace(self, scale=scale, zero_point=zero_point)

    def decode(self) -> jax.Array:
        fine = self.ungrouped(range(self.ndim))
        levels = self.levels.astype(fine.scale.dtype)
        if fine.zero_point is not None:
            levels = levels - fine.zero_point.astype(fine.scale.dtype)
        return _cast(narrow(levels * fine.scale, self.casts[0]), self.casts[1:])


def _cast(x: jax.Array, dtypes: tuple[typing.Any, ...]) -> jax.Array:
    for dtype in dtypes:
        x = x.astype(dtype)
    return x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Activation(Lazy):
    """An activation that a product has rounded, kept so that it is rounded once.

    ``rounded`` holds its codes, or in simulation the array that they stand for. Readers other than products
    read ``original`` where there is one, and the rounded values otherwise: with static ranges int8 codes are
    all that is kept, on one grid for all readers, or on two.
    """

    original: "jax.Array | Activation | None"
    rounded: Value
    scheme: Scheme = _static()
    path: str = _static()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rounded.shape

    @property
    def dtype(self) -> typing.Any:
        return self.rounded.dtype

    def decode(self) -> jax.Array:
        return decode(self.rounded if self.original is None else self.original)


class Pending(Lazy):
    """A value that is still an expression of others: good until the next loop or branch, which decodes it."""

    path = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Valued(Pending):
    """An array and what is known of it."""

    value: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> typing.Any:
        return self.value.dtype

    def decode(self) -> jax.Array:
        return self.value


@dataclasses.dataclass(frozen=True, eq=False)
class Computed(Valued):
    """Float numbers that were computed from codes: the mark tells them from constants."""


def group_length(scheme: Scheme, axis: int, ndim: int) -> int | None:
    """How many values an entry serves along an axis, if that is split into groups; None if stages disagree."""
    stages = scheme.stages if isinstance(scheme, Chain) else (scheme,)
    lengths = {stage.granularity.period(axis, ndim) for stage in stages} - {None}
    return lengths.pop() if len(lengths) == 1 else None


def as_levels(value: Value) -> Levels | None:
    """The value as integer levels, or None where its scheme has no such form."""
    if isinstance(value, Levels):
        return value
    if not isinstance(value, Coded):
        return None
    q = value.tensor
    affine = q.scheme.affine(q.grid)
    if affine is None or affine.limit > 128 or affine.scale.ndim != q.ndim:
        return None
    for axis, (s, n) in enumerate(zip(affine.scale.shape, q.shape, strict=True)):
        if s not in (1, n) and (n % s or group_length(q.scheme, axis, q.ndim) != n // s):
            return None  # an uneven last group, or stages that group differently
    zero_point = None if affine.zero_point is None else jnp.broadcast_to(affine.zero_point, affine.scale.shape)
    return Levels(affine.levels(q.codes), affine.scale, zero_point, (q.dtype, *value.casts), affine.limit, value.path)
