"""What every format of plain arrays obeys; a new one is tested by being listed in ``jqz.files.FORMATS``."""

import pathlib
import resource
import shutil

import flax.serialization
import jax
import jax.numpy as jnp
import mutants
import numpy as np
import pytest
from trees import same

import jqz
from jqz.files import lazy, names

RNG = np.random.default_rng(0)
TREE = {
    "encoder": {"kernel": RNG.normal(size=(3, 3, 4, 8)).astype(np.float32), "bias": np.zeros(8, np.float16)},
    "head": {
        "0": {"w": RNG.integers(0, 9, (4, 5))},
        "scalar": np.array(3, np.int32),
    },
}


@pytest.fixture(params=jqz.files.FORMATS)
def path(request, tmp_path):
    return tmp_path / f"net{request.param}"


def test_what_is_written_is_read(path):
    room = jqz.files.format_of(path)
    room.write(path, TREE)
    same(room.read(path), TREE)
    same(jax.tree.map(lazy.value, jqz.files.scan(path)), TREE)


def test_arrays_without_numbers(path):
    room, tree = jqz.files.format_of(path), {"empty": np.zeros((0, 2), np.int8), "one": np.ones(1, np.float32)}
    if room is jqz.files.orbax:
        with pytest.raises(ValueError, match=r"'empty' has shape \(0, 2\), and Orbax stores no empty arrays"):
            room.write(path, tree)
        return
    room.write(path, tree)
    same(room.read(path), tree)


def test_lazy_and_jax_arrays_are_written(path):
    room = jqz.files.format_of(path)
    room.write(
        path, {"a": [jnp.ones((2, 3))], "b": lazy.Lazy((2,), np.dtype(np.float32), lambda: np.ones(2, np.float32))}
    )
    same(room.read(path), {"a": {"0": np.ones((2, 3), np.float32)}, "b": np.ones(2, np.float32)})


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        ({"\ud800": np.ones(1)}, r"'\\ud800' is no text that a file can hold"),
        ({"a": {"b": np.ones(1)}, "a/b": np.ones(1)}, "two leaves are named 'a/b'"),
        ({"a": np.ones(1), "a/b": np.ones(1)}, "the name 'a/b' is the beginning of another"),
    ],
)
def test_names_that_would_be_lost(tree, why, path):
    with pytest.raises(ValueError, match=why):
        jqz.files.format_of(path).write(path, tree)
    assert not path.exists()


def test_names_are_no_paths(path):
    """What would lead elsewhere on a disk is a name like others."""
    room, tree = jqz.files.format_of(path), {"..": np.full(1, 1), "a/../b": np.full(1, 2), "c d\x1b": np.full(1, 3)}
    room.write(path, tree)
    part = "." if room is jqz.files.gguf else "/"
    same(room.read(path), names.nested_at({name.replace("/", part): x for name, x in tree.items()}, part))
    assert list(path.parent.iterdir()) == [path]


def test_names_of_one_format(tmp_path):
    one, dots = np.ones(1), {"a.b": np.ones(1), "a": {"b": np.ones(1)}}
    for name, tree, why in (
        ("net.npz", {"a\0b": one}, "would lose what follows its zero"),
        ("net.safetensors", {"__metadata__": one}, "'__metadata__' is what the format calls"),
        ("net.gguf", dots, "'a/b' and 'a.b' are one name to this format"),
    ):
        with pytest.raises(ValueError, match=why):
            jqz.files.format_of(name).write(tmp_path / name, tree)
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_not_replaced(path):
    """A folder stays, also an empty one, and a device does under a link to it."""
    room, tree, link = jqz.files.format_of(path), {"a": np.ones(1)}, path.with_name(f"link{path.suffix}")
    path.mkdir()
    link.symlink_to("/dev/null")
    for target in (path, link):
        with pytest.raises(ValueError, match=r"is there and no file|exists, and a folder is never replaced"):
            room.write(target, tree)
    assert not pathlib.Path("/dev/null").is_file()
    assert sorted(path.parent.iterdir()) == sorted([path, link])


def test_a_folder_that_is_not_there_is_named(path):
    target = path.parent / "none" / path.name
    with pytest.raises(FileNotFoundError) as error:
        jqz.files.format_of(path).write(target, {"a": np.ones(1)})
    assert error.value.filename == str(target)


def test_codes_are_refused(path):
    q = jqz.quantize(np.ones((2, 2), np.float32), jqz.Symmetric(bits=4))
    with pytest.raises(TypeError, match=r"write: 'w' is QTensor.* wanted .* Use .*jqz.save"):
        jqz.files.format_of(path).write(path, {"w": q})
    assert not path.exists()


