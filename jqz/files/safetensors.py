"""Plain safetensors files: arrays by name, and nothing about codes."""

import contextlib
import errno
import json
import math
import mmap
import os
import typing
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from jqz.files import lazy, names
from jqz.files.atomic import Path, replacing
from jqz.files.lazy import Lazy, Source, Unsettled

#: Bytes of a header, which is read into memory: some 25,000 tensors.
LARGEST_HEADER = 2**23

_WIDTHS = (8, 16, 32, 64)
_DTYPES = {
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in _WIDTHS},
    **{f"U{bits}": f"uint{bits}" for bits in _WIDTHS},
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
}
_CODES = {name: code for code, name in _DTYPES.items()}


def read(path: Path) -> typing.Any:
    """Reads the arrays of any safetensors file as nested dicts of read-only views of the file.

    Names are parted at ``/`` or, where none has one, at dots, as PyTorch names its weights. A file that ``jqz.save``
    wrote shows its codes and grids as arrays; ``jqz.load`` makes QTensors of them.

    Raises:
      ValueError: the file is damaged, or a name is the beginning of another.

    >>> import pathlib, tempfile, jqz, numpy as np
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "plain.safetensors"
    >>> jqz.files.safetensors.write(path, {"layer": {"bias": np.zeros(2, np.float32)}})
    >>> jqz.files.safetensors.read(path)
    {'layer': {'bias': array([0., 0.], dtype=float32)}}
    """
    with naming("safetensors.read", path):
        return names.nested(Header(path).mapped())


def scan(path: Path) -> typing.Any:
    """As ``read``, with leaves that are read one at a time, when asked."""
    with naming("safetensors.scan", path):
        return names.nested(Header(path).lazy())


def write(path: Path, tree: typing.Any) -> None:
    """Writes a tree of arrays under their paths; the file appears whole or not at all.

    Raises:
      TypeError: a leaf is no array of a dtype that the format knows. ``jqz.save`` writes QTensors and all else.
      ValueError: two leaves have one name, or one that the format has no place for.
    """
    arrays = names.flat("safetensors.write", tree)
    if "__metadata__" in arrays:
        raise ValueError("safetensors.write: '__metadata__' is what the format calls its strings. Use another key.")
    write_arrays(path, arrays, dict)


