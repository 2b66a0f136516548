"""Fashion-MNIST (arXiv:1708.07747), installed, in a folder or from its public home; CIFAR-10 in a folder.

Data are looked for in this order: the folder that is given, the system's folders, the cache, the network. What is
downloaded is checked against its SHA-256 and appears in the cache whole or not at all.
"""

import gzip
import hashlib
import os
import pathlib
import typing
import urllib.request

import numpy as np

INSTALLED = tuple(
    pathlib.Path(root) / "datasets" / "fashion-mnist" for root in ("/usr/share", "/usr/local/share", "~/.local/share")
)
HOMES = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)

#: File name, and the SHA-256 of what it holds: compressed files differ in their headers from one archive to another.
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


class Split(typing.NamedTuple):
    """Images as uint8 (number, height, width, channels), labels as int32."""

    images: np.ndarray
    labels: np.ndarray


class Data(typing.NamedTuple):
    """What to train on, what to test on, what it is called, and a sentence that says where it came from."""

    train: Split
    test: Split
    name: str
    source: str


def load(folder: str | None = None, cache: str | pathlib.Path = ".cache") -> Data:
    """Reads the data set.

    Args:
      folder: holds the four idx files of Fashion-MNIST (or others in their format), gzipped or not, or the binary
        version of CIFAR-10.
      cache: where to keep what is downloaded.

    Raises:
      FileNotFoundError: the folder holds neither, or nothing was found and the network gave nothing.
      ValueError: a file is damaged.
    """
    if folder is not None:
        place = pathlib.Path(folder).expanduser()
        if (place / "data_batch_1.bin").exists():
            return _cifar(place)
        if _missing(place):
            raise FileNotFoundError(
                f"{place} has no {_missing(place)[0]}.gz and no data_batch_1.bin. Use the folder of Fashion-MNIST's "
                "idx files or of CIFAR-10's binary version, or leave it out."
            )
        return _fashion(place, f"data: {place}")
    for place in map(pathlib.Path.expanduser, INSTALLED):
        if not _missing(place):
            return _fashion(place, f"data: Fashion-MNIST, installed in {place}")
    place = pathlib.Path(cache).expanduser() / "fashion-mnist"
    wanted = _missing(place)
    for name in wanted:
        _download(name, place)
    return _fashion(place, f"data: Fashion-MNIST, {'downloaded to' if wanted else 'cached in'} {place}")


def _missing(folder: pathlib.Path) -> list[str]:
    return [name for name in FILES if not (folder / name).exists() and not (folder / f"{name}.gz").exists()]


def _download(name: str, folder: pathlib.Path) -> None:
    errors = []
    for home in HOMES:
        try:
            with urllib.request.urlopen(f"{home}{name}.gz", timeout=60) as response:
                packed = response.read()
            found = hashlib.sha256(gzip.decompress(packed)).hexdigest()
        except (OSError, EOFError) as error:  # refused, cut off, or no gzip file
            errors.append(f"{home}: {error}")
            continue
        if found == FILES[name]:
            write_whole(folder / f"{name}.gz", lambda file, packed=packed: file.write(packed))
            return
        errors.append(f"{home}: its SHA-256 is {found}, wanted {FILES[name]}")
    raise FileNotFoundError(
        f"cannot download {name}.gz:\n  " + "\n  ".join(errors) + "\nUse --data FOLDER with the four files in it."
    )


def write_whole(path: pathlib.Path, write: typing.Callable[[typing.Any], typing.Any]) -> None:
    """Writes a file under another name and renames it, so that a reader or a crash never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _idx(path: pathlib.Path) -> np.ndarray:
    """An array of bytes in the idx format: two zeros, 8, the rank, the lengths in big endian, the values."""
    raw = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())
    rank = raw[3] if raw[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(raw[4 : 4 + 4 * rank], ">u4").astype(int)
    if not rank or len(raw) != 4 + 4 * rank + np.prod(shape):
        raise ValueError(f"{path} is no idx file of bytes, or is cut off. Remove it, and it will be fetched again.")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _fashion(folder: pathlib.Path, source: str) -> Data:
    images, labels, test_images, test_labels = (_idx(folder / name) for name in FILES)
    return Data(
        Split(images[..., None], labels.astype(np.int32)),
        Split(test_images[..., None], test_labels.astype(np.int32)),
        "fashion",
        source,
    )


def _cifar(folder: pathlib.Path) -> Data:
    def split(*names: str) -> Split:
        raw = np.concatenate([np.fromfile(folder / name, np.uint8) for name in names])
        if len(raw) % 3073:
            raise ValueError(f"{folder}: a record of CIFAR-10 has 3073 bytes, and {names} do not divide by that.")
        records = raw.reshape(-1, 3073)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return Split(np.ascontiguousarray(images), records[:, 0].astype(np.int32))

    train = sorted(path.name for path in folder.glob("data_batch_*.bin"))
    return Data(split(*train), split("test_batch.bin"), "cifar10", f"data: CIFAR-10, {folder}")
