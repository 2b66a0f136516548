"""Convolutions, in the form that suits their shapes.

========================================= ==========================================================
depthwise, and float groups of 4 or fewer a multiply-add for each shifted image
other groups                              blocks of groups, each a convolution (integers: with zeros)
one pixel                                 a dot
few windows, or few channels (integers)   a window's columns as channels, and a dot for each of its rows
few windows (floats)                      their matrix (im2col) and a dot
strides and up to 4 channels              the pixels of a stride as channels (integers)
========================================= ==========================================================

The thresholds come from measurements; ``benchmarks/inference.py`` tells whether they suit a machine.
"""

import dataclasses
import functools
import itertools
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jqz.lowerings.dot import dot, wide_dtype

#: Convolutions with no more channels than this, in and out, miss XLA's integer kernels.
FEW = 16
#: Windows up to which dots beat XLA's integer convolution.
FEW_WINDOWS = 400
#: Windows up to which the pixels of a stride stay where they are, if channels are few too.
FEW_OF_STEM = 1 << 14
#: Windows from which rows of few pixels and channels are worth joining.
MANY_NARROW = 1 << 13
#: Bytes of patches below which a dot over them beats a convolution of floats: of any, and of so many channels, whose
#: kernels are large beside their images.
PATCHES, MANY, PATCHES_OF_MANY = 1 << 19, 256, 1 << 21
#: Bytes of padded codes up to which they are laid upon the padding.
ON_GROUND = 1 << 17
#: Input channels of a block of groups.
BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The parameters of ``lax.conv_general_dilated`` that shapes do not tell."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    numbers: lax.ConvDimensionNumbers
    groups: int = 1
    precision: typing.Any = None

    @classmethod
    def of(cls, params: Mapping[str, typing.Any]) -> "Convolution":
        """From the parameters of an equation."""
        return cls(
            tuple(params["window_strides"]),
            tuple(params["padding"]),
            tuple(params["lhs_dilation"]),
            tuple(params["rhs_dilation"]),
            params["dimension_numbers"],
            params["feature_group_count"],
            params["precision"],
        )

    def space(self, x: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """The spatial shape of the result."""
        spec = self.numbers
        image, window = ([shape[i] for i in axes[2:]] for shape, axes in ((x, spec.lhs_spec), (kernel, spec.rhs_spec)))
        extents = zip(image, self.lhs_dilation, self.padding, window, self.rhs_dilation, self.strides, strict=True)
        return tuple(((n - 1) * d + 1 + sum(p) - (k - 1) * a - 1) // s + 1 for n, d, p, k, a, s in extents)

    def plain(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The primitive: int8 gives int32, a float its own dtype."""
        return lax.conv_general_dilated(
            x,
            kernel,
            self.strides,
            self.padding,
            self.lhs_dilation,
            self.rhs_dilation,
            self.numbers,
            self.groups,
            precision=self.precision,
            preferred_element_type=wide_dtype(x),
        )


def pad(x: jax.Array, value: jax.Array, config: Sequence[tuple[int, int, int]]) -> jax.Array:
    """``lax.pad``, by laying small images of codes upon the padding: padding as such asks at every pixel what it is.

    >>> pad(jnp.ones((1, 2), jnp.int8), jnp.int8(7), [(0, 0, 0), (1, 0, 0)]).tolist()
    [[7, 1, 1]]
    """
    if not any(map(any, config)):
        return x
    shape = [low + n + high for n, (low, high, _) in zip(x.shape, config, strict=True)]
    on_ground = x.dtype == jnp.int8 and 0 < math.prod(shape) <= ON_GROUND
    if not on_ground or min(min(sides) for sides in config) < 0 or any(inside for *_, inside in config):
        return lax.pad(x, value, config)
    ground = lax.optimization_barrier(jnp.full(shape, value))
    return lax.dynamic_update_slice(ground, x, [low for low, *_ in config])


def convolve(x: jax.Array, kernel: jax.Array, how: Convolution, limit: int = 2**14) -> jax.Array:
    """A convolution: int8 codes to int32, floats to their own dtype.

    Args:
      x: images, int8 or floating.
      kernel: of the same dtype.
      how: strides, padding and the like.
      limit: no product of an int8 code of x and one of the kernel is larger, either way from zero.

    >>> numbers = lax.conv_dimension_numbers((1, 4, 4, 2), (3, 3, 1, 2), ("NHWC", "HWIO", "NHWC"))
    >>> how = Convolution((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), numbers, groups=2)
    >>> convolve(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2)), how)[0, 0, :, 0].tolist()
    [4.0, 6.0, 6.0, 4.0]
    """
    spec, space = how.numbers, how.space(x.shape, kernel.shape)
    typed = x.dtype == kernel.dtype and x.dtype in (jnp.int8, jnp.float32)
    if not typed or not x.size or not kernel.size or min(space, default=0) < 1:
        return how.plain(x, kernel)
    images, weights = (spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1]), (*spec.rhs_spec[2:], spec.rhs_spec[1])
    form = _form(x, kernel, how, space, limit)
    if form is None:
        return how.plain(x, kernel)
    back = (spec.out_spec[0], *spec.out_spec[2:], spec.out_spec[1])

    def fast(x: jax.Array, kernel: jax.Array) -> jax.Array:
        low_high = ((0, 0), *how.padding, (0, 0))
        between = (1, *how.lhs_dilation, 1)
        x = jnp.transpose(x, images)
        x = pad(x, jnp.zeros((), x.dtype), [(*p, d - 1) for p, d in zip(low_high, between, strict=True)])
        y = form(x, jnp.transpose(kernel, (*weights, spec.rhs_spec[0])))
        return jnp.transpose(y, tuple(back.index(i) for i in range(len(back))))

    return lax.platform_dependent(x, kernel, cpu=fast, default=how.plain)


# --- forms: of padded images (batch, ..., in) and a kernel (..., in, out) ---------------------------------------------

Form = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class _Windows:
    """How windows lie on padded images: strides, distances between the pixels of a window, windows."""

    strides: tuple[int, ...]
    apart: tuple[int, ...]
    space: tuple[int, ...]

    def cut(self, x: jax.Array, axis: int, place: int) -> jax.Array:
        """The pixels at one place of all windows, along a spatial axis."""
        start, stride = place * self.apart[axis], self.strides[axis]
        return lax.slice_in_dim(x, start, start + (self.space[axis] - 1) * stride + 1, stride, axis + 1)

    def shifted(self, x: jax.Array, size: Sequence[int]) -> Iterator[tuple[tuple[int, ...], jax.Array]]:
        """The places of a window, each with the pixels that lie there in all windows."""
        for place in itertools.product(*map(range, size)):
            yield place, functools.reduce(lambda x, at: self.cut(x, *at), enumerate(place), x)


def _form(x: jax.Array, kernel: jax.Array, how: Convolution, space: tuple[int, ...], limit: int) -> Form | None:
    """What suits the shapes, or None where that is the primitive."""
    spec, integral = how.numbers, x.dtype == jnp.int8
    size = tuple(kernel.shape[i] for i in spec.rhs_spec[2:])
    ins, outs = (kernel.shape[i] for i in (spec.rhs_spec[1], spec.rhs_spec[0]))
    windows = _Windows(tuple(how.strides), tuple(how.rhs_dilation), space)
    if how.groups == 1:
        return _ungrouped(windows, x.shape[spec.lhs_spec[0]], size, ins, outs, integral)
    if math.prod(size) <= 64 and (ins == 1 or (ins <= 4 and not integral)):
        narrow = jnp.iinfo(jnp.int16).max // limit if integral else 0
        return functools.partial(_shift_and_add, windows, how.groups, narrow)
    if not integral and (how.groups > 4 or ins < BLOCK // 2):
        return None
    blocks = how.groups // max(n for n in range(1, how.groups + 1) if how.groups % n == 0 and n <= max(1, BLOCK // ins))
    per_block = how.groups // blocks
    inner = _ungrouped(
        windows, x.shape[spec.lhs_spec[0]], size, per_block * ins, outs // blocks, integral
    ) or functools.partial(_primitive, windows)
    return functools.partial(_in_blocks, blocks, per_block, inner)


def _ungrouped(
    windows: _Windows, batch: int, size: tuple[int, ...], ins: int, outs: int, integral: bool
) -> Form | None:
    if math.prod(size) == 1:
        return functools.partial(_patches, windows)
    count, few = batch * math.prod(windows.space), max(ins, outs) <= FEW
    stem = integral and ins <= 4 and min(windows.strides) > 1 and set(windows.apart) == {1}
    if stem and (not few or count > FEW_OF_STEM):
        blocks = tuple(-(-k // s) for k, s in zip(size, windows.strides, strict=True))
        still = dataclasses.replace(windows, strides=(1,) * len(size))
        deep = ins * math.prod(windows.strides)
        inner = _ungrouped(still, batch, blocks, deep, outs, integral)
        return functools.partial(
            _space_to_depth, windows.strides, blocks, inner or functools.partial(_primitive, still)
        )
    if not integral:
        limit = PATCHES_OF_MANY if ins >= MANY else PATCHES
        fits = 4 * count * ins * math.prod(size) <= limit and math.prod(size) <= 64
        return functools.partial(_patches, windows) if fits else None
    if (few or count <= FEW_WINDOWS) and math.prod(size[:-1]) <= 64:
        return functools.partial(_rows, windows)
    return None


def _shift_and_add(windows: _Windows, groups: int, narrow: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Groups of few channels: each output channel reads ``ins`` images, and XLA vectorizes over channels.

    int16 holds sums of ``narrow`` products, which a vector has twice as many of as of int32.
    """
    *size, ins, outs = kernel.shape
    dtype = wide_dtype(x) if narrow < 2 else jnp.int16
    # without the barrier XLA computes what produced the images once for each place of the window
    x = lax.optimization_barrier(x)
    of_group = x.reshape(*x.shape[:-1], groups, ins)
    terms = []
    for channel in range(ins):
        image = of_group[..., channel]
        if outs != groups:
            image = lax.optimization_barrier(jnp.repeat(image, outs // groups, -1))
        for place, pixels in windows.shifted(image, size):
            weight = jnp.broadcast_to(kernel[(*place, channel)], pixels.shape)
            terms.append(pixels.astype(dtype) * weight.astype(dtype))
    together = max(1, narrow)
    sums = (functools.reduce(jnp.add, terms[i : i + together]) for i in range(0, len(terms), together))
    return functools.reduce(jnp.add, (part.astype(wide_dtype(x)) for part in sums))


def _in_blocks(blocks: int, per_block: int, inner: Form, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Several groups as one convolution whose kernel has zeros between them, and the results side by side."""
    parts = []
    for part, weight in zip(jnp.split(x, blocks, -1), jnp.split(kernel, blocks, -1), strict=True):
        *size, ins, outs = weight.shape
        own = np.kron(np.eye(per_block, dtype=bool), np.ones((ins, outs // per_block), bool))
        wide = jnp.concatenate([weight] * per_block, -2)
        mask = jnp.broadcast_to(own, (*size, *own.shape))
        parts.append(inner(part, jnp.where(mask, wide, jnp.zeros((), wide.dtype))))
    return jnp.concatenate(parts, -1)


def _patches(windows: _Windows, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A row of pixels for each window, times the kernel as a matrix."""
    *size, _, outs = kernel.shape
    rows = [pixels for _, pixels in windows.shifted(x, size)]
    patches = rows[0] if len(rows) == 1 else jnp.concatenate(rows, -1)
    return dot(patches, kernel.reshape(-1, outs), (((patches.ndim - 1,), (0,)), ((), ())))


def _rows(windows: _Windows, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The pixels of a window along the last axis as channels; then the other axes shift whole rows, which lie still."""
    *others, length, ins, outs = kernel.shape
    last, deep = len(others), length * ins
    spare = -deep % 4
    columns = [windows.cut(x, last, k) for k in range(length)]
    if spare:
        columns.append(jnp.zeros((*columns[0].shape[:-1], spare), x.dtype))
    x = lax.optimization_barrier(jnp.concatenate(columns, -1))
    kernel = jnp.pad(kernel.reshape(*others, deep, outs), [(0, 0)] * last + [(0, spare), (0, 0)])
    above = _Windows(windows.strides[:last], windows.apart[:last], windows.space[:last])
    if deep <= FEW and x.size > MANY_NARROW * deep:  # short sums: one dot over all of them
        return _patches(above, x, kernel)
    over_channels = (((x.ndim - 1,), (0,)), ((), ()))
    return functools.reduce(
        jnp.add, (dot(pixels, kernel[place], over_channels) for place, pixels in above.shifted(x, others))
    )


def _space_to_depth(
    strides: tuple[int, ...], blocks: tuple[int, ...], inner: Form, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """The pixels between two windows as channels: no strides are left."""
    n = len(strides)
    spare = [(0, -length % s) for length, s in zip(x.shape[1:-1], strides, strict=True)]
    x = jnp.pad(x, [(0, 0), *spare, (0, 0)])
    spare = [(0, b * s - k) for b, s, k in zip(blocks, strides, kernel.shape, strict=False)]
    kernel = jnp.pad(kernel, [*spare, (0, 0), (0, 0)])

    def deepened(a: jax.Array, lead: int, trail: int) -> jax.Array:
        """Axes (lead, spatial, trail) to (lead, spatial / strides, strides * first of trail, rest)."""
        cut = [length for axis, s in enumerate(strides) for length in (a.shape[lead + axis] // s, s)]
        a = a.reshape(*a.shape[:lead], *cut, *a.shape[lead + n :])
        whole, inside = [lead + 2 * i for i in range(n)], [lead + 2 * i + 1 for i in range(n)]
        rest = range(lead + 2 * n, lead + 2 * n + trail)
        a = jnp.transpose(a, (*range(lead), *whole, *inside, *rest))
        return a.reshape(*a.shape[: lead + n], -1, *a.shape[len(a.shape) - trail + 1 :])

    return inner(lax.optimization_barrier(deepened(x, 1, 1)), deepened(kernel, 0, 2))


def _primitive(windows: _Windows, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's convolution of padded images."""
    n = len(windows.space)
    last = n + 1
    # of the images only what windows cover: a stride may leave pixels over, and space_to_depth adds some
    for axis, (s, d, o) in enumerate(zip(windows.strides, windows.apart, windows.space, strict=True)):
        x = lax.slice_in_dim(x, 0, (o - 1) * s + (kernel.shape[axis] - 1) * d + 1, axis=axis + 1)
    spec = (0, last, *range(1, last))
    numbers = lax.ConvDimensionNumbers(spec, (last, last - 1, *range(n)), spec)
    return lax.conv_general_dilated(
        x,
        kernel,
        windows.strides,
        [(0, 0)] * n,
        rhs_dilation=windows.apart,
        dimension_numbers=numbers,
        preferred_element_type=wide_dtype(x),
    )
