"""Arrays as analysis reads them."""

import typing

import numpy as np


def float64(who: str, values: typing.Any) -> np.ndarray:
    """Finite values in float64, of any dtype and place.

    Raises:
      ValueError: they are empty or not finite.
    """
    array = np.asarray(values).astype(np.float64)
    if not array.size or not np.isfinite(array).all():
        fault = "NaN or infinite values" if array.size else "no values"
        raise ValueError(f"{who}: got {fault}, wanted at least one finite value. Use jnp.nan_to_num, or leave it out.")
    return array
