"""``jqz sizes``: what a net takes as floats, packed, and compressed."""

import argparse
import lzma
import typing
import zlib

import jax
import numpy as np

from jqz import files
from jqz.cli import output, trees
from jqz.files import tree

EXAMPLES = """\
  jqz sizes small.safetensors                           bytes as floats, packed, gzipped, entropy-coded
"""

_DESCRIPTION = f"""\
Counts bytes: of the decoded values as float32, by gzip and by LZMA (the measure of publications that compress decoded
floats), of packed codes and grids, those by gzip, and those with each tensor's codes entropy-coded, as save does it.
{trees.FILES[0].upper() + trees.FILES[1:]}.
"""


def add(commands: typing.Any) -> None:
    """The verb and its arguments."""
    about = "bytes as floats, packed and compressed"
    parser = output.verb(commands, "sizes", about, _DESCRIPTION, EXAMPLES, trees.told(run))
    parser.add_argument("file", metavar="FILE")


def run(arguments: argparse.Namespace) -> int:
    """Streams the file through the compressors."""
    leaves = trees.leaves(arguments.file)
    floats, lzma_floats, packed = _Gzip(), _Lzma(), _Gzip()
    float_bytes = coded_bytes = 0
    with output.progress("sizes", sum(map(trees.value_bytes, leaves.values()))) as advance:
        for name, leaf in leaves.items():
            read = trees.whole(leaf)
            values = trees.decoded(read)
            if values.dtype.kind == "f" or values.dtype.kind == "V":
                values = values.astype(np.float32)
            float_bytes += values.nbytes
            for coder in (floats, lzma_floats):
                coder.add(values)
            for part in jax.tree.leaves(read):
                packed.add(np.asarray(part))
            coded_bytes += _coded(read)
            advance(name, trees.value_bytes(leaf))
    rows = {
        "float32": float_bytes,
        "float32, gzip": floats.total(),
        "float32, LZMA": lzma_floats.total(),
        "packed": sum(map(trees.stored_bytes, leaves.values())),
        "packed, gzip": packed.total(),
        "entropy-coded": coded_bytes,
    }
    if arguments.json:
        output.emit({"file": arguments.file, "bytes": rows})
    else:
        output.table(
            ["", "bytes", "smaller"],
            [[name, f"{size:,}", f"{float_bytes / size:.2f} x" if size else "-"] for name, size in rows.items()],
        )
    return 0


class _Gzip:
    """Counts the bytes of one gzip stream."""

    def __init__(self):
        self.stream, self.count = zlib.compressobj(9, zlib.DEFLATED, 31), 0

    def add(self, array: np.ndarray) -> None:
        self.count += len(self.stream.compress(_raw(array)))

    def total(self) -> int:
        return self.count + len(self.stream.flush())


class _Lzma(_Gzip):
    """Counts the bytes of one xz stream."""

    def __init__(self):
        self.stream, self.count = lzma.LZMACompressor(), 0


def _raw(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _coded(leaf: typing.Any) -> int:
    """Bytes of a leaf in a file that is entropy-coded."""
    _, arrays = tree.describe(leaf, files.Entropy())
    return sum(array.make().nbytes for array in arrays.values())
