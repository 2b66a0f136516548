"""Orbax's checkpoints: a folder with a document of its tree, and an array of TensorStore for each leaf."""

import contextlib
import importlib
import json
import math
import os
import pathlib
import re
import stat
import typing
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jqz.files import lazy, names
from jqz.files.atomic import Path, creating, disk_bytes
from jqz.files.lazy import Lazy
from jqz.files.safetensors import naming

#: What a folder with a tree in it has.
_DOCUMENT = "_METADATA"
#: Bytes of a document, which is read into memory: some 50,000 leaves.
_LARGEST_DOCUMENT = 2**24
#: Zeros become so many times fewer bytes, and nothing becomes fewer.
_LARGEST_RATIO = 2**15
#: How the document says that a key is the place in a list or tuple.
_IN_SEQUENCE = 1


def read(path: Path) -> typing.Any:
    """Reads a folder that any of Orbax's checkpointers wrote: nested dicts and lists of arrays, None and strings.

    Tuples and other sequences come back as lists and custom nodes as dicts, as Orbax restores them where it is given
    no target; numbers as arrays without axes, PRNG keys as their data. The folder of a step of ``CheckpointManager``
    is read too: as the tree that is in it, or as a dict of them where there are several.

    Raises:
      ValueError: the folder is damaged, unfinished or no checkpoint, or holds many steps; the message names them.

    >>> import pathlib, tempfile, jqz, numpy as np
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.orbax"
    >>> jqz.files.orbax.write(path, {"layer": {"bias": np.zeros(2, np.float32)}})
    >>> jqz.files.orbax.read(path)
    {'layer': {'bias': array([0., 0.], dtype=float32)}}
    """
    return jax.tree.map(lazy.value, _named("orbax.read", path))


def scan(path: Path) -> typing.Any:
    """As ``read``, with leaves that are read one at a time, when asked."""
    return _named("orbax.scan", path)


def write(path: Path, tree: typing.Any) -> None:
    """Writes a tree of arrays under their paths, for ``orbax.checkpoint.StandardCheckpointer`` to restore.

    The folder appears whole or not at all, and no folder is replaced. The tree is in memory as a whole.

    Raises:
      TypeError: a leaf is no array.
      ValueError: the folder exists, the tree is empty, a leaf has no numbers, or two leaves have the same path where
        Orbax joins keys by dots.
      ImportError: the library is missing: ``pip install 'jqz[files]'``.
    """
    checkpoint = _library("orbax.checkpoint")
    arrays = names.flat("orbax.write", tree)
    names.dotted("orbax.write", arrays)  # as Orbax stores them
    for name, array in arrays.items():
        if not array.size:
            raise ValueError(f"orbax.write: {name!r} has shape {array.shape}, and Orbax stores no empty arrays.")
    if not arrays:
        raise ValueError("orbax.write: the tree has no arrays, and Orbax stores no empty trees.")
    whole = names.nested_at({name: np.asarray(lazy.value(array)) for name, array in arrays.items()}, "/")
    with creating(path) as folder, checkpoint.Checkpointer(checkpoint.StandardCheckpointHandler()) as saver:
        saver.save(folder, args=checkpoint.args.StandardSave(whole))


def _named(who: str, path: Path) -> typing.Any:
    with naming(who, path):
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise ValueError("it is a file, wanted a folder that Orbax wrote.")
        folder = pathlib.Path(os.path.abspath(path))
        if any(".orbax-checkpoint-tmp" in part for part in folder.parts):
            raise ValueError("it was never finished. Use another checkpoint.")
        found = {item.name: _Item(who, item).tree() for item in _items(folder)}
        return next(iter(found.values())) if len(found) == 1 else found


