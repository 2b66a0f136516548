"""Range coding: to the entropy, back to the bytes, and no further than was declared."""

import numpy as np
import pytest

from jqz import _packing
from jqz.files import Entropy
from jqz.files.range_coding import Packed, _Table

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
    assert _entropy_bits(codes) / 8 - 8 < coded.nbytes < 1.01 * _entropy_bits(codes) / 8 + 24
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


@pytest.mark.parametrize("others", [0, 1, 300])
def test_what_is_nearly_all_of_one_value_fills_up_what_a_file_may_declare(others):
    """A file may not declare more than 256 times its bytes, and 64 KiB."""
    codes = np.zeros((2**10, 2**10), np.int8)
    codes.flat[RNG.choice(codes.size, others, replace=False)] = 7
    payload, packed = _packed(codes, 4)
    coded = Entropy().encode(payload, packed)
    assert (2**20 - 2**16) / 256 <= coded.nbytes < (2**20 - 2**16) / 256 + 8
    np.testing.assert_array_equal(Entropy().decode(coded, packed), payload)
    with pytest.raises(ValueError, match="too many to be true"):
        Entropy().decode(coded[:-8], packed)


@pytest.mark.parametrize("fine", range(9))
def test_steps_are_in_order_and_near(fine):
    table = _Table(fine, 0)
    counts = np.unique(np.concatenate([np.arange(3000), np.geomspace(1, 2**40, 3000).astype(np.int64)]))
    steps = table.steps(counts)
    assert (np.diff(steps) >= 0).all()
    assert 0 <= steps.min() < steps.max() < 2**14
    back = table.counts(steps)
    np.testing.assert_array_equal(back[counts < 2 ** (fine + 1)], counts[counts < 2 ** (fine + 1)])
    assert (np.abs(back[1:] / counts[1:] - 1) < 2.0**-fine).all()


def test_declared_sizes_bound_decoding():
    payload, packed = _packed(np.zeros(2000, np.int8), 8)
    coded = Entropy().encode(payload, packed)
    with pytest.raises(ValueError, match="too many to be true"):
        Entropy().decode(coded, packed._replace(shape=(2**40,)))
    with pytest.raises(ValueError, match="checksum"):
        Entropy().decode(coded, packed._replace(shape=(1999,)))


def _decoded(coded, packed):
    try:
        return Entropy().decode(coded, packed)
    except (ValueError, AssertionError):
        return None


def test_a_changed_byte_changes_no_code():
    """It is found, or it is one that does not matter, such as the last bits of the last word."""
    payload, packed = _packed(_codes(4, (30, 31)), 4)
    coded, found = Entropy().encode(payload, packed), 0
    for at in range(coded.nbytes):
        changed = coded.copy()
        changed[at] ^= 1 << (at % 8)
        got = _decoded(changed, packed)
        found += got is None
        assert got is None or np.array_equal(got, payload)
    assert found > coded.nbytes - 4
    assert all(_decoded(coded[:length], packed) is None for length in range(coded.nbytes - 4))
