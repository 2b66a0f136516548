"""Flax's msgpack files: ``flax.serialization.to_bytes`` of a tree of parameters."""

import typing

from jqz.files import lazy, names
from jqz.files.atomic import Path, replacing
from jqz.files.safetensors import naming


def read(path: Path) -> typing.Any:
    """Reads a tree as Flax stored it: nested dicts, also where lists and tuples were.

    Raises:
      ValueError: the file is damaged.

    >>> import pathlib, tempfile, jqz, numpy as np
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.msgpack"
    >>> jqz.files.msgpack.write(path, {"layer": {"bias": np.zeros(2, np.float32)}})
    >>> jqz.files.msgpack.read(path)
    {'layer': {'bias': array([0., 0.], dtype=float32)}}
    """
    from flax import serialization

    with naming("msgpack.read", path), open(path, "rb") as file:
        tree = serialization.msgpack_restore(file.read())
        if not isinstance(tree, dict):
            raise ValueError(f"it holds {type(tree).__name__}, wanted a dict.")
        return tree


#: The format is read as a whole.
scan = read


def write(path: Path, tree: typing.Any) -> None:
    """Writes a tree of arrays for ``flax.serialization.from_bytes``; the file appears whole or not at all.

    Raises:
      TypeError: a leaf is no array.
    """
    from flax import serialization

    arrays = {name: lazy.value(array) for name, array in names.flat("msgpack.write", tree).items()}
    raw = serialization.msgpack_serialize(names.nested_at(arrays, "/"))
    with replacing(path) as file:
        file.write(raw)
