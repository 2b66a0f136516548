"""Orbax's checkpoints: Orbax saves and restores, damaged folders are refused."""

import json
import shutil
import sys
import tracemalloc
import typing

import jax
import jax.numpy as jnp
import ml_dtypes
import mutants
import numpy as np
import optax
import pytest
from flax import nnx
from orbax import checkpoint
from trees import same

import jqz
from jqz import cli
from jqz.files import lazy, orbax

RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 5)).astype(np.float32)


class Pair(typing.NamedTuple):
    first: typing.Any
    second: typing.Any


class Nothing(typing.NamedTuple):
    """A node without leaves."""


#: What people save: parameters, optimizer states, NNX states, and every kind of leaf.
TREES = {
    "linen": {"params": {"Dense_0": {"kernel": jnp.asarray(W), "bias": jnp.zeros(5)}}, "step": 3},
    "nnx": nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))),
    "optax": optax.adam(1e-3).init({"w": jnp.ones(3)}),
    "dtypes": {
        name: np.arange(3).astype(getattr(ml_dtypes, name, name))
        for name in ("bool", "int8", "uint16", "int64", "float16", "bfloat16", "float64", "complex64", "float8_e5m2")
    },
    "leaves": {"scalar": np.array(7), "number": 0.5, "text": "net", "none": None},
    "sequences": {"list": [W, (np.ones(2), [np.zeros(1)])], "many": [np.full(1, i) for i in range(12)]},
    "empty": {"dict": {}, "list": [], "tuple": (), "named": Nothing(), "pair": Pair(W, None)},
    "names": {"a/b": {"c d": W}, "\N{SNOWMAN}": np.ones(1), "encoder.layers.0": {"w": np.ones(2)}},
    "alone": W,
}
SAVERS = {
    "ocdbt": ({}, None),
    "files": ({"use_ocdbt": False}, None),
    "zarr3": ({"use_zarr3": True}, None),
    "chunks": ({}, checkpoint.SaveArgs(chunk_byte_size=16)),
}


def saved(path, tree, saver="ocdbt"):
    """A folder that Orbax wrote."""
    options, each = SAVERS[saver]
    arguments = checkpoint.args.PyTreeSave(tree, save_args=each and jax.tree.map(lambda _: each, tree))
    with checkpoint.Checkpointer(checkpoint.PyTreeCheckpointHandler(**options)) as own:
        own.save(path.absolute(), args=arguments)
    return path


def restored(path):
    """What Orbax reads without being told of any structure."""
    with checkpoint.PyTreeCheckpointer() as own:
        return own.restore(path.absolute())


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")
@pytest.mark.parametrize(
    ("tree", "saver"), [*((tree, "ocdbt") for tree in TREES), *(("linen", saver) for saver in SAVERS)]
)
def test_what_orbax_saves_is_read(tree, saver, tmp_path):
    path = saved(tmp_path / "net", TREES[tree], saver)
    wanted = restored(path)
    same(orbax.read(path), wanted)
    same(jax.tree.map(lazy.value, jqz.files.scan(path)), wanted)


def test_orbax_restores_what_is_written(tmp_path):
    path, tree = tmp_path / "net.orbax", {"a": {"w": W.astype(ml_dtypes.bfloat16), "b": np.array(3)}, "c d": W}
    orbax.write(path, tree)
    with checkpoint.StandardCheckpointer() as own:
        same(own.restore(path), tree)


def test_keys_are_their_data(tmp_path):
    keys = jax.random.split(jax.random.key(3), 2)
    same(orbax.read(saved(tmp_path / "net", {"k": keys})), {"k": np.asarray(jax.random.key_data(keys))})


