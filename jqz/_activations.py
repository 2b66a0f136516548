"""What meets a weight in a dot or convolution: which scheme it gets, and its codes."""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp

from jqz import _paths
from jqz._granularity import Granularity, PerAxis, PerTensor
from jqz._pending import Target, waiting
from jqz._rescaling import Requant
from jqz._scheme import Affine, Chain, Grid, Scheme
from jqz._values import Activation, Levels, Stored, Value, as_levels, decode, is_weight
from jqz._walk import Equation

#: Gives the scheme of what meets the weight at a path, or None to leave it float.
Inputs = Callable[[str], Scheme | None]
#: Rounds an activation on a grid, or on one of its own; None where there is no such form of it.
Form = Callable[[Value, Scheme, Grid], Value]


def input_scheme(scheme: Scheme, shape: tuple[int, ...], contracted: Iterable[int]) -> Scheme:
    """The scheme with a granularity that a contraction can undo.

    A scale may not change along an axis that is summed over, so such axes share one. Axes that are
    kept stay as fine as they were where a block held one index, and share a scale otherwise.
    """
    if isinstance(scheme, Chain):
        return Chain(tuple(input_scheme(stage, shape, contracted) for stage in scheme.stages))
    contracted = set(contracted)
    block = scheme.granularity.block(shape)
    kept = tuple(i for i, b in enumerate(block) if b == 1 and i not in contracted)
    return with_granularity(scheme, PerAxis(kept) if kept else PerTensor())


def with_granularity(scheme: Scheme, granularity: Granularity) -> Scheme:
    """The scheme, and every stage of a chain, with another granularity."""
    if isinstance(scheme, Chain):
        return Chain(tuple(with_granularity(stage, granularity) for stage in scheme.stages))
    return dataclasses.replace(typing.cast(typing.Any, scheme), granularity=granularity)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Site:
    """A place where an activation meets a weight, with the grid that calibration found for it.

    ``lengths`` are those of the scans around it, outermost first: the grid has one entry for each step.
    """

    grid: Grid
    scheme: Scheme = dataclasses.field(metadata={"static": True})
    lengths: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Meeting:
    """An activation and the weight that it meets; ``scheme`` is the activation's, or None to leave it float.

    Where there is no weight, as in attention, two activations meet: ``weight`` is one of them, and ``other`` its
    own meeting, which says how to round it. ``residual`` says how the activation is rounded for other readers than
    products, if otherwise, and at which site.
    """

    eqn: Equation
    x: Value
    weight: Value
    side: int
    name: str
    scheme: Scheme | None
    grid: Grid = None
    other: "Meeting | None" = None
    residual: "tuple[str, Scheme, Grid] | None" = None

    def ordered(self, x: typing.Any, weight: typing.Any) -> tuple[typing.Any, typing.Any]:
        """The two in the order of the equation's operands."""
        return (x, weight) if self.side == 0 else (weight, x)

    def rounded(self, form: Form) -> Value:
        """The activation as ``form(x, scheme, grid)`` rounds it, once for all products that read it."""
        assert self.scheme is not None
        if isinstance(self.x, Activation) and self.x.scheme == self.scheme:
            return self.x.rounded
        if isinstance(self.x, Stored) and (levels := as_levels(self.x)) is not None:
            return levels  # a cache is coded already
        static = self.grid is not None
        value = form(self.x, self.scheme, self.grid)
        if value is not None:
            original = self._beside(form) if static else decode(self.x)
            self.eqn.replace(self.side, Activation(original, value, self.scheme, self.name))
        return value

    def _beside(self, form: Form) -> Activation | None:
        """What other readers read, where that is not what products read."""
        if self.residual is None:
            return None
        name, scheme, grid = self.residual
        value = form(self.x, scheme, grid)
        return Activation(None, scheme.simulate(decode(self.x), grid) if value is None else value, scheme, name)

    def against(self, form: Form) -> Value:
        """What the activation meets: the weight as it is, or the other activation as ``form`` rounds it."""
        return self.weight if self.other is None or self.other.scheme is None else self.other.rounded(form)

    def in_float(self, form: Form) -> jax.Array:
        """The rounded activation as an array, for a product that finds no integer form."""
        assert self.scheme is not None
        coded = self.rounded(form)
        return decode(coded) if coded is not None else self.scheme.simulate(decode(self.x), self.grid)

    def both_in_float(self, form: Form) -> tuple[Value, Value]:
        """The operands of the equation, rounded activations as arrays."""
        rounded = self.other is not None and self.other.scheme is not None
        return self.ordered(self.in_float(form), self.other.in_float(form) if self.other and rounded else self.weight)


def meet(eqn: Equation, operands: Sequence[Value], inputs: Inputs) -> Meeting | None:
    """Tells activation and weight of a dot or convolution apart; None where nothing is to be rounded.

    Two activations meet each other where a rule names their product.
    """
    weights = [side for side, v in enumerate(operands) if is_weight(v)]
    if len(weights) == 2:
        return None
    path = operands[weights[0]].path if weights else eqn.label
    name = eqn.walk.name(path)
    eqn.say(name=name)
    if weights:
        return _meeting(eqn, operands, 1 - weights[0], name, path, inputs)
    left, right = (
        _meeting(eqn, operands, side, _paths.operand(name, side), _paths.operand(path, side), inputs) for side in (0, 1)
    )
    if left.scheme is None and right.scheme is None:
        return None
    one, other = (right, left) if left.scheme is None else (left, right)
    return dataclasses.replace(one, other=other)


