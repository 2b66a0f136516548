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
from jqz._scheme import Chain


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Weight(Lazy):
    """A float weight on its way to the dot or convolution that it meets."""

    value: jax.Array
    path: str = _static()

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
    """A QTensor as it entered."""

    tensor: QTensor
    path: str = _static()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> typing.Any:
        return self.tensor.dtype

    def decode(self) -> jax.Array:
        return self.tensor.dequantize()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Levels(Lazy):
    """Integers and what they mean: ``scale * (levels - zero_point)``.

    ``scale`` and ``zero_point`` keep the rank of ``levels``; along each axis they have length 1, the
    full length, or a number of equal groups.
    """

    levels: jax.Array
    scale: jax.Array
    zero_point: jax.Array | None
    dtype: typing.Any = _static()
    limit: int = _static()
    path: str = _static()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.levels.shape

    @property
    def grouped_axes(self) -> tuple[int, ...]:
        """Axes along which the scale has several entries, but fewer than there are levels."""
        return tuple(i for i, (s, n) in enumerate(zip(self.scale.shape, self.shape, strict=True)) if s not in (1, n))

    def varies_along(self, axes: typing.Iterable[int]) -> bool:
        """Whether scale or zero point differ along one of these axes."""
        return any(self.scale.shape[axis] != 1 for axis in axes)

    def decode(self) -> jax.Array:
        scale, zero_point = self.scale, self.zero_point
        for axis in self.grouped_axes:
            repeats = self.shape[axis] // scale.shape[axis]
            scale = jnp.repeat(scale, repeats, axis)
            zero_point = None if zero_point is None else jnp.repeat(zero_point, repeats, axis)
        levels = self.levels.astype(scale.dtype)
        if zero_point is not None:
            levels = levels - zero_point.astype(scale.dtype)
        return (levels * scale).astype(self.dtype)


def as_levels(value: Value) -> Levels | None:
    """The value as integer levels, or None where its scheme has no such form."""
    if isinstance(value, Levels):
        return value
    if not isinstance(value, Coded):
        return None
    q = value.tensor
    affine = q.scheme.affine(q.grid)
    if affine is None or affine.scale.ndim != q.ndim:
        return None
    stages = q.scheme.stages if isinstance(q.scheme, Chain) else (q.scheme,)
    for axis, (s, n) in enumerate(zip(affine.scale.shape, q.shape, strict=True)):
        periods = {stage.granularity.period(axis, q.ndim) for stage in stages} - {None}
        if s not in (1, n) and (n % s or periods != {n // s}):
            return None  # an uneven last group, or stages that group differently
    zero_point = None if affine.zero_point is None else jnp.broadcast_to(affine.zero_point, affine.scale.shape)
    return Levels(affine.levels(q.codes), affine.scale, zero_point, q.dtype, affine.limit, value.path)
