"""The benchmark of rounding, merging, pruning and packing, on a network of one separable convolution."""

import importlib
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz

ROOT = pathlib.Path(__file__).parent.parent
#: Modules of the benchmarks, whose names others may bear in tests.
OWN = ("networks", "report", "rounding", "tables")


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        for name in OWN:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("rounding")
        for name in OWN:
            sys.modules.pop(name, None)  # what was there comes back


@pytest.fixture(scope="module")
def data(benchmark):
    """Images whose upper or lower half is bright, by their class."""
    rng = np.random.default_rng(0)
    labels = np.arange(40, dtype=np.int32) % 2
    images = rng.integers(0, 100, (40, 8, 8, 1))
    images[labels == 0, :4] += 150
    images[labels == 1, 4:] += 150
    split = benchmark.fashion_mnist.Split(images.astype(np.uint8), labels)
    return benchmark.fashion_mnist.Data(split, split, "halves", "made here")


@pytest.fixture(scope="module")
def nets(benchmark, data, tmp_path_factory):
    model = benchmark.MobileNetV1(0.5, 2, plan=((64, 1),))
    folder, plan = tmp_path_factory.mktemp("nets"), benchmark.loop.Plan(epochs=12, batch=10)
    with jax.numpy_dtype_promotion("standard"):  # optax.cosine_onecycle_schedule multiplies by truths
        start = benchmark.train_float(model, data, plan, folder)
        pruned = benchmark.train_pruned("document", model, start, data, plan, folder)
    return model, {"float": start, "document": pruned}


def test_pruning_reaches_its_shares(nets):
    params = nets[1]["document"]["params"]
    zeros = {name: int(jnp.sum(own["kernel"] == 0)) for name, own in params.items() if "kernel" in own}
    assert zeros == {"Conv_0": 0, "Conv_1": 0, "Conv_2": 16 * 32 * 3 // 4, "Dense_0": round(0.8 * 32 * 2)}


def test_merging_keeps_the_function_and_the_zeros(benchmark, nets, data):
    model, variables = nets[0], nets[1]["document"]
    x = benchmark.prepare(data.train.images)
    merged = benchmark.merge(model, variables, x)
    assert set(merged) == {"params"}
    assert set(merged["params"]) == {"Conv_0", "Conv_1", "Conv_2", "Dense_0"}
    exact = model.apply(variables, x)
    assert jnp.allclose(model.clone(merged=True).apply(merged, x), exact, atol=1e-4 * float(jnp.abs(exact).max()))
    before, after = (tree["params"]["Conv_2"]["kernel"] for tree in (variables, merged))
    assert jnp.array_equal(before == 0, after == 0)


def test_the_document_s_table(benchmark, nets, data, capsys):
    rows = benchmark.rounding(*nets, data)
    assert len(rows) == 8
    for pruned, merged, rounded in rows:
        size = rows[pruned, merged, rounded].size_bytes
        assert size < rows[pruned, merged, False].size_bytes or not rounded
        assert size < rows[pruned, False, rounded].size_bytes or not merged
    assert rows[True, False, False].size_bytes < rows[False, False, False].size_bytes
    assert rows[False, True, False].accuracy == rows[False, False, False].accuracy == 100
    benchmark.show(rows)
    lines = capsys.readouterr().out.splitlines()
    assert sum("pruned, merged, rounded" in line for line in lines) == 1
    assert any("12.0" in line and "97.16" in line for line in lines)


def test_a_packed_file_holds_the_network(benchmark, nets, data, tmp_path):
    model, variables = nets[0], nets[1]["document"]
    path = tmp_path / "net.safetensors"
    row = benchmark.packed(model, variables, 4, data, path, images=40)
    assert row.size_bytes == path.stat().st_size
    kept = jqz.load(path)["params"]
    assert {name: own["kernel"].scheme.bits for name, own in kept.items()} == {
        "Conv_0": 8,
        "Conv_1": 8,
        "Conv_2": 4,
        "Dense_0": 8,
    }
    values = jax.device_get(jqz.dequantize({"params": kept}))
    answers = np.argmax(model.clone(merged=True).apply(values, benchmark.prepare(data.test.images)), -1)
    assert row.accuracy == 100 * (answers == data.test.labels).mean() == 100
