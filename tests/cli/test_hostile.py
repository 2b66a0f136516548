"""Files that nobody would write on purpose: odd dtypes, nothing in them, names that a terminal would obey."""

import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest
from trees import same

import jqz
from jqz import cli

W = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
RULE = "Symmetric(bits=4)"
#: Every kind of leaf that save takes.
ODD = {
    "bfloat16": W.astype(ml_dtypes.bfloat16),
    "float8": W.astype(ml_dtypes.float8_e4m3fn),
    "float64": W.astype(np.float64),
    "int4": np.ones((2, 2), ml_dtypes.int4),
    "complex": (W + 1j * W).astype(np.complex64),
    "bool": W > 0,
    "key": jax.random.key(1),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.float32(3),
    "codes": jqz.quantize(W, jqz.Codebook(bits=2)),
    "text": "net",
    "none": None,
}
TREES = {"odd": ODD, "empty": {}, "no arrays": {"a": None, "b": [3, "x"]}, "integers": {"a": np.arange(3)}}


def told(capsys, *arguments, code=0):
    """What a verb prints, without a word on the error stream where all went well."""
    assert cli.main([*arguments]) == code
    out, err = capsys.readouterr()
    assert bool(err) == bool(code)
    return err if code else out


@pytest.mark.parametrize("tree", TREES)
def test_every_verb_takes_every_leaf(tree, tmp_path, capsys):
    path, target = tmp_path / "net.safetensors", tmp_path / "out.safetensors"
    jqz.save(path, TREES[tree])
    count = sum(hasattr(leaf, "dtype") for leaf in TREES[tree].values())
    assert f"\n{count} tensors, " in told(capsys, "inspect", str(path))
    assert "entropy-coded" in told(capsys, "sizes", str(path))
    told(capsys, "quantize", str(path), str(target), "--policy", RULE)
    same(jax.tree.map(_data, jqz.load(target)), jax.tree.map(_data, jqz.quantize(TREES[tree], jqz.Symmetric(bits=4))))
    facts = json.loads(told(capsys, "compare", str(path), str(path), "--json"))
    assert [row["max_error"] for row in facts["tensors"]] == [0.0] * count
    told(capsys, "dequantize", str(path), str(tmp_path / "out.msgpack"))
    assert len(jqz.files.msgpack.read(tmp_path / "out.msgpack")) == count


def _data(leaf):
    return jax.random.key_data(leaf) if getattr(leaf, "dtype", None) == jax.random.key(0).dtype else leaf


def test_a_weight_that_learned_its_grid(tmp_path, capsys):
    path, target = tmp_path / "net.safetensors", tmp_path / "out.safetensors"
    scheme = jqz.Symmetric(bits=3, gradient=jqz.gradients.LSQ())
    tree = {"layer": jqz.learnable({"w": W}, scheme), "b": W[0]}
    jqz.save(path, tree)
    told(capsys, "quantize", str(path), str(target), "--policy", f"**/w={scheme}")
    same(jqz.load(target), jqz.quantize(tree, jqz.Policy({"**/w": scheme})))
    assert "Use the policy that learnable was given" in told(
        capsys, "quantize", str(path), str(target), "--policy", f"**/w={RULE}", code=2
    )
    rows = json.loads(told(capsys, "inspect", str(path), "--json"))["tensors"]
    assert [row["name"] for row in rows] == ["b", "layer/w/value", "layer/w/grid/scale"]
    told(capsys, "dequantize", str(path), str(target))
    np.testing.assert_array_equal(jqz.files.safetensors.read(target)["layer"]["w"]["value"], W)


def test_report_of_odd_leaves(tmp_path, capsys):
    path, page = tmp_path / "net.safetensors", str(tmp_path / "page.html")
    jqz.save(path, {name: ODD[name] for name in ("bfloat16", "empty", "key")})
    told(capsys, "report", str(path), "-o", page, "--policy", RULE)
    for tree, options, why in (
        ({}, ["--policy", RULE], "jqz report: the tree has no arrays"),
        ({"empty": ODD["empty"]}, [], "select no weight"),
    ):
        jqz.save(path, tree)
        assert why in told(capsys, "report", str(path), "-o", page, *options, code=2)