class Header:
    """A file's metadata, and where its tensors are; nothing else is read.

    Raises:
      ValueError: the file is damaged.
    """

    def __init__(self, path: Path):
        library = _library()
        self.source = Source(path)
        size, length = self.source.size, int.from_bytes(self.source.bytes_at(0, 8).tobytes(), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"it is damaged or no safetensors file: {size} bytes, and a header of {length}.")
        if length > LARGEST_HEADER:
            raise ValueError(f"its header has {length} bytes, wanted at most {LARGEST_HEADER}.")
        self.start = 8 + length
        raw = self.source.bytes_at(8, length).tobytes()
        try:
            with library.safe_open(path, "np") as opened:  # holds offsets, sizes and dtypes to the format
                known = set(opened.keys())
        except library.SafetensorError as error:
            raise ValueError(f"it is damaged or no safetensors file: {error}.") from error
        self.entries: dict[str, typing.Any] = json.loads(raw, object_pairs_hook=_without_doubles)
        self.metadata: dict[str, str] = self.entries.pop("__metadata__", {})
        if known != set(self.entries):
            raise ValueError("it changed while it was read.")
        for name, entry in self.entries.items():
            if entry["dtype"] not in _DTYPES:
                raise ValueError(f"the tensor {name!r} has the dtype {entry['dtype']!r}, which jqz does not read.")
            if len(entry["shape"]) > 32 or not all(0 <= n < 2**48 for n in entry["shape"]):
                raise ValueError(f"the tensor {name!r} has the shape {str(entry['shape'])[:100]}.")

    def mapped(self) -> dict[str, np.ndarray]:
        """The tensors as views of a memory map."""
        view = memoryview(mmap.mmap(self.source.descriptor, 0, access=mmap.ACCESS_READ))[self.start :]
        found = {}
        for name, entry in self.entries.items():
            start, end = entry["data_offsets"]
            found[name] = np.frombuffer(view[start:end], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return found

    def lazy(self) -> dict[str, Lazy]:
        """The tensors, each read when asked for."""
        return {name: self._lazy(entry) for name, entry in self.entries.items()}

    def _lazy(self, entry: dict[str, typing.Any]) -> Lazy:
        dtype, shape, start = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"][0]

        def make() -> np.ndarray:
            raw = self.source.bytes_at(self.start + start, math.prod(shape) * dtype.itemsize)
            return raw.view(dtype).reshape(shape)

        return Lazy(shape, dtype, make)


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray | Lazy], metadata: Callable[[], Mapping[str, str]]
) -> None:
    """Writes arrays in the order given, holding one at a time; ``metadata`` is asked when all are written.

    The header stands before the data and tells their sizes, so room is kept for it. Wide dtypes come first, which
    aligns all of them; what is unsettled comes last.
    """
    settled = sorted(
        (name for name, array in arrays.items() if not isinstance(array, Unsettled)),
        key=lambda name: -arrays[name].dtype.itemsize,
    )
    entries, end = {}, 0
    for name in settled:
        entries[name], end = _entry(name, arrays[name], end)
    longest, last = dict(entries), sum(_size_bytes(array) for array in arrays.values())
    longest |= {name: _entry(name, array, last)[0] for name, array in arrays.items() if name not in entries}
    # the unsettled may get another shape and dtype, and the metadata a longer checksum
    room = len(_header(longest, metadata())) + 64 * (len(arrays) - len(settled)) + 16
    room += -room % 8
    if room > LARGEST_HEADER:
        raise ValueError(
            f"the header has {room} bytes, wanted at most {LARGEST_HEADER}. Use fewer tensors: stack layers of one "
            "shape."
        )
    with replacing(path) as file:
        for name, array in arrays.items():
            data = np.asarray(lazy.value(array), order="C")  # of the same rank, unlike ascontiguousarray
            if name not in entries:
                entries[name], end = _entry(name, data, end)
            elif (data.dtype, data.size) != (array.dtype, array.size):
                raise ValueError(f"{name!r} is {data.dtype} of shape {data.shape}, and was announced otherwise.")
            file.seek(8 + room + entries[name]["data_offsets"][0])
            file.write(data.reshape(-1).view(np.uint8).data)
        header = _header(entries, metadata())
        file.seek(0)
        file.write(room.to_bytes(8, "little") + header + b" " * (room - len(header)))


def _entry(name: str, array: typing.Any, start: int) -> tuple[dict[str, typing.Any], int]:
    if array.dtype.name not in _CODES:
        raise TypeError(f"{name!r} has dtype {array.dtype}, which safetensors does not know. Use jqz.save.")
    end = start + _size_bytes(array)
    return {"dtype": _CODES[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, end]}, end


def _size_bytes(array: typing.Any) -> int:
    return array.size * array.dtype.itemsize


def _header(entries: Mapping[str, typing.Any], metadata: Mapping[str, str]) -> bytes:
    own = {"__metadata__": dict(metadata)} if metadata else {}
    for text in (*entries, *metadata, *metadata.values()):
        if not names.is_text(text):
            raise ValueError(f"{text[:100]!r} is no text that a file can hold. Use other keys.")
    return json.dumps({**own, **entries}, separators=(",", ":")).encode()


@contextlib.contextmanager
def naming(who: str, path: Path) -> Iterator[None]:
    """Names the file in whatever a damaged or hostile one leads to, and makes a ValueError of it."""
    try:
        yield
    except ImportError:
        raise
    except OSError as error:
        if error.errno != errno.EINVAL or error.filename:
            raise
        why = "it is damaged: it sends the reader before its beginning."
        raise ValueError(f"{who}: {os.fspath(path)!r}: {why}") from error
    except RecursionError:
        raise ValueError(f"{who}: {os.fspath(path)!r} is damaged: its tree is too deep.") from None
    except Exception as error:
        why = str(error) if isinstance(error, ValueError) else f"it is damaged: {type(error).__name__}: {error}"
        raise ValueError(f"{who}: {os.fspath(path)!r}: {why}") from error


def _library() -> typing.Any:
    try:
        import safetensors
    except ImportError as error:
        raise ImportError("files need safetensors. Use pip install 'jqz[files]'.") from error
    return safetensors


def _without_doubles(pairs: list[tuple[str, typing.Any]]) -> dict[str, typing.Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it is damaged: its header has a name twice.")
    return found
