"""Small floating-point formats: exact rounding of real values to bit patterns, and back.

A pattern is a sign bit, ``exponent_bits`` and ``mantissa_bits``. With bias B a pattern (s, e, f) means ::

    (-1)**s * 2**(e - B) * (1 + f / 2**mantissa_bits)     e > 0, normal
    (-1)**s * 2**(1 - B) * f / 2**mantissa_bits           e = 0, denormal

======== ==== ==== ======= ============== ================= ===========================
format   bits bias largest smallest       not a number      used by
======== ==== ==== ======= ============== ================= ===========================
E4M3     8    7    448     2**-9          0x7f, 0xff        weights, activations
E5M2     8    15   57344   2**-16         0x7d to 0x7f      gradients
E3M2     6    3    28      2**-4          none              MXFP6
E2M3     6    1    7.5     2**-3          none              MXFP6
E2M1     4    1    6       2**-1          none              MXFP4, NVFP4
Int8     8         127/64  2**-6          none              MXINT8
BFloat16 16   127  3.4e38  2**-133        0x7f81 and above  half precision, wide range
Float16  16   15   65504   2**-24         0x7c01 and above  half precision
======== ==== ==== ======= ============== ================= ===========================

Patterns are ordered as their magnitudes are, so rounding is one integer shift of a float32 (or
float64) pattern, and a carry out of the mantissa lands in the exponent by itself. No
floating-point operation is involved that could flush a denormal. Results equal IEEE 754 rounding
to nearest, ties to even, except that infinity and all that rounds beyond the largest value
saturate.

References: arXiv:2209.05433 (FP8), arXiv:2310.10537 (Microscaling), OCP MX v1.0.
"""

import abc
import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from jqz._scheme import TINY


class Format(abc.ABC):
    """A sign, exponent bits and mantissa bits: what elements of ``Float`` and ``BlockFloat`` are."""

    exponent_bits: typing.ClassVar[int]
    mantissa_bits: typing.ClassVar[int]
    bias: typing.ClassVar[int]
    #: The pattern of the largest finite magnitude.
    top: typing.ClassVar[int]
    #: The pattern that NaN becomes; None where the format has none and NaN saturates.
    nan: typing.ClassVar[int | None] = None
    #: The pattern of infinity, which decodes but is never encoded; None where there is none.
    infinity: typing.ClassVar[int | None] = None
    #: Codes are two's complement, not sign and magnitude.
    signed: typing.ClassVar[bool] = False

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def code_dtype(self) -> typing.Any:
        """The integer dtype of codes."""
        return jnp.int8 if self.signed else jnp.uint8 if self.bits <= 8 else jnp.uint16

    @property
    def step_exponent(self) -> int:
        """log2 of the distance between denormals, of which every value is an integer multiple."""
        return 1 - self.bias - self.mantissa_bits

    @property
    def largest(self) -> float:
        """The largest finite value."""
        return self._magnitude(self.top)

    @property
    def largest_exponent(self) -> int:
        """floor(log2(largest)), called emax in the MX specification."""
        return int(np.frexp(self.largest)[1]) - 1

    @property
    def limit(self) -> int | None:
        """The largest value in steps, where it fits int8 and integer kernels can use the format; else None."""
        steps = self.largest / 2.0**self.step_exponent
        return int(steps) if steps <= 127 else None

    def _magnitude(self, pattern: int) -> float:
        exponent, fraction = divmod(pattern, 2**self.mantissa_bits)
        whole = fraction + (2**self.mantissa_bits if exponent else 0)
        return float(whole * 2.0 ** (self.step_exponent + max(exponent - 1, 0)))


@typing.final
@dataclasses.dataclass(frozen=True)
class E4M3(Format):
    """8 bits: -448 to 448 with 4 significant bits; no infinity (float8_e4m3fn)."""

    exponent_bits = 4
    mantissa_bits = 3
    bias = 7
    top = 0x7E
    nan = 0x7F


@typing.final
@dataclasses.dataclass(frozen=True)
class E5M2(Format):
    """8 bits: -57344 to 57344 with 3 significant bits, the upper half of a float16 (float8_e5m2)."""

    exponent_bits = 5
    mantissa_bits = 2
    bias = 15
    top = 0x7B
    nan = 0x7E
    infinity = 0x7C


@typing.final
@dataclasses.dataclass(frozen=True)
class E3M2(Format):
    """6 bits: -28 to 28 with 3 significant bits (float6_e3m2fn)."""

    exponent_bits = 3
    mantissa_bits = 2
    bias = 3
    top = 0x1F


@typing.final
@dataclasses.dataclass(frozen=True)
class E2M3(Format):
    """6 bits: -7.5 to 7.5 with 4 significant bits (float6_e2m3fn)."""

    exponent_bits = 2
    mantissa_bits = 3
    bias = 1
    top = 0x1F


@typing.final
@dataclasses.dataclass(frozen=True)
class E2M1(Format):
    """4 bits: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives (float4_e2m1fn)."""

    exponent_bits = 2
    mantissa_bits = 1
    bias = 1
    top = 0x7


@typing.final
@dataclasses.dataclass(frozen=True)
class BFloat16(Format):
    """16 bits: the range of float32 with 8 significant bits."""

    exponent_bits = 8
    mantissa_bits = 7
    bias = 127
    top = 0x7F7F
    nan = 0x7FC0
    infinity = 0x7F80


@typing.final
@dataclasses.dataclass(frozen=True)
class Float16(Format):
    """16 bits: -65504 to 65504 with 11 significant bits (IEEE binary16)."""

    exponent_bits = 5
    mantissa_bits = 10
    bias = 15
    top = 0x7BFF
    nan = 0x7E00
    infinity = 0x7C00


