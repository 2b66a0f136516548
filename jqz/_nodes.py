"""Values of a walk that emits operators: they wait until something reads them on a grid.

Then the operator that makes them is emitted, with all that was added, multiplied and clipped since.
"""

import abc
import dataclasses
import typing
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jqz import _graph as g
from jqz._activations import Meeting
from jqz._requant import IntegerBias, rounded_product
from jqz._scheme import Scheme
from jqz._values import Lazy, Value, as_levels, is_weight
from jqz._walk import Equation, Walk

Move = Callable[["Builder", tuple[int, ...], g.Grid], int]


class Builder:
    """The operators and tensors so far."""

    def __init__(self) -> None:
        self.operators: list[typing.Any] = []
        self.tensors: list[g.Tensor] = []

    def tensor(self, shape: Sequence[int], grid: g.Grid | None) -> int:
        self.tensors.append(g.Tensor(tuple(shape), grid))
        return len(self.tensors) - 1

    def emit(
        self, kind: typing.Any, inputs: Sequence[int], shape: Sequence[int], grid: g.Grid | None, *args: typing.Any,
        low: typing.Any = None, high: typing.Any = None,
    ) -> int:  # fmt: skip
        """Adds an operator; the number of its result."""
        result = self.tensor(shape, grid)
        self.operators.append(kind(tuple(inputs), result, low, high, *args))
        return result


