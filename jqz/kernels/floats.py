"""Convolutions and pooling of plain arrays, in the forms that XLA's CPU backend runs fast."""

from collections.abc import Sequence

import jax

from jqz._walk import Equation, Rule
from jqz.lowerings.convolution import Convolution, convolve
from jqz.lowerings.pooling import Windows, max_pool, sum_pool


def _convolution(eqn: Equation, x: jax.Array, kernel: jax.Array) -> Sequence[jax.Array] | None:
    if eqn.params["batch_group_count"] != 1 or eqn.avals[0].dtype != x.dtype:
        return None
    how = Convolution(
        tuple(eqn.params["window_strides"]),
        tuple(eqn.params["padding"]),
        tuple(eqn.params["lhs_dilation"]),
        tuple(eqn.params["rhs_dilation"]),
        eqn.params["dimension_numbers"],
        eqn.params["feature_group_count"],
        eqn.params["precision"],
    )
    return [convolve(x, kernel, how)] if jax.numpy.issubdtype(x.dtype, jax.numpy.floating) else None


def _windows(eqn: Equation) -> Windows:
    return Windows(
        tuple(eqn.params["window_dimensions"]),
        tuple(eqn.params["window_strides"]),
        tuple(eqn.params["padding"]),
        tuple(eqn.params["base_dilation"]),
        tuple(eqn.params["window_dilation"]),
    )


#: Rules for equations on plain arrays.
RULES: dict[str, Rule] = {
    "conv_general_dilated": _convolution,
    "reduce_window_max": lambda eqn, x: [max_pool(x, _windows(eqn))],
    "reduce_window_sum": lambda eqn, x: [sum_pool(x, _windows(eqn))],
}
