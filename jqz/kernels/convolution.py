"""Integer convolution: a coded kernel meets an activation that is coded on its way in."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jqz._activations import Inputs, coder, contracted, exact_in_float32, fits_int32, meet, obstacle, total
from jqz._pending import Scaled, product
from jqz._requant import Requant
from jqz._values import Levels, Value, as_levels
from jqz._walk import Equation, Rule
from jqz.lowerings.convolution import Convolution, convolve


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
        if weight is None or x is None or not _integral(eqn, x, weight):  # the same rounding, in float
            eqn.say(how="rounded float", why=obstacle(met, weight, x))
            return [eqn.on(*met.both_in_float(code))]
        eqn.say(how="int8", why="static range" if met.grid is not None else "dynamic range")
        result = _convolve(eqn, x, weight, requant is None or not requant.integer)
        waits = requant is not None and met.grid is not None and eqn.avals[0].dtype == jnp.float32
        return [result if waits else result.decode().astype(eqn.avals[0].dtype)]

    return {"conv_general_dilated": convolution}


def _integral(eqn: Equation, x: Levels, w: Levels) -> bool:
    """Whether scales and zero points factor out of the sums, and int32 holds these."""
    summed = contracted(eqn, 1)
    if w.varies_along(summed) or eqn.params["batch_group_count"] != 1:
        return False
    # zeros between dilated pixels would need the zero point, too
    dilated = x.zero_point is not None and any(d != 1 for d in eqn.params["lhs_dilation"])
    return not dilated and fits_int32(_terms(w, summed), x, w)


def _convolve(eqn: Equation, x: Levels, w: Levels, floats: bool) -> Scaled:
    """The convolution of levels; with ``floats``, in float32 where that is exact and faster."""
    spec = eqn.params["dimension_numbers"]
    summed = contracted(eqn, 1)
    w = w.ungrouped(spec.rhs_spec[:1])

    def place(grid: jax.Array, axis: int, out_axis: int) -> jax.Array:
        """Lays the one axis of a grid array along an axis of the result."""
        shape = [1] * w.ndim
        shape[out_axis] = grid.shape[axis]
        return jnp.moveaxis(grid, axis, 0).reshape(shape)

    def of_batch(grid: jax.Array) -> jax.Array:
        return place(grid, spec.lhs_spec[0], spec.out_spec[0])

    def of_channels(grid: jax.Array) -> jax.Array:
        return place(grid, spec.rhs_spec[0], spec.out_spec[1])

    codes, padding = x.levels, eqn.params["padding"]
    if x.zero_point is not None:
        codes, padding = _pad(x, spec, padding), [(0, 0)] * len(padding)
    exact = floats and exact_in_float32(_terms(w, summed), x, w)
    acc = _accumulate(eqn, codes, w.levels, padding, exact)
    if x.zero_point is not None:
        acc = acc - of_batch(x.zero_point) * of_channels(total(w.levels, summed))
    if w.zero_point is not None:
        # the sum of the window of every output, zero points of the padding included
        ones = _accumulate(eqn, codes, jnp.ones_like(w.levels), padding, exact)
        acc = acc - of_channels(w.zero_point) * ones
        if x.zero_point is not None:
            acc = acc + _terms(w, summed) * of_batch(x.zero_point) * of_channels(w.zero_point)
    dtype = np.promote_types(x.scale.dtype, w.scale.dtype)
    return product(acc, (of_batch(x.scale).astype(dtype), of_channels(w.scale).astype(dtype)), dtype)


def _terms(w: Levels, summed: tuple[int, ...]) -> int:
    return math.prod(w.shape[i] for i in summed)


def _pad(x: Levels, spec: jax.lax.ConvDimensionNumbers, padding: Sequence[tuple[int, int]]) -> jax.Array:
    """Pads codes with their zero point, which stands for a real zero."""
    assert x.zero_point is not None
    config = [(0, 0)] * x.ndim
    for axis, pair in zip(spec.lhs_spec[2:], padding, strict=True):
        config[axis] = pair
    if x.zero_point.size == 1:
        zero = x.zero_point.reshape(()).astype(x.levels.dtype)
        return jax.lax.pad(x.levels, zero, [(low, high, 0) for low, high in config])
    shifted = x.levels.astype(jnp.int32) - x.zero_point
    # cropping (negative padding) and padding in one; zero is real zero once the zero point is taken off
    padded = jax.lax.pad(shifted, jnp.int32(0), [(low, high, 0) for low, high in config])
    return (padded + x.zero_point).astype(x.levels.dtype)


def _accumulate(
    eqn: Equation, codes: jax.Array, kernel: jax.Array, padding: Sequence[tuple[int, int]], exact: bool
) -> jax.Array:
    """int8 x int8 -> int32; ``exact`` says that float32 would hold every sum."""
    how = Convolution(
        tuple(eqn.params["window_strides"]),
        tuple(padding),
        tuple(eqn.params["lhs_dilation"]),
        tuple(eqn.params["rhs_dilation"]),
        eqn.params["dimension_numbers"],
        eqn.params["feature_group_count"],
    )
    return convolve(codes, kernel, how, exact)
