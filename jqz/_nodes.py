"""Values of a walk that emits operators: they wait until something reads them on a grid.

Then the operator that makes them is emitted, with all that was added, multiplied and clipped since.
"""

import abc
import dataclasses
import typing
from collections.abc import Callable, Container, Sequence

import jax
import jax.numpy as jnp

from jqz import _graph as g
from jqz._rounding import rounded_product
from jqz._scheme import Scheme
from jqz._values import Lazy, Value
from jqz._walk import Equation, Rule, Walk

Move = Callable[["Builder", tuple[int, ...], g.Grid | None], int]


class Builder:
    """The operators and tensors so far."""

    def __init__(self, without: Container[str] = ()) -> None:
        #: Primitives that there is no operator for (erf is composed then), and ``"float32"`` if nothing is computed in
        #: that.
        self.without = without
        self.operators: list[typing.Any] = []
        self.tensors: list[g.Tensor] = []
        #: The float32 tensors of the codes of others.
        self.decoded: dict[int, int] = {}
        #: What is wrong if this is true, once it is known.
        self.doubts: list[tuple[jax.Array, str]] = []

    def tensor(self, shape: Sequence[int], grid: g.Grid | None, boolean: bool = False) -> int:
        self.tensors.append(g.Tensor(tuple(shape), grid, boolean))
        return len(self.tensors) - 1

    def real(self, known: "Known") -> int:
        """The float32 tensor of codes."""
        if known.index not in self.decoded:
            self.decoded[known.index] = self.emit(g.Convert, [known.index], known.shape, None)
        return self.decoded[known.index]

    def emit(
        self, kind: typing.Any, inputs: Sequence[int], shape: Sequence[int], grid: g.Grid | None, *args: typing.Any,
        low: typing.Any = None, high: typing.Any = None, boolean: bool = False,
    ) -> int:  # fmt: skip
        """Adds an operator; the number of its result."""
        result = self.tensor(shape, grid, boolean)
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

    @property
    def raw(self) -> bool:
        """Whether it is made from inputs in float32, with no codes in between."""
        return False

    @abc.abstractmethod
    def on(self, build: Builder, grid: g.Grid) -> int:
        """The number of a tensor with the value's codes on a grid."""

    def real(self, build: Builder) -> int:
        """The number of a float32 tensor with the value, if it is made in float32."""
        raise ValueError("export: codes are computed on in float32. Use a product between the two operations.")


@dataclasses.dataclass(frozen=True, eq=False)
class Real(Node):
    """A float32 tensor, or one of truth values; its shape may be narrower than ``dims``, which it broadcasts to."""

    index: int
    dims: tuple[int, ...]
    of_inputs: bool = False
    dtype: typing.Any = jnp.dtype(jnp.float32)

    @property
    def floats(self) -> bool:
        return True

    @property
    def raw(self) -> bool:
        return self.of_inputs

    def on(self, build: Builder, grid: g.Grid) -> int:
        return build.emit(g.Convert, [self.real(build)], self.shape, grid)

    def real(self, build: Builder) -> int:
        if build.tensors[self.index].shape == self.dims:
            return self.index
        zeros = constant(build, jnp.zeros(self.dims, jnp.float32))
        return build.emit(g.Function, [self.index, zeros], self.dims, None, "add")


def constant(build: Builder, values: jax.Array) -> int:
    """A tensor of numbers."""
    boolean = values.dtype == jnp.bool_
    return build.emit(g.Constant, [], values.shape, None, values, boolean=boolean)


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

    @property
    def raw(self) -> bool:
        """Whether it works on inputs in float32."""
        return False

    @abc.abstractmethod
    def emit(self, build: Builder, grid: g.Grid | None, value: "Linear") -> int:
        """The operator with all that was done to its result, on a grid."""


