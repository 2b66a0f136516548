"""Figures, read from their artists."""

import io
import sys

import numpy as np
import pytest
from matplotlib import colors

from jqz.analysis import figures

RNG = np.random.default_rng(0)
W = RNG.standard_normal((3, 3, 4, 5))


def grey(colour):
    r, g, b, _ = colors.to_rgba(colour)
    return r == g == b


def all_figures():
    yield figures.channels({"float": W, "rounded": np.round(W)})
    yield figures.histograms({"float": W, "rounded": np.round(W)})
    yield figures.confusions({"float": [[9, 1], [2, 8]]}, ["cat", "dog"])
    yield figures.knees({"a": {8: 90.0, 4: 88.0}, "b": {8: 91.0, 2: 50.0}}, {"a": 90.0, "b": 91.0})
    yield figures.pareto({"a": ([1, 2], [3.0, 1.0]), "b": ([1, 2], [2.0, 0.5])}, "bits", "nats", {"choice": (2, 1.0)})
    yield figures.sensitivities([[1.0, 0.1], [np.nan, 0.0]], ["a", "b"], ["2", "4"], "nats")


def test_all_have_labels_and_no_colours_and_can_be_saved():
    count = 0
    for figure in all_figures():
        for axes in figure.axes:
            assert axes.get_ylabel()
            assert axes.get_xlabel() or axes.get_label() == "<colorbar>"
            assert all(grey(line.get_color()) for line in axes.lines if line.get_label()[0] != "_")
            assert all(image.get_cmap().name == "Greys" for image in axes.images)
        file = io.BytesIO()
        figure.savefig(file, format="svg")
        assert b"</svg>" in file.getvalue()
        count += 1
    assert count == 6


def test_channels_show_five_numbers_each():
    figure = figures.channels({"float": W}, unit="weight")
    (axes,) = figure.axes
    medians = [line for line in axes.lines if len(set(line.get_ydata())) == 1 and len(line.get_xdata()) == 2]
    heights = {round(float(line.get_ydata()[0]), 9) for line in medians}
    assert all(grey(line.get_color()) for line in axes.lines)
    for channel in np.moveaxis(W, -1, 0):
        for q in (0, 0.5, 1):
            assert round(float(np.quantile(channel, q)), 9) in heights
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("float", "channel", "weight")


def test_histograms_share_bins_and_count_all():
    figure = figures.histograms({"float": W, "rounded": np.round(W)}, bins=11)
    edges = []
    for axes, values in zip(figure.axes, (W, np.round(W)), strict=True):
        bars = sorted(axes.patches, key=lambda bar: bar.get_x())
        assert [bar.get_height() for bar in bars] == np.histogram(
            values, np.linspace(min(W.min(), np.round(W).min()), max(W.max(), np.round(W).max()), 12)
        )[0].tolist()
        assert axes.get_yscale() == "log"
        edges.append([bar.get_x() for bar in bars])
    assert edges[0] == edges[1]


def test_confusions_show_percent_of_each_true_class():
    figure = figures.confusions({"float": [[3, 1], [0, 0]]}, ["cat", "dog"])
    (axes,) = figure.axes
    assert axes.images[0].get_array().tolist() == [[75, 25], [0, 0]]
    assert [text.get_text() for text in axes.texts] == ["75", "25", "", ""]
    assert [text.get_color() for text in axes.texts][:2] == ["white", "black"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat", "dog"]
    with pytest.raises(ValueError, match="wanted 3 rows"):
        figures.confusions({"float": np.eye(2)}, ["a", "b", "c"])


def test_knees_show_what_is_lost():
    figure = figures.knees({"a": {8: 90.0, 4: 88.0}, "b": {8: 91.5, 2: 50.0}}, {"a": 90.5, "b": 91.0}, drop=2)
    (axes,) = figure.axes
    a, b, line = axes.lines
    assert (a.get_xdata().tolist(), a.get_ydata().tolist()) == ([4, 8], [2.5, 0.5])
    assert (b.get_xdata().tolist(), b.get_ydata().tolist()) == ([2, 8], [41.0, -0.5])
    assert set(line.get_ydata()) == {2}
    assert a.get_linestyle() != b.get_linestyle()
    assert a.get_marker() != b.get_marker()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert axes.yaxis_inverted()
    low, high = axes.get_ylim()
    assert low > 41
    assert high < -0.5


def test_pareto_marks_the_choice():
    figure = figures.pareto({"KL": ([1, 2, 3], [4.0, 1.0, 0.0])}, "bits a weight", "nats", {"here": (2, 1.0)})
    (axes,) = figure.axes
    assert axes.get_yscale() == "linear"  # 0 has no logarithm
    assert axes.lines[0].get_ydata().tolist() == [4.0, 1.0, 0.0]
    assert (axes.lines[1].get_xdata().tolist(), axes.lines[1].get_marker()) == ([2], "x")
    assert axes.texts[0].get_text() == "here"


def test_sensitivities_are_logarithmic_and_readable():
    figure = figures.sensitivities([[1.0, 0.01], [np.nan, 0.0]], ["stem", "head"], ["2 bits", "4 bits"], "nats")
    axes, bar = figure.axes
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_allclose(shown, [[0, -2], [np.nan, np.nan]])
    assert [text.get_text() for text in axes.texts] == ["1", "0.01", "", ""]
    assert [text.get_color() for text in axes.texts][:2] == ["white", "black"]
    assert bar.get_ylabel() == "log10 of nats"
    with pytest.raises(ValueError, match="wanted"):
        figures.sensitivities(np.ones((2, 2)), ["a"], ["b", "c"], "nats")


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'jqz\[plot\]'"):
        figures.knees({}, {})
