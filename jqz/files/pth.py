"""PyTorch's checkpoints, read without PyTorch and without running what they hold.

A ``.pth`` file is a pickle, which may call any function. Here it may build dicts, lists, numbers, strings and tensors;
at anything else reading stops with the name of what it asked for.
"""

import dataclasses
import io
import math
import pickle
import typing
import zipfile
from collections.abc import Callable, Iterator

import jax
import ml_dtypes
import numpy as np

from jqz.files import lazy, names
from jqz.files.atomic import Path
from jqz.files.lazy import Lazy
from jqz.files.safetensors import naming

_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BoolStorage": "?",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
}
#: What begins a file of the format before PyTorch 1.6.
_MAGIC = 0x1950A86A20F9469CFC6C
#: No tree of parameters is deeper or has more leaves.
_DEPTH, _LEAVES = 64, 10**6


def read(path: Path) -> typing.Any:
    """Reads what ``torch.save`` wrote: a state dict, or a checkpoint of dicts, lists, numbers, strings and tensors.

    Names such as ``"layer.0.weight"`` become nested dicts; tensors become NumPy arrays with their axes as they were.
    Both formats are read, that of PyTorch 1.6 and later and the one before. A file that holds a whole model, objects
    of classes, is refused: save ``model.state_dict()``.

    Raises:
      ValueError: the file is damaged, or asks for anything else; the message says what.

    >>> import pathlib, jqz
    >>> for suffix in (".pth", ".pt"):
    ...     print(jqz.files.format_of(f"net{suffix}").__name__)
    jqz.files.pth
    jqz.files.pth
    """
    with naming("pth.read", path):
        return jax.tree.map(lazy.value, _scan(path))


def scan(path: Path) -> typing.Any:
    """As ``read``, with tensors that are read one at a time, when asked."""
    with naming("pth.scan", path):
        return _scan(path)


def write(path: Path, tree: typing.Any) -> typing.NoReturn:
    """Refuses: a pickle is no format to spread. Write safetensors, which PyTorch reads too."""
    raise ValueError(f"pth.write: {str(path)!r} would be a pickle. Use a name that ends in .safetensors.")


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    """Numbers in a row: ``make`` reads their bytes, ``room`` of them."""

    dtype: np.dtype
    room: int
    make: Callable[[], bytes]


