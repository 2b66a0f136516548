"""Integer convolution: a coded kernel meets an activation that is coded on its way in."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jqz._activations import Inputs, coder, contracted, fits_int32, halves, meet, obstacle, total
from jqz._pending import Scaled, product, together
from jqz._rescaling import Requant
from jqz._values import Levels, Value, as_levels
from jqz._walk import Equation, Rule
from jqz.lowerings.convolution import Convolution, convolve, pad


def rules(inputs: Inputs, requant: Requant | None = None) -> dict[str, Rule]:
    """The rule table for integer convolutions, given the schemes of the activations.

    With ``requant``, results on static grids wait to be rescaled by it.
    """
    code = coder(requant)

    def convolution(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        met = meet(eqn, operands, inputs)
        if met is None or met.scheme is None:
            return None
        weight = as_levels(met.against(code)) if met.side == 0 else None
        x = met.rounded(code)
        parts = () if x is None else halves(x)
        integral = weight is not None and all(_integral(eqn, part, weight) for part in parts)
        if weight is None or x is None or not integral:  # the same rounding, in float
            eqn.say(how="rounded float", why=obstacle(met, weight, x))
            return [eqn.on(*met.both_in_float(code))]
        why = "static range" if met.grid is not None else "dynamic range"
        eqn.say(how="int8" if len(parts) == 1 else "int16", why=why)
        result, *rest = (_convolve(eqn, part, weight) for part in parts)
        result = together(result, *rest) if rest else result
        waits = requant is not None and met.grid is not None and eqn.avals[0].dtype == jnp.float32
        return [result if waits else result.decode().astype(eqn.avals[0].dtype)]

    return {"conv_general_dilated": convolution}


def _integral(eqn: Equation, x: Levels, w: Levels) -> bool:
    """Whether scales and zero points factor out of the sums, and int32 holds these."""
    summed = contracted(eqn, 1)
    if w.varies_along(summed) or eqn.params["batch_group_count"] != 1:
        return False
    return fits_int32(_terms(w, summed), x, w)


def _convolve(eqn: Equation, x: Levels, w: Levels) -> Scaled:
    """The convolution of levels."""
    spec = eqn.params["dimension_numbers"]
    summed = contracted(eqn, 1)
    w = w.ungrouped(spec.rhs_spec[:1])

    def place(grid: jax.Array, axis: int, out_axis: int) -> jax.Array:
        """Lays the one axis of a grid array along an axis of the result."""
        shape = [1] * w.ndim
        shape[out_axis] = grid.shape[axis]
        return jax.lax.reshape(grid, shape)  # the other axes have length 1

    def of_batch(grid: jax.Array) -> jax.Array:
        return place(grid, spec.lhs_spec[0], spec.out_spec[0])

    def of_channels(grid: jax.Array) -> jax.Array:
        return place(grid, spec.rhs_spec[0], spec.out_spec[1])

    codes, how = x.levels, Convolution.of(eqn.params)
    if x.zero_point is not None:
        none = (1,) * len(how.padding)
        codes, how = _pad(x, how), dataclasses.replace(how, padding=((0, 0),) * len(none), lhs_dilation=none)
    acc = convolve(codes, w.levels, how, x.limit * w.limit)
    if x.zero_point is not None:
        acc = acc - of_batch(x.zero_point) * of_channels(total(w.levels, summed))
    if w.zero_point is not None:
        # the sum of the window of every output, zero points of the padding included
        ones = convolve(codes, jnp.ones_like(w.levels), how, x.limit)
        acc = acc - of_channels(w.zero_point) * ones
        if x.zero_point is not None:
            acc = acc + _terms(w, summed) * of_batch(x.zero_point) * of_channels(w.zero_point)
    dtype = np.promote_types(x.scale.dtype, w.scale.dtype)
    return product(acc, (of_batch(x.scale).astype(dtype), of_channels(w.scale).astype(dtype)), dtype)


def _terms(w: Levels, summed: tuple[int, ...]) -> int:
    return math.prod(w.shape[i] for i in summed)


def _pad(x: Levels, how: Convolution) -> jax.Array:
    """Pads codes, and spreads them for a transposed convolution, with their zero point: it stands for a real zero."""
    assert x.zero_point is not None
    config = [(0, 0, 0)] * x.ndim
    for axis, (low, high), step in zip(how.numbers.lhs_spec[2:], how.padding, how.lhs_dilation, strict=True):
        config[axis] = low, high, step - 1
    if x.zero_point.size == 1:
        return pad(x.levels, x.zero_point.reshape(()).astype(x.levels.dtype), config)
    shifted = x.levels.astype(jnp.int32) - x.zero_point
    # cropping (negative padding) and padding in one; zero is real zero once the zero point is taken off
    return (jax.lax.pad(shifted, jnp.int32(0), config) + x.zero_point).astype(x.levels.dtype)