class Node(Lazy, abc.ABC):
    """A float32 value that depends on the inputs."""

    path = ""
    dims: tuple[int, ...]
    dtype = jnp.dtype(jnp.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dims

    def decode(self) -> jax.Array:
        raise AssertionError("a value that depends on inputs has no numbers in an export")

    @property
    def floats(self) -> bool:
        """Whether it is made in float32: the input, and what follows a function in float32."""
        return False

    @abc.abstractmethod
    def on(self, build: Builder, grid: g.Grid) -> int:
        """The number of a tensor with the value's codes on a grid."""

    def real(self, build: Builder) -> int:
        """The number of a float32 tensor with the value, if it is made in float32."""
        raise ValueError("export: codes are computed on in float32. Use a product between the two operations.")


@dataclasses.dataclass(frozen=True, eq=False)
class Real(Node):
    """A float32 tensor."""

    index: int
    dims: tuple[int, ...]

    @property
    def floats(self) -> bool:
        return True

    def on(self, build: Builder, grid: g.Grid) -> int:
        return build.emit(g.Convert, [self.index], self.shape, grid)

    def real(self, build: Builder) -> int:
        return self.index


@dataclasses.dataclass(frozen=True, eq=False)
class Known(Node):
    """A tensor of codes."""

    index: int
    grid: g.Grid
    dims: tuple[int, ...]

    def on(self, build: Builder, grid: g.Grid) -> int:
        return self.index if grid is self.grid else build.emit(g.Convert, [self.index], self.shape, grid)


class Source(abc.ABC):
    """What makes the integers of a linear expression."""

    @property
    def floats(self) -> bool:
        """Whether it works in float32."""
        return False

    @abc.abstractmethod
    def emit(self, build: Builder, grid: g.Grid | None, value: "Linear") -> int:
        """The operator with all that was done to its result, on a grid."""


@dataclasses.dataclass(frozen=True, eq=False)
class Linear(Node):
    """``factor`` times the real result of a source, plus ``offset``, within bounds; arrays broadcast to the shape."""

    source: Source
    dims: tuple[int, ...]
    factor: jax.Array
    offset: jax.Array | None = None
    low: jax.Array | None = None
    high: jax.Array | None = None

    @property
    def floats(self) -> bool:
        return self.source.floats

    def on(self, build: Builder, grid: g.Grid) -> int:
        if self.floats:
            return build.emit(g.Convert, [self.real(build)], self.shape, grid)
        return self.source.emit(build, grid, self)

    def real(self, build: Builder) -> int:
        return self.source.emit(build, None, self) if self.floats else super().real(build)

    def times(self, factor: jax.Array) -> "Linear":
        low, high = self.low, self.high
        if low is not None or high is not None:
            ends = jnp.float32(-jnp.inf) if low is None else low, jnp.float32(jnp.inf) if high is None else high
            ends = [jnp.where(jnp.isinf(end), end * jnp.sign(factor), end * factor) for end in ends]
            low, high = jnp.minimum(*ends), jnp.maximum(*ends)
        offset = None if self.offset is None else rounded_product(self.offset, factor)
        return dataclasses.replace(self, factor=self.factor * factor, offset=offset, low=low, high=high)

    def plus(self, offset: jax.Array) -> "Linear":
        low, high = (None if end is None else end + offset for end in (self.low, self.high))
        offset = offset if self.offset is None else self.offset + offset
        return dataclasses.replace(self, offset=offset, low=low, high=high)

    def within(self, low: jax.Array | None, high: jax.Array | None) -> "Linear":
        low = self.low if low is None else low if self.low is None else jnp.maximum(self.low, low)
        high = self.high if high is None else high if self.high is None else jnp.minimum(self.high, high)
        return dataclasses.replace(self, low=low, high=high)

    def bounds(self) -> dict[str, typing.Any]:
        return {"low": self.low, "high": self.high}


@dataclasses.dataclass(frozen=True, eq=False)
class Moved(Node):
    """Values moved or chosen, by an operator that does the same with codes."""

    inners: tuple[Node, ...]
    dims: tuple[int, ...]
    move: Move

    @property
    def floats(self) -> bool:
        return all(inner.floats for inner in self.inners)

    def on(self, build: Builder, grid: g.Grid) -> int:
        return self.move(build, tuple(inner.on(build, grid) for inner in self.inners), grid)

    def within(self, low: jax.Array | None, high: jax.Array | None) -> Node:
        """Bounds may be applied before: what moves here keeps the order of values."""
        return dataclasses.replace(self, inners=tuple(bounded(inner, low, high) for inner in self.inners))


def bounded(value: Node, low: jax.Array | None, high: jax.Array | None) -> Node:
    """A value clipped to real bounds."""
    value = linear(value) if isinstance(value, Known) else value
    if isinstance(value, Linear | Moved):
        return value.within(low, high)
    raise ValueError("bounds on what is neither a result nor codes")


@dataclasses.dataclass(frozen=True, eq=False)
class Same(Source):
    """A tensor of codes itself."""

    x: Known

    def emit(self, build: Builder, grid: g.Grid | None, value: Linear) -> int:
        return build.emit(g.Convert, [self.x.index], self.x.shape, grid, **value.bounds())


def linear(value: Known) -> Linear:
    """Codes as an expression."""
    return Linear(Same(value), value.shape, jnp.ones((1,) * value.ndim, jnp.float32))


def moved(eqn: Equation, values: Sequence[Node], kind: typing.Any, *args: typing.Any) -> Moved:
    """The result of an equation that an operator computes on codes as on values."""
    shape = eqn.avals[0].shape

    def move(build: Builder, inputs: tuple[int, ...], grid: g.Grid) -> int:
        return build.emit(kind, inputs, shape, grid, *args)

    return Moved(tuple(values), shape, move)


def transposed(value: Node, permutation: Sequence[int]) -> Node:
    """A value with its axes in another order."""
    permutation = tuple(permutation)
    if permutation == tuple(range(value.ndim)):
        return value
    shape = tuple(value.shape[axis] for axis in permutation)

    def move(build: Builder, inputs: tuple[int, ...], grid: g.Grid) -> int:
        return build.emit(g.Transpose, inputs, shape, grid, permutation)

    return Moved((value,), shape, move)


def refuse(eqn: Equation, why: str) -> typing.NoReturn:
    """Says which equation cannot be exported, where it stands, and why."""
    shapes = ", ".join(str(v.shape) if hasattr(v, "shape") else repr(v) for v in eqn.operands)
    raise ValueError(f"export: {eqn.primitive} of {shapes} at {eqn.source()} (scope {eqn.label!r}): {why}")


def grid_at(eqn: Equation | None, walk: Walk, name: str) -> g.Grid:
    """The grid of a site or place."""
    if name not in walk.given:
        why = f"no grid is given for {name!r}. Use net = jqz.export.complete(net, batch)."
        raise ValueError(f"export: {why}") if eqn is None else refuse(eqn, why)
    site = walk.given[name].tree
    return _grid(site.scheme, site.grid, name)


def _grid(scheme: Scheme, grid: typing.Any, name: str) -> g.Grid:
    affine = scheme.affine(grid)
    if affine is None or affine.ends is None or affine.scale.size != 1:
        raise ValueError(f"export: {name!r} is coded by {scheme!r}, wanted integers. Use inputs=Asymmetric(bits=8).")
    zero_point = jnp.int32(0) if affine.zero_point is None else affine.zero_point.reshape(()).astype(jnp.int32)
    return g.Grid(affine.scale.reshape(()), zero_point, *affine.ends)


def origin(value: Node) -> Known | None:
    """The one tensor whose codes a value moves, if it does no more."""
    if isinstance(value, Known):
        return value
    sources = [origin(inner) for inner in value.inners] if isinstance(value, Moved) else []
    return sources[0] if len({id(source) for source in sources}) == 1 else None


def coded(build: Builder, value: Node, grid: g.Grid) -> Known:
    """A value as codes: on this grid, if it is not on one already."""
    return value if isinstance(value, Known) else Known(value.on(build, grid), grid, value.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Product(Source):
    """A convolution or dot; ``lay`` emits it, and transposes its result if need be."""

    x: Known
    lay: Callable[[Builder, g.Grid, dict[str, typing.Any]], int]
    axis: int
    channels: int

    def emit(self, build: Builder, grid: g.Grid | None, value: Linear) -> int:
        assert grid is not None
        first = self.x.grid.scale
        scale = self._of_channels(value.factor)
        offset = self._of_channels(jnp.float32(0) if value.offset is None else value.offset)
        bias, rest = IntegerBias().split(offset, (first, scale), grid.scale)
        numbers = {"scale": scale, "bias": bias, "rest": rest.astype(jnp.int32)}
        return self.lay(build, grid, {**numbers, **value.bounds()})

    def _of_channels(self, x: jax.Array) -> jax.Array:
        if any(n != 1 for axis, n in enumerate(x.shape) if axis != self.axis % max(x.ndim, 1)):
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


def site(eqn: Equation, build: Builder, met: Meeting | None) -> Known:
    """What meets a weight, as codes on its site's grid."""
    if met is None or met.scheme is None or not is_weight(met.weight):
        refuse(eqn, "wanted a coded weight and a calibrated site. Give the weight a scheme and its site one of inputs.")
    if not isinstance(met.x, Node):
        refuse(eqn, "both operands are constants.")
    known = coded(build, met.x, _grid(met.scheme, met.grid, met.name))
    eqn.replace(met.side, known)
    return known


class Weights(typing.NamedTuple):
    """int8 levels, output channels first, and a scale for each."""

    levels: jax.Array
    scale: jax.Array


def weights(eqn: Equation, met: Meeting, order: Sequence[int]) -> Weights:
    """The weight with its axes in an order that begins with output channels."""
    w = as_levels(met.weight)
    if w is None or (w.zero_point is not None):
        refuse(eqn, f"the weight {met.name!r} has no integers about zero. Use Symmetric(bits=8, ...) for it.")
    w = w.ungrouped(order[:1])
    if w.varies_along(order[1:]):
        refuse(eqn, f"the scales of {met.name!r} vary inside the sum. Use granularity=PerAxis({order[0]}).")
    scale = jnp.broadcast_to(w.scale.reshape(-1), (w.shape[order[0]],)).astype(jnp.float32)
    return Weights(jnp.transpose(w.levels, tuple(order)), scale)


def channels_last(ndim: int, axis: int, scale: jax.Array) -> jax.Array:
    """Numbers of channels, laid along an axis."""
    return scale.reshape(tuple(-1 if i == axis else 1 for i in range(ndim)))


def ranked(x: typing.Any, ndim: int) -> jax.Array:
    """A float32 array of this rank, for scalars that broadcast."""
    x = jnp.asarray(x, jnp.float32)
    return x.reshape((1,) * ndim) if x.ndim == 0 else x


def is_constant(value: Value) -> bool:
    """Whether a value is a number beside the graph."""
    return not isinstance(value, Node)
