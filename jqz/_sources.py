"""What makes the numbers of linear expressions in a walk that emits operators: products, sums, pooling."""

import dataclasses
import typing
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jqz import _graph as g
from jqz import _paths
from jqz._activations import Meeting
from jqz._nodes import Builder, Known, Linear, Node, Real, Source, at, coded, grid_of, refuse
from jqz._requant import IntegerBias
from jqz._rescaling import long_bias
from jqz._values import as_levels, decode, is_weight
from jqz._walk import Equation
from jqz.kernels import places


@dataclasses.dataclass(frozen=True, eq=False)
class Product(Source):
    """A convolution or dot; ``lay`` emits it, and transposes its result if need be."""

    x: Node
    lay: Callable[[Builder, g.Grid | None, dict[str, typing.Any]], int]
    axis: int
    channels: int

    @property
    def floats(self) -> bool:
        return self.x.floats

    @property
    def raw(self) -> bool:
        return self.x.raw

    def emit(self, build: Builder, grid: g.Grid | None, value: Linear) -> int:
        scale = self._of_channels(value.factor)
        offset = self._of_channels(jnp.float32(0) if value.offset is None else value.offset)
        if grid is None or not isinstance(self.x, Known):
            rest = jnp.zeros_like(offset, jnp.int32)
            return self.lay(build, None, {"scale": scale, "bias": offset, "rest": rest, **value.bounds()})
        first = self.x.grid.scale
        split = long_bias if grid.long else IntegerBias().split
        bias, rest = split(offset, (first, scale), grid.scale)
        numbers = {"scale": scale, "bias": bias, "rest": rest.astype(jnp.int32)}
        return self.lay(build, grid, {**numbers, **value.bounds()})

    def fits(self, x: jax.Array) -> bool:
        """Whether numbers are one of each channel, or the same for all."""
        return all(n == 1 or axis == self.axis % x.ndim for axis, n in enumerate(x.shape))

    def _of_channels(self, x: jax.Array) -> jax.Array:
        if not self.fits(x):
            raise ValueError(
                f"export: numbers of shape {x.shape} scale or shift a product along other axes than its channels, "
                f"axis {self.axis}; an operator has one of each a channel."
            )
        return jnp.broadcast_to(x.reshape(-1), (self.channels,)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Pooled(Source):
    """Sums over axes or windows, of codes or of float32."""

    x: Known | Real
    kind: typing.Any
    args: tuple[typing.Any, ...]
    shape: tuple[int, ...]

    @property
    def floats(self) -> bool:
        return self.x.floats

    @property
    def raw(self) -> bool:
        return self.x.raw

    def keeps(self, shape: tuple[int, ...]) -> bool:
        """Whether sums over axes have this shape if these axes stay, with length 1."""
        return self.kind is g.Sum and shape == tuple(
            1 if axis in self.args[0] else length for axis, length in enumerate(self.x.shape)
        )

    def emit(self, build: Builder, grid: g.Grid | None, value: Linear) -> int:
        _only_scalars(value)
        factor = value.factor.reshape(())
        return build.emit(self.kind, [self.x.index], self.shape, grid, factor, *self.args, **value.bounds())


@dataclasses.dataclass(frozen=True, eq=False)
class Total(Source):
    """The sum of two tensors."""

    a: Known
    b: Known

    def emit(self, build: Builder, grid: g.Grid | None, value: Linear) -> int:
        _only_scalars(value)
        return build.emit(g.Add, [self.a.index, self.b.index], value.shape, grid, **value.bounds())


def _only_scalars(value: Linear) -> None:
    if value.offset is not None or value.factor.size != 1:
        raise ValueError(
            "export: a sum or mean is scaled or shifted by channels before it is rounded. "
            "Put a product with a site between, or normalize before the sum."
        )


def site(eqn: Equation, build: Builder, met: Meeting | None, operands: Sequence[typing.Any]) -> "Met":
    """What meets a weight: codes on its site's grid, or float32 where there is none, from codes at a place."""
    if met is not None and met.scheme is not None and is_weight(met.weight):
        if not isinstance(met.x, Node):
            refuse(eqn, "both operands are constants.")
        known = coded(build, met.x, grid_of(met.scheme, met.grid, met.name))
        eqn.replace(met.side, known)
        return Met(known, met.weight, met.side)
    sides = [side for side, v in enumerate(operands) if isinstance(v, Node)]
    if len(sides) != 1:
        refuse(eqn, "wanted a product with a weight.")
    if "float32" in build.without:
        refuse(eqn, "wanted a coded weight and a calibrated site. Give the weight a scheme and its site one of inputs.")
    (side,) = sides
    x = operands[side]
    if not x.floats:
        x = at(eqn, build, side, _paths.operand(eqn.walk.name(places.label(eqn)), side))
    real = Real(build.real(x) if isinstance(x, Known) else x.real(build), x.shape, x.raw)
    eqn.replace(side, real)
    return Met(real, operands[1 - side], side)


class Met(typing.NamedTuple):
    """An activation, the weight that it meets, and which operand the activation is."""

    x: Known | Real
    weight: typing.Any
    side: int


class Weights(typing.NamedTuple):
    """Levels of at most ``limit``, output channels first, and a scale for each; or float32 values."""

    levels: jax.Array
    scale: jax.Array
    limit: int


def weights(eqn: Equation, met: Met, order: Sequence[int]) -> Weights:
    """The weight with its axes in an order that begins with output channels."""
    w, name, why = as_levels(met.weight), getattr(met.weight, "path", ""), ""
    if w is None or w.zero_point is not None:
        why = f"the weight {name!r} has no integers about zero. Use Symmetric(bits=8, ...) for it."
    else:
        w = w.ungrouped(order[:1])
        if w.varies_along(order[1:]):
            why = f"the scales of {name!r} vary inside the sum. Use granularity=PerAxis({order[0]})."
    if why and isinstance(met.x, Known):
        refuse(eqn, why)
    if why or w is None:
        values = jnp.transpose(decode(met.weight), tuple(order))
        return Weights(values, jnp.ones(values.shape[:1], jnp.float32), 0)
    scale = jnp.broadcast_to(w.scale.reshape(-1), (w.shape[order[0]],)).astype(jnp.float32)
    return Weights(jnp.transpose(w.levels, tuple(order)), scale, w.limit)
