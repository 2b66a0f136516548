"""Trees and flat names: ``{"a": {"b": x}}`` is ``a/b``."""

import typing
from collections.abc import Callable, Mapping

import jax
import numpy as np

from jqz import _paths
from jqz._learnable import is_whole
from jqz.files.lazy import Lazy

Arrays = dict[str, np.ndarray]


def nested(flat: Mapping[str, typing.Any]) -> typing.Any:
    """Nested dicts from names that are parted by ``/`` or, where no name has one, by a dot.

    Raises:
      ValueError: a name is the beginning of another one.

    >>> nested({"net.0.weight": 1, "net.0.bias": 2})
    {'net': {'0': {'weight': 1, 'bias': 2}}}
    """
    return nested_at(flat, "/" if any("/" in name for name in flat) else ".")


def readable(who: str, flat: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """The leaves as they are, where ``nested`` makes a tree of them again.

    Raises:
      ValueError: a name is the beginning of another one.
    """
    try:
        nested(flat)
    except ValueError as error:
        raise ValueError(f"{who}: nothing could read this again: {error} Use other keys, or jqz.save.") from None
    return flat


def nested_at(flat: Mapping[str, typing.Any], part: str) -> typing.Any:
    """Nested dicts from names that are parted so."""
    return grown({tuple(name.split(part)): leaf for name, leaf in flat.items()}, part)


def grown(leaves: Mapping[tuple[str, ...], typing.Any], part: str) -> typing.Any:
    """Nested dicts from the keys that lead to each leaf; errors name these joined so."""
    tree: dict[str, typing.Any] = {}
    for (*folders, last), leaf in leaves.items():
        place: typing.Any = tree
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                break
        if not isinstance(place, dict) or last in place:
            name = part.join((*folders, last))
            raise ValueError(f"the name {name!r} is the beginning of another, or another is its own.")
        place[last] = leaf
    return tree


def dotted(who: str, flat: Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    """The leaves under names that dots part, as some formats have them.

    Raises:
      ValueError: two leaves have one name then.
    """
    found: dict[str, str] = {}
    for name in flat:
        other = found.setdefault(name.replace("/", "."), name)
        if other != name:
            raise ValueError(f"{who}: {other!r} and {name!r} are one name to this format. Use other keys.")
    return {short: flat[name] for short, name in found.items()}


def is_text(name: str) -> bool:
    """Whether a name has no half of a pair of UTF-16, such as Python puts for bytes that are no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def native(array: np.ndarray) -> np.ndarray:
    """Numbers in the byte order of this machine, which formats and JAX expect."""
    return array.astype(array.dtype.type) if array.dtype.kind in "iufc" and not array.dtype.isnative else array


def flat(who: str, tree: typing.Any, keep: Callable[[typing.Any], bool] = lambda leaf: False) -> dict[str, typing.Any]:
    """The arrays of a tree by name, and the leaves that ``keep`` accepts.

    Raises:
      TypeError: a leaf is no array of numbers.
      ValueError: two leaves have one name, one name is the beginning of another, or a name is no text.
    """
    found: dict[str, typing.Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_whole):
        name = _paths.name(path) or "value"
        if is_whole(leaf) and not keep(leaf):
            raise TypeError(
                f"{who}: {name!r} is {type(leaf).__name__}, wanted an array. Use jqz.save(path, tree), which keeps "
                "codes, or dequantize(tree)."
            )
        array = leaf if isinstance(leaf, Lazy) or keep(leaf) else native(np.asarray(leaf))
        if np.dtype(array.dtype).kind in "OUSM":
            raise TypeError(f"{who}: {name!r} has dtype {array.dtype}, wanted numbers. Use jqz.save, or leave it out.")
        if not is_text(name):
            raise ValueError(f"{who}: {name!r} is no text that a file can hold. Use other keys.")
        if name in found:
            raise ValueError(f"{who}: two leaves are named {name!r}. Use other keys, or jqz.save.")
        found[name] = array
    return readable(who, found)
