"""What the benchmarks share: tables, and the facts without which a figure says little. It needs rich: jqz[demo]."""

import argparse
import os
import sys
import typing
from collections.abc import Sequence

import jax
from rich.console import Console
from rich.table import Table

import jqz


def table(heads: Sequence[str], lines: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Prints a table; the first column has names, the others have figures."""
    rich = Table(title=title)
    for i, head in enumerate(heads):
        rich.add_column(head, justify="right" if i else "left", no_wrap=True)
    for line in lines:
        rich.add_row(*line)
    Console(width=130).print(rich)


def facts(**more: typing.Any) -> dict[str, typing.Any]:
    """What ran where, beside what else; for the line above a table and for ``--json``."""
    return {
        **more,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
    }


def in_words(facts: dict[str, typing.Any]) -> str:
    """Facts on one line."""
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def add_tuned(parser: argparse.ArgumentParser) -> None:
    """The option ``--tuned``."""
    parser.add_argument("--tuned", action="store_true", help="keep freed memory in the process (glibc)")


def tune(arguments: argparse.Namespace) -> str:
    """Follows ``--tuned``, and names the allocator."""
    if not arguments.tuned:
        return "default"
    if not jqz.tune_allocator():
        sys.exit("--tuned needs glibc.")
    return "tuned"
