"""GGUF: the gguf package writes what is read, and decodes what is written; damaged files are refused."""

import struct

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import mutants
import numpy as np
import pytest

import jqz
from jqz.files import lazy
from jqz.files.gguf import LAYOUTS, read, scan, write

RNG = np.random.default_rng(0)
TYPES = {layout.name: gguf.GGMLQuantizationType[layout.name] for layout in LAYOUTS.values()}
GROUP = jqz.PerGroup(32, axis=-1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.gguf"


def _blocks(layout, shape):
    """Any bytes are codes; halves are kept to finite, usual numbers."""
    rows = (*shape[:-1], shape[-1] // layout.values)
    raw = RNG.integers(0, 256, (*rows, layout.size_bytes)).astype(np.uint8)
    for at in {"Q4_1": (0, 2), "Q4_K": (0, 2), "Q6_K": (208,)}.get(layout.name, (0,)):
        half = RNG.uniform(-0.1, 0.1, rows).astype(np.float16)
        half[..., 0] = 0
        raw[..., at : at + 2] = (np.abs(half) if layout.name == "Q4_K" else half)[..., None].view(np.uint8)
    return raw.reshape(*shape[:-1], -1)


def _written(path, tensors):
    writer = gguf.GGUFWriter(path, "none")
    writer.add_string("some.text", "x" * 1000)
    writer.add_array("some.words", ["a", "bc", ""])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_float32("some.number", 1.5)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
@pytest.mark.parametrize("shape", [(5, 512), (2, 3, 256), (768,)], ids=str)
def test_decodes_as_the_package_does(layout, shape, path):
    raw = _blocks(layout, shape)
    _written(path, {"blk.0.weight": (raw, TYPES[layout.name]), "blk.0.bias": (np.ones(3, np.float32), None)})
    wanted = gguf.dequantize(raw, TYPES[layout.name])
    tree = read(path)
    np.testing.assert_array_equal(tree["blk"]["0"]["bias"], np.ones(3))
    q = tree["blk"]["0"]["weight"]
    assert (q.shape, q.dtype) == (shape, np.float32)
    got = np.asarray(q.dequantize())
    if isinstance(q.scheme, jqz.Symmetric):
        np.testing.assert_array_equal(got, wanted)
    else:  # (code + minimum / step) * step rounds otherwise than step * code + minimum
        np.testing.assert_allclose(got, wanted, rtol=3e-7, atol=1e-6 * np.abs(wanted).max())
    np.testing.assert_array_equal(jax.tree.map(lazy.value, scan(path))["blk"]["0"]["weight"].dequantize(), got)


def test_numbers_of_any_kind(path):
    dtypes = ("float32", "float16", "float64", "int8", "int16", "int32", "int64")
    arrays = {f"a.{dtype}": RNG.integers(-9, 9, (3, 5)).astype(dtype) for dtype in dtypes}
    _written(path, {name: (array, None) for name, array in arrays.items()})
    for name, array in arrays.items():
        got = read(path)["a"][name[2:]]
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_package_decodes_what_is_written(bits, path):
    x = RNG.normal(size=(6, 96)).astype(np.float32)
    scheme = jqz.Symmetric(bits=bits, granularity=GROUP)
    q = jqz.quantize(x, scheme)
    write(path, {"blk": [{"w": q, "b": x[0], "h": x.astype(ml_dtypes.bfloat16)}]})
    (tensors,) = [{tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}]
    assert sorted(tensors) == ["blk.0.b", "blk.0.h", "blk.0.w"]
    got = gguf.dequantize(tensors["blk.0.w"].data, tensors["blk.0.w"].tensor_type)
    halves = np.asarray(q.grid.scale).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(got, np.asarray(q.codes).astype(np.float32) * np.repeat(halves, 32, -1))
    np.testing.assert_array_equal(tensors["blk.0.b"].data, x[0])
    assert tensors["blk.0.h"].tensor_type.name == "BF16"


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])
def test_what_was_read_is_written_as_it_was(name, path):
    (layout,) = [layout for layout in LAYOUTS.values() if layout.name == name]
    raw = _blocks(layout, (4, 128))
    _written(path, {"w": (raw, TYPES[name])})
    tree = read(path)
    write(path, tree)
    np.testing.assert_array_equal(gguf.GGUFReader(path).tensors[0].data, raw)
    write(path, scan(path))
    np.testing.assert_array_equal(gguf.GGUFReader(path).tensors[0].data, raw)


@pytest.mark.parametrize(
    ("leaf", "why"),
    [
        (jqz.quantize(jnp.ones((2, 64)), jqz.Symmetric(bits=4)), "'w' is QTensor of .* wanted Q4_0 or Q8_0"),
        (jqz.quantize(jnp.ones((2, 64)), jqz.NormalFloat(bits=4)), "'w' is QTensor of .* wanted Q4_0 or Q8_0"),
        (jqz.quantize(jnp.ones((2, 48)), jqz.Symmetric(bits=8, granularity=GROUP)), "a last axis of whole groups"),
        (jqz.quantize(jnp.full((2, 32), 1e30), jqz.Symmetric(bits=8, granularity=GROUP)), "too large for float16"),
        (np.ones(3, np.uint8), "'w' has dtype uint8, which GGUF has not"),
        (np.ones((1, 1, 1, 1, 1), np.float32), "at most 4 axes"),
    ],
)
def test_refusals(leaf, why, path):
    with pytest.raises((TypeError, ValueError), match=why):
        write(path, {"w": leaf})
    assert not path.exists()


def test_unknown_types_are_named(path):
    _written(path, {"w": (np.zeros((1, 176), np.uint8), gguf.GGMLQuantizationType.Q5_K)})
    with pytest.raises(ValueError, match=r"net.gguf': 'w' is of the type 13, wanted floats, integers or Q4_0"):
        read(path)


def _bombs(data):
    """Counts and lengths that would take for ever, or all memory."""
    for at in (8, 16, 24):  # tensors, fields, the first name
        for number in (2**16, 2**31, 2**40, 2**63, 2**64 - 1):
            yield data[:at] + struct.pack("<Q", number) + data[at + 8 :]
    words = data.index(b"some.words") + len(b"some.words") + 8
    for number in (2**20, 2**40, 2**64 - 1):
        yield data[:words] + struct.pack("<Q", number) + data[words + 8 :]


def test_damaged_files(path):
    _written(
        path, {name: (_blocks(layout, (2, 256)), TYPES[name]) for layout in LAYOUTS.values() for name in [layout.name]}
    )
    sound, rng, messages = path.read_bytes(), np.random.default_rng(0), []
    kinds = (mutants.flipped, mutants.cut, mutants.stained)
    for data in [*_bombs(sound), *(kinds[i % 3](rng, sound) for i in range(300))]:
        path.write_bytes(data)
        try:
            read(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all("net.gguf': " in message for message in messages)


def test_scales_that_float16_would_lose_are_refused(tmp_path):
    scheme = jqz.Symmetric(bits=8, granularity=jqz.PerGroup(32, axis=-1))
    for size in (2e-6, 1e-3):
        with pytest.raises(ValueError, match="a scale is too small for float16"):
            write(tmp_path / "net.gguf", {"w": jqz.quantize(np.full((1, 32), size, np.float32), scheme)})
    write(tmp_path / "net.gguf", {"w": jqz.quantize(np.zeros((1, 32), np.float32), scheme)})
    assert not np.asarray(jqz.dequantize(read(tmp_path / "net.gguf"))["w"]).any()
