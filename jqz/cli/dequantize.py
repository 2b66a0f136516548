"""``jqz dequantize``: a file of codes becomes a file of floats."""

import argparse
import functools
import typing

from jqz import files
from jqz.cli import output, trees
from jqz.files.atomic import disk_bytes

EXAMPLES = """\
  jqz dequantize small.safetensors net.safetensors      plain floats, for any program
  jqz dequantize small.safetensors net.npz
"""

_DESCRIPTION = f"""\
Decodes the tensors of a file and writes plain arrays under the same names; {trees.FILES}.
One tensor is in memory at a time, but for .msgpack, Orbax's folders and old .pth. Numbers and strings are left out.
"""


def add(commands: typing.Any) -> None:
    """The verb and its arguments."""
    about = "decode a file to plain floats"
    parser = output.verb(commands, "dequantize", about, _DESCRIPTION, EXAMPLES, trees.told(run))
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT")


def run(arguments: argparse.Namespace) -> int:
    """Streams the file."""
    room = files.format_of(arguments.target)
    leaves = trees.leaves(arguments.source)
    total = sum(map(trees.value_bytes, leaves.values()))
    with output.progress("dequantize", total) as advance:
        room.write(
            arguments.target,
            {
                name: trees.lazily(leaf, functools.partial(advance, name, trees.value_bytes(leaf)))
                for name, leaf in leaves.items()
            },
        )
    left = trees.others(arguments.source)
    facts = {"file": arguments.target, "tensors": len(leaves), "bytes": disk_bytes(arguments.target), "left_out": left}
    if arguments.json:
        output.emit(facts)
    else:
        output.say(f"{facts['file']}: {facts['tensors']} tensors, {facts['bytes']:,} bytes")
        if left:
            output.say(f"left out, since they are no arrays: {', '.join(left)}")
    return 0
