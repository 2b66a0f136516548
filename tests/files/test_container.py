"""Files on the disk: whole trees come back, what is there stays whole, and hostile files are refused."""

import json
import pathlib
import stat
import tracemalloc

import jax
import jax.numpy as jnp
import killed
import mutants
import numpy as np
import pytest
import safetensors.numpy
from trees import same

import jqz
from jqz.files import atomic, container
from jqz.files.lazy import value

X = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
ENTROPY = jqz.files.Entropy()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


@pytest.fixture(scope="module")
def resnet():
    """A trained network, and its weights of 4 bits."""
    with np.load(pathlib.Path(__file__).parents[1] / "data" / "resnet20_fashion.npz") as stored:
        params = {name: stored[name].astype(np.float32) for name in stored.files}
    return params, jqz.quantize(params, jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1)))


@pytest.mark.parametrize("compress", [None, ENTROPY], ids=repr)
def test_a_trained_net_comes_back(compress, resnet, path):
    _, qparams = resnet
    jqz.save(path, qparams, compress=compress)
    same(jqz.load(path), qparams)
    same(jqz.dequantize(jqz.load(path)), jqz.dequantize(qparams))
    assert path.stat().st_size < jqz.size_bytes(qparams) + 600 * len(qparams)


@pytest.mark.parametrize("bits", [4, 8])
def test_entropy_coding_of_a_trained_net(bits, resnet, path):
    """All codes and tables within 1 % of the zeroth-order entropy of each tensor, by its definition."""
    scheme = jqz.Symmetric(bits=bits, granularity=jqz.PerAxis(-1))
    qparams = {name: q for name, q in jqz.quantize(resnet[0], scheme).items() if isinstance(q, jqz.QTensor)}
    jqz.save(path, qparams, compress=ENTROPY)
    stored = sum(array.nbytes for name, array in safetensors.numpy.load_file(path).items() if name.endswith("/codes"))
    ideal = 0.0
    for q in qparams.values():
        counts = np.unique_counts(np.asarray(q.codes)).counts
        ideal -= (counts * np.log2(counts / q.size)).sum() / 8
    assert ideal < stored < 1.01 * ideal
    assert stored < 0.95 * sum(q.payload.size for q in qparams.values())
    same(jqz.load(path), qparams)


def test_other_readers_see_the_floats(path):
    jqz.save(path, {"layer": {"bias": X[0], "kernel": jqz.quantize(X, jqz.Symmetric(bits=4))}})
    seen = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(seen["layer/bias"], X[0])
    assert (seen["layer/kernel/codes"].dtype, seen["layer/kernel/codes"].shape) == (np.uint8, (40, 15))
    assert seen["layer/kernel/grid/scale"].shape == (1, 1)


def test_metadata(path):
    jqz.save(path, {"x": X}, {"author": "Ada", "licence": "CC0 \N{SNOWMAN}"})
    assert jqz.files.metadata(path) == {"author": "Ada", "licence": "CC0 \N{SNOWMAN}"}
    with safetensors.safe_open(path, "np") as opened:
        assert opened.metadata()["author"] == "Ada"


@pytest.mark.parametrize(("tree", "metadata"), [({"\udcff": X}, {}), ({}, {"by": "\ud800"}), ({}, {"\ud800": ""})])
def test_text_that_no_file_holds(tree, metadata, path):
    with pytest.raises(ValueError, match=r"save: '\\ud.*' is no text that a file can hold"):
        jqz.save(path, tree, metadata)
    assert not path.exists()


def test_what_is_loaded_decodes_outside_of_jit(path):
    """Levels of a codebook are gathered, and the file gives NumPy's arrays."""
    q = jqz.quantize(X, jqz.Codebook(bits=2))
    jqz.save(path, q)
    np.testing.assert_array_equal(jqz.load(path).dequantize(), jqz.dequantize(q))


@pytest.mark.parametrize("metadata", [{"n": 3}, {3: "n"}, {"jqz": "mine"}, {"jqz.x": ""}])
def test_metadata_is_strings(metadata, path):
    with pytest.raises(TypeError, match="wanted strings"):
        jqz.save(path, {}, metadata)
    assert not path.exists()


def test_arguments_are_checked(path):
    with pytest.raises(TypeError, match=r"Use compress=jqz.files.Entropy\(\)"):
        jqz.save(path, {}, compress="entropy")
    with pytest.raises(TypeError, match="save: 'a' is object"):
        jqz.save(path, {"a": object()})
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="save: the tree is too deep"):
        jqz.save(path, deep)


def test_arrays_are_views_of_the_file(path):
    jqz.save(path, {"w": np.zeros((2000, 1000), np.float32), "q": jqz.quantize(X, jqz.Symmetric(bits=8))})
    tracemalloc.start()
    tree = jqz.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20  # of 8 MB
    for array in (tree["w"], tree["q"].payload):
        assert not array.flags.owndata
        assert not array.flags.writeable


