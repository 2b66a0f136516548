"""NumPy's archives of arrays."""

import math
import typing
import zipfile

import jax
import numpy as np

from jqz.files import lazy, names
from jqz.files.atomic import Path, replacing
from jqz.files.lazy import Lazy
from jqz.files.safetensors import naming


def read(path: Path) -> typing.Any:
    """Reads an archive as nested dicts; names are parted at ``/`` or, where none has one, at dots.

    Raises:
      ValueError: the file is damaged, holds objects, or a name is the beginning of another.

    >>> import pathlib, tempfile, jqz, numpy as np
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.npz"
    >>> jqz.files.npz.write(path, {"layer": {"bias": np.zeros(2, np.float32)}})
    >>> jqz.files.npz.read(path)
    {'layer': {'bias': array([0., 0.], dtype=float32)}}
    """
    with naming("npz.read", path):
        return jax.tree.map(lazy.value, _scan(path))


def scan(path: Path) -> typing.Any:
    """As ``read``, with leaves that are read one at a time, when asked."""
    with naming("npz.scan", path):
        return _scan(path)


def write(path: Path, tree: typing.Any) -> None:
    """Writes a tree of arrays under their paths, uncompressed; the file appears whole or not at all.

    Raises:
      TypeError: a leaf is no array, or of a dtype that is not NumPy's own, such as bfloat16.
    """
    arrays = names.flat("npz.write", tree)
    for name, array in arrays.items():
        if "\0" in name:
            raise ValueError(f"npz.write: {name!r} would lose what follows its zero. Use other keys.")
        if array.dtype.isbuiltin != 1:
            raise TypeError(
                f"npz.write: {name!r} has dtype {array.dtype}, which is not NumPy's own. "
                "Use x.astype(np.float32), or jqz.files.safetensors.write."
            )
    with replacing(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(lazy.value(array)), allow_pickle=False)


def _scan(path: Path) -> typing.Any:
    archive = zipfile.ZipFile(path)
    return names.nested({m.filename.removesuffix(".npy"): _lazy(path, archive, m) for m in archive.infolist()})


def _lazy(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Lazy:
    with archive.open(member) as file:
        major, _ = np.lib.format.read_magic(file)
        headers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        if major not in headers:
            raise ValueError(f"{member.filename!r} is of the unknown version {major}.")
        shape, _, dtype = headers[major](file)
        rest = member.file_size - file.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != rest:
        raise ValueError(f"{member.filename!r} is {dtype} of shape {shape} in {rest} bytes, wanted numbers that fit.")
    if member.file_size > 1100 * member.compress_size + 2**16:
        raise ValueError(f"{member.filename!r} claims {member.file_size} bytes: too many to be true.")

    def make() -> np.ndarray:
        with naming("npz.scan", path), archive.open(member) as file:
            return names.native(np.lib.format.read_array(file, allow_pickle=False))

    return Lazy(shape, dtype, make)