def test_what_is_there_stays_when_writing_fails(path):
    def broken():
        raise OSError("gone")

    room, fails = jqz.files.format_of(path), {"a": np.ones(3), "b": lazy.Lazy((2,), np.dtype(np.float32), broken)}
    with pytest.raises(OSError, match="gone"):
        room.write(path, fails)
    assert not list(path.parent.iterdir())
    room.write(path, TREE)
    with pytest.raises((OSError, ValueError), match=r"gone|exists, and a folder is never replaced"):
        room.write(path, fails)
    same(room.read(path), TREE)
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_is_full(path):
    """The system refuses to write on, which leaves nothing."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, limits[1]))
    try:
        with pytest.raises((OSError, ValueError), match="File too large"):
            jqz.files.format_of(path).write(path, {"w": RNG.normal(size=(400, 300))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("kind", [mutants.flipped, mutants.cut, mutants.stained], ids=lambda kind: kind.__name__)
def test_damaged_files(kind, path):
    """Read or refused by a ValueError that names the file."""
    room = jqz.files.format_of(path)
    room.write(path, TREE)
    rng, messages = np.random.default_rng(0), []
    for _ in range(60):
        with mutants.damaged(kind, rng, path):
            for read in (room.read, room.scan):
                try:
                    jax.tree.map(lazy.value, read(path))
                except ValueError as error:
                    messages.append(str(error))
    assert len(messages) >= 10


def test_npz_of_numpy(tmp_path):
    path = tmp_path / "net.npz"
    np.savez_compressed(path, **{"a.w": np.zeros((100, 100)), "a.b": np.asfortranarray(RNG.normal(size=(3, 4)))})
    with np.load(path) as stored:
        for tree in (jqz.files.npz.read(path), jax.tree.map(lazy.value, jqz.files.scan(path))):
            for name in ("w", "b"):
                np.testing.assert_array_equal(tree["a"][name], stored[f"a.{name}"])
    jqz.files.npz.write(path, TREE)
    with np.load(path) as stored:
        np.testing.assert_array_equal(stored["encoder/kernel"], TREE["encoder"]["kernel"])
    np.savez(path, a=np.array([object()]))
    with pytest.raises(ValueError, match="wanted numbers that fit"):
        jqz.files.npz.read(path)
    with pytest.raises(TypeError, match="'a' has dtype bfloat16, which is not NumPy's own"):
        jqz.files.npz.write(path, {"a": jnp.ones(2, jnp.bfloat16)})


@pytest.mark.parametrize("end", [".npz", ".pth"])
def test_an_archive_whose_directory_is_misplaced(end, tmp_path):
    path = tmp_path / f"net{end}"
    if end == ".npz":
        jqz.files.npz.write(path, TREE)
    else:
        shutil.copy(pathlib.Path(__file__).parents[1] / "data" / "torch.pth", path)
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x06\x06")  # large archives say it here, as PyTorch's do
    data[(at + 48 if at >= 0 else data.rindex(b"PK\x05\x06") + 16) + 2] += 1  # members then begin before the file does
    path.write_bytes(data)
    room = jqz.files.format_of(path)
    for read in (room.read, room.scan):
        with pytest.raises(ValueError, match=rf"net{end}': it is damaged"):
            jax.tree.map(lazy.value, read(path))


def test_msgpack_of_flax(tmp_path):
    path = tmp_path / "net.msgpack"
    tree = {"params": {"w": jnp.ones((2, 3), jnp.bfloat16)}, "step": 3, "list": [np.ones(2)]}
    path.write_bytes(flax.serialization.to_bytes(tree))
    got = jqz.files.msgpack.read(path)
    assert (got["step"], got["params"]["w"].dtype) == (3, jnp.bfloat16)
    jqz.files.msgpack.write(path, {"params": tree["params"], "list": tree["list"]})
    target = {"params": tree["params"], "list": tree["list"]}
    back = flax.serialization.from_bytes(jax.tree.map(jnp.zeros_like, target), path.read_bytes())
    same(jax.tree.map(np.asarray, back), jax.tree.map(np.asarray, target))


def test_unknown_ends(tmp_path):
    for read in (jqz.files.scan, jqz.files.format_of):
        with pytest.raises(ValueError, match=r"net.pickle' ends in '.pickle', wanted one of .safetensors, .npz"):
            read(tmp_path / "net.pickle")


def test_the_order_of_bytes_is_no_part_of_a_number(path, tmp_path):
    big = np.arange(6, dtype=">f4").reshape(2, 3)
    jqz.files.format_of(path).write(path, {"w": big})
    np.testing.assert_array_equal(jqz.files.format_of(path).read(path)["w"], np.arange(6).reshape(2, 3))
    np.savez(tmp_path / "big.npz", w=big)
    assert jqz.files.npz.read(tmp_path / "big.npz")["w"].dtype.isnative
