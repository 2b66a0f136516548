"""Plain files: what the library writes is read, what is written the library reads."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import jqz
from jqz.files.lazy import Lazy, Unsettled
from jqz.files.safetensors import Header, read, scan, write, write_arrays

RNG = np.random.default_rng(0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "plain.safetensors"


@pytest.mark.parametrize("part", [".", "/"])
def test_reads_what_the_library_writes(part, path):
    flat = {
        part.join(("net", "0", name)): RNG.normal(size=shape) for name, shape in (("w", (3, 4)), ("b", (4,)), ("s", ()))
    }
    safetensors.numpy.save_file(flat, path)
    for tree in (read(path), scan(path)):
        assert list(tree) == ["net"]
        for name, leaf in tree["net"]["0"].items():
            array = leaf.make() if isinstance(leaf, Lazy) else leaf
            np.testing.assert_array_equal(array, flat[part.join(("net", "0", name))])


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint16", "int64", "float16", ml_dtypes.bfloat16, "float32", "float64"],
    ids=str,
)
def test_the_library_reads_what_is_written(dtype, path):
    arrays = {"w": RNG.integers(0, 2, (5, 7)).astype(dtype), "none": np.zeros((0, 3), dtype), "one": np.ones((), dtype)}
    write(path, {"layer": [arrays, {"odd": np.arange(3, dtype=np.uint8)}]})
    seen = safetensors.numpy.load_file(path)
    for name, array in arrays.items():
        assert seen[f"layer/0/{name}"].dtype == array.dtype
        np.testing.assert_array_equal(seen[f"layer/0/{name}"], array)
    np.testing.assert_array_equal(seen["layer/1/odd"], np.arange(3))


def test_every_tensor_is_aligned(path):
    tree = {
        f"{i}": np.ones(2 * i + 1, dtype) for i, dtype in enumerate(("int8", "float64", "float16", "uint8", "float32"))
    }
    write(path, tree)
    header = Header(path)
    for name, entry in header.entries.items():
        assert (header.start + entry["data_offsets"][0]) % tree[name].dtype.itemsize == 0


def test_what_is_unsettled_may_shrink(path):
    """An array that turns out otherwise leaves no hole, and the header still fits."""
    big, small = np.arange(1000, dtype=np.int16), np.arange(17, dtype=np.uint8)
    arrays = {
        "a": Unsettled(big.shape, big.dtype, lambda: small),
        "b": Lazy((3,), np.dtype(np.float32), lambda: np.ones(3, np.float32)),
        "c": Unsettled(big.shape, big.dtype, lambda: big),
    }
    write_arrays(path, arrays, lambda: {"told": "late"})
    seen = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(seen["a"], small)
    np.testing.assert_array_equal(seen["b"], np.ones(3))
    np.testing.assert_array_equal(seen["c"], big)


def test_a_broken_promise_is_told(path):
    with pytest.raises(ValueError, match="'a' is float64 of shape"):
        write_arrays(path, {"a": Lazy((3,), np.dtype(np.float32), lambda: np.ones(3))}, dict)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        ({"w": jqz.quantize(np.ones((2, 2), np.float32), jqz.Symmetric(bits=4))}, "'w' is QTensor, .*Use jqz.save"),
        ({"w": "text"}, "'w' has dtype <U4"),
        ({"w": np.ones(2, ml_dtypes.int4)}, "'w' has dtype int4"),
        ({"a": {"b": np.ones(1)}, "a/b": np.ones(1)}, "two leaves are named 'a/b'"),
        ({"a": np.ones(1), "a/b": np.ones(1)}, "the name 'a/b' is the beginning of another"),
        ({f"{i}" * 2**20: np.ones(1) for i in range(9)}, "the header has [0-9]+ bytes"),
    ],
)
def test_refusals(tree, why, path):
    with pytest.raises((TypeError, ValueError), match=why):
        write(path, tree)
    assert not path.exists()


def test_names_that_cannot_be_nested(path):
    safetensors.numpy.save_file({"a": np.ones(1), "a.b": np.ones(1)}, path)
    with pytest.raises(ValueError, match=r"plain.safetensors': the name 'a.b' is the beginning of another"):
        read(path)
