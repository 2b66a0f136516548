"""Files: trees of codes, grids and floats in a safetensors container, and plain arrays in the formats of others.

``jqz.save(path, tree)`` and ``jqz.load(path)``; ``metadata(path)`` reads the strings beside them, and ``Entropy()`` is
what ``save`` takes as ``compress=``. Plain arrays are read and written by one module a format, which all have
``read(path) -> nested dict`` and ``write(path, tree)``:

=============  =========================================================
safetensors    any program's tensors; views of the file
npz            NumPy's archives
msgpack        what ``flax.serialization.to_bytes`` writes
gguf           llama.cpp's; its blocks of 4, 6 and 8 bits as QTensors
orbax          the folders that Orbax writes, Flax's checkpoints
pth            PyTorch's checkpoints; read only, and nothing in them is run
=============  =========================================================

They need the extra ``jqz[files]``.
"""

import os
import pathlib
import types
import typing

from jqz.files import container, gguf, msgpack, npz, orbax, pth, safetensors
from jqz.files.atomic import Path
from jqz.files.container import load, metadata, save
from jqz.files.range_coding import Entropy

__all__ = [
    "FORMATS",
    "READABLE",
    "Entropy",
    "format_of",
    "load",
    "metadata",
    "metadata_of",
    "msgpack",
    "npz",
    "orbax",
    "pth",
    "safetensors",
    "save",
    "scan",
]

#: What reads and writes a file, by the end of its name.
FORMATS: dict[str, types.ModuleType] = {
    ".safetensors": safetensors,
    ".npz": npz,
    ".msgpack": msgpack,
    ".gguf": gguf,
    ".orbax": orbax,
}

#: What reads a file, by the end of its name.
READABLE: dict[str, types.ModuleType] = {**FORMATS, ".pth": pth, ".pt": pth}


def format_of(path: Path) -> types.ModuleType:
    """The module for a file, by the end of its name; a folder of any name is Orbax's.

    Raises:
      ValueError: the end is unknown.

    >>> import jqz
    >>> jqz.files.format_of("weights.npz").__name__
    'jqz.files.npz'
    """
    suffix = ".orbax" if os.path.isdir(path) else pathlib.Path(path).suffix
    if suffix not in READABLE:
        raise ValueError(f"{str(path)!r} ends in {suffix!r}, wanted one of {', '.join(READABLE)}. Rename it.")
    return READABLE[suffix]


def scan(path: Path) -> typing.Any:
    """The tree of any known file, codes as QTensors; its leaves are read one at a time, when asked, where the format
    allows.

    Raises:
      ValueError: the file is damaged, or the end of its name is unknown.
    """
    room = format_of(path)
    if room is safetensors and container.is_ours(path):
        return container.scan(path)
    return room.scan(path)


def metadata_of(path: Path) -> dict[str, str]:
    """The strings in a file that ``save`` wrote; none in any other."""
    return metadata(path) if format_of(path) is safetensors and container.is_ours(path) else {}
