"""What every format of plain arrays obeys; a new one is tested by being listed in ``jqz.files.FORMATS``."""

import flax.serialization
import jax
import jax.numpy as jnp
import mutants
import numpy as np
import pytest
from trees import same

import jqz
from jqz.files import lazy

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


def test_npz_whose_directory_is_misplaced(tmp_path):
    path = tmp_path / "net.npz"
    jqz.files.npz.write(path, TREE)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x05\x06") + 17] += 16  # 4096 bytes on: members then begin before the file does
    path.write_bytes(data)
    for read in (jqz.files.npz.read, jqz.files.npz.scan):
        with pytest.raises(ValueError, match=r"net.npz': it is damaged"):
            read(path)


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