def _items(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders with a tree in them: this one, or those in it."""
    if (folder / _DOCUMENT).exists():
        return [folder]
    items = sorted(document.parent for document in folder.glob(f"*/{_DOCUMENT}"))
    if not items:
        deeper = {document.parents[1].name for document in folder.glob(f"*/*/{_DOCUMENT}")}
        steps = sorted(deeper, key=lambda name: [int(n) for n in re.findall(r"\d{1,18}", name)])
        if steps:
            raise ValueError(f"it holds checkpoints in {', '.join(steps[-5:])}. Use {str(folder / steps[-1])!r}.")
        raise ValueError(f"it is no checkpoint of Orbax, or a damaged one: it has no {_DOCUMENT}.")
    return items


_STRING = "string"
#: Leaves that are nowhere but in the document, as Orbax restores them.
_EMPTY: dict[str, Callable[[], typing.Any]] = {
    "None": lambda: None,
    "NamedTuple": lambda: None,
    "Dict": dict,
    "List": list,
    "Tuple": tuple,
}


class _Leaf(typing.NamedTuple):
    """A row of the document: the keys that lead to a leaf, which of them are places in sequences, what it is."""

    keys: tuple[str, ...]
    ordered: tuple[bool, ...]
    kind: str

    @property
    def name(self) -> str:
        """As Orbax calls it in its folder."""
        return ".".join(self.keys)


class _Item:
    """A folder with a tree in it."""

    def __init__(self, who: str, folder: pathlib.Path):
        self.who, self.folder = who, folder
        self.document = _json(folder / _DOCUMENT)
        self.size_bytes = disk_bytes(folder)

    def tree(self) -> typing.Any:
        rows = [_row(row) for row in self.document["tree_metadata"].values()]
        stored = [row.name for row in rows if row.kind not in (*_EMPTY, _STRING)]
        leaves: dict[tuple[str, ...], typing.Any] = {row.keys: None for row in rows}
        if len(set(stored)) < len(stored) or len(leaves) < len(rows):
            raise ValueError("it is damaged: it has two leaves in one place.")
        strings = _json(self.folder / "_strings.json") if any(row.kind == _STRING for row in rows) else {}
        arrays = dict(zip(stored, self.opened(stored), strict=True))
        for row in rows:
            if row.kind in _EMPTY:
                leaves[row.keys] = _EMPTY[row.kind]()
            else:
                leaves[row.keys] = str(strings[row.name]) if row.kind == _STRING else arrays[row.name]
        if leaves.keys() == {()}:
            return leaves[()]
        sequences = {row.keys[:i] for row in rows for i, ordered in enumerate(row.ordered) if ordered}
        return _listed(names.grown(leaves, "/"), sequences, ())

    def opened(self, stored: list[str]) -> Iterator[Lazy]:
        """The arrays by name, each read when asked for; their headers are read all at once."""
        library = _library("tensorstore")
        opening = [library.open(self.spec(name), read=True, open=True) for name in stored]
        for name, store in zip(stored, opening, strict=True):
            with _telling(name):
                yield self.lazy(name, store.result())

    def spec(self, name: str) -> dict[str, typing.Any]:
        """Where TensorStore finds an array."""
        at = f"{name}/" if name else ""
        if self.document.get("use_ocdbt", True):
            base = {"driver": "file", "path": f"{self.folder}/"}
            place: dict[str, typing.Any] = {"driver": "ocdbt", "base": base, "path": at}
        elif name and not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ValueError(f"it has an array called {name!r}, which is no name within its folder.")
        else:
            place = {"driver": "file", "path": f"{self.folder}/{at}"}
        # where all was written, what is missing was lost, and is no zeros
        whole = self.document.get("store_array_data_equal_to_fill_value", False) is True
        driver = "zarr3" if self.document.get("use_zarr3", False) else "zarr"
        return {"driver": driver, "kvstore": place, "fill_missing_data_reads": not whole}

    def lazy(self, name: str, store: typing.Any) -> Lazy:
        shape, dtype = tuple(store.shape), np.dtype(store.dtype.numpy_dtype)
        if dtype.hasobject or dtype.itemsize == 0:
            raise ValueError(f"{name!r} is of {dtype}, wanted numbers.")
        largest = max(math.prod(shape), math.prod(store.chunk_layout.read_chunk.shape or ())) * dtype.itemsize
        if largest > _LARGEST_RATIO * self.size_bytes + 2**16:
            there = f"in a folder of {self.size_bytes}"
            raise ValueError(f"{name!r} of shape {shape} claims {largest} bytes {there}: too many to be true.")

        def make() -> np.ndarray:
            with naming(self.who, self.folder), _telling(name):
                return np.asarray(store.read().result())

        return Lazy(shape, dtype, make)


def _row(row: dict[str, typing.Any]) -> _Leaf:
    keys = row["key_metadata"]
    return _Leaf(
        tuple(str(key["key"]) for key in keys),
        tuple(key["key_type"] == _IN_SEQUENCE for key in keys),
        str(row["value_metadata"]["value_type"]),
    )


def _listed(tree: typing.Any, sequences: set[tuple[str, ...]], at: tuple[str, ...]) -> typing.Any:
    """The tree with lists where its dicts stand for sequences."""
    if type(tree) is not dict:
        return tree
    inner = {key: _listed(part, sequences, (*at, key)) for key, part in tree.items()}
    if at not in sequences:
        return inner
    places = [str(i) for i in range(len(inner))]
    if inner.keys() != set(places):
        raise ValueError(f"it is damaged: the sequence {'/'.join(at)!r} has the places {list(inner)[:9]}.")
    return [inner[place] for place in places]


def _json(path: pathlib.Path) -> typing.Any:
    """What a document says, if it has a sensible size."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _LARGEST_DOCUMENT:
                raise ValueError(f"its {path.name} has {size} bytes, wanted at most {_LARGEST_DOCUMENT}.")
            return json.loads(file.read(size + 1))
    except FileNotFoundError as error:
        raise ValueError(f"it is damaged: its {path.name} is missing.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it is damaged: its {path.name} is no JSON ({error}).") from error


def _library(name: str) -> typing.Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"Orbax's checkpoints need {name}. Use pip install 'jqz[files]'.") from error


@contextlib.contextmanager
def _telling(name: str) -> Iterator[None]:
    """Names the array in what TensorStore raises, and leaves out where in its own source that was."""
    try:
        yield
    except Exception as error:
        why = re.split(r" \[(?:tensorstore_spec|source locations|domain)", str(error))[0]
        raise ValueError(f"the array {name!r} is damaged: {why}") from error