@dataclasses.dataclass(frozen=True, eq=False)
class Linear(Node):
    """``factor`` times the real result of a source, plus ``offset``, within scalar bounds; arrays broadcast to it."""

    source: Source
    dims: tuple[int, ...]
    factor: jax.Array
    offset: jax.Array | None = None
    low: jax.Array | None = None
    high: jax.Array | None = None

    @property
    def floats(self) -> bool:
        return self.source.floats

    @property
    def raw(self) -> bool:
        return self.source.raw

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
            one = factor.reshape(())
            ends = [jnp.where(jnp.isinf(end), end * jnp.sign(one), end * one) for end in ends]
            low, high = jnp.minimum(*ends), jnp.maximum(*ends)
        offset = None if self.offset is None else rounded_product(self.offset, factor)
        return dataclasses.replace(self, factor=self.factor * factor, offset=offset, low=low, high=high)

    def plus(self, offset: jax.Array) -> "Linear":
        low, high = (None if end is None else end + offset.reshape(()) for end in (self.low, self.high))
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

    @property
    def raw(self) -> bool:
        return all(inner.raw for inner in self.inners)

    def real(self, build: Builder) -> int:
        return self.move(build, tuple(inner.real(build) for inner in self.inners), None)

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


class Stage(typing.NamedTuple):
    """A step of softmax: ``what`` it is of the codes ``x``."""

    what: str
    x: Known | Real
    axes: tuple[int, ...]


class Softened(Node):
    """A value inside a softmax, which is one operator as a whole."""

    def __init__(self, shape: tuple[int, ...], stage: Stage):
        self.dims, self.stage = shape, stage

    @property
    def floats(self) -> bool:
        return True

    def real(self, build: Builder) -> int:
        return self._refuse()

    def on(self, build: Builder, grid: g.Grid) -> int:
        return self._refuse()

    def _refuse(self) -> typing.NoReturn:
        raise ValueError(
            f"export: the {self.stage.what} of a softmax is used by itself. Use jax.nn.softmax as a whole."
        )


def moved(eqn: Equation, values: Sequence[Node], kind: typing.Any, *args: typing.Any) -> Moved:
    """The result of an equation that an operator computes on codes as on values."""
    shape = eqn.avals[0].shape

    def move(build: Builder, inputs: tuple[int, ...], grid: g.Grid | None) -> int:
        return build.emit(kind, inputs, shape, grid, *args)

    return Moved(tuple(values), shape, move)


def transposed(value: Node, permutation: Sequence[int]) -> Node:
    """A value with its axes in another order."""
    permutation = tuple(permutation)
    if permutation == tuple(range(value.ndim)):
        return value
    shape = tuple(value.shape[axis] for axis in permutation)

    def move(build: Builder, inputs: tuple[int, ...], grid: g.Grid | None) -> int:
        return build.emit(g.Transpose, inputs, shape, grid, permutation)

    return Moved((value,), shape, move)


def refuse(eqn: Equation, why: str) -> typing.NoReturn:
    """Says which equation cannot be exported, where it stands, and why."""
    raise ValueError(_refusal(eqn, why))


def doubt(eqn: Equation, build: Builder, wrong: jax.Array, why: str) -> None:
    """Says so later, where that turns out to be true."""
    build.doubts.append((wrong, _refusal(eqn, why)))


def _refusal(eqn: Equation, why: str) -> str:
    shapes = ", ".join(str(v.shape) if hasattr(v, "shape") else repr(v) for v in eqn.operands)
    return f"export: {eqn.primitive} of {shapes} at {eqn.source()} (scope {eqn.label!r}): {why}"


def located(rule: Rule) -> Rule:
    """A rule whose refusals name the equation at which they were found."""

    def run(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        try:
            return rule(eqn, *operands)
        except ValueError as error:
            why = str(error)
            if not why.startswith("export: ") or "(scope " in why:
                raise
            raise ValueError(_refusal(eqn, why.removeprefix("export: "))) from error

    return run


def grid_at(eqn: Equation | None, walk: Walk, name: str) -> g.Grid:
    """The grid of a site or place."""
    if name not in walk.given:
        why = f"no grid is given for {name!r}. Use net = jqz.export.complete(net, batch)."
        raise ValueError(f"export: {why}") if eqn is None else refuse(eqn, why)
    site = walk.given[name].tree
    return grid_of(site.scheme, site.grid, name)


def grid_of(scheme: Scheme, grid: typing.Any, name: str) -> g.Grid:
    """A grid as operators want it."""
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


def at(eqn: Equation, build: Builder, side: int, name: str) -> Known:
    """An operand as codes on the grid of a place."""
    value, source = eqn.operands[side], origin(eqn.operands[side])
    grid = grid_at(eqn, eqn.walk, name) if source is None else source.grid
    eqn.replace(side, known := coded(build, value, grid))
    return known
