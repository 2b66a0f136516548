"""What integer runtimes compute, in NumPy: the oracles of requantization."""

import numpy as np

from jqz._requant import XNNPACK, Float32Requant, Gemmlowp, HalfAway, ONNXRuntime


def srdhm(a, b):
    """gemmlowp's SaturatingRoundingDoublingHighMul, in int64."""
    product = a.astype(np.int64) * b.astype(np.int64)
    nudged = product + np.where(product >= 0, 2**30, 1 - 2**30)
    return np.where(nudged >= 0, nudged >> 31, -((-nudged) >> 31))  # the division truncates


def divide_by_power(x, shift):
    """gemmlowp's RoundingDivideByPOT, in int64."""
    mask = (np.int64(1) << shift) - 1
    remainder, threshold = x & mask, (mask >> 1) + (x < 0)
    return (x >> shift) + (remainder > threshold)


def multiplier(numerators, denominator):
    """(m, e) as TFLite stores them: m = half_away(frac * 2**31), from the exact quotient."""
    real = numerators[0].astype(np.longdouble) * numerators[1].astype(np.longdouble) / denominator
    fraction, exponent = np.frexp(real)
    m = np.floor(fraction * 2**31 + 0.5).astype(np.int64)
    carry = m == 2**31
    return np.where(carry, 2**30, m), exponent + carry


def oracle(rule, acc, numerators, denominator, zero_point, low, high):
    if isinstance(rule, Float32Requant | XNNPACK | ONNXRuntime | HalfAway):
        m = numerators[0] * numerators[1] / denominator
        product = acc.astype(np.float32) * m
        assert product.dtype == np.float32
        codes = (
            np.rint(product)
            if not isinstance(rule, HalfAway)
            else np.copysign(np.floor(np.abs(product) + 0.5), product)
        )
        codes = codes.astype(np.int64)
    else:
        m, exponent = multiplier(numerators, denominator)
        x = srdhm(acc.astype(np.int64) << np.maximum(exponent, 0), m)
        right = np.maximum(-exponent, 0).astype(np.int64)
        codes = (
            divide_by_power(x, right) if isinstance(rule, Gemmlowp) else (x + ((np.int64(1) << right) >> 1)) >> right
        )
    return np.clip(codes + zero_point, low, high)
