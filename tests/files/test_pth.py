"""PyTorch's checkpoints: two files that PyTorch 2.15 wrote, and hostile ones made here."""

import io
import os
import pathlib
import pickle
import shutil
import zipfile

import jax
import ml_dtypes
import mutants
import numpy as np
import pytest
from trees import same

import jqz
from jqz import cli
from jqz.files import lazy, pth

DATA = pathlib.Path(__file__).parents[1] / "data"
FILES = {"zip": DATA / "torch.pth", "old": DATA / "torch_old.pth"}
ROW = np.arange(24, dtype=np.float32)
#: What was saved: a transposed view, a slice, an expanded tensor, every kind of number.
CHECKPOINT = {
    "state_dict": {
        "layer": {
            "0": {"weight": ROW.reshape(4, 6).T, "bias": ROW[3:7]},
            "1": {"weight": (ROW[:8] / 8).astype(ml_dtypes.bfloat16).reshape(2, 4)},
        },
        "half": np.array([0.5, -2], np.float16),
        "count": np.array(7),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
        "codes": np.arange(-3, 3, dtype=np.int8),
        "parameter": np.full((1, 2), 1.5),
        "wide": np.ones(3, np.float32),
    },
    "epoch": 3,
    "loss": 0.25,
    "name": "net",
    "best": None,
    "optimizer": {
        "state": {"0": {"step": np.array(2, np.float32)}},
        "param_groups": [{"lr": 0.1, "betas": [0.9, 0.999], "params": [0]}],
    },
}


@pytest.fixture(params=FILES)
def path(request, tmp_path):
    return shutil.copy(FILES[request.param], tmp_path / "net.pth")


def arrays(tree):
    """The tree without its strings, which are no arrays."""
    return jax.tree.map(lambda leaf: 0 if isinstance(leaf, str) else leaf, tree)


def test_what_pytorch_saved_is_read(path):
    for tree in (pth.read(path), jax.tree.map(lazy.value, jqz.files.scan(path))):
        same(arrays(tree), arrays(CHECKPOINT))
        assert tree["name"] == "net"


