"""The verbs on files: what they print, what they write, and what a user's mistake looks like."""

import gzip
import json
import lzma
import subprocess
import sys

import jax
import numpy as np
import pytest
from trees import same

import jqz
from jqz import cli
from jqz.cli.policies import policy_of

RNG = np.random.default_rng(0)
TREE = {
    "encoder": {"kernel": RNG.normal(size=(64, 48)).astype(np.float32), "bias": RNG.normal(size=48).astype(np.float32)},
    "head": {"kernel": RNG.normal(size=(48, 10)).astype(np.float16)},
    "step": np.array(7),
}
SCHEME = jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1))


@pytest.fixture
def floats(tmp_path):
    path = tmp_path / "net.safetensors"
    jqz.files.safetensors.write(path, TREE)
    return str(path)


@pytest.fixture
def codes(tmp_path):
    path = tmp_path / "codes.safetensors"
    jqz.save(path, jqz.quantize(TREE, jqz.Policy({"encoder/kernel": SCHEME})), {"author": "Ada [b]"})
    return str(path)


def _json(capsys, *arguments, code=0):
    assert cli.main([*arguments, "--json"]) == code
    out, err = capsys.readouterr()
    assert not err
    return json.loads(out)


def test_inspect(codes, capsys):
    facts = _json(capsys, "inspect", codes)
    assert facts["metadata"] == {"author": "Ada [b]"}
    rows = {row["name"]: row for row in facts["tensors"]}
    assert list(rows) == ["encoder/bias", "encoder/kernel", "head/kernel", "step"]
    kernel = rows["encoder/kernel"]
    assert (kernel["scheme"], kernel["shape"], kernel["dtype"]) == (repr(SCHEME), [64, 48], "float32")
    assert (kernel["bytes"], kernel["grid_bytes"]) == (64 * 48 // 2 + 4 * 48, 4 * 48)
    assert facts["bytes"] == kernel["bytes"] + 4 * 48 + 2 * 480 + 8
    assert cli.main(["inspect", codes]) == 0
    out = capsys.readouterr().out
    for text in (repr(SCHEME), "64x48", "float16", "scalar", "author: Ada [b]", "3,601 numbers"):
        assert text in out


@pytest.mark.parametrize("suffix", jqz.files.FORMATS)
def test_quantize_is_quantize(suffix, tmp_path, capsys):
    """What the command writes is what the library computes on the whole tree."""
    source, target = tmp_path / f"net{suffix}", tmp_path / "out.safetensors"
    jqz.files.format_of(source).write(source, TREE)
    rules = ["head/**=None", "**/kernel=Symmetric(bits=4, granularity=PerAxis(-1)) >> PowerOfTwo(bits=4)"]
    facts = _json(capsys, "quantize", str(source), str(target), "--policy", rules[0], "--policy", rules[1])
    assert (facts["tensors"], facts["quantized"]) == (4, 1)
    assert facts["bytes"] == target.stat().st_size
    wanted = jqz.quantize(TREE, {"head/**": None, "**/kernel": SCHEME >> jqz.PowerOfTwo(bits=4)})
    same(jqz.load(target), wanted)


def test_quantize_keeps_what_a_file_of_jqz_holds(codes, tmp_path, capsys):
    """Structure, strings, and tensors that are coded already."""
    target = str(tmp_path / "out.safetensors")
    assert cli.main(["quantize", codes, target, "--policy", "head/kernel=Symmetric(bits=8)", "--entropy"]) == 0
    assert "1 of 4 tensors in codes of 8" in capsys.readouterr().out
    same(jqz.load(target), jqz.quantize(jqz.load(codes), jqz.Policy({"head/kernel": jqz.Symmetric(bits=8)})))
    assert jqz.files.metadata(target) == {"author": "Ada [b]"}


def test_quantize_to_gguf(floats, tmp_path, capsys):
    target = str(tmp_path / "net.gguf")
    rule = "encoder/kernel=Symmetric(bits=8, granularity=PerGroup(16, axis=-1))"
    assert cli.main(["quantize", floats, target, "--policy", rule]) == 2
    assert "'encoder.kernel' is QTensor of" in capsys.readouterr().err
    jqz.files.safetensors.write(floats, {"w": TREE["encoder"]["kernel"].reshape(48, 64)})
    scheme = jqz.Symmetric(bits=8, granularity=jqz.PerGroup(32, axis=-1))
    assert cli.main(["quantize", floats, target, "--policy", repr(scheme)]) == 0
    wanted = jqz.quantize(TREE["encoder"]["kernel"].reshape(48, 64), scheme)
    np.testing.assert_array_equal(jqz.files.gguf.read(target)["w"].codes, wanted.codes)


def test_quantize_in_place(floats):
    wanted = jqz.quantize(TREE, SCHEME)
    assert cli.main(["quantize", floats, floats, "--policy", repr(SCHEME)]) == 0
    same(jqz.load(floats), wanted)


@pytest.mark.parametrize("suffix", jqz.files.FORMATS)
def test_dequantize(suffix, codes, tmp_path, capsys):
    target = tmp_path / f"out{suffix}"
    assert _json(capsys, "dequantize", codes, str(target))["tensors"] == 4
    same(jqz.files.format_of(target).read(target), jqz.dequantize(jqz.load(codes)))


def test_compare(floats, codes, capsys):
    facts = _json(capsys, "compare", floats, codes)
    rows = {row["name"]: row for row in facts["tensors"]}
    assert rows["head/kernel"] == {"name": "head/kernel", "sqnr_db": None, "max_error": 0.0}
    a = TREE["encoder"]["kernel"].astype(np.float64)
    error = a - np.asarray(jqz.dequantize(jqz.load(codes)["encoder"]["kernel"]))
    assert rows["encoder/kernel"]["sqnr_db"] == pytest.approx(10 * np.log10((a**2).sum() / (error**2).sum()))
    assert rows["encoder/kernel"]["max_error"] == pytest.approx(np.abs(error).max())
    assert facts["total"]["max_error"] == rows["encoder/kernel"]["max_error"]
    assert facts["differ"] == []


def test_compare_of_other_names(floats, tmp_path, capsys):
    other = str(tmp_path / "other.npz")
    np.savez(other, **{"encoder/bias": TREE["encoder"]["bias"], "encoder/kernel": np.ones(3), "new": np.ones(2)})
    facts = _json(capsys, "compare", floats, other, code=1)
    assert facts["differ"] == ["encoder/kernel", "head/kernel", "new", "step"]
    assert cli.main(["compare", floats, other]) == 1
    out = capsys.readouterr().out
    assert "encoder/kernel: shape (64, 48) in A, shape (3,) in B" in out
    assert "new: nothing in A, shape (2,) in B" in out


def test_sizes(codes, tmp_path, capsys):
    """The standard library's compressors on each tensor's bytes, made by NumPy; the last one against a file."""
    rows = _json(capsys, "sizes", codes)["bytes"]
    tree = jqz.load(codes)
    floats = [np.asarray(leaf) for leaf in jax.tree.leaves(jqz.dequantize(tree))]
    raw = [(a.astype(np.float32) if a.dtype.kind == "f" else a).tobytes() for a in floats]
    kernel = tree["encoder"]["kernel"]
    packed = [
        tree["encoder"]["bias"].tobytes(),
        b"".join(np.asarray(part).tobytes() for part in jax.tree.leaves(kernel)),
    ]
    packed += [tree["head"]["kernel"].tobytes(), tree["step"].tobytes()]
    assert rows["float32"] == sum(map(len, raw))
    assert rows["float32, gzip"] == sum(len(gzip.compress(part, 9)) for part in raw)
    assert rows["float32, LZMA"] == sum(len(lzma.compress(part)) for part in raw)
    assert rows["packed"] == sum(map(len, packed)) == jqz.size_bytes(tree)
    assert rows["packed, gzip"] == sum(len(gzip.compress(part, 9)) for part in packed)
    small = tmp_path / "small.safetensors"
    jqz.save(small, tree, compress=jqz.files.Entropy())
    header = int.from_bytes(small.read_bytes()[:8], "little")
    assert rows["entropy-coded"] == small.stat().st_size - 8 - header


def test_sizes_of_nothing(tmp_path, capsys):
    jqz.save(tmp_path / "empty.safetensors", {})
    assert set(_json(capsys, "sizes", str(tmp_path / "empty.safetensors"))["bytes"].values()) == {0}


def test_capabilities(capsys):
    facts = _json(capsys, "capabilities")
    assert {"primitive": "dot", "lhs": "int8", "rhs": "int8", "result": "int32", "runs": True, "why": ""} in facts[
        "products"
    ]
    assert cli.main(["capabilities"]) == 0
    assert capsys.readouterr().out == f"{jqz.capabilities()}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "none.safetensors"], "'none.safetensors': No such file or directory"),
        (["inspect", "net.pickle"], "'net.pickle' ends in '.pickle', wanted one of .safetensors"),
        (["inspect", "DAMAGED"], "it is damaged"),
        (["quantize", "FLOATS", "out.npz", "--policy", "Symmetric(bits=4)"], "cannot hold codes. Use a file that ends"),
        (["quantize", "FLOATS", "OUT", "--policy", "Symetric(bits=4)"], "Did you mean Symmetric?"),
        (["quantize", "FLOATS", "OUT", "--policy", "**/kernle=Symmetric(bits=4)"], "Nearest paths: 'encoder/kernel'"),
        (["quantize", "FLOATS", "OUT", "--policy", "Symmetric(granularity=MSE())"], "has a field of another type"),
        (["quantize", "FLOATS", "OUT", "--policy", "**=None", "--policy", "Symmetric()"], "two rules for '**'"),
        (["quantize", "NAN", "OUT", "--policy", "Symmetric(bits=4)"], "'layer/w'"),
        (["quantize", "FLOATS", "/none/out.safetensors", "--policy", "Symmetric(bits=4)"], "No such file or directory"),
        (["dequantize", "FLOATS", "out.txt"], "'out.txt' ends in '.txt'"),
        (["compare", "FLOATS", "none.npz"], "'none.npz': No such file"),
        (["sizes", "none.npz"], "'none.npz': No such file"),
    ],
)
def test_mistakes_are_one_line(arguments, message, floats, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.safetensors").write_bytes(b"\x01" * 100)
    jqz.files.safetensors.write(tmp_path / "nan.safetensors", {"layer": {"w": np.full((3, 3), np.nan, np.float32)}})
    named = {"FLOATS": floats, "OUT": "out.safetensors", "DAMAGED": "damaged.safetensors", "NAN": "nan.safetensors"}
    assert cli.main([named.get(word, word) for word in arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"jqz {arguments[0]}: ")
    assert message in err
    assert not list(tmp_path.glob("out*"))
    assert not list(tmp_path.glob(".*.part"))


def test_policies_as_they_are_written():
    rules = ["{a,b}/*=None", "**/kernel = Symmetric(bits=4, granularity=PerAxis(-1)) >> Ternary()", "Binary()"]
    wanted = {"{a,b}/*": None, "**/kernel": SCHEME >> jqz.Ternary(), "**": jqz.Binary()}
    assert policy_of(rules) == jqz.Policy(wanted)


@pytest.mark.parametrize("verb", [verb.__name__.rpartition(".")[2] for verb in cli.VERBS])
def test_every_verb_has_help_with_examples(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"examples:\n  jqz {verb}" in out
    assert "--json" in out


def test_missing_packages_are_told(floats, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    assert cli.main(["inspect", floats]) == 1
    assert "pip install 'jqz[files]'" in capsys.readouterr().err


def test_dequantize_says_what_it_leaves_out(tmp_path, capsys):
    source, target = str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors")
    jqz.save(source, {"w": TREE["encoder"]["kernel"], "step": 3, "name": "net"})
    facts = _json(capsys, "dequantize", source, target)
    assert (facts["tensors"], facts["left_out"]) == (1, ["name", "step"])
    assert cli.main(["dequantize", source, target]) == 0
    assert "left out, since they are no arrays: name, step" in capsys.readouterr().out
    assert _json(capsys, "quantize", source, target, "--policy", "Symmetric(bits=4)")["tensors"] == 1


def test_a_scheme_that_does_not_fit_is_named(floats, tmp_path, capsys):
    target = str(tmp_path / "out.safetensors")
    assert cli.main(["quantize", floats, target, "--policy", "Symmetric(bits=4, granularity=PerAxis(5))"]) == 2
    assert "'encoder/kernel'" in capsys.readouterr().err


def test_a_reader_that_has_gone_is_no_mistake(codes):
    done = subprocess.run(
        f"{sys.executable} -m jqz.cli inspect {codes} --json | true", shell=True, capture_output=True, text=True
    )
    assert not done.stderr
