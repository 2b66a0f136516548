"""The file: a safetensors container with the tree's document in its metadata."""

import contextlib
import json
import mmap
import os
import pathlib
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from jqz.files.range_coding import Entropy
from jqz.files.tree import Arrays, describe, rebuild

#: What this version writes, and the newest that it reads.
VERSION = 1
#: Bytes of a header, which is read into memory: some 25,000 tensors.
LARGEST_HEADER = 2**23

Path = str | os.PathLike[str]

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
}


def save(
    path: Path, tree: typing.Any, metadata: Mapping[str, str] | None = None, *, compress: Entropy | None = None
) -> None:
    """Writes a tree to a safetensors file, codes and grids as they are.

    ``load`` gives the same tree back, bit for bit. Every safetensors reader sees the float leaves under their paths,
    and a QTensor as ``path/codes`` (packed) and ``path/grid/...``. The file appears whole or not at all: it is written
    beside its place, flushed to the disk and renamed; a process that is killed on the way may leave a hidden file
    ``.NAME.*.part`` behind.

    Args:
      path: the file; what was there is replaced.
      tree: dicts, lists, tuples and None of arrays, PRNG keys, Python numbers and strings, QTensors, Learnables and
        what ``calibrate`` returns. A FrozenDict and an NNX state are saved as dicts, NNX variables as their values.
      metadata: strings by name, for any reader; ``jqz.files.metadata(path)`` gives them back.
      compress: ``jqz.files.Entropy()`` codes the codes by how often they occur.

    Raises:
      TypeError: something else is in the tree.
      ValueError: a scheme's repr does not read back, or the header is larger than 8 MiB.
      ImportError: the library is missing: ``pip install 'jqz[files]'``.

    >>> import pathlib, tempfile, jax.numpy as jnp, jqz
    >>> params = {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.safetensors"
    >>> jqz.save(path, jqz.quantize(params, jqz.Symmetric(bits=4)), {"trained on": "digits"})
    >>> jqz.load(path)["kernel"]
    QTensor(shape=(4, 2), dtype=float32, scheme=Symmetric(bits=4))
    """
    library = _library()
    own = {} if metadata is None else dict(metadata)
    for name, value in own.items():
        if not isinstance(name, str) or not isinstance(value, str) or name.startswith("jqz"):
            raise TypeError(
                f"save: the metadata has {name!r}: {value!r}, wanted strings by names that do not begin with jqz. "
                "Use str(value)."
            )
    if compress is not None and not isinstance(compress, Entropy):
        raise TypeError(f"save: got compress={compress!r}, wanted None or a type. Use compress=jqz.files.Entropy().")
    try:
        node, arrays = describe(tree, compress)
        text = json.dumps({"version": VERSION, "tree": node}, separators=(",", ":"))
    except RecursionError:
        raise ValueError("save: the tree is too deep. Use fewer levels.") from None
    except (TypeError, ValueError) as error:
        raise type(error)(f"save: {error}") from error
    own["jqz"] = text
    own["jqz.crc32"] = _checksum(own)
    _write(pathlib.Path(os.path.realpath(path)), lambda part: library.numpy.save_file(arrays, part, metadata=own))


def load(path: Path, schemes: Iterable[type] = ()) -> typing.Any:
    """Reads the tree that ``save`` wrote.

    Its arrays are NumPy's, read-only views of the file: the system reads what is touched, when it is touched, so a
    file larger than memory loads at once. Every function of jqz takes them; ``jax.device_put(tree)`` makes JAX arrays
    of all. Entropy-coded tensors are decoded at once. The file may be replaced meanwhile, but not written into.

    Args:
      path: the file.
      schemes: classes of your own that its schemes are made of.

    Returns:
      The tree. Where an NNX state was saved, its nested dict: ``nnx.update(model, jax.device_put(tree))`` puts floats
      into a model, ``nnx.replace_by_pure_dict(state, tree)`` QTensors into a state.

    Raises:
      ValueError: the file is damaged, of a later version or not jqz's, or a scheme in it is unknown. The message names
        the file and the place. A file is data: nothing in it is run, and it cannot ask for more memory than its size
        warrants.
      FileNotFoundError: there is none.
      ImportError: the library is missing: ``pip install 'jqz[files]'``.

    >>> import pathlib, tempfile, jax.numpy as jnp, jqz
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "tree.safetensors"
    >>> jqz.save(path, {"steps": [3, None], "w": jnp.ones(2)})
    >>> jqz.load(path)
    {'steps': [3, None], 'w': array([1., 1.], dtype=float32)}
    """
    with _named("load", path):
        own, arrays = _read(path)
        return rebuild(_document(own)["tree"], arrays, schemes)