def test_steps_of_a_manager(tmp_path):
    tree = {"w": W, "step": np.array(9)}
    with checkpoint.CheckpointManager(tmp_path / "one") as manager:
        for step in (9, 10):
            manager.save(step, args=checkpoint.args.StandardSave(tree))
    with checkpoint.CheckpointManager(tmp_path / "two") as manager:
        save, other = checkpoint.args.StandardSave, checkpoint.args.JsonSave({"seed": 1})
        manager.save(3, args=checkpoint.args.Composite(params=save(tree), ema=save({"w": W + 1}), config=other))
    same(orbax.read(tmp_path / "one" / "10"), tree)
    same(orbax.read(tmp_path / "two" / "3"), {"ema": {"w": W + 1}, "params": tree})
    with pytest.raises(ValueError, match=r"one': it holds checkpoints in 9, 10. Use '.*/one/10'"):
        orbax.read(tmp_path / "one")


def test_the_command_reads_folders(tmp_path, capsys):
    folder, target = str(saved(tmp_path / "step_1", TREES["linen"])), str(tmp_path / "codes.safetensors")
    scheme = jqz.Symmetric(bits=4)
    assert cli.main(["inspect", folder, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["shape"] for row in facts["tensors"]} == {
        "params/Dense_0/bias": [5],
        "params/Dense_0/kernel": [6, 5],
        "step": [],
    }
    files = [file for file in (tmp_path / "step_1").rglob("*") if file.is_file()]
    assert facts["file_bytes"] == sum(file.stat().st_size for file in files)
    assert cli.main(["quantize", folder, target, "--policy", repr(scheme)]) == 0
    same(jqz.load(target), jqz.quantize(jax.tree.map(np.asarray, TREES["linen"]), scheme))
    assert cli.main(["compare", folder, target]) == 0
    assert cli.main(["sizes", folder]) == 0
    assert cli.main(["report", folder, "-o", str(tmp_path / "page.html"), "--policy", repr(scheme)]) == 0
    assert cli.main(["quantize", target, folder, "--policy", repr(scheme)]) == 2
    assert "cannot hold codes" in capsys.readouterr().err


def test_leaves_are_read_when_asked(tmp_path):
    path = saved(tmp_path / "net", {"w": np.zeros((2000, 1000), np.float32), "v": W}, "files")
    (path / "w" / "0.0").write_bytes(b"not zstd")
    tracemalloc.start()
    tree = orbax.scan(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20  # of 8 MB
    assert (tree["w"].shape, tree["w"].dtype) == ((2000, 1000), np.float32)
    np.testing.assert_array_equal(tree["v"].make(), W)
    with pytest.raises(ValueError, match=r"scan: '.*net': the array 'w' is damaged"):
        tree["w"].make()


def test_what_is_lost_is_no_zeros(tmp_path):
    path = saved(tmp_path / "net", {"a": W, "b": np.ones(3)}, "files")
    (path / "a" / "0.0").unlink()
    with pytest.raises(ValueError, match=r"the array 'a' is damaged: NOT_FOUND"):
        orbax.read(path)


def _document(path, change):
    """The folder with its document changed."""
    document = json.loads((path / "_METADATA").read_text())
    change(document)
    (path / "_METADATA").write_text(json.dumps(document))


def _row(*keys, kind="np.ndarray", ordered=2):
    return {
        "key_metadata": [{"key": key, "key_type": ordered} for key in keys],
        "value_metadata": {"value_type": kind, "skip_deserialize": False},
    }


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([_row("gone")], "the array 'gone' is damaged: NOT_FOUND"),
        ([_row("..", "a")], r"the array '\.\.\.a' is damaged: NOT_FOUND"),
        ([_row("../../a")], "it has an array called '../../a', which is no name within"),
        ([_row("/etc/a")], "it has an array called '/etc/a'"),
        ([_row("a"), _row("a")], "it has two leaves in one place"),
        ([_row("a.b"), _row("a", "b")], "it has two leaves in one place"),
        ([_row("a", kind="None"), _row("a", "b", kind="None")], "'a/b' is the beginning of another"),
        ([_row(), _row("a", kind="None")], r"is damaged"),
        ([_row("a", "1", kind="None", ordered=1)], "the sequence 'a' has the places"),
        ([_row("a", kind="string")], "its _strings.json is missing"),
        ([{"key_metadata": 3}], "it is damaged"),
        ([_row(*"a" * 3000, kind="None")], "its tree is too deep"),
    ],
)
def test_hostile_documents(rows, why, tmp_path):
    path = saved(tmp_path / "net", {"a": W}, "files")
    _document(path, lambda document: document.update(tree_metadata=dict(enumerate(rows))))
    with pytest.raises(ValueError, match=rf"read: '.*net'.*{why}"):
        orbax.read(path)


