"""Files for ONNX Runtime against it."""

import dataclasses
import sys

import jax
import networks
import numpy as np
import onnxruntime
import pytest

import jqz
import jqz.export
from jqz._operators import graph_of

RULE = jqz.requant.Float32Requant(jqz.requant.IntegerBias())


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
