"""The nine networks of NNabla's example in both recipes, and a training loop that survives a kill."""

import gzip
import os
import pathlib
import runpy
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
from parts import fashion_mnist, loop, recipes, resnet23  # noqa: E402

#: XLA's compiler takes half as long without its optimizations, and nothing here runs for long.
QUICK = {"xla_backend_optimization_level": 0}
PLAN = loop.Plan(epochs=1, batch=20)
BASE = resnet23.ResNet23(maps=4, units=1)


def _write(folder, count=40, side=6):
    """A folder in the format of Fashion-MNIST: images whose brightness tells their class."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    labels = np.arange(count, dtype=np.uint8) % 10
    images = (20 * labels[:, None, None] + rng.integers(0, 20, (count, side, side))).astype(np.uint8)
    for part in ("train", "t10k"):
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / f"{name}.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return images, labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("idx")
    _write(place)
    return place


@pytest.fixture(scope="module")
def data(folder):
    return fashion_mnist.load(str(folder))


@pytest.fixture(autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax.adam raises a float to an integer power
        yield


def _powers(w):
    return np.all(np.frexp(np.abs(w))[0] == 0.5)


#: What a kernel may look like in each network, by NNabla's definitions.
ALLOWED = {
    "float": lambda w: len(np.unique(w)) == w.size,
    "binary-connect": lambda w: set(np.unique(w)) == {-1, 1},
    "binary-net": lambda w: set(np.unique(w)) == {-1, 1},
    "binary-weight": lambda w: all(len(np.unique(np.abs(w[..., c]))) == 1 for c in range(w.shape[-1])),
    "fixed-point-connect": lambda w: np.all(w * 16 == np.round(w * 16)),
    "fixed-point-net": lambda w: np.all(w * 16 == np.round(w * 16)),
    "pow2-connect": _powers,
    "pow2-net": _powers,
    "inq": lambda w: np.all((w == 0) | (np.frexp(np.abs(w))[0] == 0.5)),
    "min-max": lambda w: np.allclose(w / (4 / 255), np.round(w / (4 / 255)), atol=1e-3),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_nnabla_recipe(name, data):
    """A step changes what trains, and layers compute with weights that the network may have."""
    job = recipes.nnabla(name, BASE, PLAN, data)
    step = jax.jit(job.step, compiler_options=QUICK)
    images, labels = data.train.images[:20], data.train.labels[:20]
    before = jax.device_get(job.state)
    state = job.state
    if name == "inq":  # all weights are fixed at the last of its steps
        last = resnet23.networks(PLAN.steps(data))[name].weights.steps[-1]
        state.rest["inq"]["step"] = jax.numpy.int32(last)
    state, loss, right = step(state, images, labels, jax.random.key(0))
    assert np.isfinite(loss)
    assert 0 <= right <= 1
    network = resnet23.networks(PLAN.steps(data))[name]
    used, _ = network.weights(state.params, state.rest)
    layers = [layer for layer, leaves in used.items() if isinstance(leaves, dict) and "kernel" in leaves]
    assert len(layers) == 5
    assert all(ALLOWED[name](np.asarray(used[layer]["kernel"])) for layer in layers)
    assert all(np.any(before.params[layer]["kernel"] != state.params[layer]["kernel"]) for layer in layers)
    if name == "inq":
        held = state.rest["inq"]["held"]["stem"]
        state, *_ = step(state, images, labels, jax.random.key(1))
        assert np.array_equal(network.weights(state.params, state.rest)[0]["stem"]["kernel"], held)


@pytest.mark.parametrize("name", recipes.variants())
def test_best_recipe(name, data):
    """Every policy fits the network, and the state keeps its shapes from step to step."""
    start = jax.eval_shape(lambda: BASE.init(jax.random.key(0), np.zeros((1, 6, 6, 1), np.float32)))
    start = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), start)
    job = recipes.best(name, BASE, PLAN, data, start)
    out, loss, _ = jax.eval_shape(
        job.step, job.state, data.train.images[:20], data.train.labels[:20], jax.random.key(0)
    )
    assert loss.shape == ()
    assert jax.tree.map(lambda a: (a.shape, a.dtype), out) == jax.tree.map(lambda a: (a.shape, a.dtype), job.state)


def test_the_networks_are_those_of_the_example():
    """23 layers of weights; 97,482 trained numbers at 64 maps and 2 * 960 statistics."""
    x = np.zeros((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(lambda: resnet23.ResNet23().init(jax.random.key(0), x))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 97_482
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"])) == 1_920
    assert sum("kernel" in leaves for leaves in variables["params"].values()) == 23


def test_half_of_the_free_weights_the_largest_first():
    w = jax.numpy.array([0.1, -0.9, 0.5, -0.5, 0.3, 0.2, 0.05])
    fixed = resnet23._half(w, jax.numpy.zeros(7, bool))
    assert fixed.tolist() == [False, True, True, True, False, False, False]
    fixed = resnet23._half(w, fixed)
    assert fixed.tolist() == [False, True, True, True, True, True, False]
    assert resnet23._half(w, fixed).tolist() == [True, True, True, True, True, True, False]


# --- the loop ---------------------------------------------------------------------------------------------------------

TINY = [
    "--net",
    "binary-connect",
    "--recipe",
    "nnabla",
    "--maps",
    "4",
    "--units",
    "0",
    "--epochs",
    "3",
    "--batch",
    "20",
]

#: Runs the example, and dies while it writes its second checkpoint.
KILLED = """
import os, runpy, signal, sys
sys.path.insert(0, {folder!r})
import numpy as np
from parts import loop
saves, savez = [], np.savez
def dies(file, **arrays):
    saves.append(1)
    if len(saves) == {at}:
        file.write(b"half of a file"); file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    savez(file, **arrays)
