"""``jqz capabilities``: which products of narrow numbers the backend runs."""

import argparse
import dataclasses
import typing

from jqz import _capabilities
from jqz.cli import output, trees

EXAMPLES = """\
  jqz capabilities                          products of int8, int4, fp8 ... on this machine
"""

_DESCRIPTION = """\
Tries dots and convolutions of narrow integers and floats on JAX's default backend. Nothing in jqz depends on the
answers: they tell what a scheme can gain on this machine.
"""


def add(commands: typing.Any) -> None:
    """The verb."""
    about = "which narrow products this machine runs"
    output.verb(commands, "capabilities", about, _DESCRIPTION, EXAMPLES, trees.told(run))


def run(arguments: argparse.Namespace) -> int:
    """Prints the table."""
    found = _capabilities.capabilities()
    if arguments.json:
        output.emit(dataclasses.asdict(found))
    else:
        print(found)
    return 0
