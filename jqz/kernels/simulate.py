"""Dots and convolutions with rounded activations, in float, with straight-through gradients.

The oracle of the integer kernels, and the forward pass of training.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jqz import _ste
from jqz._activations import Inputs, Meeting, meet
from jqz._scheme import Grid, Scheme
from jqz._values import Value, decode
from jqz._walk import Equation, Rule


def rules(inputs: Inputs, record: Callable[[Meeting], None] | None = None) -> dict[str, Rule]:
    """The rule table: round what meets a weight, by the scheme that ``inputs`` gives for the weight's path.

    ``record`` sees each meeting before anything is rounded.
    """

    def product(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        met = meet(eqn, operands[:2], inputs)
        if met is None:
            return None
        if record is not None:
            record(met)
        x = decode(met.x) if met.scheme is None else met.rounded(_simulate)
        pair = met.ordered(x, decode(met.against(_simulate)))
        if eqn.primitive == "conv_general_dilated":
            return [_convolve(eqn, *pair)]
        return [eqn.on(*pair, *operands[2:])]

    return dict.fromkeys(("dot_general", "ragged_dot_general", "conv_general_dilated"), product)


def _simulate(x: Value, scheme: Scheme, grid: Grid) -> jax.Array:
    return scheme.simulate(decode(x), grid)


# --- convolutions whose gradients XLA's CPU backend runs well ---------------------------------------------------------

Gradient = Callable[[jax.Array, jax.Array], jax.Array]

#: Bytes of images and cotangents that a core's second-level cache holds.
CACHE_BYTES = 2**20


def _convolve(eqn: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution itself, with gradients of its own on CPU.

    JAX writes both gradients as convolutions of unusual layout. Inside ``scan`` these fall off XLA's fast path, at
    a cost of 30 to 60 times the forward pass; outside they take more than half of a training step, most of it
    for the kernel. Here they are in the layout of a forward pass.
    """
    out = jax.eval_shape(eqn.on, x, kernel)
    plain = eqn.params["feature_group_count"] == 1 == eqn.params["batch_group_count"]
    if not plain or not out.size or not x.dtype == kernel.dtype == out.dtype:
        return _ste.bilinear(eqn.on, x, kernel)
    shapes = _Shapes(eqn, x, kernel, out)

    def of_images(kernel: jax.Array, g: jax.Array) -> jax.Array:
        def default(kernel: jax.Array, g: jax.Array) -> jax.Array:
            return jax.linear_transpose(lambda x: eqn.on(x, kernel), x)(g)[0]

        return jax.lax.platform_dependent(kernel, g, cpu=_image_gradient(shapes), default=default)

    def of_kernel(x: jax.Array, g: jax.Array) -> jax.Array:
        def default(x: jax.Array, g: jax.Array) -> jax.Array:
            return jax.linear_transpose(lambda kernel: eqn.on(x, kernel), kernel)(g)[0]

        form = _pixel_gradient(shapes) or _kernel_gradient(shapes)
        return jax.lax.platform_dependent(x, g, cpu=form, default=default)

    return _ste.bilinear(eqn.on, x, kernel, of_images, of_kernel)


class _Shapes:
    """The parameters of a convolution, and the shapes of its operands and its result."""

    def __init__(self, eqn: Equation, x: jax.Array, kernel: jax.Array, out: jax.ShapeDtypeStruct):
        self.x, self.kernel, self.out = x.shape, kernel.shape, out.shape
        self.image, self.weight, self.result = (
            eqn.params["dimension_numbers"].lhs_spec,
            eqn.params["dimension_numbers"].rhs_spec,
            eqn.params["dimension_numbers"].out_spec,
        )
        self.strides, self.apart, self.spread, self.padding = (
            eqn.params[key] for key in ("window_strides", "rhs_dilation", "lhs_dilation", "padding")
        )
        self.precision = eqn.params["precision"]
        self.itemsize = x.dtype.itemsize

    def spans(self) -> list[tuple[int, int, int, int]]:
        """Along each spatial axis: padding below, and the extents of image, window and result with what is between."""

        def extent(n: int, step: int) -> int:
            return (n - 1) * step + 1

        return [
            (
                self.padding[i][0],
                extent(self.x[self.image[2 + i]], self.spread[i]),
                extent(self.kernel[self.weight[2 + i]], self.apart[i]),
                extent(self.out[self.result[2 + i]], self.strides[i]),
            )
            for i in range(len(self.padding))
        ]


