"""What meets a weight in a dot or convolution: which scheme it gets, and its codes."""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp

from jqz._granularity import Granularity, PerAxis, PerTensor
from jqz._interpret import Equation
from jqz._scheme import Chain, Scheme
from jqz._values import Lazy, Levels, Value

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


class Meeting(typing.NamedTuple):
    """An activation and the weight that it meets; ``scheme`` (or None) is the activation's."""

    x: jax.Array
    weight: Lazy
    scheme: Scheme | None
    side: int

    def ordered(self, x: typing.Any, weight: typing.Any) -> tuple[typing.Any, typing.Any]:
        """The two in the order of the equation's operands."""
        return (x, weight) if self.side == 0 else (weight, x)


def meet(eqn: Equation, operands: Sequence[Value], inputs: Inputs) -> Meeting | None:
    """Tells activation and weight of a dot or convolution apart; None where both are weights."""
    plain = [side for side, v in enumerate(operands) if not isinstance(v, Lazy)]
    if len(plain) != 1:
        return None
    (side,) = plain
    x, weight = operands[side], operands[1 - side]
    scheme = inputs(weight.path)
    if scheme is not None:
        usable = x.size > 0 and jnp.issubdtype(x.dtype, jnp.floating)
        scheme = input_scheme(scheme, x.shape, contracted(eqn, side)) if usable else None
    return Meeting(x, weight, scheme, side)


def contracted(eqn: Equation, side: int) -> tuple[int, ...]:
    """The axes of an operand that its scales may not vary along."""
    dims = eqn.params["dimension_numbers"]
    if eqn.primitive == "dot_general":
        return tuple(dims[0][side])
    # an output pixel sums over space as well as over channels: only the batch (or output channel) axis is kept
    kept = (dims.lhs_spec if side == 0 else dims.rhs_spec)[0]
    return tuple(i for i in range(len(dims.lhs_spec)) if i != kept)


def code(x: jax.Array, scheme: Scheme, path: str) -> Levels | None:
    """Codes an activation on the fly, or None where its scheme has no integer levels."""
    grid = scheme.calibrate(x)
    affine = scheme.affine(grid)
    if affine is None:
        return None
    return Levels(affine.levels(scheme.encode(x, grid)), affine.scale, affine.zero_point, x.dtype, affine.limit, path)


def fits_int32(terms: int, a: Levels, b: Levels) -> bool:
    """Whether no sum of this many products, zero points included, can leave int32."""
    spread = [(2 if v.zero_point is not None else 1) * v.limit for v in (a, b)]
    return terms * spread[0] * spread[1] < 2**31


def exact_in_float32(terms: int, a: Levels, b: Levels) -> bool:
    """Whether float32 holds every partial sum of the products exactly."""
    return terms * a.limit * b.limit <= 2**24
