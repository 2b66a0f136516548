"""Codes of 1 to 8 bits in bytes, along the last axis.

A width that is not a power of two is split into fields of 4, 2 and 1 bits (7 = 4 + 2 + 1). Each
field is packed by itself, so a row of n codes takes less than one byte a field more than
n * bits / 8. The narrowest field holds the lowest bits and comes first. Inside a field the layout is
planar: with k values in a byte and u = ceil(n / k), byte j holds the values j, j + u, j + 2u, ...
from its low end to its high end.
Planes are contiguous slices, which XLA vectorizes; interleaved neighbours would need strided
access. Only the last axis is touched, so slices of the leading axes (scan, vmap, embedding
rows, a sharded leading axis) are slices of the packed array as well.
"""

import functools
import operator
import typing

import jax
import jax.numpy as jnp
import numpy as np


def fields(bits: int) -> tuple[int, ...]:
    """The widths that a code is split into, highest first.

    >>> fields(7)
    (4, 2, 1)
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"packing: got bits={bits!r}, wanted 1 to 8.")
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def packed_length(length: int, bits: int) -> int:
    """Bytes that a row of ``length`` codes takes.

    >>> packed_length(10, 3)
    5
    """
    return sum(-(-length * width // 8) for width in fields(bits))


def _library(array: typing.Any) -> typing.Any:
    """NumPy for its own arrays: files are packed and unpacked without a compilation for each shape."""
    return np if isinstance(array, np.ndarray) else jnp


def pack(codes: typing.Any, bits: int) -> typing.Any:
    """Packs integer codes (..., n) into uint8 (..., packed_length(n, bits)), of the same library.

    The low ``bits`` bits of each code are kept, so signed and unsigned codes pack alike.
    """
    library = _library(codes)
    if codes.ndim == 0:
        raise ValueError("pack: got a scalar, wanted rank 1 or more. Use codes.reshape(1).")
    raw = codes.astype(np.uint8)  # two's complement: keeps the low byte
    length, parts, shift = codes.shape[-1], [], 0
    for width in reversed(fields(bits)):
        field = (raw >> shift) & np.uint8(2**width - 1)
        shift += width
        per_byte = 8 // width
        unit = -(-length // per_byte)
        spare = unit * per_byte - length
        if spare:
            field = library.pad(field, [(0, 0)] * (field.ndim - 1) + [(0, spare)])
        byte = field[..., :unit]
        for plane in range(1, per_byte):
            byte = byte | (field[..., plane * unit : (plane + 1) * unit] << (plane * width))
        parts.append(byte)
    return parts[0] if len(parts) == 1 else library.concatenate(parts, -1)


def unpack(packed: typing.Any, bits: int, length: int, dtype: jax.typing.DTypeLike) -> typing.Any:
    """Inverts ``pack``: uint8 (..., bytes) to codes (..., length) of an 8-bit integer dtype.

    A signed dtype extends the sign of the low ``bits`` bits.
    """
    library, parts, start, shift = _library(packed), [], 0, 0
    for width in reversed(fields(bits)):
        unit = -(-length * width // 8)
        part = packed[..., start : start + unit]
        start += unit
        planes = [(part >> (plane * width)) & np.uint8(2**width - 1) for plane in range(8 // width)]
        field = planes[0] if len(planes) == 1 else library.concatenate(planes, -1)[..., :length]
        parts.append(field << shift)
        shift += width
    raw = functools.reduce(operator.or_, parts)
    if jnp.issubdtype(dtype, jnp.signedinteger):
        spare = 8 - bits
        return jax.lax.shift_right_arithmetic(
            jax.lax.bitcast_convert_type(raw << spare, jnp.int8), jnp.int8(spare)
        ).astype(dtype)
    return raw.astype(dtype)
