"""What the verbs share: their arguments, tables, JSON, and progress."""

import argparse
import contextlib
import json
import math
import sys
import typing
from collections.abc import Callable, Iterator, Sequence


def verb(
    commands: typing.Any, name: str, about: str, description: str, examples: str, run: Callable[..., int]
) -> argparse.ArgumentParser:
    """A subcommand with ``--json`` and examples under its help."""
    parser = commands.add_parser(
        name,
        help=about,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)
    return parser


def visible(text: str) -> str:
    """Text from a file as one line that a terminal shows and does not obey: ``\\x1b`` for an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(line: str) -> None:
    """Prints a line that may hold names from a file."""
    print(visible(line))


def emit(facts: typing.Any) -> None:
    """Prints JSON; a number that is not finite is null."""
    print(json.dumps(_plain(facts), indent=2))


def _plain(x: typing.Any) -> typing.Any:
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Prints a table whose first ``left`` columns hold words; those that follow hold figures."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    heads, rows = [*map(visible, heads)], [[*map(visible, row)] for row in rows]
    console = Console()
    if not console.is_terminal:
        widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
        console = Console(width=sum(widths) + 3 * len(widths))
    shown = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    for i, head in enumerate(heads):
        shown.add_column(head, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*map(_literal, row))
    console.print(shown, highlight=False)


def _literal(cell: str) -> typing.Any:
    from rich.text import Text

    return Text(cell)


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar on the error stream; the block calls ``advance(what is done, how much)``."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn(what),
        BarColumn(bar_width=32),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=total)
        yield lambda name, amount: bar.update(task, advance=amount, description=visible(name))