def _image_gradient(s: _Shapes) -> Gradient:
    """The gradient of the images: the cotangent convolved with the kernel, flipped, its channels exchanged."""
    exchanged = list(range(len(s.kernel)))
    exchanged[s.weight[0]], exchanged[s.weight[1]] = s.weight[1], s.weight[0]

    def gradient(kernel: jax.Array, g: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            g,
            jnp.transpose(jax.lax.rev(kernel, s.weight[2:]), exchanged),
            window_strides=s.spread,
            padding=[(window - 1 - low, image - result + low) for low, image, window, result in s.spans()],
            lhs_dilation=s.strides,
            rhs_dilation=s.apart,
            dimension_numbers=jax.lax.ConvDimensionNumbers(s.result, s.weight, s.image),
            precision=s.precision,
        )

    return gradient


def _pixel_gradient(s: _Shapes) -> Gradient | None:
    """The gradient of a kernel of one pixel: a dot over all the pixels that it meets."""
    if any(s.kernel[i] != 1 for i in s.weight[2:]) or any(p != (0, 0) for p in s.padding) or set(s.spread) != {1}:
        return None
    met = [slice(None)] * len(s.x)
    for axis, stride in zip(s.image[2:], s.strides, strict=True):
        met[axis] = slice(None, None, stride)
    pixels = (s.image[0], *s.image[2:]), (s.result[0], *s.result[2:])

    def gradient(x: jax.Array, g: jax.Array) -> jax.Array:
        out = jax.lax.dot_general(x[tuple(met)], g, (pixels, ((), ())), precision=s.precision)
        return (out if s.weight[1] < s.weight[0] else out.T).reshape(s.kernel)

    return gradient


def _kernel_gradient(s: _Shapes) -> Gradient:
    """The gradient of the kernel: a convolution that sums over the batch, so batch and channels change places.

    A window as large as the image slides over a few positions, once for each input channel. It reads the
    cotangents each time, which is fast while they stay in the cache: hence some images at a time.
    """
    last = len(s.x) - 1
    forward = (0, last, *range(1, last))
    numbers = jax.lax.ConvDimensionNumbers(forward, (last, last - 1, *range(last - 1)), forward)
    back = (s.weight[1], *s.weight[2:], s.weight[0])

    def of_some(x: jax.Array, g: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            jnp.transpose(x, (s.image[1], *s.image[2:], s.image[0])),
            jnp.transpose(g, (*s.result[2:], s.result[0], s.result[1])),
            window_strides=s.apart,
            padding=[(low, window - 1 + result - image - low) for low, image, window, result in s.spans()],
            lhs_dilation=s.spread,
            rhs_dilation=s.strides,
            dimension_numbers=numbers,
            precision=s.precision,
        )

    def gradient(x: jax.Array, g: jax.Array) -> jax.Array:
        some = _images_at_a_time(s)
        if some == x.shape[s.image[0]]:
            total = of_some(x, g)
        else:
            parts = [a.reshape(-1, some, *a.shape[1:]) for a in (x, g)]
            start = jnp.zeros([s.kernel[i] for i in back], x.dtype)
            total, _ = jax.lax.scan(lambda total, part: (total + of_some(*part), None), start, parts)
        return jnp.transpose(total, [back.index(i) for i in range(len(back))])

    return gradient


def _images_at_a_time(s: _Shapes) -> int:
    """The largest equal part of the batch that fits the cache; the whole batch where parts would not pay."""
    batch = s.x[s.image[0]]
    bytes_each = s.itemsize * (math.prod(s.x) + math.prod(s.out)) // batch
    fitting = max(1, CACHE_BYTES // bytes_each)
    some = next(n for n in range(min(fitting, batch), 0, -1) if batch % n == 0)
    far_below = 4 * some < fitting  # a batch of 127 has no parts but single images
    strided_alone = some == 1 and set(s.strides) != {1}  # large strided images gain nothing
    return batch if s.image[0] or s.result[0] or far_below or strided_alone else some
