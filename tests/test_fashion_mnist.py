"""Where the examples' data come from."""

import gzip
import hashlib
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
from parts import fashion_mnist


def _idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture
def contents(monkeypatch):
    """Four small idx files under the names of the real ones, with checksums of their own; nothing is installed."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 10, shape, np.uint8) for shape in ((5, 4, 3), (5,), (2, 4, 3), (2,))]
    files = dict(zip(fashion_mnist.FILES, map(_idx, arrays), strict=True))
    monkeypatch.setattr(fashion_mnist, "FILES", {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()})
    monkeypatch.setattr(fashion_mnist, "INSTALLED", ())
    return arrays, files


def _same(data, arrays):
    assert np.array_equal(data.train.images[..., 0], arrays[0])
    assert np.array_equal(data.train.labels, arrays[1])
    assert np.array_equal(data.test.images[..., 0], arrays[2])
    assert np.array_equal(data.test.labels, arrays[3])
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == np.int32


def test_downloads_once_and_checks(contents, tmp_path, monkeypatch):
    arrays, files = contents
    (tmp_path / "home").mkdir()
    for name, raw in files.items():
        (tmp_path / "home" / f"{name}.gz").write_bytes(gzip.compress(raw))
    dead = (tmp_path / "nowhere").as_uri() + "/"
    monkeypatch.setattr(fashion_mnist, "HOMES", (dead, (tmp_path / "home").as_uri() + "/"))
    data = fashion_mnist.load(cache=tmp_path / "cache")
    _same(data, arrays)
    assert "downloaded to" in data.source
    monkeypatch.setattr(fashion_mnist, "HOMES", ())
    again = fashion_mnist.load(cache=tmp_path / "cache")
    _same(again, arrays)
    assert "cached in" in again.source
    assert sorted(path.name for path in (tmp_path / "cache" / "fashion-mnist").iterdir()) == sorted(
        f"{name}.gz" for name in files
    )


@pytest.mark.parametrize("harm", [lambda raw: gzip.compress(b"other"), lambda raw: gzip.compress(raw)[:-9], bytes])
def test_damaged_downloads_leave_nothing(contents, tmp_path, monkeypatch, harm):
    _, files = contents
    (tmp_path / "home").mkdir()
    for name, raw in files.items():
        (tmp_path / "home" / f"{name}.gz").write_bytes(harm(raw))
    monkeypatch.setattr(fashion_mnist, "HOMES", ((tmp_path / "home").as_uri() + "/",))
    with pytest.raises(FileNotFoundError, match="--data FOLDER"):
        fashion_mnist.load(cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.gz"))


def test_a_folder_that_is_given_comes_first(contents, tmp_path, monkeypatch):
    arrays, files = contents
    for place in ("given", "installed"):
        (tmp_path / place).mkdir()
    for name, raw in files.items():
        (tmp_path / "given" / name).write_bytes(raw)  # not gzipped
        (tmp_path / "installed" / f"{name}.gz").write_bytes(gzip.compress(raw))
    monkeypatch.setattr(fashion_mnist, "INSTALLED", (tmp_path / "installed",))
    data = fashion_mnist.load(str(tmp_path / "given"))
    _same(data, arrays)
    assert str(tmp_path / "given") in data.source
    data = fashion_mnist.load()
    _same(data, arrays)
    assert f"installed in {tmp_path / 'installed'}" in data.source


def test_a_folder_without_data_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no train-images-idx3-ubyte\.gz and no data_batch_1\.bin"):
        fashion_mnist.load(str(tmp_path))


def test_a_file_that_is_cut_off(contents, tmp_path):
    _, files = contents
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw[:-1])
    with pytest.raises(ValueError, match="is cut off"):
        fashion_mnist.load(str(tmp_path))


def test_cifar(tmp_path):
    """A record is a label and three planes of 32 x 32."""
    rng = np.random.default_rng(0)
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        rng.integers(0, 10, (3, 3073), np.uint8).tofile(tmp_path / name)
    data = fashion_mnist.load(str(tmp_path))
    raw = np.fromfile(tmp_path / "data_batch_2.bin", np.uint8)
    assert data.train.images.shape == (6, 32, 32, 3)
    assert data.train.labels[4] == raw[3073]
    assert data.train.images[4, 5, 7, 2] == raw[3073 + 1 + 2 * 1024 + 5 * 32 + 7]
    assert data.name == "cifar10"
