"""One page that says what a policy does to a model."""

import html
import importlib
import io
import math
import re
import typing
from collections.abc import Sequence

from jqz._policy import Policy, PolicyLike
from jqz._qtensor import QTensor, is_qtensor
from jqz._transform import named_leaves, quantize
from jqz.analysis import figures
from jqz.analysis.bit_efficiency import LEAST, bit_efficiency
from jqz.analysis.levels import levels
from jqz.analysis.sizes import CODERS, Size, sizes
from jqz.analysis.sqnr import SQNR, sqnr

#: Where a tensor is this much worse than its like, the table says so.
_SURPRISE_DB = -3.0

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #111; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .4rem; border-bottom: 1px solid #ccc; text-align: right; white-space: nowrap; }
th:nth-child(-n+3), td:first-child, .text { text-align: left; } td:nth-child(3) { font-size: .85em; }
tfoot td { font-weight: 600; border-top: 2px solid #111; } .flag { font-weight: 600; }
.wide { overflow-x: auto; } pre { background: #f2f2f2; padding: .8rem; overflow-x: auto; }
svg { max-width: 100%; height: auto; }
"""

_HEADS = (
    ("weight", "its path in the tree"),
    ("shape", ""),
    ("scheme", ""),
    ("bits", "stored bits a weight, grids included"),
    ("bytes", "stored"),
    ("entropy", "bytes that the best code of single values would take"),
    ("SQNR, dB", "signal to quantization noise of the weights"),
    ("expected, dB", "of Gaussian and Laplace weights of this shape"),
    ("levels", "different codes in use"),
    ("used, %", "entropy of the codes / bits of a code"),
    ("efficiency", "32 * range * density / bits; 1 for float32"),
)


def report(
    params: typing.Any,
    policy: PolicyLike,
    *,
    title: str = "Quantization report",
    drawings: Sequence[tuple[str, figures.Figure]] = (),
) -> str:
    """Quantizes a tree by a policy, and describes the result in one page of HTML that needs no other file.

    A table with a row for each weight, totals, the policy as code, and the channels and histograms of the weight that
    does worst for its kind. It needs matplotlib: ``pip install 'jqz[plot]'``. Write it with
    ``pathlib.Path("report.html").write_text(report(params, policy))``.

    Args:
      params: float parameters; of tensors in codes already there is no noise to tell.
      policy: as for ``quantize``.
      title: of the page.
      drawings: captions and figures to add, such as ``figures.sensitivities`` and ``figures.pareto``.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: as ``quantize``, or the tree has no arrays.

    >>> import jax, jqz
    >>> from jqz.analysis import report
    >>> params = {"head": {"kernel": jax.random.normal(jax.random.key(0), (16, 8))}}
    >>> page = report(params, jqz.Symmetric(bits=4))
    >>> "head/kernel" in page, "<svg" in page, page.count("<tr>")
    (True, True, 3)
    """
    qparams = quantize(params, policy)
    table = sizes(qparams, {name: CODERS[name] for name in ("stored", "entropy")})
    if not table.leaves:
        raise ValueError("report: the tree has no arrays. Use the parameters of a model.")
    floats = dict(named_leaves(params))
    coded = {path: leaf for path, leaf in named_leaves(qparams) if is_qtensor(leaf) and leaf.size}
    chosen = [(size, coded[size.path]) for size in table.leaves if size.path in coded]
    noise = {
        size.path: sqnr(floats[size.path], leaf.scheme) for size, leaf in chosen if not is_qtensor(floats[size.path])
    }
    body = [f"<h1>{html.escape(title)}</h1>", _summary(table.total, floats, chosen)]
    body.append(
        _table([_row(size, leaf, floats[size.path], noise.get(size.path)) for size, leaf in chosen], table.total)
    )
    if isinstance(policy, Policy):
        rules = ",\n".join(f"    {glob!r}: {scheme!r}" for glob, scheme in policy.rules)
        inputs = f", inputs={dict(policy.inputs)!r}" if policy.inputs else ""
        body.append(f"<h2>Policy</h2><pre>jqz.Policy({{\n{html.escape(rules)},\n}}{html.escape(inputs)})</pre>")
    if chosen:
        path, both, which = _shown(chosen, floats, noise)
        drawings = [
            *drawings,
            (f"Values of {path}, {which}", figures.histograms(both, unit="weight")),
            (f"Channels of {path}: least value, quartiles, greatest value", figures.channels(both, unit="weight")),
        ]
    for i, (caption, figure) in enumerate(drawings):
        body.append(f"<h2>{html.escape(caption)}</h2><figure>{_svg(figure, i)}</figure>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(body)}</body></html>\n'


def _shown(
    chosen: list[tuple[Size, QTensor]], floats: dict[str, typing.Any], noise: dict[str, SQNR]
) -> tuple[str, dict[str, typing.Any], str]:
    """The weight to draw: its path, its values, and why it is this one."""
    measured = [pair for pair in chosen if pair[0].path in noise]
    if not measured:
        size, leaf = max(chosen, key=lambda pair: pair[0].weights)
        return size.path, {repr(leaf.scheme): leaf.dequantize()}, "the largest weight"
    size, leaf = min(measured, key=lambda pair: noise[pair[0].path].surprise_db)
    both = {"float": floats[size.path], repr(leaf.scheme): leaf.dequantize()}
    return size.path, both, "the weight that does worst for its kind"


def _summary(total: Size, floats: dict[str, typing.Any], chosen: list[tuple[Size, QTensor]]) -> str:
    stored, plain = total.size_bytes["stored"], sum(leaf.size * leaf.dtype.itemsize for leaf in floats.values())
    return (
        f"<p>{len(chosen)} of {len(floats)} tensors are quantized. {stored:,} bytes instead of {plain:,}: "
        f"{plain / max(stored, 1):.2f} times smaller, {total.bits_per_weight('stored'):.2f} bits a number. "
        f"Weights whose SQNR is more than {-_SURPRISE_DB:g} dB below what Gaussian or Laplace values would have are "
        "marked: look for outliers there, clip the range or use a finer granularity.</p>"
    )


def _row(size: Size, leaf: QTensor, values: typing.Any, noise: SQNR | None) -> tuple[list[str], bool]:
    used = levels(leaf.codes)
    bits = size.bits_per_weight("stored")
    good = size.weights >= LEAST and noise is not None
    efficiency = f"{bit_efficiency(values, leaf.dequantize(), bits).score:.2f}" if good else ""
    cells = [
        size.path,
        " x ".join(map(str, leaf.shape)),
        repr(leaf.scheme),
        f"{bits:.2f}",
        f"{size.size_bytes['stored']:,}",
        f"{size.size_bytes['entropy']:,}",
        *(("", "") if noise is None else _decibels(noise)),
        f"{used.count}",
        f"{100 * used.utilization(leaf.scheme.bits):.0f}",
        efficiency,
    ]
    return cells, noise is not None and noise.surprise_db < _SURPRISE_DB


def _decibels(noise: SQNR) -> tuple[str, str]:
    measured = "exact" if math.isinf(noise.measured_db) else f"{noise.measured_db:.1f}"
    return measured, f"{noise.laplace_db:.1f} to {noise.gaussian_db:.1f}"


def _table(rows: list[tuple[list[str], bool]], total: Size) -> str:
    lines = []
    for cells, flagged in rows:
        tags = [f'<td class="{"text" if i < 3 else ""}">{html.escape(cell)}</td>' for i, cell in enumerate(cells)]
        if flagged:
            tags[6] = f'<td class="flag">{html.escape(cells[6])} &#9650;</td>'
        lines.append(f"<tr>{''.join(tags)}</tr>")
    head = "".join(f'<th title="{html.escape(about)}">{html.escape(name)}</th>' for name, about in _HEADS)
    foot = [
        "whole tree", "", "", f"{total.bits_per_weight('stored'):.2f}", f"{total.size_bytes['stored']:,}",
        f"{total.size_bytes['entropy']:,}", *[""] * (len(_HEADS) - 6),
    ]  # fmt: skip
    foot = "".join(f"<td>{cell}</td>" for cell in foot)
    return (
        f'<h2>Weights</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody><tfoot><tr>{foot}</tr></tfoot></table></div>"
    )


def _svg(figure: figures.Figure, index: int) -> str:
    """The figure as an element; its text stays text, and its ids differ from those of other figures."""
    matplotlib = importlib.import_module("matplotlib")
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": str(index)}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>f{index}-", text)
