"""Figures of what quantization does, legible in black and white; one function a figure.

Each returns a ``matplotlib.figure.Figure``: ``figure.savefig("name.svg")``. No window opens, and nothing global is
touched. They need matplotlib: ``pip install 'jqz[plot]'``.
"""

import importlib
import itertools
import math
import typing
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jqz._samples import float64

Figure = typing.Any  # matplotlib.figure.Figure, which is imported where it is used

#: Lines that differ without colour.
_STYLES = tuple(zip(("-", "--", "-.", ":"), ("o", "s", "^", "D"), ("black", "0.35", "0.2", "0.5"), strict=True))


def channels(tensors: Mapping[str, typing.Any], axis: int = -1, unit: str = "value") -> Figure:
    """The spread of each channel under each scheme: least, quartiles and greatest value.

    Args:
      tensors: name -> values, of one shape: the float weight and its rounded copies.
      axis: that of the channels.
      unit: of the values.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: a tensor is empty or not finite.

    >>> import numpy as np
    >>> from jqz.analysis import figures
    >>> w = np.random.default_rng(0).normal(size=(3, 3, 8, 16))
    >>> figure = figures.channels({"float": w, "whole numbers": w.round()}, unit="weight")
    >>> [axes.get_title() for axes in figure.axes]
    ['float', 'whole numbers']

    References: figure 1 of arXiv:1910.04877.
    """
    figure, panels = _panels(len(tensors), width=6.0, height=2.2, columns=1)
    for axes, (name, values) in zip(panels, tensors.items(), strict=True):
        rows = np.moveaxis(float64("channels", values), axis, 0)
        numbers = np.quantile(rows.reshape(len(rows), -1), [0, 0.25, 0.5, 0.75, 1], axis=1).T
        keys = ("whislo", "q1", "med", "q3", "whishi")
        boxes = [dict(zip(keys, five, strict=True), fliers=[]) for five in numbers]
        black = {"color": "black"}
        axes.bxp(boxes, range(len(rows)), showfliers=False, widths=0.6, manage_ticks=False, medianprops=black)
        _label(axes, name, "channel", unit)
    return figure


def histograms(tensors: Mapping[str, typing.Any], bins: int = 101, unit: str = "value") -> Figure:
    """Histograms on shared bins, a panel each, counts on a logarithmic axis.

    Args:
      tensors: name -> values: a float weight and its copies under schemes and widths.
      bins: how many, over the range of all of them.
      unit: of the values.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: a tensor is empty or not finite.

    >>> import numpy as np
    >>> from jqz.analysis import figures
    >>> w = np.random.default_rng(0).normal(size=(64, 64))
    >>> figure = figures.histograms({f"{digits} digits": w.round(digits) for digits in (2, 1, 0)})
    >>> figure.axes[2].get_title(), figure.axes[2].get_yscale()
    ('0 digits', 'log')

    References: figure 2 of arXiv:1910.04877.
    """
    flat = {name: float64("histograms", values).ravel() for name, values in tensors.items()}
    edges = np.linspace(min(v.min() for v in flat.values()), max(v.max() for v in flat.values()), bins + 1)
    figure, panels = _panels(len(flat), width=3.0, height=2.2)
    for axes, (name, values) in zip(panels, flat.items(), strict=True):
        axes.hist(values, bins=edges, color="0.4")
        axes.set_yscale("log")
        _label(axes, name, unit, "count")
    return figure


def confusions(counts: Mapping[str, typing.Any], classes: Sequence[str]) -> Figure:
    """Confusion matrices, a panel each: the share of each true class by predicted class, in percent.

    Args:
      counts: name -> confusion matrix, rows true: the float model and quantized ones.
      classes: their names.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: a matrix does not fit the classes.

    >>> from jqz.analysis import figures
    >>> figure = figures.confusions({"float": [[9, 1], [2, 8]], "2 bits": [[5, 5], [6, 4]]}, ["cat", "dog"])
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['90', '10', '20', '80']

    References: figure 3 of arXiv:1910.04877.
    """
    size = 1.2 + 0.32 * len(classes)
    figure, panels = _panels(len(counts), width=size, height=size)
    for axes, (name, matrix) in zip(panels, counts.items(), strict=True):
        c = float64("confusions", matrix)
        if c.shape != (len(classes), len(classes)):
            raise ValueError(f"confusions: {name!r} has shape {c.shape}, wanted {len(classes)} rows and columns.")
        percent = 100 * np.divide(c, c.sum(1, keepdims=True), out=np.zeros_like(c), where=c.sum(1, keepdims=True) > 0)
        axes.imshow(percent, cmap="Greys", vmin=0, vmax=100)
        _cells(axes, percent, lambda x: f"{x:.0f}" if x >= 0.5 else "", dark=50)
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
        _label(axes, name, "predicted class", "true class, %")
    return figure