def _tensor(storage: typing.Any, offset: int, shape: typing.Any, strides: typing.Any, *_: typing.Any) -> Lazy:
    offset, shape, strides = int(offset), tuple(map(int, shape)), tuple(map(int, strides))
    sound = len(shape) == len(strides) <= 32 and min((offset, *shape, *strides)) >= 0 and max((0, *shape)) < 2**48
    if not isinstance(storage, _Storage) or not sound:
        raise ValueError(f"a tensor of shape {shape} and strides {strides} is none.")
    size, count = storage.dtype.itemsize, math.prod(shape)
    strides = tuple(stride * size if count and n > 1 else 0 for n, stride in zip(shape, strides, strict=True))
    end = offset * size + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + size
    # a tensor that repeats its numbers may be larger than the file, though not without bounds
    if count and (end > storage.room or count * size > 2 * storage.room + 2**16):
        raise ValueError(f"a tensor of shape {shape} reads {count * size} bytes, of {storage.room} that are there.")

    def make() -> np.ndarray:
        if not count:
            return np.zeros(shape, storage.dtype)
        data = storage.make()
        if len(data) < end:
            raise ValueError(f"a tensor of shape {shape} ends behind its storage.")
        flat = np.frombuffer(data, storage.dtype, offset=offset * size, count=(end - offset * size) // size)
        return np.lib.stride_tricks.as_strided(flat, shape, strides).copy()

    return Lazy(shape, storage.dtype, make)


#: What a pickle may ask for by name.
_ADMITTED: dict[tuple[str, str], typing.Any] = {
    ("collections", "OrderedDict"): dict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    **{("torch", name): np.dtype(code) for name, code in _DTYPES.items()},
    ("torch", "BFloat16Storage"): np.dtype(ml_dtypes.bfloat16),
}

_OPCODES = (
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "NONE", "NEWTRUE", "NEWFALSE", "GLOBAL", "STACK_GLOBAL", "REDUCE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING"),
    *("SHORT_BINSTRING", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND"),
    *("APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "BINPERSID"),
)
# Python's own: the memo of the one in C is an array as long as the largest number that a file names
_Base: typing.Any = getattr(pickle, "_Unpickler")  # noqa: B009


class _Unpickler(_Base):
    """Builds dicts, lists, numbers, strings and what ``_ADMITTED`` lists; runs nothing else."""

    dispatch: typing.ClassVar = {
        code[0]: _Base.dispatch[code[0]] for code in (getattr(pickle, name) for name in _OPCODES)
    }

    def __init__(self, file: typing.BinaryIO, storage: Callable[..., _Storage]):
        super().__init__(file)
        self.storage = storage

    def find_class(self, module: str, name: str) -> typing.Any:
        if (module, name) not in _ADMITTED:
            raise ValueError(f"it asks for {module}.{name}, which is not read. Save model.state_dict().")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: typing.Any) -> _Storage:
        return self.storage(*pid)

    def _build(self) -> None:
        self.stack.pop()  # attributes of a dict: versions of PyTorch's modules

    dispatch[pickle.BUILD[0]] = _build


def _scan(path: Path) -> typing.Any:
    if zipfile.is_zipfile(path):
        tree = _zipped(path)
    else:
        with open(path, "rb") as file:
            tree = _before_zip(file.read())
    count = iter(range(_LEAVES))
    return _plain(tree, count, 0)


def _plain(x: typing.Any, count: Iterator[int], depth: int) -> typing.Any:
    """Nested dicts and lists; a pickle may refer to itself, and to one part many times."""
    if next(count, None) is None or depth > _DEPTH:
        raise ValueError(f"its tree has more than {_LEAVES} leaves, or is deeper than {_DEPTH}.")
    if isinstance(x, dict):
        return names.nested_at({str(key): _plain(part, count, depth + 1) for key, part in x.items()}, ".")
    if isinstance(x, list | tuple):
        return [_plain(part, count, depth + 1) for part in x]
    if x is None or isinstance(x, Lazy | bool | int | float | str):
        return x
    raise ValueError(f"it holds {type(x).__name__}, wanted tensors, numbers and strings.")


def _zipped(path: Path) -> typing.Any:
    """The format of PyTorch 1.6: a pickle and a file a storage, uncompressed."""
    archive = zipfile.ZipFile(path)
    members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
    if "data.pkl" not in members:
        raise ValueError("it has no data.pkl. Save model.state_dict() with torch.save.")
    for name, member in members.items():
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"its {name!r} is compressed, which torch.save never does.")
    if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
        raise ValueError("its bytes are in big-endian order. Save it on another machine.")

    def storage(kind: str, dtype: np.dtype, key: str, place: str, count: int, *_: typing.Any) -> _Storage:
        member = members[f"data/{key}"]
        size = int(count) * dtype.itemsize
        if kind != "storage" or not 0 <= size <= member.file_size:
            raise ValueError(f"storage {key!r} has {member.file_size} bytes, wanted {size}.")

        def make() -> bytes:
            with naming("pth.scan", path), archive.open(member) as file:
                return file.read(size)

        return _Storage(dtype, size, make)

    return _Unpickler(io.BytesIO(archive.read(members["data.pkl"])), storage).load()


def _before_zip(data: bytes) -> typing.Any:
    """The format before PyTorch 1.6: pickles, then the storages one after another."""
    stream = io.BytesIO(data)
    rooms: dict[str, tuple[np.dtype, int]] = {}
    starts: dict[str, int] = {}

    def storage(kind: str, dtype: np.dtype, key: str, place: str, count: int, view: typing.Any = None) -> _Storage:
        size = int(count) * dtype.itemsize
        if kind != "storage" or view is not None or not 0 <= size <= len(data):
            raise ValueError(f"storage {key!r} of {count} numbers is none.")
        if rooms.setdefault(key, (dtype, size)) != (dtype, size):
            raise ValueError(f"storage {key!r} has two sizes.")
        return _Storage(dtype, size, lambda: data[starts[key] : starts[key] + size])

    def load() -> typing.Any:
        return _Unpickler(stream, storage).load()

    if load() != _MAGIC:
        raise ValueError("it is no file of torch.save.")
    _, system, tree, keys = load(), load(), load(), load()
    if not system["little_endian"]:
        raise ValueError("its bytes are in big-endian order. Save it on another machine.")
    for key in keys:
        dtype, size = rooms[key]
        count, starts[key] = int.from_bytes(stream.read(8), "little"), stream.tell()
        if count * dtype.itemsize != size or starts[key] + size > len(data):
            raise ValueError(f"storage {key!r} has {count} numbers, wanted {size} bytes before the end.")
        stream.seek(size, io.SEEK_CUR)
    if missing := rooms.keys() - starts.keys():
        raise ValueError(f"storages {sorted(missing)} are not there.")
    return tree
