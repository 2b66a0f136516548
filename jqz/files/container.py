"""The file: a safetensors container with the tree's document in its metadata."""

import json
import typing
import zlib
from collections.abc import Iterable, Mapping

from jqz.files.atomic import Path
from jqz.files.range_coding import Entropy
from jqz.files.safetensors import Header, naming, write_arrays
from jqz.files.tree import describe, rebuild

#: What this version writes, and the newest that it reads.
VERSION = 1


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
        write_arrays(path, arrays, lambda: _sealed(own, node))
    except RecursionError:
        raise ValueError("save: the tree is too deep. Use fewer levels.") from None
    except (TypeError, ValueError) as error:  # of JAX's own too, which are made otherwise
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"save: {error}") from error


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
    _check_schemes("load", schemes)
    with naming("load", path):
        header = Header(path)
        return rebuild(_document(header.metadata)["tree"], header.mapped(), schemes)


def scan(path: Path, schemes: Iterable[type] = ()) -> typing.Any:
    """As ``load``, with leaves that are read one at a time, when asked."""
    _check_schemes("scan", schemes)
    with naming("scan", path):
        header = Header(path)
        return rebuild(_document(header.metadata)["tree"], header.lazy(), schemes)


def _check_schemes(who: str, schemes: typing.Any) -> None:
    if not isinstance(schemes, Iterable) or not all(isinstance(scheme, type) for scheme in schemes):
        raise TypeError(f"{who}: got schemes={schemes!r}, wanted classes. Use schemes=[MyScheme], without parentheses.")


def is_ours(path: Path) -> bool:
    """Whether ``save`` wrote a safetensors file."""
    with naming("scan", path):
        return "jqz" in Header(path).metadata


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
    with naming("metadata", path):
        own = Header(path).metadata
        _document(own)
        return {name: value for name, value in own.items() if not name.startswith("jqz")}


def _sealed(own: Mapping[str, str], node: typing.Any) -> dict[str, str]:
    sealed = {**own, "jqz": json.dumps({"version": VERSION, "tree": node}, separators=(",", ":"))}
    return {**sealed, "jqz.crc32": _checksum(sealed)}


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