def test_memory_is_bounded(tmp_path):
    """Arrays of terabytes, chunks of terabytes, and documents without end."""
    path = saved(tmp_path / "net", {"a": W}, "files")
    header = path / "a" / ".zarray"
    own = json.loads(header.read_text())
    for change in ({"shape": [2**40, 5]}, {"chunks": [2**40, 5]}, {"shape": [2**62, 2**62], "chunks": [2**31, 2**31]}):
        header.write_text(json.dumps({**own, **change}))
        with pytest.raises(ValueError, match=r"too many to be true|the array 'a' is damaged"):
            orbax.read(path)
    (path / "_METADATA").write_text("[" + "0," * 2**23 + "0]")
    with pytest.raises(ValueError, match=r"its _METADATA has 16777219 bytes"):
        orbax.read(path)
    (path / "_METADATA").unlink()
    (path / "_METADATA").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"its _METADATA is no JSON"):
        orbax.read(path)


def test_other_folders_say_what_they_are(tmp_path):
    with pytest.raises(ValueError, match=r"it is no checkpoint of Orbax, or a damaged one: it has no _METADATA"):
        orbax.read(tmp_path)
    (tmp_path / "net.orbax").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"it is a file, wanted a folder"):
        orbax.read(tmp_path / "net.orbax")
    with pytest.raises(FileNotFoundError):
        orbax.read(tmp_path / "none.orbax")
    path = saved(tmp_path / "net", {"a": W})
    shutil.copytree(path, tmp_path / "net.orbax-checkpoint-tmp")
    with pytest.raises(ValueError, match=r"it was never finished"):
        orbax.read(tmp_path / "net.orbax-checkpoint-tmp")


def test_writing_refuses_what_orbax_would_lose(tmp_path):
    path = tmp_path / "net.orbax"
    for tree, why in (
        ({"a.b": W, "a": {"b": W}}, "'a/b' and 'a.b' are one name to this format"),
        ({}, "the tree has no arrays"),
        ({"a": {}}, "the tree has no arrays"),
    ):
        with pytest.raises(ValueError, match=why):
            orbax.write(path, tree)
    path.mkdir()
    (path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="a folder is never replaced"):
        orbax.write(path, {"a": W})
    assert [file.name for file in tmp_path.rglob("*")] == ["net.orbax", "thesis.txt"]


def test_missing_packages_are_told(tmp_path, monkeypatch):
    path = saved(tmp_path / "net", {"a": W})
    for package in ("tensorstore", "orbax.checkpoint"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"need tensorstore. Use pip install 'jqz\[files\]'"):
        orbax.read(path)
    with pytest.raises(ImportError, match=r"need orbax.checkpoint. Use pip install 'jqz\[files\]'"):
        orbax.write(tmp_path / "other.orbax", {"a": W})


@pytest.mark.parametrize("saver", ["files", "zarr3"])
def test_damaged_folders(saver, tmp_path):
    """As for files, in the forms that are not written here; any file of the folder may also be gone."""
    path = saved(tmp_path / "net", {"a": {"w": W}, "b": [np.ones(3)], "s": "text"}, saver)
    rng, messages = np.random.default_rng(0), []
    for i in range(60):
        kind = (mutants.flipped, mutants.cut, mutants.stained, lambda *_: b"")[i % 4]
        with mutants.damaged(kind, rng, path):
            try:
                orbax.read(path)
            except ValueError as error:
                messages.append(str(error))
    assert len(messages) > 10
    assert all("net': " in message for message in messages)