def _meeting(eqn: Equation, operands: Sequence[Value], side: int, name: str, path: str, inputs: Inputs) -> Meeting:
    """An operand at the site of a name, by the rule for a path."""
    x = operands[side]
    met = Meeting(eqn, x, operands[1 - side], side, name, None)
    if any(math.prod(v.shape) == 0 or not jnp.issubdtype(v.dtype, jnp.floating) for v in operands):
        return met
    beside = _paths.residual(name)
    if name in eqn.walk.given:
        site, own = eqn.walk.given[name].tree, eqn.walk.given.get(beside)
        residual = None if own is None else (beside, own.tree.scheme, own.tree.grid)
        return dataclasses.replace(met, scheme=site.scheme, grid=site.grid, residual=residual)
    scheme, own = inputs(path), inputs(_paths.residual(path))
    return dataclasses.replace(
        met,
        scheme=None if scheme is None else input_scheme(scheme, x.shape, contracted(eqn, side)),
        residual=None if own is None else (beside, own, None),
    )


def obstacle(met: Meeting, weight: Levels | None, x: Levels | None) -> str:
    """Why a product with a rounded activation did not run in integers, for an audit."""
    if weight is None and met.other is not None:
        return f"{met.other.scheme!r} has no integer levels" if met.other.scheme else "the other operand stays float"
    if weight is None:
        return "the weight's scheme has no integer levels here"
    if x is None:
        return f"{met.scheme!r} has no integer levels"
    return "scales or zero points vary inside the sum, or the sum could leave int32"


def contracted(eqn: Equation, side: int) -> tuple[int, ...]:
    """The axes of an operand that its scales may not vary along."""
    if eqn.primitive == "ragged_dot_general":
        return tuple(eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers[0][side])
    dims = eqn.params["dimension_numbers"]
    if eqn.primitive == "dot_general":
        return tuple(dims[0][side])
    # an output pixel sums over space as well as over channels: only the batch (or output channel) axis is kept
    kept = (dims.lhs_spec if side == 0 else dims.rhs_spec)[0]
    return tuple(i for i in range(len(dims.lhs_spec)) if i != kept)


def coder(requant: Requant | None = None) -> Callable[[Value, Scheme, Grid], Levels | None]:
    """How to code an activation: None where its scheme has no integer levels; without a grid, on one of its own.

    What waits to be rounded is rounded by ``requant``, if the grid is one and its levels are all integers
    between two.
    """

    def code(x: Value, scheme: Scheme, grid: Grid) -> Levels | None:
        static = grid is not None
        grid = grid if static else _once(_calibrate, scheme)(decode(x), scheme)
        affine = scheme.affine(grid)
        if affine is None or (affine.limit > 128 and (requant is None or not requant.long or not static)):
            return None
        expression = None
        if requant is not None and affine.ends is not None and affine.scale.size == 1:
            expression = waiting(x)
        if requant is None or expression is None:
            levels = _once(_encode, scheme)(decode(x), scheme, grid)
        else:
            zero_point = jnp.int32(0) if affine.zero_point is None else affine.zero_point.reshape(())
            low, high = (jnp.int32(end) for end in typing.cast(tuple[int, int], affine.ends))
            levels = expression.codes(Target(requant, affine.scale.reshape(()), zero_point, low, high))
        return Levels(levels, affine.scale, affine.zero_point, (x.dtype,), affine.limit, "")

    return code


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _calibrate(x: jax.Array, scheme: Scheme) -> Grid:
    return scheme.calibrate(x)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _encode(x: jax.Array, scheme: Scheme, grid: Grid) -> jax.Array:
    return typing.cast(Affine, scheme.affine(grid)).levels(scheme.encode(x, grid))


def _once(fn: typing.Any, scheme: Scheme) -> Callable[..., typing.Any]:
    """The function traced once for a scheme and a shape: a network has many activations of few kinds."""
    try:
        hash(scheme)
    except TypeError:  # it holds an array
        return fn.__wrapped__
    return fn


def halves(x: Levels) -> tuple[Levels, ...]:
    """Levels of 16 bits as two of 8, ``2**8 * high + low``, whose products int32 holds; those of 8 bits as they are."""
    if x.limit <= 128:
        return (x,)
    high = (x.levels >> 8).astype(jnp.int8)
    low = ((x.levels & 0xFF) - 128).astype(jnp.int8)
    zero_point = jnp.full(x.scale.shape, -128, jnp.int32)
    return tuple(
        dataclasses.replace(x, levels=levels, zero_point=zero, limit=128)
        for levels, zero in ((high, None), (low, zero_point))
    )


def fits_int32(terms: int, a: Levels, b: Levels) -> bool:
    """Whether no sum of this many products, zero points included, can leave int32."""
    spread = [(2 if v.zero_point is not None else 1) * v.limit for v in (a, b)]
    return terms * spread[0] * spread[1] < 2**31


def total(levels: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The int32 sum of int8 levels over ``axes``, kept with length 1.

    A product with two rows of ones: XLA's CPU backend runs it several times as fast as the reduction, and as a
    product with one row.
    """
    ones = jax.lax.full((2, *(levels.shape[axis] for axis in axes)), 1, jnp.int8)
    numbers = ((tuple(range(1, len(axes) + 1)), axes), ((), ()))
    sums = jax.lax.dot_general(ones, levels, numbers, preferred_element_type=jnp.int32)
    return jax.lax.expand_dims(jax.lax.index_in_dim(sums, 0, keepdims=False), axes)
