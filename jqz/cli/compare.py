"""``jqz compare``: how far the values of two files are apart."""

import argparse
import math
import typing

import numpy as np

from jqz.cli import output, trees

EXAMPLES = """\
  jqz compare net.safetensors small.safetensors         SQNR and largest error of every tensor
"""

_DESCRIPTION = f"""\
Compares the decoded tensors of B with those of A, by name: SQNR = 10 log10(sum a^2 / sum (a - b)^2) in dB, and the
largest |a - b|. Exit code 1 if names or shapes differ. {trees.FILES[0].upper() + trees.FILES[1:]}.
"""


def add(commands: typing.Any) -> None:
    """The verb and its arguments."""
    about = "SQNR and largest error between two files"
    parser = output.verb(commands, "compare", about, _DESCRIPTION, EXAMPLES, trees.told(run))
    parser.add_argument("first", metavar="A")
    parser.add_argument("second", metavar="B")


def run(arguments: argparse.Namespace) -> int:
    """Prints a row for each tensor that both have, and one for all of them."""
    first, second = trees.leaves(arguments.first), trees.leaves(arguments.second)
    both = [name for name, leaf in first.items() if name in second and leaf.shape == second[name].shape]
    other = sorted({*first, *second} - set(both))
    rows, signal, noise, worst = [], 0.0, 0.0, 0.0
    with output.progress("compare", sum(trees.value_bytes(first[name]) for name in both)) as advance:
        for name in both:
            s, n, largest = _sums(trees.decoded(first[name]), trees.decoded(second[name]))
            rows.append({"name": name, "sqnr_db": _db(s, n), "max_error": largest})
            signal, noise, worst = signal + s, noise + n, float(np.maximum(worst, largest))
            advance(name, trees.value_bytes(first[name]))
    total = {"sqnr_db": _db(signal, noise), "max_error": worst}
    if arguments.json:
        output.emit({"tensors": rows, "total": total, "differ": other})
    else:
        shown = [[r["name"], f"{r['sqnr_db']:.2f}", f"{r['max_error']:.3g}"] for r in (*rows, {"name": "all", **total})]
        output.table(["tensor", "SQNR dB", "max error"], shown)
        for name in other:
            output.say(f"{name}: {_what(first.get(name))} in A, {_what(second.get(name))} in B")
    return 1 if other else 0


def _sums(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Sum of squares, of squared differences, and the largest difference; in float64, a part at a time."""
    signal = noise = largest = 0.0
    a, b = a.reshape(-1), b.reshape(-1)
    for at in range(0, a.size, 2**20):
        x, y = (_wide(part[at : at + 2**20]) for part in (a, b))
        with np.errstate(invalid="ignore", over="ignore"):  # infinities, which are at no distance from their own kind
            error = np.where(x == y, 0.0, np.abs(x - y))
        signal, noise = signal + float(np.vdot(x, x).real), noise + float(error @ error)
        largest = float(np.maximum(largest, error.max()))
    return signal, noise, largest


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def _db(signal: float, noise: float) -> float:
    if not noise:
        return math.inf
    ratio = signal / noise
    return 10 * math.log10(ratio) if ratio else -math.inf


def _what(leaf: typing.Any) -> str:
    return "nothing" if leaf is None else f"shape {leaf.shape}"