def test_it_is_quantized_from_the_command_line(path, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    assert cli.main(["quantize", str(path), str(target), "--policy", "state_dict/layer/**=Symmetric(bits=8)"]) == 0
    got, wanted = jqz.load(target), jqz.quantize(ROW.reshape(4, 6).T, jqz.Symmetric(bits=8))
    np.testing.assert_array_equal(got["state_dict"]["layer"]["0"]["weight"].codes, wanted.codes)
    assert got["epoch"] == 3
    assert cli.main(["dequantize", str(target), str(tmp_path / "out.pth")]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [mutants.flipped, mutants.cut, mutants.stained], ids=lambda kind: kind.__name__)
def test_damaged_files(kind, path):
    sound, rng, refused = path.read_bytes(), np.random.default_rng(1), 0
    for _ in range(150):
        path.write_bytes(kind(rng, sound))
        try:
            jax.tree.map(lazy.value, pth.scan(path))
        except ValueError:
            refused += 1
    assert refused > 30


def written(path, data, **members):
    """A file in the format of PyTorch 1.6 with this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", data)
        for name, content in members.items():
            archive.writestr(f"net/data/{name.removeprefix('_')}", content)
    return path


def pickled(*parts):
    return pickle.PROTO + b"\x02" + b"".join(parts) + pickle.STOP


def text(string):
    return pickle.BINUNICODE + len(string).to_bytes(4, "little") + string.encode()


def named(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def whole(number):
    return pickle.LONG1 + b"\x09" + number.to_bytes(9, "little", signed=True)


def tensor(count, offset, shape, strides, kind="FloatStorage"):
    """The pickle of a tensor."""
    storage = (text("storage"), named("torch", kind), text("0"), text("cpu"), whole(count))
    sizes = [pickle.MARK + b"".join(map(whole, numbers)) + pickle.TUPLE for numbers in (shape, strides)]
    made = (pickle.MARK, *storage, pickle.TUPLE, pickle.BINPERSID, whole(offset), *sizes, pickle.NEWFALSE, pickle.NONE)
    return named("torch._utils", "_rebuild_tensor_v2") + pickle.MARK + b"".join(made) + pickle.TUPLE + pickle.REDUCE


class Runs:
    """What a hostile pickle is made of."""

    def __reduce__(self):
        return os.mkdir, ("made by a pickle",)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "net.pth", pickle.dumps({"w": Runs()}, protocol))
    with pytest.raises(ValueError, match=r"net.pth': it (asks for posix.mkdir|is damaged: )"):
        pth.read(path)
    stream = io.BytesIO()
    pickle.dump(Runs(), stream, protocol)
    path.write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match=r"net.pth"):
        pth.read(path)
    assert not (tmp_path / "made by a pickle").exists()
    if protocol >= 2:  # those before it call by opcodes that are not read
        sound = written(tmp_path / "sound.pth", pickle.dumps({"a": [1, 0.5, "x", None, True]}, protocol))
        assert pth.read(sound) == {"a": [1, 0.5, "x", None, True]}


def test_tensors_stay_within_their_storage(tmp_path):
    path, numbers = tmp_path / "net.pth", {"_0": ROW.tobytes()}
    assert pth.read(written(path, pickled(tensor(24, 2, (3, 2), (6, 1))), **numbers)).tolist() == [
        [2, 3], [8, 9], [14, 15],
    ]  # fmt: skip
    assert pth.read(written(path, pickled(tensor(24, 23, (1, 1), (99, 99))), **numbers)).tolist() == [[23]]
    for bad in (
        tensor(25, 0, (2,), (1,)),  # more numbers than there are
        tensor(24, 20, (5,), (1,)),
        tensor(24, 0, (2, 2), (24, 1)),
        tensor(24, -1, (2,), (1,)),
        tensor(24, 0, (2,), (-1,)),
        tensor(24, 0, (-2,), (1,)),
        tensor(24, 0, (2, 2), (1,)),
        tensor(24, 0, (2**40,), (0,)),  # one number again and again
        tensor(24, 0, (0, 2**60), (1, 1)),
        tensor(2**62, 2**61, (2,), (2**60,)),
        tensor(24, 0, (1,) * 40, (1,) * 40),
        tensor(24, 0, (2,), (1,), kind="ComplexFloatStorage"),
    ):
        with pytest.raises(ValueError, match=r"pth.read: .*net.pth': "):
            pth.read(written(path, pickled(bad), **numbers))
    with pytest.raises(ValueError, match=r"net.pth': "):
        pth.read(written(path, pickled(tensor(24, 0, (2,), (1,)))))  # no storage


def test_memory_is_bounded(tmp_path):
    """What makes other readers take gigabytes: far memo numbers, long announcements, parts of parts of parts."""
    path = tmp_path / "net.pth"
    far = pickle.EMPTY_LIST + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f"
    assert pth.read(written(path, pickled(far))) == []
    long = pickle.BYTEARRAY8 + (2**40).to_bytes(8, "little")
    laugh = pickle.EMPTY_LIST + b"".join(
        pickle.BINPUT + bytes([i]) + pickle.POP + pickle.EMPTY_LIST + 10 * (pickle.BINGET + bytes([i]) + pickle.APPEND)
        for i in range(20)
    )
    itself = pickle.EMPTY_LIST + pickle.BINPUT + b"\x00" + pickle.BINGET + b"\x00" + pickle.APPEND
    for bad in (long, laugh, itself):
        with pytest.raises(ValueError, match=r"net.pth': "):
            pth.read(written(path, pickled(bad)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", bytes(10**7))
    with pytest.raises(ValueError, match=r"is compressed, which torch.save never does"):
        pth.read(path)


def test_other_files_say_what_to_do(tmp_path):
    path = tmp_path / "net.pt"
    with pytest.raises(ValueError, match=r"it asks for torch.nn.modules.linear.Linear, .* Save model.state_dict\(\)"):
        pth.read(written(path, pickled(named("torch.nn.modules.linear", "Linear"))))
    np.savez(tmp_path / "net.npz", a=np.ones(2))
    with pytest.raises(ValueError, match=r"has no data.pkl. Save model.state_dict\(\)"):
        pth.read(tmp_path / "net.npz")
    with pytest.raises(ValueError, match=r"would be a pickle. Use a name that ends in .safetensors"):
        pth.write(path, {})
