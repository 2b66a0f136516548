"""What a tree takes in memory, and in files that compress it."""

import dataclasses
import gzip
import lzma
import math
import typing
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jqz._qtensor import is_qtensor
from jqz._transform import dequantize, named_leaves, size_bytes

#: From a leaf, an array or a QTensor, to bytes.
Coder = Callable[[typing.Any], int]


def stored(leaf: typing.Any) -> int:
    """Bytes in memory: packed codes and grids."""
    return size_bytes(leaf)


def gzipped(leaf: typing.Any) -> int:
    """Bytes of packed codes and grids by gzip, level 9."""
    return len(gzip.compress(_payload(leaf), 9, mtime=0))


def lzma_compressed(leaf: typing.Any) -> int:
    """Bytes of packed codes and grids by LZMA (xz), which 7-zip uses too."""
    return len(lzma.compress(_payload(leaf)))


def values(leaf: typing.Any) -> int:
    """Bytes of the decoded values, floats as float32."""
    return len(_values(leaf))


def gzipped_values(leaf: typing.Any) -> int:
    """Bytes of the decoded values, floats as float32, by gzip: as arXiv:1910.04877 counts."""
    return len(gzip.compress(_values(leaf), 9, mtime=0))


def lzma_compressed_values(leaf: typing.Any) -> int:
    """Bytes of the decoded values, floats as float32, by LZMA."""
    return len(lzma.compress(_values(leaf)))


def entropy(leaf: typing.Any) -> int:
    """The least bytes of a code for single values: their entropy times their number, and the grids as they are."""
    codes = np.asarray(leaf.codes if is_qtensor(leaf) else leaf)
    counts = np.unique(codes, return_counts=True)[1]
    bits = float(np.sum(counts * np.log2(codes.size / counts))) if codes.size else 0.0
    grids = sum(np.asarray(part).nbytes for part in jax.tree.leaves(leaf.grid)) if is_qtensor(leaf) else 0
    return math.ceil(bits / 8) + grids


#: The columns of ``sizes``: a coder joins by a line.
CODERS: dict[str, Coder] = {
    "stored": stored,
    "entropy": entropy,
    "gzip": gzipped,
    "LZMA": lzma_compressed,
    "values, gzip": gzipped_values,
    "values, LZMA": lzma_compressed_values,
}


@typing.final
@dataclasses.dataclass(frozen=True)
class Size:
    """A leaf: its path, how many numbers it has, and its bytes by coder."""

    path: str
    weights: int
    size_bytes: Mapping[str, int]

    def bits_per_weight(self, coder: str) -> float:
        """8 * bytes / weights."""
        return 8 * self.size_bytes[coder] / self.weights if self.weights else 0.0


@typing.final
@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes of each leaf, by coder, and of all together; ``print`` it for a table."""

    leaves: tuple[Size, ...]

    @property
    def total(self) -> Size:
        """The sums, under the path ``total``."""
        coders = self.leaves[0].size_bytes if self.leaves else {}
        sums = {coder: sum(leaf.size_bytes[coder] for leaf in self.leaves) for coder in coders}
        return Size("total", sum(leaf.weights for leaf in self.leaves), sums)

    def __str__(self) -> str:
        rows = [*self.leaves, self.total]
        wide = max(len(row.path) for row in rows)
        heads = ["weights", *rows[-1].size_bytes]
        lines = [f"{'bytes':{wide}}" + "".join(f"  {head:>12}" for head in heads)]
        for row in rows:
            lines.append(f"{row.path:{wide}}" + "".join(f"  {n:>12,}" for n in (row.weights, *row.size_bytes.values())))
        return "\n".join(lines)


def sizes(tree: typing.Any, coders: Mapping[str, Coder] = CODERS) -> Sizes:
    """Counts the bytes of each leaf of a tree, in memory and by coders that files use.

    Each leaf is compressed by itself, so small leaves pay a header of their own (gzip 20, LZMA 60 bytes). Compress
    codes for real use; ``values, ...`` are there to compare with publications that compress decoded floats.

    Args:
      tree: arrays and QTensors.
      coders: the columns: a name, and a function from a leaf to bytes.

    Returns:
      ``Sizes``; ``sizes(tree).total.size_bytes["gzip"]``.

    >>> import jax.numpy as jnp, jqz
    >>> from jqz.analysis import sizes
    >>> table = sizes({"w": jqz.quantize(jnp.ones((64, 10)), jqz.Symmetric(bits=4)), "b": jnp.zeros(10)})
    >>> dict(table.total.size_bytes)["stored"], table.leaves[1].path, table.leaves[1].bits_per_weight("stored")
    (364, 'w', 4.05)
    """
    return Sizes(
        tuple(
            Size(path, leaf.size, {name: coder(leaf) for name, coder in coders.items()})
            for path, leaf in _numbers(tree)
        )
    )


def _numbers(tree: typing.Any) -> Iterator[tuple[str, typing.Any]]:
    """Its arrays and QTensors; keys as what they are made of."""
    for path, leaf in named_leaves(tree):
        if hasattr(leaf, "dtype"):
            key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            yield path, jax.random.key_data(leaf) if key else leaf


def _payload(leaf: typing.Any) -> bytes:
    return b"".join(np.asarray(part).tobytes() for part in jax.tree.leaves(leaf))


def _values(leaf: typing.Any) -> bytes:
    decoded = np.asarray(dequantize(leaf))
    return (decoded.astype(np.float32) if jnp.issubdtype(decoded.dtype, jnp.floating) else decoded).tobytes()
