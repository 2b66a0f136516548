"""Every example runs as a script, on tiny input."""

import hashlib
import io
import itertools
import json
import pathlib
import re
import runpy
import sys
import tarfile

import jax
import numpy as np
import PIL.Image
import pytest

EXAMPLES = {path.name: path for path in (pathlib.Path(__file__).parent.parent / "examples").glob("*.py")}

#: What makes each example small.
TINY = {
    "detection.py": "--net shapes --side 32 --steps 2 --images 4 --only all_in_8",
    "efficientnet.py": "--weights random --size 16 --calibration 4",
    "nnabla_nets.py": "--net min-max --recipe best --maps 4 --units 0 --epochs 1 --longer 2 --batch 20",
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


def test_detection(monkeypatch, capsys, tmp_path):
    arguments = [word.replace("_", " ") for word in TINY["detection.py"].split()]
    _run("detection.py", [*arguments, "--show", str(tmp_path / "boxes.png")], monkeypatch)
    rows = [re.split(r"\s*│\s*", line)[1:6] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["float32", "all in 8 bits"]
    assert all(0 <= float(row[1]) <= float(row[2]) <= 100 for row in rows)
    filters, boxes = (3, 12, 24, 32, 48), 2 * (5 + 3)
    dots = sum(a * b for a, b in itertools.pairwise((*filters[1:], boxes))) + 9 * 3 * 12
    depthwise, channels = 9 * sum(filters[1:-1]), sum(filters[1:]) + boxes
    scales = channels + sum(filters[1:-1])
    assert int(rows[0][4].replace(",", "")) == 4 * (dots + depthwise + channels)
    assert int(rows[1][4].replace(",", "")) == dots + depthwise + 4 * scales + 4 * channels
    with PIL.Image.open(tmp_path / "boxes.png") as picture:
        assert picture.size == (4 * 32, 32)


def test_mean_average_precision(monkeypatch):
    """Two objects; of four boxes the first and the third are right, the second is a double, the fourth is elsewhere."""
    monkeypatch.syspath_prepend(str(EXAMPLES["detection.py"].parent))
    from parts import detector

    here, there = [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]
    truth = detector.Boxes(np.array([here, there]), np.ones(2), np.zeros(2, int))
    close, far = [0.0, 0.0, 0.5, 0.4], [0.6, 0.0, 0.9, 0.3]
    np.testing.assert_allclose(detector.overlaps(np.array([close, far]), truth.corners), [[0.8, 0], [0, 0]], atol=1e-12)
    found = detector.Boxes(np.array([far, there, close, here]), np.array([0.2, 0.6, 0.8, 0.9]), np.zeros(4, int))
    # precision 1 up to recall 1/2, then 2/3 up to recall 1
    assert detector.mean_average_precision([found], [truth], [0.5]) == pytest.approx((1 + 2 / 3) / 2)
    # the double counts as the object once the first box is gone, and no longer where boxes must overlap by 0.9
    later = detector.Boxes(*(part[:3] for part in found))
    assert detector.mean_average_precision([later], [truth], [0.5]) == pytest.approx(1)
    assert detector.mean_average_precision([later], [truth], [0.5, 0.9]) == pytest.approx((1 + 0.25) / 2)
    # a box in another class finds nothing; an image without boxes lowers recall
    other = detector.Boxes(found.corners, found.scores, np.ones(4, int))
    assert detector.mean_average_precision([other], [truth], [0.5]) == 0
    none = detector.Boxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert detector.mean_average_precision([later, none], [truth, truth], [0.5]) == pytest.approx(0.5)


def test_published_faces(monkeypatch, tmp_path):
    """An archive of the kind, made here; and one that somebody changed."""
    monkeypatch.syspath_prepend(str(EXAMPLES["detection.py"].parent))
    from parts import detector

    shapes = {"conv0/filters": [3, 3, 3, 2], "conv1/depthwise_filter": [3, 3, 2, 1], "conv8/bias": [5]}
    kept = {"dtype": "uint8", "scale": 0.5, "min": -3.0}
    manifest = [{"weights": [{"name": name, "shape": shape, "quantization": kept} for name, shape in shapes.items()]}]
    codes = np.arange(54 + 18 + 5, dtype=np.uint8)
    jpeg = io.BytesIO()
    PIL.Image.new("RGB", (8, 4), (255, 0, 0)).save(jpeg, "JPEG")
    files = {
        f"{detector.WEIGHTS}.bin": codes.tobytes(),
        f"{detector.WEIGHTS}-weights_manifest.json": json.dumps(manifest).encode(),
        **dict.fromkeys(detector.PHOTOGRAPHS, jpeg.getvalue()),
    }
    path = tmp_path / "some-package-1.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    monkeypatch.setattr(detector, "PACKAGE", ("@some/package", "1.0", hashlib.sha256(path.read_bytes()).hexdigest()))
    variables, photographs = detector.faces(tmp_path)
    tree = variables["params"]
    np.testing.assert_array_equal(tree["conv0"]["kernel"].ravel(), codes[:54] * 0.5 - 3)
    np.testing.assert_array_equal(tree["conv1_depthwise"]["kernel"][..., 0, 1].ravel(), codes[55:72:2] * 0.5 - 3)
    np.testing.assert_array_equal(tree["boxes"]["bias"], codes[72:] * 0.5 - 3)
    squares = detector.squares(photographs, 6)
    assert squares.shape == (12, 6, 6, 3)
    assert (squares[:, :3, :, 0] > 0.5).all()  # red above, and black below
    np.testing.assert_allclose(squares[:, 3:], np.broadcast_to(squares[0, 5, 5], (12, 3, 6, 3)))
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ValueError, match="is not the published file"):
        detector.faces(tmp_path)


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
    assert lines[-2].startswith("min-max: step 4, ")
    figures = re.search(r"min-max: test .* codes [\d.]+, bytes ([\d,]+), same as simulated ([\d.]+), same", lines[-1])
    assert float(figures[2]) == 100
    kernels, others, channels = 9 * 4 + 4 * 10, 4 * 4 + 10, 4 + 10
    assert int(figures[1].replace(",", "")) == kernels + 4 * others + channels * (4 + 4)  # a scale, a zero point
    assert {path.name for path in tmp_path.rglob("*.npz")} == {"last.npz", "best.npz"}
