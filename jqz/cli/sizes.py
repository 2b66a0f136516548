"""``jqz sizes``: what a net takes as floats, packed, and compressed."""

import argparse
import typing

from jqz import files
from jqz.cli import output, trees
from jqz.files import tree

EXAMPLES = """\
  jqz sizes small.safetensors                           bytes as floats, packed, gzipped, entropy-coded
"""

_DESCRIPTION = f"""\
Counts bytes: of the decoded values as float32, by gzip and by LZMA (the measure of publications that compress decoded
floats), of packed codes and grids, those by gzip, and those with the codes entropy-coded, as save does it. Each tensor
is compressed by itself. {trees.FILES[0].upper() + trees.FILES[1:]}.
"""


def add(commands: typing.Any) -> None:
    """The verb and its arguments."""
    about = "bytes as floats, packed and compressed"
    parser = output.verb(commands, "sizes", about, _DESCRIPTION, EXAMPLES, trees.told(run))
    parser.add_argument("file", metavar="FILE")


def run(arguments: argparse.Namespace) -> int:
    """Counts tensor by tensor."""
    from jqz.analysis import Sizes, sizes
    from jqz.analysis.sizes import gzipped, gzipped_values, lzma_compressed_values, stored, values

    coders = {
        "float32": values,
        "float32, gzip": gzipped_values,
        "float32, LZMA": lzma_compressed_values,
        "packed": stored,
        "packed, gzip": gzipped,
        "entropy-coded": _coded,
    }
    leaves, rows = trees.leaves(arguments.file), []
    with output.progress("sizes", sum(map(trees.value_bytes, leaves.values()))) as advance:
        for name, leaf in leaves.items():
            rows += sizes({name: trees.whole(leaf)}, coders).leaves
            advance(name, trees.value_bytes(leaf))
    total = {**dict.fromkeys(coders, 0), **Sizes(tuple(rows)).total.size_bytes}
    if arguments.json:
        output.emit({"file": arguments.file, "bytes": total})
    else:
        floats = total["float32"]
        output.table(
            ["", "bytes", "smaller"],
            [[name, f"{size:,}", f"{floats / size:.2f} x" if size else "-"] for name, size in total.items()],
        )
    return 0


def _coded(leaf: typing.Any) -> int:
    """Bytes of a leaf in a file that is entropy-coded."""
    _, arrays = tree.describe(leaf, files.Entropy())
    return sum(array.make().nbytes for array in arrays.values())
