"""README.md stays true: its Python runs from top to bottom, its commands are the ones that work."""

import contextlib
import importlib.util
import io
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import jqz

README = pathlib.Path(__file__).parent.parent / "README.md"
TEXT = README.read_text()


def _blocks(language):
    """Code blocks with their line numbers."""
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        yield TEXT[: found.start(1)].count("\n"), found.group(1)


def test_python_runs_in_order():
    namespace = {"__name__": "readme"}
    # optax.adam raises a float to an integer power, which strict promotion refuses
    with jax.numpy_dtype_promotion("standard"), contextlib.redirect_stdout(io.StringIO()) as printed:
        blocks = list(_blocks("python"))
        for line, code in blocks:
            exec(compile("\n" * line + code, str(README), "exec"), namespace)
    assert len(blocks) >= 8

    # what the comments of the contract promise
    sizes, message = printed.getvalue().splitlines()[:2]
    coded, plain = map(int, sizes.split())
    kernels, floats = 48 * 128 + 128 * 64, 64 * 10 + 128 + 64 + 10
    assert (coded, plain) == (kernels // 2 + 4 * (128 + 64) + 4 * floats, 4 * (kernels + floats))
    assert "params/Dense_0/kernel" in message
    assert namespace["scheme"] == jqz.Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4)
    assert namespace["w_hat"].shape == namespace["w"].shape
    exact = namespace["model"].apply(namespace["params"], namespace["x"])
    assert jnp.allclose(namespace["infer"](namespace["qparams"], namespace["x"]), exact, atol=1e-5)


@pytest.mark.parametrize(
    "command",
    [
        "python3 -m venv .venv && .venv/bin/pip install -e '.[demo]' && .venv/bin/jqz demo",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest",
    ],
)
def test_commands_stand_alone_in_a_block(command):
    assert command in [code.strip() for _, code in _blocks("sh")]


def test_first_lines_say_what_it_is():
    title, blank, sentence = TEXT.splitlines()[:3]
    assert title == "# jqz"
    assert not blank
    assert sentence.startswith("jqz ")
    assert sentence.count(". ") == 0


def test_table_lists_every_scheme():
    table = re.findall(r"^\| `(\w+)` \|", TEXT[TEXT.index("## Schemes") :], re.MULTILINE)
    assert sorted(table) == sorted(cls.__name__ for cls in jqz.schemes.CATALOGUE)


def test_files_and_names_exist():
    root = README.parent
    for path in re.findall(r"`((?:jqz|tests|examples|benchmarks)/[\w./]*)`", TEXT):
        assert (root / path).exists(), path
    for name in re.findall(r"jqz\.([a-z]\w*|[A-Z]\w*)", TEXT):
        assert hasattr(jqz, name) or importlib.util.find_spec(f"jqz.{name}"), f"jqz.{name}"