def test_compare_of_what_is_not_finite(tmp_path, capsys):
    """Equal infinities do not differ; where one is infinite, all is lost; NaN stays NaN."""
    values = {"same": [np.inf, 1.0], "other": [np.inf, 1.0], "nan": [np.nan, 1.0], "signal": [2.0, 0.0]}
    others = {"same": [np.inf, 1.0], "other": [5.0, 1.0], "nan": [np.nan, 1.0], "signal": [np.inf, 0.0]}
    for name, tree in (("a.npz", values), ("b.npz", others)):
        np.savez(tmp_path / name, **{key: np.array(value, np.float32) for key, value in tree.items()})
    lines = told(capsys, "compare", str(tmp_path / "a.npz"), str(tmp_path / "b.npz")).splitlines()
    shown = {line.split()[0]: line.split()[1:] for line in lines if line.strip() and line.split()[0] in values}
    assert shown == {"same": ["inf", "0"], "other": ["nan", "inf"], "nan": ["nan", "nan"], "signal": ["-inf", "inf"]}


def test_a_terminal_does_not_obey_a_file(tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    jqz.save(path, {"a\x1b[2Jb\nc": W, "\x07": W[0]}, {"by\x1b]0;me\x07": "first\nsecond\x1b[31m"})
    out = told(capsys, "inspect", str(path))
    out += told(capsys, "compare", str(path), str(path)) + told(capsys, "sizes", str(path))
    jqz.save(tmp_path / "other.safetensors", {"\x1b[2J": W})
    cli.main(["compare", str(path), str(tmp_path / "other.safetensors")])
    out += capsys.readouterr().out
    assert not {c for c in out if not c.isprintable()} - {"\n"}
    for text in (r"a\x1b[2Jb\nc", r"\x07", r"by\x1b]0;me\x07: first\nsecond\x1b[31m"):
        assert text in out
    assert json.loads(told(capsys, "inspect", str(path), "--json"))["tensors"][0]["name"] == "\x07"


def test_an_interrupt_leaves_what_was_there(tmp_path, capsys, monkeypatch):
    path, target = str(tmp_path / "net.safetensors"), tmp_path / "out.safetensors"
    jqz.save(path, {f"w{i}": W for i in range(20)})
    target.write_text("mine")

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.quantize, "quantize", stopped)
    assert told(capsys, "quantize", path, str(target), "--policy", RULE, code=130) == "jqz: stopped.\n"
    assert target.read_text() == "mine"
    assert len(os.listdir(tmp_path)) == 2


def test_names_of_files_that_are_no_text(tmp_path, capsys):
    path, target = (str(tmp_path / os.fsdecode(name + b".safetensors")) for name in (b"\xff", b"\xfe"))
    jqz.files.safetensors.write(path, {"w": W})
    assert r"\udcff.safetensors" in told(capsys, "inspect", path)
    assert r"\udcfe.safetensors: 1 of 1 tensors" in told(capsys, "quantize", path, target, "--policy", RULE)
    assert r"\udcff.safetensors" in told(capsys, "report", path, "-o", path + ".html", "--policy", RULE)
    assert r"\udcfe.npz': No such file" in told(capsys, "inspect", str(tmp_path / os.fsdecode(b"\xfe.npz")), code=2)


def test_folders_and_links(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jqz.files.safetensors.write("net.safetensors", {"w": W})
    os.mkdir("folder.safetensors")
    os.symlink("folder.safetensors", "link.safetensors")
    os.symlink("loop.npz", "loop.npz")
    for target in ("folder.safetensors", "link.safetensors"):
        why = told(capsys, "quantize", "net.safetensors", target, "--policy", RULE, code=2)
        assert f"{target!r} cannot hold codes. Use a file that ends in .safetensors" in why
        assert "a folder is never replaced" in told(capsys, "dequantize", "net.safetensors", target, code=2)
    assert "it is no checkpoint of Orbax" in told(capsys, "inspect", "folder.safetensors", code=2)
    assert "Too many levels of symbolic links" in told(capsys, "inspect", "loop.npz", code=2)
    why = told(capsys, "quantize", "net.safetensors", "none/out.safetensors", "--policy", RULE, code=2)
    assert why == "jqz quantize: 'none/out.safetensors': No such file or directory\n"
    assert not os.listdir("folder.safetensors")
