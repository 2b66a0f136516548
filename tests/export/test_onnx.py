"""Files for ONNX Runtime against it."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import networks
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import jqz
import jqz.export
from jqz._operators import graph_of

RULE = jqz.requant.ONNXRuntime()


def session(file):
    options = onnxruntime.SessionOptions()
    # products of float32 with coded weights in float32: by default, activations are coded on the fly
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run(session, x):
    return session.run(None, {session.get_inputs()[0].name: x})


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_codes_are_ours(name):
    net, x = networks.case(name)
    graph = graph_of(net, x)
    first = next(op for op in graph.operators if op.inputs[0] in graph.inputs)
    makers = {op.result: op for op in graph.operators}
    grid = graph.tensors[first.result].grid
    codes = np.clip(np.rint(x / np.float32(grid.scale)) + int(grid.zero_point), -128, 127) + 128
    file = jqz.export.onnx(net, x[:2], interface=jqz.export.Codes())  # any length of a batch will do
    got, want = run(session(file), codes.astype(np.uint8)), networks.wanted(name, RULE)
    assert len(got) == len(want)
    for theirs, ours, output in zip(got, want, graph.outputs, strict=True):
        if theirs.dtype == np.uint8:
            grid = graph.tensors[makers[output].inputs[0]].grid
            np.testing.assert_array_equal(theirs, np.rint(ours / np.float32(grid.scale)) + int(grid.zero_point) + 128)
        else:
            np.testing.assert_allclose(theirs, ours, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", ["mobile", "sums", "means"])
def test_sums_of_codes_are_not_in_float32(name, tmp_path):
    """Where a tie would fall either way."""
    net, x = networks.case(name)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(jqz.export.onnx(net, x[:2]), options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert not kinds & {"Conv", "GlobalAveragePool", "ReduceMean", "ReduceSum"}
    assert ("QLinearGlobalAveragePool" in kinds) == (name != "sums")


@pytest.mark.parametrize("name", networks.FORMATS)
def test_weights_alone_are_coded(name):
    net, x = networks.weights_only(name)
    file = jqz.export.onnx(net, x[:2])
    np.testing.assert_allclose(run(session(file), x)[0], net(x), rtol=1e-5, atol=1e-5)
    weights = networks.FORMATS[name][1] * (3 * 3 * 2 * 8 + 200 * 64 + 64 * 5)
    assert weights < len(file) < weights + 6_000


def test_four_bits_are_half_a_byte():
    net, x = networks.four_bits()
    file = jqz.export.onnx(net, x[:2], interface=jqz.export.Codes())
    graph, site = graph_of(net, x), net.sites["a/kernel"]
    codes = np.asarray(site.scheme.encode(x, site.grid)).astype(np.int16) + 128
    wanted = np.asarray(dataclasses.replace(net, requant=RULE)(x))
    result = graph.tensors[graph.operators[-1].inputs[0]].grid
    np.testing.assert_array_equal(
        run(session(file), codes.astype(np.uint8))[0],
        np.rint(wanted / np.float32(result.scale)) + int(result.zero_point) + 128,
    )
    assert len(file) < 64 * 64 * 2 / 2 + 5_000


CODES = np.arange(256, dtype=np.uint8)


def quantized_operator(kind, grids, shapes):
    """Runs an operator between DequantizeLinear and QuantizeLinear, which ONNX Runtime makes one of codes."""
    names, nodes, constants = "abcdef"[: len(shapes)], [], []
    for name, (scale, zero_point) in zip((*names, "y"), grids, strict=True):
        constants += [helper.make_tensor(f"{name} scale", onnx.TensorProto.FLOAT, [], [scale])]
        constants += [helper.make_tensor(f"{name} zero", onnx.TensorProto.UINT8, [], [zero_point])]
    for name in names:
        nodes.append(helper.make_node("DequantizeLinear", [name, f"{name} scale", f"{name} zero"], [f"{name} real"]))
    nodes.append(helper.make_node(kind, [f"{name} real" for name in names], ["real"]))
    nodes.append(helper.make_node("QuantizeLinear", ["real", "y scale", "y zero"], ["y"]))
    sources = [helper.make_tensor_value_info(n, onnx.TensorProto.UINT8, s) for n, s in zip(names, shapes, strict=True)]
    result = helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, None)
    graph = helper.make_graph(nodes, kind, sources, [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    made = session(model.SerializeToString())
    return lambda *arrays: made.run(None, dict(zip(names, arrays, strict=True)))[0]


@pytest.mark.parametrize(
    "scales", [(0.02, 0.04, 0.05), (0.025, 0.025, 0.1), (0.013, 0.047, 0.031), (0.5, 0.0007, 0.31)], ids=str
)
def test_sums_of_all_codes(scales):
    a, b = (part.ravel() for part in np.meshgrid(CODES, CODES))
    for zeros in ((128, 128, 128), (3, 250, 77)):
        theirs = quantized_operator("Add", list(zip(scales, zeros, strict=True)), [a.shape, b.shape])(a, b)
        terms = [
            jqz.requant.Term(jnp.asarray(x, jnp.int32) - zero, jnp.float32(scale), zero - 128)
            for x, scale, zero in zip((a, b), scales, zeros, strict=False)
        ]
        ours = jax.jit(RULE.sum)(terms, jqz.requant.Onto(jnp.float32(scales[2]), zeros[2] - 128, -128, 127))
        np.testing.assert_array_equal(np.asarray(ours, int) + 128, theirs)


@pytest.mark.parametrize(("side", "scales"), [((7, 7), (0.0235294, 0.0171717)), ((5, 3), (0.02, 0.0266667))], ids=str)
def test_means(side, scales):
    x = np.random.default_rng(0).integers(0, 256, (1, 512, *side), np.uint8)
    zeros, count = (9, 141), side[0] * side[1]
    theirs = quantized_operator("GlobalAveragePool", list(zip(scales, zeros, strict=True)), [x.shape])(x).ravel()
    sums = jnp.asarray(x.astype(np.int32).sum((0, 2, 3)) - zeros[0] * count, jnp.int32)
    scale, out = map(jnp.float32, scales)
    ours = RULE.mean(sums, count, zeros[0] - 128, scale, jqz.requant.Onto(out, zeros[1] - 128, -128, 127))
    np.testing.assert_array_equal(np.asarray(ours, int) + 128, theirs)


def test_values_in_and_out():
    net, x = networks.case("nnx")
    got = run(session(jqz.export.onnx(net, x[:1])), x)[0]
    np.testing.assert_allclose(got, networks.wanted("nnx", RULE)[0], atol=1e-6)


@pytest.mark.parametrize("name", ["mobile", "lenet", "branches"])
def test_floats_are_the_float_function(name):
    net, x = networks.case(name)
    file = jqz.export.onnx(net, x, numbers=jqz.export.Floats())
    exact = jax.tree.leaves(net.fn(jqz.dequantize(net.qparams), x))
    for theirs, ours in zip(run(session(file), x), exact, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=2e-3)


def test_without_the_extra(monkeypatch):
    net, x = networks.case("nnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'jqz\[onnx\]'"):
        jqz.export.onnx(net, x)


def test_sixteen_bits_are_refused():
    net, x = networks.case("nnx", networks.LONG)
    with pytest.raises(ValueError, match="activations of 16 bits are for tflite alone"):
        jqz.export.onnx(net, x)