@typing.final
@dataclasses.dataclass(frozen=True)
class Int8(Format):
    """8 bits: integers from -127 to 127 times 2**-6, two's complement: the element of MXINT8.

    A format without exponent bits has denormals alone. -128 is never encoded, which keeps the
    grid symmetric; it decodes to -2.
    """

    exponent_bits = 0
    mantissa_bits = 7
    bias = 0
    top = 0x7F
    signed = True


def encode(x: jax.Array, format: Format, exponent: jax.Array | None = None) -> jax.Array:  # noqa: A002
    """Codes of ``x / 2**exponent``, to nearest, ties to even, saturating.

    Args:
      x: float32 or float64.
      format: the element format.
      exponent: int32 that broadcasts against x; the division by its power of two is exact whatever it
        is, since it only moves the point. None is 0.

    >>> encode(jnp.array([0.25, 0.75, -7.0, 5.0]), E2M1()).tolist()
    [0, 2, 15, 6]
    """
    wide = x.dtype == jnp.float64
    integer, fraction_bits, bias = (jnp.int64, 52, 1023) if wide else (jnp.int32, 23, 127)
    pattern = jax.lax.bitcast_convert_type(x, integer)
    magnitude = pattern & jnp.iinfo(integer).max
    # float32 denormals share the exponent 1 of the smallest normals and lack the implicit bit
    x_exponent = jnp.maximum(magnitude >> fraction_bits, 1)
    mantissa = magnitude - ((x_exponent - 1) << fraction_bits)
    lowest = 1 - format.bias + bias + (0 if exponent is None else exponent.astype(integer))
    above = x_exponent - lowest
    drop = fraction_bits - format.mantissa_bits
    # two places beyond the mantissa all is zero: larger shifts would say the same
    shift = drop + jnp.clip(-above, 0, format.mantissa_bits + 2)
    half = (jnp.ones((), integer) << (shift - 1)) - 1
    rounded = (mantissa + half + ((mantissa >> shift) & 1)) >> shift
    code = jnp.minimum((jnp.maximum(above, 0) << format.mantissa_bits) + rounded, format.top)
    if format.nan is not None:
        code = jnp.where(magnitude > ((2 * bias + 1) << fraction_bits), format.nan, code)
    if format.signed:
        code = jnp.where(pattern < 0, -code, code)
    else:
        code = jnp.where(pattern < 0, code | (1 << (format.bits - 1)), code)
    return code.astype(format.code_dtype)


@functools.cache
def _table(format: Format) -> np.ndarray:  # noqa: A002
    """The value of every pattern, float32."""
    half = 2 ** (format.bits - 1)
    magnitudes = np.array([format._magnitude(p) for p in range(half)])
    magnitudes[format.top + 1 :] = np.nan
    if format.infinity is not None:
        magnitudes[format.infinity] = np.inf
    return np.concatenate([magnitudes, -magnitudes]).astype(np.float32)


def _take(table: np.ndarray, codes: jax.Array) -> jax.Array:
    # the table has an entry for every pattern, so no bound needs a check
    index = codes & jnp.asarray(len(table) - 1, codes.dtype)
    return jnp.asarray(table).at[index].get(mode="promise_in_bounds")


def fit(magnitude: jax.Array, *factors: float) -> jax.Array:
    """The scale that takes the product of ``factors`` to ``magnitude``; 1 where that counts as zero.

    Computed in the order given, the product does not exceed the magnitude, which may be the largest number there
    is; with several factors it is finite in whatever order a compiler takes them.

    >>> fit(jnp.array([896.0, 0.0]), 448.0).tolist()
    [2.0, 1.0]
    """
    if len(factors) > 1:
        limit = float(jnp.finfo(magnitude.dtype).max) * (1 - 4 * float(jnp.finfo(magnitude.dtype).eps))
        magnitude = jnp.where(jnp.isinf(magnitude), magnitude, jnp.minimum(magnitude, limit))
    scale = magnitude / math.prod(factors)
    top = functools.reduce(lambda product, factor: product * factor, factors, scale)
    scale = jnp.where(top > magnitude, scale * (1 - 2 * float(jnp.finfo(scale.dtype).eps)), scale)
    return jnp.where(magnitude < TINY, 1, scale).astype(magnitude.dtype)


def decode(codes: jax.Array, format: Format) -> jax.Array:  # noqa: A002
    """The values of codes, float32 and exact.

    >>> decode(jnp.array([0, 2, 15, 6], jnp.uint8), E2M1()).tolist()
    [0.0, 1.0, -6.0, 4.0]
    """
    if format.signed:
        return codes.astype(jnp.float32) * 2.0**format.step_exponent
    if format.bits <= 8:
        return _take(_table(format), codes)
    pattern = codes.astype(jnp.int32) << 16
    if isinstance(format, BFloat16):
        return jax.lax.bitcast_convert_type(pattern, jnp.float32)
    return jax.lax.bitcast_convert_type(codes, jnp.float16).astype(jnp.float32)


def integers(codes: jax.Array, format: Format) -> jax.Array:  # noqa: A002
    """The values of codes in steps of ``2**format.step_exponent``, int8; for formats that have a ``limit``.

    >>> integers(jnp.array([0, 2, 15, 6], jnp.uint8), E2M1()).tolist()
    [0, 2, -12, 8]
    """
    if format.signed:
        return codes
    return _take((_table(format) / 2.0**format.step_exponent).astype(np.int8), codes)