@pytest.mark.parametrize("compress", [None, ENTROPY], ids=repr)
def test_scan_reads_one_leaf_at_a_time(compress, path):
    wide = np.zeros((2000, 1000), np.float32)
    tree = {"w": wide, "q": jqz.quantize(X, jqz.Symmetric(bits=4)), "small": X[:2].astype(jnp.float8_e3m4)}
    jqz.save(path, tree, compress=compress)
    tracemalloc.start()
    lazy = container.scan(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20  # of 8 MB
    assert lazy["q"].shape == X.shape
    jqz.save(path, {"w": X})  # what was opened stays readable
    same({name: jax.tree.map(value, leaf) for name, leaf in lazy.items()}, tree)


def test_a_file_may_be_replaced_while_it_is_read(path):
    jqz.save(path, {"w": X})
    old = jqz.load(path)
    jqz.save(path, {"w": X + 1})
    np.testing.assert_array_equal(old["w"], X)
    np.testing.assert_array_equal(jqz.load(path)["w"], X + 1)


def test_what_is_there_stays_when_saving_fails(path, monkeypatch):
    jqz.save(path, {"w": X})
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        jqz.save(path, {"w": X + 1})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_links_and_permissions_stay(path, tmp_path):
    link = tmp_path / "latest"
    jqz.save(path, {"w": X})
    path.chmod(0o640)
    link.symlink_to(path)
    jqz.save(link, {"w": X + 1})
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    np.testing.assert_array_equal(jqz.load(path)["w"], X + 1)


def test_a_killed_process_leaves_the_old_file_or_the_new_one(path):
    jqz.save(path, killed.tree(0))
    seen = [0, *killed.kill_savers(path, 6)]
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]
    others = [file.name for file in path.parent.iterdir() if file != path]
    assert all(name.startswith(".net.safetensors.") and name.endswith(".part") for name in others)


def _resave(path, change):
    """The file with its document changed and sealed again."""
    header, body = mutants._parts(path.read_bytes())
    document = json.loads(header["__metadata__"]["jqz"])
    change(document)
    header["__metadata__"]["jqz"] = json.dumps(document)
    path.write_bytes(mutants._joined(mutants.sealed(header), body))


def test_a_later_version_says_so(path):
    jqz.save(path, {"w": X})
    _resave(path, lambda document: document.update(version=2))
    for read in (jqz.load, jqz.files.metadata):
        with pytest.raises(ValueError, match=r"net.safetensors': it is of version 2, .* up to 1. Use a later jqz"):
            read(path)


def test_an_unknown_scheme_says_so(path):
    jqz.save(path, {"a": {"w": jqz.quantize(X, jqz.Symmetric(bits=4))}})
    _resave(
        path, lambda document: document.update(json.loads(json.dumps(document).replace("Symmetric", "Symmetrical")))
    )
    with pytest.raises(
        ValueError, match=r"net.safetensors': 'a/w': .*'Symmetrical' is unknown. Did you mean Symmetric\?"
    ):
        jqz.load(path)


def test_what_jqz_did_not_write(path):
    safetensors.numpy.save_file({"w": X}, path)
    for read in (jqz.load, jqz.files.metadata):
        with pytest.raises(ValueError, match="holds no tree of jqz"):
            read(path)
    for raw in (b"", b"short", b"\x00" * 100, b"PK\x03\x04" + bytes(1000)):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=r"load: '.*net.safetensors': it is damaged or no safetensors file"):
            jqz.load(path)
    with pytest.raises(FileNotFoundError):
        jqz.load(path.with_name("none"))


def test_a_changed_document_is_found(path):
    jqz.save(path, {"first": X, "other": X})
    path.write_bytes(path.read_bytes().replace(b'[\\"first\\"', b'[\\"fizst\\"'))
    with pytest.raises(ValueError, match="checksum"):
        jqz.load(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return mutants.sound(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("kind", mutants.KINDS, ids=lambda kind: kind.__name__)
def test_hostile_files(kind, sound, path):
    """A file is read or refused by a ValueError that names it; memory stays small."""
    rng = np.random.default_rng(0)
    messages = []
    jnp.zeros(()).block_until_ready()
    tracemalloc.start()
    for data in sound.values():
        for _ in range(12):
            path.write_bytes(kind(rng, data))
            for read in (jqz.load, jqz.files.metadata):
                try:
                    read(path)
                except ValueError as error:
                    messages.append(str(error))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * 2**20
    assert all("net.safetensors': " in message for message in messages)
    assert kind is mutants.noisy or len(messages) > 30


@pytest.mark.parametrize("compress", [None, ENTROPY], ids=repr)
def test_single_numbers_in_codes_come_back(compress, path):
    tree = {"w": X, "temperature": jnp.float32(2.5)}
    q = jqz.quantize(tree, {"**/{w,temperature}": jqz.Symmetric(bits=8)})
    jqz.save(path, q, compress=compress)
    same(jqz.load(path), q)


def test_schemes_are_classes(path):
    jqz.save(path, {"w": X})
    for wrong in (jqz.Symmetric, [jqz.Symmetric()]):
        with pytest.raises(TypeError, match=r"load: got schemes=.* wanted classes"):
            jqz.load(path, schemes=wrong)


def test_tracers_are_no_arrays(path):
    with pytest.raises(TypeError, match="save: "):
        jax.jit(lambda x: jqz.save(path, {"x": x}))(X)
    assert not path.exists()
