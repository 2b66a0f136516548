"""Range coding: to the entropy, back to the bytes, and no further than was declared."""

import numpy as np
import pytest

from jqz import _packing
from jqz.files import Entropy
from jqz.files.range_coding import Packed

RNG = np.random.default_rng(0)


def _codes(bits, shape=(300, 101), spread=0.15):
    """Rounded normal numbers in two's complement: what codes of trained weights look like."""
    top = 2 ** (bits - 1) - 1
    codes = np.clip(np.rint(RNG.normal(size=shape) * spread * 2**bits), -top, top)
    return codes.astype(np.int8 if bits <= 8 else np.int16)


def _packed(codes, bits):
    if bits < 8:
        return _packing.pack(codes, bits), Packed(codes.shape, np.dtype(np.uint8), bits, codes.shape[-1])
    return codes, Packed(codes.shape, codes.dtype, 8 * codes.itemsize, None)


def _entropy_bits(codes):
    """The zeroth-order entropy by its definition, in bits for all of the codes."""
    counts = np.unique_counts(codes).counts
    return -(counts * np.log2(counts / codes.size)).sum()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_within_a_percent_of_the_entropy(bits):
    codes = _codes(bits)
    payload, packed = _packed(codes, bits)
    coded = Entropy().encode(payload, packed)
    assert _entropy_bits(codes) / 8 - 8 < coded.nbytes < 1.01 * _entropy_bits(codes) / 8 + 2 * len(np.unique(codes)) + 8
    np.testing.assert_array_equal(Entropy().decode(coded, packed), payload)


def test_large_tensor_within_a_percent_all_told():
    codes = _codes(4, (1500, 1000))  # more than one chunk
    payload, packed = _packed(codes, 4)
    coded = Entropy().encode(payload, packed)
    assert coded.nbytes < 1.001 * _entropy_bits(codes) / 8
    np.testing.assert_array_equal(Entropy().decode(coded, packed), payload)


@pytest.mark.parametrize("bits", [12, 16])
def test_wide_codes(bits):
    codes = _codes(bits, (300, 400), 0.002)
    payload, packed = _packed(codes, bits)
    coded = Entropy().encode(payload, packed)
    assert coded.nbytes < 0.75 * payload.nbytes
    np.testing.assert_array_equal(Entropy().decode(coded, packed), payload)


def test_one_level():
    payload, packed = _packed(np.full((40, 50), -3, np.int8), 8)
    coded = Entropy().encode(payload, packed)
    assert coded.nbytes < 20
    np.testing.assert_array_equal(Entropy().decode(coded, packed), payload)


@pytest.mark.parametrize("codes", [RNG.integers(-128, 128, (40, 40)).astype(np.int8), np.zeros((0, 3), np.int8)])
def test_what_does_not_shrink_stays(codes):
    assert Entropy().encode(*_packed(codes, 8)) is None


def test_what_would_be_a_bomb_stays_packed():
    """A file may not declare more than 256 times its bytes, so save does not write such a one."""
    payload, packed = _packed(np.zeros((2**13, 2**10), np.int8), 8)
    assert Entropy().encode(payload, packed) is None


def test_declared_sizes_bound_decoding():
    payload, packed = _packed(np.zeros(2000, np.int8), 8)
    coded = Entropy().encode(payload, packed)
    with pytest.raises(ValueError, match="too many to be true"):
        Entropy().decode(coded, packed._replace(shape=(2**40,)))
    with pytest.raises(ValueError, match="counts 2000 codes, wanted 1999"):
        Entropy().decode(coded, packed._replace(shape=(1999,)))


def test_any_changed_byte_is_found():
    payload, packed = _packed(_codes(4, (30, 31)), 4)
    coded = Entropy().encode(payload, packed)
    for at in range(coded.nbytes):
        changed = coded.copy()
        changed[at] ^= 1 << (at % 8)
        with pytest.raises((ValueError, AssertionError)):
            Entropy().decode(changed, packed)
    for length in range(coded.nbytes):
        with pytest.raises((ValueError, AssertionError)):
            Entropy().decode(coded[:length], packed)
