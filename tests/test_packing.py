import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqz import _packing

WIDTHS = range(1, 9)
LENGTHS = range(41)


def _oracle(row, bits):
    """The documented layout, one Python integer at a time."""
    out, shift = [], 0
    for width in (w for w in (1, 2, 4, 8) if bits & w):
        field = [(int(code) >> shift) % 2**width for code in row]
        shift += width
        count = 8 // width
        unit = -(-len(row) // count)
        for j in range(unit):
            held = [field[j + plane * unit] if j + plane * unit < len(row) else 0 for plane in range(count)]
            out.append(sum(value << (plane * width) for plane, value in enumerate(held)))
    return out


@pytest.mark.parametrize("bits", WIDTHS)
def test_layout_and_round_trip(bits):
    rng = np.random.default_rng(bits)
    low = -(2 ** (bits - 1))
    # 7 bits have a field of every width, so they stand for the others at most lengths
    lengths = LENGTHS if bits == 7 else (0, 1, 5, 8, 31)
    rows = [rng.integers(low, -low, (2, n)).astype(np.int8) for n in lengths]

    @jax.jit
    def there_and_back(rows):
        packed = [_packing.pack(row, bits) for row in rows]
        return packed, [_packing.unpack(p, bits, row.shape[-1], row.dtype) for p, row in zip(packed, rows, strict=True)]

    packed, back = there_and_back(rows)
    for row, p, b in zip(rows, packed, back, strict=True):
        assert p.dtype == jnp.uint8
        assert p.tolist() == [_oracle(line, bits) for line in row]
        np.testing.assert_array_equal(b, row)
        assert b.dtype == row.dtype


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_code_survives_and_every_bit_is_used(bits):
    every = np.arange(2**bits, dtype=np.uint8)
    packed = _packing.pack(jnp.asarray(every), bits)
    np.testing.assert_array_equal(_packing.unpack(packed, bits, every.size, jnp.uint8), every)
    # a multiple of 8 codes leaves no spare bit: each of the 2**(8 n) payloads is some row of codes
    row = np.random.default_rng(0).integers(0, 256, _packing.packed_length(8, bits)).astype(np.uint8)
    again = _packing.pack(_packing.unpack(jnp.asarray(row), bits, 8, jnp.uint8), bits)
    np.testing.assert_array_equal(again, row)


@pytest.mark.parametrize("bits", WIDTHS)
def test_length(bits):
    for n in LENGTHS:
        length = _packing.packed_length(n, bits)
        assert length == len(_oracle([0] * n, bits))
        assert -(-n * bits // 8) <= length < n * bits / 8 + len(_packing.fields(bits))
    assert sum(_packing.fields(bits)) == bits


def test_leading_axes_slice():
    codes = jnp.asarray(np.random.default_rng(1).integers(-4, 4, (3, 2, 11)), jnp.int8)
    packed = _packing.pack(codes, 3)
    assert packed.shape == (3, 2, _packing.packed_length(11, 3))
    np.testing.assert_array_equal(packed[1], _packing.pack(codes[1], 3))
    np.testing.assert_array_equal(jax.vmap(lambda c: _packing.pack(c, 3))(codes), packed)
    np.testing.assert_array_equal(_packing.unpack(packed[2, 1], 3, 11, jnp.int8), codes[2, 1])


def test_wider_integers_give_their_low_bits():
    codes = jnp.asarray([-3, 2, 1], jnp.int32)
    np.testing.assert_array_equal(_packing.pack(codes, 3), _packing.pack(codes.astype(jnp.int8), 3))


def test_refuses():
    with pytest.raises(ValueError, match="got a scalar"):
        _packing.pack(jnp.int8(1), 4)
    for bits in (0, 9):
        with pytest.raises(ValueError, match=f"bits={bits}"):
            _packing.fields(bits)
