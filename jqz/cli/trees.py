"""What the verbs on files share: leaves by name, their bytes, and mistakes told in one line."""

import argparse
import functools
import sys
import typing
from collections.abc import Callable

import jax
import numpy as np

from jqz import files
from jqz._learnable import Learnable, is_whole
from jqz._paths import name
from jqz._qtensor import QTensor
from jqz._transform import dequantize
from jqz.cli import output
from jqz.files.lazy import Lazy, value

FILES = f"files end in {', '.join(files.READABLE)}"


def leaves(path: str) -> dict[str, typing.Any]:
    """The arrays and QTensors of a file by name; read one at a time, when asked."""
    tree = files.scan(path)
    found = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_whole):
        path = name(keys) or "value"
        if isinstance(leaf, Learnable):
            grid = jax.tree_util.tree_leaves_with_path(leaf.grid)
            found |= {f"{path}/value": leaf.value, **{f"{path}/grid/{name(inner)}": part for inner, part in grid}}
        elif hasattr(leaf, "dtype"):
            found[path] = plain(leaf)
    return found


def others(path: str) -> list[str]:
    """The names of what is in a file beside arrays and QTensors: numbers and strings."""
    tree = jax.tree_util.tree_leaves_with_path(files.scan(path), is_leaf=is_whole)
    return [name(keys) or "value" for keys, leaf in tree if not hasattr(leaf, "dtype")]


def plain(leaf: typing.Any) -> typing.Any:
    """A leaf, and the numbers that a PRNG key is."""
    is_key = hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf)) if is_key else leaf


def whole(leaf: typing.Any) -> typing.Any:
    """A leaf with all that is in it read."""
    return jax.tree.map(value, leaf)


def decoded(leaf: typing.Any) -> np.ndarray:
    """The values of a leaf."""
    read = whole(leaf)
    return np.asarray(dequantize(read) if isinstance(read, QTensor) else read)


def stored_bytes(leaf: typing.Any) -> int:
    """Bytes of its arrays: packed codes and grid, or floats."""
    return sum(part.size * np.dtype(part.dtype).itemsize for part in jax.tree.leaves(leaf) if hasattr(part, "dtype"))


def value_bytes(leaf: typing.Any) -> int:
    """Bytes of its values where they are not coded."""
    if isinstance(leaf, Learnable):
        leaf = leaf.value
    return leaf.size * np.dtype(leaf.dtype).itemsize


def lazily(leaf: typing.Any, done: Callable[[], None]) -> Lazy:
    """The values of a leaf, decoded when they are written."""

    def make() -> np.ndarray:
        array = decoded(leaf)
        done()
        return array

    return Lazy(leaf.shape, np.dtype(leaf.dtype), make)


def told(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """A verb whose user's mistakes are one line on the error stream and an exit code."""

    @functools.wraps(run)
    def safe(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments)
        except BrokenPipeError:
            raise  # whoever reads our output has gone: main is silent about it
        except ImportError as error:
            code, why = 1, str(error)
        except OSError as error:
            code, why = 2, f"{error.filename!r}: {error.strerror}" if error.filename else str(error)
        except (ValueError, TypeError) as error:
            code, why = 2, str(error)
        why = why.removeprefix(f"{arguments.command}: ")
        lines = map(output.visible, f"jqz {arguments.command}: {why}".splitlines())
        print(*lines, sep="\n", file=sys.stderr)
        return code

    return safe
