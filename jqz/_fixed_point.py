"""Real factors as integers: 31 bits and a shift, as gemmlowp has them."""

import jax
import jax.numpy as jnp


def shift_up(acc: jax.Array, exponent: jax.Array) -> jax.Array:
    """``acc * 2**exponent``, saturating; ``acc`` where the exponent is not positive."""
    shift = jnp.clip(exponent, 0, 30)
    limit = jnp.int32(2**31 - 1) >> shift
    return jnp.clip(acc, -limit, limit) << shift


def high_multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """``floor((a * b + 2**30) / 2**31)`` of int32, in 16-bit halves (JAX has no int64 by default).

    This is gemmlowp's SaturatingRoundingDoublingHighMul for every pair but (-2**31, -2**31): nearest,
    ties toward plus infinity. ``b`` may be negative, but not -2**31.
    """
    flip = b < 0
    a, b = jnp.where(flip, -a, a), jnp.abs(b)
    high_a, low_a = a >> 16, a & 0xFFFF
    high_b, low_b = b >> 16, b & 0xFFFF
    cross = high_a * low_b, low_a * high_b
    low = ((low_a.astype(jnp.uint32) * low_b.astype(jnp.uint32)) >> 16).astype(jnp.int32)
    carry = (cross[0] & 0x7FFF) + (cross[1] & 0x7FFF) + low + (1 << 14)
    return high_a * high_b * 2 + (cross[0] >> 15) + (cross[1] >> 15) + (carry >> 15)


def shift_half_away(x: jax.Array, shift: jax.Array) -> jax.Array:
    """``x / 2**shift`` to the nearest integer, ties away from zero; 0 <= shift <= 31."""
    mask = jnp.where(shift >= 31, jnp.int32(0x7FFFFFFF), (jnp.int32(1) << jnp.minimum(shift, 30)) - 1)
    remainder = x & mask
    threshold = (mask >> 1) + (x < 0).astype(jnp.int32)
    return (x >> shift) + (remainder > threshold).astype(jnp.int32)


def long_multiply(high: jax.Array, low: jax.Array, multiplier: jax.Array, shift: jax.Array) -> jax.Array:
    """``floor(((2**8 * high + low) * multiplier + 2**(shift - 1)) / 2**shift)``, saturating at int32.

    ``high`` and ``low`` are int32, ``0 <= multiplier < 2**15``, ``1 <= shift <= 46``: the product of 64 bits that
    LiteRT forms for 16-bit activations, in limbs of 16 bits.
    """
    high, low = high + (low >> 8), low & 0xFF
    first = (((high & 0xFF) << 8) | low) * multiplier
    second = ((high >> 8) & 0xFFFF) * multiplier + (first >> 16)
    top = (high >> 24) * multiplier + (second >> 16)
    words = ((second & 0xFFFF) << 16 | (first & 0xFFFF)).astype(jnp.uint32)
    half = shift - 1
    rounded = words + jnp.where(half < 32, jnp.uint32(1) << jnp.minimum(half, 31).astype(jnp.uint32), jnp.uint32(0))
    top = top + (rounded < words).astype(jnp.int32) + jnp.where(half < 32, 0, 1 << jnp.maximum(half - 32, 0))
    left = jnp.clip(32 - shift, 0, 31)
    near = (top << left) | (rounded >> jnp.minimum(shift, 31).astype(jnp.uint32)).astype(jnp.int32)
    limit = jnp.int32(1) << jnp.minimum(half, 30)
    near = jnp.where(top >= limit, 2**31 - 1, jnp.where(top < -limit, -(2**31), near))
    return jnp.where(shift < 32, near, top >> jnp.maximum(shift - 32, 0))


def integer_multiplier(numerators: tuple[jax.Array, jax.Array], denominator: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(m, e) with ``n0 * n1 / d ~ m * 2**(e - 31)``, 2**30 <= abs(m) < 2**31: gemmlowp's form.

    The quotient of the 24-bit mantissas is divided out bit by bit, so it is rounded once, half away, as from exact
    arithmetic: float32 would lose 7 of the 31 bits. A multiplier below 2**-31 gives m = 0.
    """
    n0, n1, d = jnp.broadcast_arrays(*numerators, denominator)
    (m0, e0), (m1, e1), (md, ed) = (jnp.frexp(jnp.abs(v).astype(jnp.float32)) for v in (n0, n1, d))
    a, b, divisor = ((m * 2**24).astype(jnp.uint32) for m in (m0, m1, md))
    # the 48-bit product a * b in two words of 24 bits
    low_a, high_a, low_b, high_b = a & 0xFFF, a >> 12, b & 0xFFF, b >> 12
    middle = low_a * high_b + high_a * low_b
    low = low_a * low_b + ((middle & 0xFFF) << 12)
    high = high_a * high_b + (middle >> 12) + (low >> 24)
    low = low & 0xFFFFFF
    zero = (a == 0) | (b == 0)

    def divide(i, state):
        """One binary digit of long division, until 31 significant digits are there; the next one rounds."""
        quotient, remainder, digits, rounding = state
        word = jnp.where(i < 24, high >> (23 - jnp.minimum(i, 23)), low >> (47 - jnp.clip(i, 24, 47)))
        remainder = (remainder << 1) | jnp.where(i < 48, word & 1, 0)
        digit = (remainder >= divisor).astype(jnp.uint32)
        full = quotient >= 2**30
        rounding = jnp.where(full & (digits == i), digit, rounding)
        quotient = jnp.where(full, quotient, (quotient << 1) | digit)
        digits = jnp.where(full, digits, digits + 1)
        return quotient, remainder - digit * divisor, digits, rounding

    nothing = jnp.zeros_like(a)
    start = nothing, nothing, jnp.zeros(a.shape, jnp.int32), nothing
    quotient, _, digits, rounding = jax.lax.fori_loop(0, 64, divide, start)
    quotient = quotient + rounding
    carry = (quotient >> 31) > 0
    mantissa = jnp.where(carry, quotient >> 1, quotient).astype(jnp.int32)
    # quotient = a * b / divisor * 2**(digits - 48), and the mantissas a, b, divisor carry 2**24 each
    exponent = e0 + e1 - ed - 24 + 48 - digits + 31 + carry.astype(jnp.int32)
    gone = zero | (exponent < -31)
    sign = jnp.where((n0 < 0) ^ (n1 < 0), -1, 1).astype(jnp.int32)
    return jnp.where(gone, 0, mantissa * sign), jnp.where(gone, 0, exponent)
