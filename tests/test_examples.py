"""Every example runs as a script, on tiny input."""

import collections
import io
import itertools
import pathlib
import pickle
import re
import runpy
import sys
import types

import jax
import numpy as np
import pytest

EXAMPLES = {path.name: path for path in (pathlib.Path(__file__).parent.parent / "examples").glob("*.py")}

#: What makes each example small.
TINY = {
    "efficientnet.py": "--weights random --size 16 --calibration 4",
    "nnabla_nets.py": "--net min-max --recipe best --maps 4 --units 0 --epochs 1 --batch 20",
    "quickstart.py": "--steps 1 --bits 4",
    "nnx.py": "--size 6 --batch 2",
    "train_power_of_two.py": "--epochs 1 --batch 512",
}


def _run(name, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(str(EXAMPLES[name].parent))  # as Python does for a script
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


def test_efficientnet(monkeypatch, capsys):
    _run("efficientnet.py", TINY["efficientnet.py"].split(), monkeypatch)
    shown = capsys.readouterr().out
    assert "25 of 25 convolutions run in int8" in shown
    rows = [line for line in shown.splitlines() if line.startswith("│")]
    sizes = [int(re.findall(r"[\d,]{4,}", row)[0].replace(",", "")) for row in rows if "%" in row]
    assert len(sizes) == 2
    assert sizes[1] < sizes[0] / 2


def test_nnabla_nets(monkeypatch, capsys, tmp_path):
    """The float network, then one that learns from it and is tested on integers."""
    images, labels = np.arange(1440, dtype=np.uint8).reshape(40, 6, 6), np.arange(40, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (tmp_path / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())
    places = ["--data", str(tmp_path), "--cache", str(tmp_path)]
    _run("nnabla_nets.py", [*TINY["nnabla_nets.py"].split(), *places], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"float: step 2, loss [\d.]+, test [\d.]+ %", lines[1])
    figures = re.search(r"min-max: test .* codes [\d.]+, bytes ([\d,]+), same as simulated ([\d.]+), same", lines[-1])
    assert float(figures[2]) == 100
    kernels, others, channels = 9 * 4 + 4 * 10, 4 * 4 + 10, 4 + 10
    assert int(figures[1].replace(",", "")) == kernels + 4 * others + channels * (4 + 4)  # a scale, a zero point
    assert {path.name for path in tmp_path.rglob("*.npz")} == {"last.npz", "best.npz"}


def test_weights_are_read_without_running_code_of_theirs(monkeypatch):
    """A file in the old format of PyTorch, written here by hand; and one that asks for more than tensors."""
    monkeypatch.syspath_prepend(str(EXAMPLES["efficientnet.py"].parent))
    from parts import efficientnet_lite0

    class Tensor:
        def __init__(self, shape, strides):
            self.args = (Storage(), 1, shape, strides, False, collections.OrderedDict())

        def __reduce__(self):
            return sys.modules["torch._utils"]._rebuild_tensor_v2, self.args

    class Storage:
        """The numbers of a tensor, which its pickle names and does not hold."""

    for name, members in (("torch", ("FloatStorage",)), ("torch._utils", ("_rebuild_tensor_v2",))):
        module = types.ModuleType(name)
        for member in members:
            function = types.FunctionType((lambda: None).__code__, {}, member)
            function.__module__, function.__qualname__ = name, member
            setattr(module, member, function)
        monkeypatch.setitem(sys.modules, name, module)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            kind = sys.modules["torch"].FloatStorage
            return ("storage", kind, "7", "cpu", 7, None) if isinstance(value, Storage) else None

    def written(described):
        stream = io.BytesIO()
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, described, ["7"]):
            Pickler(stream, 2).dump(part)
        stream.write(np.int64(7).tobytes() + np.arange(7, dtype=np.float32).tobytes())
        return stream.getvalue()

    read = efficientnet_lite0.tensors(written({"w": Tensor((2, 3), (1, 2))}))
    assert read["w"].tolist() == [[1, 3, 5], [2, 4, 6]]
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        efficientnet_lite0.tensors(written({"w": print}))
