"""``jqz inspect``: what is in a file."""

import argparse
import typing

import jax
import numpy as np

from jqz import files
from jqz._qtensor import QTensor
from jqz.cli import output, trees
from jqz.files.atomic import disk_bytes

EXAMPLES = """\
  jqz inspect net.safetensors               every tensor: shape, dtype, scheme, bytes
  jqz inspect net.npz --json                the same, for a program
"""

_DESCRIPTION = f"""\
Lists the tensors of a file. Only its header is read, so a large file takes no longer than a small one.
Names of {trees.FILES}.
"""


def add(commands: typing.Any) -> None:
    """The verb and its arguments."""
    about = "list what is in a file"
    parser = output.verb(commands, "inspect", about, _DESCRIPTION, EXAMPLES, trees.told(run))
    parser.add_argument("file", metavar="FILE")


def run(arguments: argparse.Namespace) -> int:
    """Prints a row for each leaf, and sums."""
    rows = [_row(name, leaf) for name, leaf in trees.leaves(arguments.file).items()]
    weights, size = sum(row["weights"] for row in rows), sum(row["bytes"] for row in rows)
    facts = {
        "file": arguments.file,
        "file_bytes": disk_bytes(arguments.file),
        "metadata": files.metadata_of(arguments.file),
        "weights": weights,
        "bytes": size,
        "bits_per_weight": 8 * size / weights if weights else 0.0,
        "tensors": rows,
    }
    if arguments.json:
        output.emit(facts)
        return 0
    output.table(
        ["tensor", "scheme", "shape", "dtype", "bytes", "bits"],
        [
            [r["name"], r["scheme"] or "-", "x".join(map(str, r["shape"])) or "scalar", r["dtype"], f"{r['bytes']:,}",
             f"{r['bits_per_weight']:.2f}"]
            for r in rows
        ],
        left=2,
    )  # fmt: skip
    print(f"{len(rows)} tensors, {weights:,} numbers, {size:,} bytes, {facts['bits_per_weight']:.2f} bits a number")
    output.say(f"{arguments.file}: {facts['file_bytes']:,} bytes")
    for name, text in facts["metadata"].items():
        output.say(f"{name}: {text}")
    return 0


def _row(name: str, leaf: typing.Any) -> dict[str, typing.Any]:
    coded, size = isinstance(leaf, QTensor), trees.stored_bytes(leaf)
    return {
        "name": name,
        "scheme": repr(leaf.scheme) if coded else None,
        "shape": list(leaf.shape),
        "dtype": np.dtype(leaf.dtype).name,
        "weights": leaf.size,
        "bytes": size,
        "grid_bytes": sum(trees.stored_bytes(part) for part in jax.tree.leaves(leaf.grid)) if coded else 0,
        "bits_per_weight": 8 * size / leaf.size if leaf.size else 0.0,
    }
