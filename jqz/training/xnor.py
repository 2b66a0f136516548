"""A scale for each window of binary activations: XNOR-Net."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def xnor_input_scale(
    x: jax.Array,
    window: Sequence[int] = (),
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "SAME",
) -> jax.Array:
    """K of XNOR-Net: the mean magnitude of what a window sees, to be multiplied with the product of signs ::

        conv(x, w)  ~  conv(sign(x), alpha sign(w)) * K,   K = box filter of mean(abs(x), channels)

    With ``Binary(PerAxis(-1), estimator=ThroughMean())`` for the weights and ``Binary(scale=UnitScale(),
    estimator=ste.Clipped())`` for what meets them (a Policy's ``inputs``), this is the network of the paper. Most
    successors leave K out, since batch norm does nearly as well; it costs a pass over the input. Where there is
    padding, K counts zeros, as the paper's does.

    Args:
      x: (batch, *space, channels), float, before its signs are taken.
      window: of the convolution; () for a dot, where K is one number an example.
      strides: of the convolution; 1 each if left out.
      padding: of the convolution, ``"SAME"``, ``"VALID"`` or a pair for each axis of space.

    Returns:
      (batch, *space of the result, 1).

    Raises:
      ValueError: the window does not have an axis for each of space.

    >>> import jax.numpy as jnp
    >>> from jqz.training import xnor_input_scale
    >>> xnor_input_scale(jnp.array([[1.0, -3.0], [0.0, 4.0]])).tolist()
    [[2.0], [2.0]]
    >>> x = jnp.array([[[1.0], [-3.0], [2.0]]])
    >>> xnor_input_scale(x, (2,), padding="VALID").tolist()
    [[[2.0], [2.5]]]

    References: arXiv:1603.05279, section 3.2.
    """
    if len(window) != x.ndim - 2:
        raise ValueError(
            f"xnor_input_scale: got window={tuple(window)} for values of shape {x.shape}, wanted {x.ndim - 2} lengths. "
            "Use the window of the convolution, (3, 3) for images, () for a dot."
        )
    magnitude = jnp.mean(jnp.abs(x), axis=-1, keepdims=True)
    if not window:
        return magnitude
    space = "XYZ"[: len(window)]
    box = jnp.full((1, 1, *window), 1 / math.prod(window), x.dtype)
    steps = tuple(strides or (1,) * len(window))
    return jax.lax.conv_general_dilated(
        magnitude, box, steps, padding, dimension_numbers=(f"N{space}C", f"OI{space}", f"N{space}C")
    )
