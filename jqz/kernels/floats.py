"""Convolutions and pooling of plain arrays, in the forms that XLA's CPU backend runs fast."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jqz._walk import Equation, Rule
from jqz.lowerings.convolution import Convolution, convolve
from jqz.lowerings.pooling import Windows, max_pool, sum_pool


def _convolution(eqn: Equation, x: jax.Array, kernel: jax.Array) -> Sequence[jax.Array] | None:
    plain = eqn.params["batch_group_count"] == 1 and x.dtype == kernel.dtype == eqn.avals[0].dtype
    if not plain or not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    return [convolve(x, kernel, Convolution.of(eqn.params))]


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
