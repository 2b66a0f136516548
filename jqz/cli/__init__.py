"""The ``jqz`` command: one verb a file, each with ``add(commands)`` and ``run(arguments) -> exit code``."""

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from jqz.cli import capabilities, compare, demo, dequantize, inspect, quantize, report, sizes

VERBS = (demo, inspect, quantize, dequantize, compare, sizes, report, capabilities)

_DESCRIPTION = "Functional quantization for JAX and Flax."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    0: done. 1: a package is missing, or ``compare`` found other names or shapes. 2: a mistake in the arguments, or a
    file that is missing or damaged. 130: stopped.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("jqz: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone; let Python close what is left in silence
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    examples = "examples:\n" + "".join(verb.EXAMPLES for verb in VERBS)
    parser = argparse.ArgumentParser("jqz", description=_DESCRIPTION, epilog=examples, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"jqz {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    for verb in VERBS:
        verb.add(commands)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("jqz")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
