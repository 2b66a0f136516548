"""A function as it stands, in forms that run fast."""

import functools
import typing
from collections.abc import Callable

from jqz._evaluate import walk_through
from jqz._walk import Walk
from jqz.kernels import floats


def lowered(fn: Callable[..., typing.Any]) -> Callable[..., typing.Any]:
    """The same float function, with convolutions and pooling in forms that XLA runs fast on CPU.

    ``lowered(fn)(*args) == fn(*args)`` to float rounding; nothing is quantized. A depthwise convolution becomes a
    multiply-add for each place of its window, one of a single pixel a dot, pooling a maximum of shifted slices.
    Gradients, vmap and scan work as before. Put ``jax.jit`` around the result.

    Use it for convolutional networks on CPU, MobileNets above all. On other backends, and for networks without
    convolutions, the function stays what it was. ``quantized`` and ``simulated`` use the same forms.

    Args:
      fn: a pure function, such as a Linen ``model.apply``.

    Raises:
      TypeError: ``fn`` is not callable.

    >>> import jax, jax.numpy as jnp, jqz
    >>> def model(kernel, x):
    ...     return jax.lax.conv_general_dilated(
    ...         x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=8)
    >>> kernel, x = jnp.ones((3, 3, 1, 8)) / 9, jax.random.normal(jax.random.key(0), (1, 6, 6, 8))
    >>> bool(jnp.allclose(jqz.lowered(model)(kernel, x), model(kernel, x), atol=1e-6))
    True
    """
    if not callable(fn):
        raise TypeError(f"lowered: got {type(fn).__name__}, wanted a function. Use lowered(model.apply).")

    @functools.wraps(fn, updated=())
    def in_fast_forms(*args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        return walk_through(fn, args, kwargs, Walk({}, forms=floats.RULES))

    return in_fast_forms