def knees(accuracy: Mapping[str, Mapping[float, float]], reference: Mapping[str, float], drop: float = 1.0) -> Figure:
    """What is lost at each bit width, a line for each model or scheme, and the loss that is allowed.

    Args:
      accuracy: name -> bits -> accuracy in percent.
      reference: name -> accuracy in float.
      drop: points that may be lost: a horizontal line.

    Raises:
      ImportError: matplotlib is not installed.

    >>> from jqz.analysis import figures
    >>> figure = figures.knees({"SYMM": {8: 90.5, 4: 89.5, 2: 77.2}}, {"SYMM": 90.9})
    >>> figure.axes[0].get_xlabel()
    'bits'

    References: figure 4 of arXiv:1910.04877.
    """
    figure, (axes,) = _panels(1, width=5.0, height=3.2)
    for (name, table), style in zip(accuracy.items(), _styles(), strict=False):
        bits = sorted(table)
        axes.plot(bits, [reference[name] - table[b] for b in bits], label=name, **style)
    axes.axhline(drop, color="0.6", linewidth=0.8)
    axes.set_xticks(sorted({b for table in accuracy.values() for b in table}))
    axes.set_yscale("symlog", linthresh=1)
    ticks = (0, 0.5, 1, 2, 5, 10, 20, 50, 100)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    lost = [reference[name] - one for name, table in accuracy.items() for one in table.values()]
    axes.set_ylim(max([2 * drop, *lost]) * 1.2, min([0.0, *lost]) - 0.2)  # what is lost points down
    axes.legend()
    _label(axes, f"line: a loss of {drop:g}", "bits", "accuracy lost, points")
    return figure


def pareto(
    fronts: Mapping[str, tuple[typing.Any, typing.Any]],
    x: str,
    y: str,
    chosen: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Fronts of cost against score or accuracy, and points of interest.

    Args:
      fronts: name -> costs and scores, such as ``found.front.costs`` and ``found.front.scores`` of ``jqz.search``.
      x: what costs are, with its unit.
      y: what scores are; logarithmic where all are positive.
      chosen: name -> a point to mark.

    Raises:
      ImportError: matplotlib is not installed.

    >>> from jqz.analysis import figures
    >>> figure = figures.pareto({"KL": ([2, 3, 4], [1.0, 0.1, 0.01])}, "bits a weight", "divergence, nats")
    >>> figure.axes[0].get_ylabel(), figure.axes[0].get_yscale()
    ('divergence, nats', 'log')
    """
    figure, (axes,) = _panels(1, width=5.0, height=3.2)
    least = math.inf
    for (name, (costs, scores)), style in zip(fronts.items(), _styles(), strict=False):
        axes.plot(costs, scores, label=name, **{**style, "marker": style["marker"] if len(costs) < 40 else ""})
        least = min(least, float(np.min(scores)))
    for name, (cost, score) in (chosen or {}).items():
        axes.plot([cost], [score], "x", color="black", markersize=9, markeredgewidth=2)
        axes.annotate(name, (cost, score), textcoords="offset points", xytext=(6, 6))
    axes.set_yscale("log" if least > 0 else "linear")
    axes.legend()
    _label(axes, "", x, y)
    return figure


def sensitivities(scores: typing.Any, layers: Sequence[str], schemes: Sequence[str], unit: str) -> Figure:
    """A map of scores, a row a layer and a column a scheme, dark where more is lost; logarithmic.

    Args:
      scores: (layers, schemes), as ``jqz.algorithms.sensitivity`` returns; NaN and 0 stay white.
      layers: names of the rows.
      schemes: names of the columns.
      unit: of the scores.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: the scores do not fit the names.

    >>> from jqz.analysis import figures
    >>> figure = figures.sensitivities([[1.0, 0.1], [0.2, 0.01]], ["stem", "head"], ["2 bits", "4 bits"], "nats")
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['1', '0.1', '0.2', '0.01']
    """
    table = np.asarray(scores, np.float64)
    if table.shape != (len(layers), len(schemes)):
        raise ValueError(f"sensitivities: got scores of shape {table.shape}, wanted {(len(layers), len(schemes))}.")
    figure, (axes,) = _panels(1, width=2.5 + 0.7 * len(schemes), height=1.4 + 0.26 * len(layers))
    logs = np.full(table.shape, np.nan)
    np.log10(table, out=logs, where=table > 0)
    image = axes.imshow(logs, cmap="Greys", aspect="auto")
    seen = logs[np.isfinite(logs)]
    dark = float(seen.min() + seen.max()) / 2 if seen.size else 0.0
    _cells(axes, table, lambda x: f"{x:.2g}" if x > 0 else "", dark, logs)
    axes.set_xticks(range(len(schemes)), schemes, rotation=45, ha="right")
    axes.set_yticks(range(len(layers)), layers)
    figure.colorbar(image, ax=axes, label=f"log10 of {unit}")
    _label(axes, "", "scheme", "layer")
    return figure


def _panels(count: int, width: float, height: float, columns: int = 3) -> tuple[Figure, list[typing.Any]]:
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'jqz[plot]'") from error
    columns = min(columns, count)
    rows = -(-count // columns) if count else 1
    figure = module.Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _label(axes: typing.Any, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _styles() -> Iterator[dict[str, typing.Any]]:
    for line, marker, shade in itertools.cycle(_STYLES):
        yield {"linestyle": line, "marker": marker, "color": shade, "markersize": 4}


def _cells(axes: typing.Any, table: np.ndarray, text: typing.Any, dark: float, shade: typing.Any = None) -> None:
    """Writes each number into its cell, in white where the cell is dark: where its shade exceeds ``dark``."""
    shades = np.asarray(table if shade is None else shade)
    for (row, column), number in np.ndenumerate(table):
        colour = "white" if shades[row, column] > dark else "black"
        axes.text(column, row, text(number), ha="center", va="center", color=colour, fontsize=7)
