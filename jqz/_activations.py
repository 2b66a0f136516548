"""What meets a weight in a dot or convolution: which scheme it gets, and its codes."""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp

from jqz._granularity import Granularity, PerAxis, PerTensor
from jqz._interpret import Equation
from jqz._scheme import Chain, Grid, Scheme
from jqz._values import Activation, Lazy, Levels, Value, decode, is_weight

#: Gives the scheme of what meets the weight at a path, or None to leave it float.
Inputs = Callable[[str], Scheme | None]


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
    granularity: Granularity = PerAxis(kept) if kept else PerTensor()
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
    """An activation and the weight that it meets; ``scheme`` is the activation's, or None to leave it float."""

    eqn: Equation
    x: Value
    weight: Lazy
    side: int
    name: str
    scheme: Scheme | None
    grid: Grid = None

    def ordered(self, x: typing.Any, weight: typing.Any) -> tuple[typing.Any, typing.Any]:
        """The two in the order of the equation's operands."""
        return (x, weight) if self.side == 0 else (weight, x)

    def rounded(self, form: Callable[[jax.Array, Scheme, Grid], Value]) -> Value:
        """The activation as ``form(x, scheme, grid)`` rounds it, once for all products that read it."""
        assert self.scheme is not None
        if isinstance(self.x, Activation) and self.x.scheme == self.scheme:
            return self.x.rounded
        x = decode(self.x)
        static = self.grid is not None
        value = form(x, self.scheme, self.grid)
        if value is not None:
            kept = Activation(None if static else x, value, self.scheme, self.name)
            self.eqn.replace(self.side, kept)
        return value

    def in_float(self) -> jax.Array:
        """The rounded activation as an array, for a product that finds no integer form."""
        assert self.scheme is not None
        coded = self.rounded(code)
        return decode(coded) if coded is not None else self.scheme.simulate(decode(self.x), self.grid)


def meet(eqn: Equation, operands: Sequence[Value], inputs: Inputs) -> Meeting | None:
    """Tells activation and weight of a dot or convolution apart; None where there is not one of each."""
    weights = [side for side, v in enumerate(operands) if is_weight(v)]
    if len(weights) != 1:
        return None
    x, weight, side = operands[1 - weights[0]], operands[weights[0]], 1 - weights[0]
    name = eqn.walk.name(weight.path)
    eqn.say(name=name)
    if math.prod(x.shape) == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        return Meeting(eqn, x, weight, side, name, None)
    if name in eqn.walk.given:
        site = eqn.walk.given[name].tree
        return Meeting(eqn, x, weight, side, name, site.scheme, site.grid)
    scheme = inputs(weight.path)
    scheme = None if scheme is None else input_scheme(scheme, x.shape, contracted(eqn, side))
    return Meeting(eqn, x, weight, side, name, scheme)


def obstacle(met: Meeting, weight: Levels | None, x: Levels | None) -> str:
    """Why a product with a rounded activation did not run in integers, for an audit."""
    if weight is None:
        return "the weight's scheme has no integer levels here"
    if x is None:
        return f"{met.scheme!r} has no integer levels"
    return "scales or zero points vary inside the sum, or the sum could leave int32"


def contracted(eqn: Equation, side: int) -> tuple[int, ...]:
    """The axes of an operand that its scales may not vary along."""
    dims = eqn.params["dimension_numbers"]
    if eqn.primitive == "dot_general":
        return tuple(dims[0][side])
    # an output pixel sums over space as well as over channels: only the batch (or output channel) axis is kept
    kept = (dims.lhs_spec if side == 0 else dims.rhs_spec)[0]
    return tuple(i for i in range(len(dims.lhs_spec)) if i != kept)


def code(x: jax.Array, scheme: Scheme, grid: Grid) -> Levels | None:
    """Codes an activation, or None where its scheme has no integer levels; without a grid, on one of its own."""
    try:
        hash(scheme)
    except TypeError:  # it holds an array
        return _code(x, scheme, grid)
    return _code_once(x, scheme, grid)


def _code(x: jax.Array, scheme: Scheme, grid: Grid) -> Levels | None:
    grid = scheme.calibrate(x) if grid is None else grid
    affine = scheme.affine(grid)
    if affine is None:
        return None
    return Levels(affine.levels(scheme.encode(x, grid)), affine.scale, affine.zero_point, (x.dtype,), affine.limit, "")


#: Traced once for a scheme and a shape: a network has many activations of few kinds.
_code_once = jax.jit(_code, static_argnums=1, inline=True)


def fits_int32(terms: int, a: Levels, b: Levels) -> bool:
    """Whether no sum of this many products, zero points included, can leave int32."""
    spread = [(2 if v.zero_point is not None else 1) * v.limit for v in (a, b)]
    return terms * spread[0] * spread[1] < 2**31


def exact_in_float32(terms: int, a: Levels, b: Levels) -> bool:
    """Whether float32 holds every partial sum of the products exactly."""
    return terms * a.limit * b.limit <= 2**24


def total(levels: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The int32 sum of int8 levels over ``axes``, kept with length 1.

    A product with two rows of ones: XLA's CPU backend runs it several times as fast as the reduction, and as a
    product with one row.
    """
    ones = jnp.ones((2, *(levels.shape[axis] for axis in axes)), jnp.int8)
    numbers = ((tuple(range(1, len(axes) + 1)), axes), ((), ()))
    sums = jax.lax.dot_general(ones, levels, numbers, preferred_element_type=jnp.int32)
    return jnp.expand_dims(sums[0], axes)