def metadata(path: Path) -> dict[str, str]:
    """The strings that ``save`` was given.

    Raises:
      ValueError: as ``load``.

    >>> import pathlib, tempfile, jqz
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "empty.safetensors"
    >>> jqz.save(path, {}, {"licence": "CC0"})
    >>> jqz.files.metadata(path)
    {'licence': 'CC0'}
    """
    with _named("metadata", path):
        own, _ = _read(path)
        _document(own)
        return {name: value for name, value in own.items() if not name.startswith("jqz")}


@contextlib.contextmanager
def _named(who: str, path: Path) -> Iterator[None]:
    """Names the file in whatever a damaged or hostile document leads to, and makes a ValueError of it."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except RecursionError:
        raise ValueError(f"{who}: {os.fspath(path)!r} is damaged: its tree is too deep.") from None
    except Exception as error:
        why = str(error) if isinstance(error, ValueError) else f"it is damaged: {type(error).__name__}: {error}"
        raise ValueError(f"{who}: {os.fspath(path)!r}: {why}") from error


def _library() -> typing.Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("files need safetensors. Use pip install 'jqz[files]'.") from error
    return safetensors


def _checksum(own: Mapping[str, str]) -> str:
    return str(zlib.crc32(json.dumps(sorted(own.items())).encode()))


def _document(own: dict[str, str]) -> dict[str, typing.Any]:
    if "jqz" not in own:
        raise ValueError("it holds no tree of jqz. Use safetensors.numpy.load_file for its tensors.")
    text = own["jqz"]
    if own.pop("jqz.crc32", None) != _checksum(own):
        raise ValueError("it is damaged: the checksum of its header is another.")
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is damaged: its document is no JSON ({error}).") from error
    version = document["version"]
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ValueError(f"it is of version {version!r}, and this jqz reads up to {VERSION}. Use a later jqz.")
    return document


def _read(path: Path) -> tuple[dict[str, str], Arrays]:
    """The metadata of a file and its tensors, as views of a memory map."""
    library = _library()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"it is damaged or no safetensors file: {size} bytes, and a header of {length}.")
        if length > LARGEST_HEADER:
            raise ValueError(f"its header has {length} bytes, wanted at most {LARGEST_HEADER}.")
        header = file.read(length)
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[8 + length :]
    try:
        with library.safe_open(path, "np") as opened:  # holds offsets, sizes and dtypes to the format
            names = set(opened.keys())
    except library.SafetensorError as error:
        raise ValueError(f"it is damaged or no safetensors file: {error}.") from error
    entries = json.loads(header, object_pairs_hook=_without_doubles)
    own = entries.pop("__metadata__", {})
    if names != set(entries):
        raise ValueError("it changed while it was read.")
    return own, {name: _array(name, entry, view) for name, entry in entries.items()}


def _array(name: str, entry: dict[str, typing.Any], view: memoryview) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"the tensor {name!r} has the dtype {entry['dtype']!r}, which jqz does not write.")
    start, end = entry["data_offsets"]
    return np.frombuffer(view[start:end], np.dtype(_DTYPES[entry["dtype"]])).reshape(entry["shape"])


def _without_doubles(pairs: list[tuple[str, typing.Any]]) -> dict[str, typing.Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it is damaged: its header has a name twice.")
    return found


def _write(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Writes a file so that its name stands for the old bytes or for the new ones, whenever the process ends."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        with open(part, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode if not path.exists() else path.stat().st_mode
        write(part)
        with open(part, "r+b") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError(
                    f"save: the header has {length} bytes, wanted at most {LARGEST_HEADER}. Use fewer tensors: stack "
                    "layers of one shape."
                )
            os.fsync(file.fileno())
        part.chmod(mode & 0o7777)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
