"""Every example runs as a script, on tiny input."""

import itertools
import pathlib
import re
import runpy
import sys

import jax
import pytest

EXAMPLES = {path.name: path for path in (pathlib.Path(__file__).parent.parent / "examples").glob("*.py")}

#: What makes each example small.
TINY = {
    "quickstart.py": "--steps 1 --bits 4",
    "nnx.py": "--size 6 --batch 2",
    "train_power_of_two.py": "--epochs 1 --batch 512",
}


def _run(name, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    # optax.adam raises a float to an integer power, which strict promotion refuses
    with jax.numpy_dtype_promotion("standard"):
        runpy.run_path(str(EXAMPLES[name]), run_name="__main__")


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_tells_what_and_how(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        _run(name, ["--help"], monkeypatch)
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"python examples/{name}" in shown
    for option in TINY[name].split()[::2]:
        assert option in shown


def test_quickstart(monkeypatch, capsys):
    _run("quickstart.py", TINY["quickstart.py"].split(), monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    sizes = [int(re.search(r"(\d+) bytes", line)[1]) for line in lines]
    kept, coded = 64 * 3 + 64 + 64 + 3, 2 * 64 + 64 * 64
    assert sizes[0] == 4 * (kept + coded)
    assert sizes[1:] == [4 * kept + coded // 2 + 4 * (64 + 64)] * 3


def test_nnx(monkeypatch, capsys):
    _run("nnx.py", TINY["nnx.py"].split(), monkeypatch)
    shown = capsys.readouterr().out
    assert "shape=(3, 3, 32, 32)" in shown
    decoded, integer = (float(percent) for percent in re.findall(r"logits ([\d.]+) % off", shown))
    assert 0 < decoded < 10
    assert 0 < integer < 10


def test_train_power_of_two(monkeypatch, capsys):
    _run("train_power_of_two.py", TINY["train_power_of_two.py"].split(), monkeypatch)
    shown = capsys.readouterr().out
    assert re.search(r"epoch 1: loss \d", shown)
    magnitudes = [float(m) for m in re.search(r"\[(.*)\]", shown, re.DOTALL)[1].split()]
    assert 2 <= len(magnitudes) <= 8  # zero, and seven powers at most
    ratios = [b / a for a, b in itertools.pairwise(magnitudes[1:])]
    assert all(abs(ratio - round(ratio)) < 1e-3 and round(ratio).bit_count() == 1 for ratio in ratios)
    assert 0 <= float(re.search(r"integers: ([\d.]+) %", shown)[1]) <= 100
