"""The command without its measurements: arguments, messages, exit codes, and how the table looks."""

import importlib.metadata
import io
import json
import subprocess
import sys

import pytest
import rich.console

import jqz
from jqz import cli, demo


def _results():
    """A plausible result for every row."""
    yield demo.Stage("train the float network")
    yield demo.Result("float", "float32", None, 0.98, 0.98, 32.0, 37440, 34772, None, None, False)
    for i, row in enumerate(demo.rows(demo.Settings())):
        yield demo.Stage(row.label)
        lost = i / 100
        yield demo.Result(
            row.group,
            row.label,
            repr(row.scheme),
            0.98 - lost,
            0.98,
            10.01,
            11408,
            10408,
            45.6 - i,
            1 - lost,
            i % 2 == 0,
        )


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(demo, "study", lambda settings: _results())


def test_version(monkeypatch, capsys):
    monkeypatch.setattr(importlib.metadata, "version", {"jqz": "1.2.3"}.__getitem__)
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == "jqz 1.2.3\n"


def test_version_where_nothing_is_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert cli._version() == "(not installed)"


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help_has_examples(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert "jqz demo --quick" in shown


def test_runs_as_a_module():
    run = subprocess.run([sys.executable, "-m", "jqz.cli", "inspect", "none.npz"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "jqz inspect: 'none.npz': No such file or directory\n"


def test_no_command_shows_help(capsys):
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "usage: jqz" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demos"], "invalid choice: 'demos'"),
        (["demo", "--seed", "-1"], "got '-1', wanted an integer from 0"),
        (["demo", "--seed", "one"], "got 'one', wanted an integer from 0"),
        (["demo", "--only"], "expected at least one argument"),
        (["demo", "--bits", "4"], "unrecognized arguments: --bits 4"),
    ],
)
def test_mistakes_are_told(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err


def test_unknown_scheme_is_told(capsys):
    assert cli.main(["demo", "--only", "Symetric", "Ternary"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("jqz demo: --only got Symetric, wanted some of Symmetric, ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("package", "known_as"), [("rich", "rich"), ("sklearn", "scikit-learn")])
def test_missing_package_is_told(package, known_as, monkeypatch, capsys):
    for name in [name for name in sys.modules if name == "jqz.demo" or name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(jqz, "demo")
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == f"jqz demo: the package {known_as} is missing. Use: pip install 'jqz[demo]'\n"


def test_other_import_errors_are_not_hidden(monkeypatch):
    monkeypatch.delitem(sys.modules, "jqz.demo")
    monkeypatch.delattr(jqz, "demo")
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ModuleNotFoundError, match="optax"):
        cli.main(["demo"])


def test_json(measured, capsys):
    assert cli.main(["demo", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 1 + len(demo.rows(demo.Settings()))
    assert rows[0]["scheme"] is None
    assert rows[1]["scheme"] == "Symmetric(bits=8)"
    assert set(rows[1]) == set(demo.Result.__dataclass_fields__)


def test_table_fits_100_columns(measured, capsys):
    assert cli.main(["demo"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert "…" not in shown
    for row in demo.rows(demo.Settings()):
        assert f" {row.label} " in shown
    assert "What to try next" in shown
    assert "after training: Symmetric(8), 98.0 %, 3.3 x smaller" in shown


def test_only_losses_are_coloured():
    console = rich.console.Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    results = [event for event in _results() if isinstance(event, demo.Result)]
    console.print(cli.demo._table(results, demo.Settings()))
    lines = console.file.getvalue().splitlines()
    yellow, red = "\x1b[33m", "\x1b[31m"

    def line(label):
        return next(line for line in lines if f" {label} " in line)

    assert yellow not in line("Symmetric(6)")  # two points below float, and no more
    assert f"{yellow}95.0" in line("Symmetric(5)")
    assert f"{red}86.0" in line("Asymmetric(3)")
    assert red not in line("Asymmetric(5)")


def test_interrupt_is_quiet(monkeypatch, capsys):
    def study(settings):
        yield demo.Stage("train the float network")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "study", study)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err.endswith("jqz: stopped.\n")
