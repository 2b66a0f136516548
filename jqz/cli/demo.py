"""``jqz demo``: every scheme on handwritten digits."""

import argparse
import dataclasses
import json
import sys
import time
import typing

from jqz.cli import output

EXAMPLES = """\
  jqz demo                                  every scheme: about a minute on two cores
  jqz demo --quick                          8, 4 and 2 bits, shorter training
  jqz demo --only Symmetric PowerOfTwo      these and the chain of both
  jqz demo --per-channel                    a scale for every output channel
  jqz demo --json > rows.json               the rows, for a program
"""

_DEMO = """\
Trains a small Flax network on scikit-learn's handwritten digits, then rounds its weights by every scheme
of jqz, with and without straight-through training, and runs it on integers. Prints one table.
"""

_NEXT = (
    ("jqz demo --per-channel", "a grid for every output channel"),
    ("jqz demo --only Ternary Codebook --seed 1", "another network, some schemes"),
    ("jqz.Symmetric(bits=3, range=jqz.ranges.OCTAV())", "clips outliers: better below 5 bits"),
    ("python examples/quickstart.py", "the same on a model of your own; see README.md"),
)


def add(commands: typing.Any) -> None:
    """The verb and its arguments."""
    demo = output.verb(commands, "demo", "compare all schemes on handwritten digits", _DEMO, EXAMPLES, run)
    demo.add_argument("--quick", action="store_true", help="8, 4 and 2 bits only, shorter training")
    demo.add_argument("--only", nargs="+", default=[], metavar="SCHEME", help="these schemes (and the chain)")
    demo.add_argument("--per-channel", action="store_true", help="a grid for every output channel, not for every layer")
    demo.add_argument("--seed", type=_seed, default=0, help="of the split, the weights and the batches (default 0)")


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted an integer from 0 to 2147483647")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Runs the study and prints its table."""
    started = time.perf_counter()
    try:
        import rich.console

        from jqz import demo
    except ModuleNotFoundError as error:
        package = {"rich": "rich", "sklearn": "scikit-learn"}.get((error.name or "").split(".")[0])
        if package is None:
            raise
        print(f"jqz demo: the package {package} is missing. Use: pip install 'jqz[demo]'", file=sys.stderr)
        return 1
    base = demo.QUICK if arguments.quick else demo.Settings()
    settings = dataclasses.replace(
        base, seed=arguments.seed, only=tuple(arguments.only), per_channel=arguments.per_channel
    )
    try:
        total = len(demo.rows(settings)) + 1
    except ValueError as error:
        print(f"jqz demo: --only {error}", file=sys.stderr)
        return 2
    results = _measure(demo.study(settings), total)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(result) for result in results], indent=2))
        return 0
    console = rich.console.Console()
    if not console.is_terminal:
        console = rich.console.Console(width=100)
    console.print(_table(results, settings))
    _print_closing(console, results, time.perf_counter() - started)
    return 0


def _measure(study: typing.Iterator[typing.Any], total: int) -> list[typing.Any]:
    """Runs the study under a progress bar on the error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from jqz.demo import Stage

    results = []
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("read the digits", total=total)
        for event in study:
            if isinstance(event, Stage):
                progress.update(task, description=event.text)
            else:
                results.append(event)
                progress.advance(task)
    return results


def _table(results: list[typing.Any], settings: typing.Any) -> typing.Any:
    from rich import box
    from rich.table import Table

    table = Table(
        title="Every scheme on a small network that reads handwritten digits",
        caption=_caption(settings),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="bold",
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("weights", vertical="bottom", no_wrap=True)
    for heading in (
        "bits per\nweight",
        "packed\nbytes",
        "gzip\nbytes",
        "SQNR\ndB",
        "accuracy %\nafter\ntraining",
        "accuracy %\nstraight-\nthrough",
        "int8\nagrees %",
    ):
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    floating = results[0]
    for i, result in enumerate(results):
        if result.agreement is None:
            agreement = "-"
        else:
            agreement = f"{100 * result.agreement:.1f} " if result.integer else f"[dim]{100 * result.agreement:.1f}f[/]"
        table.add_row(
            result.label,
            f"{result.bits_per_weight:.2f}",
            f"{result.packed_bytes:,}",
            f"{result.gzip_bytes:,}",
            "-" if result.sqnr_db is None else f"{result.sqnr_db:.1f}",
            _accuracy(result.accuracy, floating.accuracy),
            _accuracy(result.trained_accuracy, floating.accuracy),
            agreement,
            end_section=i + 1 < len(results) and results[i + 1].group != result.group,
        )
    return table


def _accuracy(value: float, floating: float) -> str:
    """Colour only where something is lost: two points, ten points."""
    lost = round(100 * (floating - value), 1)
    text = f"{100 * value:.1f}"
    return f"[red]{text}[/]" if lost > 10 else f"[yellow]{text}[/]" if lost > 2 else text


def _caption(settings: typing.Any) -> str:
    grid = "an output channel" if settings.per_channel else "a layer"
    epochs = "an epoch" if settings.tuning_epochs == 1 else f"{settings.tuning_epochs} epochs"
    return (
        f"One grid for {grid}, unless a scheme has blocks of its own. Packed: codes and grids.\n"
        "Gzip: the packed codes alone. After training: the float weights, rounded.\n"
        f"Straight-through: trained on for {epochs}, rounded at every step.\n"
        "int8: inputs coded on the fly, products in integers; how often the rounded weights then\n"
        "choose the class that the float network chooses. f: some products ran in float, for want\n"
        "of integer levels. Yellow: more than 2 points below float. Red: more than 10."
    )


def _print_closing(console: typing.Any, results: list[typing.Any], seconds: float) -> None:
    floating, coded = results[0], results[1:]
    for what, field in (("after training", "accuracy"), ("straight-through", "trained_accuracy")):
        close = [r for r in coded if getattr(r, field) >= floating.accuracy - 0.01]
        if close:
            best = min(close, key=lambda r: r.packed_bytes)
            ratio = floating.packed_bytes / best.packed_bytes
            console.print(
                f"Smallest within a point of float, {what}: [bold]{best.label}[/], "
                f"{100 * getattr(best, field):.1f} %, {ratio:.1f} x smaller",
                highlight=False,
            )
    console.print(f"{len(results)} rows in {seconds:.0f} s\n\n[bold]What to try next[/]", highlight=False)
    width = max(len(command) for command, _ in _NEXT)
    for command, what in _NEXT:
        console.print(f"  {command:{width}}  [dim]{what}[/]", highlight=False)