np.savez = dies
sys.argv = ["nnabla_nets.py", *{arguments!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


def _run(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["nnabla_nets.py", *arguments])
    runpy.run_path(str(EXAMPLES / "nnabla_nets.py"), run_name="__main__")


def test_a_killed_run_goes_on_bit_for_bit(folder, tmp_path, monkeypatch, capsys):
    places = {name: ["--data", str(folder), "--cache", str(tmp_path / name)] for name in ("whole", "killed")}
    _run([*TINY, *places["whole"]], monkeypatch)
    script = KILLED.format(
        folder=str(EXAMPLES), script=str(EXAMPLES / "nnabla_nets.py"), arguments=[*TINY, *places["killed"]], at=4
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), *sys.path])}
    child = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    (kept,) = (tmp_path / "killed").rglob("last.npz")
    with np.load(kept) as file:
        assert 0 < file[".done"] < 6
    _run([*TINY, *places["killed"]], monkeypatch)
    assert "binary-connect: test" in capsys.readouterr().out
    (whole,) = (tmp_path / "whole").rglob("last.npz")
    with np.load(whole) as a, np.load(kept) as b:
        assert set(a) == set(b)
        assert a[".done"] == 6
        for name in set(a) - {".seconds"}:
            assert np.array_equal(a[name], b[name], equal_nan=True), name


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "deep" / "last.npz"
    loop.save(path, {"a": np.ones((2, 3)), "b": (np.int32(4),)})
    assert loop.restore(path, {"a": np.zeros((2, 3)), "b": (np.int32(0),)})["b"] == (4,)
    with pytest.raises(ValueError, match=r"differs in \[\"\['a'\]\"\]"):
        loop.restore(path, {"a": np.zeros((2, 4)), "b": (np.int32(0),)})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        loop.restore(path, {"a": np.zeros((2, 3)), "b": (np.int32(0),)})


def test_every_image_is_answered_once(data):
    answers = loop.evaluate(lambda state, x: np.eye(256)[x[:, 0, 0, 0]], None, data.test, batch=12)
    assert np.array_equal(answers, data.test.images[:, 0, 0, 0])
    assert loop.accuracy(data.test.labels, data.test) == 100
