"""The networks of ``networks.py`` as ONNX graphs on the same variables, for ONNX Runtime to run beside them."""

import pathlib
import typing

import numpy as np
import onnx
from networks import Encoder, MobileNetV1, Net, ResNet
from onnx import TensorProto, helper, numpy_helper

OPSET = 21


class Graph:
    """Nodes and constants as they are written down; each method returns the name of a result."""

    def __init__(self) -> None:
        self.nodes: list[typing.Any] = []
        self.constants: list[typing.Any] = []

    def constant(self, values: typing.Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def __call__(self, op: str, *inputs: str, **attributes: typing.Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{len(self.nodes)}", **attributes))
        return name

    def convolution(
        self, x: str, kernel: typing.Any, norm: typing.Any, stats: typing.Any, strides: int, low_high: tuple[int, int]
    ) -> str:
        """Convolution and batch norm, the latter folded into the former."""
        kernel, gain = np.asarray(kernel), np.asarray(norm["scale"]) / np.sqrt(np.asarray(stats["var"]) + 1e-5)
        bias = np.asarray(norm["bias"]) - np.asarray(stats["mean"]) * gain
        weight = self.constant((kernel * gain).transpose(3, 2, 0, 1))
        return self(
            "Conv",
            x,
            weight,
            self.constant(bias),
            strides=[strides] * 2,
            pads=[low_high[0]] * 2 + [low_high[1]] * 2,
            group=kernel.shape[-1] if kernel.shape[2] == 1 and kernel.shape[-1] > 1 and kernel.shape[0] > 1 else 1,
        )

    def dense(self, x: str, params: typing.Any) -> str:
        kernel, bias = np.asarray(params["kernel"]), np.asarray(params["bias"])
        return self("Add", self("MatMul", x, self.constant(kernel)), self.constant(bias))

    def head(self, x: str, params: typing.Any) -> str:
        return self.dense(self("Flatten", self("GlobalAveragePool", x)), params)


def _resnet(g: Graph, model: ResNet, variables: typing.Any, x: str) -> str:
    params, stats = variables["params"], variables["batch_stats"]

    def layer(x: str, scope: typing.Any, mean: typing.Any, i: int, strides: int = 1) -> str:
        kernel, norm = scope[f"Conv_{i}"]["kernel"], f"BatchNorm_{i}"
        pad = kernel.shape[0] // 2
        return g.convolution(x, kernel, scope[norm], mean[norm], strides, (pad, pad))

    x = g("Relu", layer(x, params, stats, 0, 2 if model.stem == 7 else 1))
    if model.stem == 7:
        x = g("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    i = 0
    for stage, blocks in enumerate(model.stages):
        for block in range(blocks):
            scope, mean = params[f"Block_{i}"], stats[f"Block_{i}"]
            strides, i = 2 if stage and not block else 1, i + 1
            y = layer(g("Relu", layer(x, scope, mean, 0, strides)), scope, mean, 1)
            x = g("Relu", g("Add", layer(x, scope, mean, 2, strides) if "Conv_2" in scope else x, y))
    return g.head(x, params["Dense_0"])


def _mobilenet(g: Graph, model: MobileNetV1, variables: typing.Any, x: str) -> str:
    params, stats = variables["params"], variables["batch_stats"]
    strides = {0: 2, **{1 + 2 * i: s for i, s in enumerate([1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1])}}
    for i in range(27):
        kernel, s, norm = params[f"Conv_{i}"]["kernel"], strides.get(i, 1), f"BatchNorm_{i}"
        total = kernel.shape[0] - s if kernel.shape[0] > 1 else 0  # SAME at even sizes
        x = g.convolution(x, kernel, params[norm], stats[norm], s, (total // 2, total - total // 2))
        x = g("Clip", x, g.constant(np.float32(0)), g.constant(np.float32(6)))
    return g.head(x, params["Dense_0"])


def _encoder(g: Graph, model: Encoder, variables: typing.Any, x: str) -> str:
    params, size = variables["params"], model.width // model.heads

    def norm(x: str, scope: typing.Any) -> str:
        parts = (g.constant(np.asarray(scope[name])) for name in ("scale", "bias"))
        return g("LayerNormalization", x, *parts, axis=-1, epsilon=1e-6)

    def heads(x: str, scope: typing.Any, order: list[int]) -> str:
        flat = {"kernel": np.asarray(scope["kernel"]).reshape(model.width, -1), "bias": np.ravel(scope["bias"])}
        split = g("Reshape", g.dense(x, flat), g.constant(np.array([0, 0, model.heads, size])))
        return g("Transpose", split, perm=order)

    for i in range(model.layers):
        scope = params[f"MultiHeadDotProductAttention_{i}"]
        q, v = (heads(x, scope[name], [0, 2, 1, 3]) for name in ("query", "value"))
        scores = g("MatMul", q, heads(x, scope["key"], [0, 2, 3, 1]))
        weights = g("Softmax", g("Mul", scores, g.constant(np.float32(size**-0.5))), axis=-1)
        y = g("Transpose", g("MatMul", weights, v), perm=[0, 2, 1, 3])
        y = g("Reshape", y, g.constant(np.array([0, 0, model.width])))
        out = {"kernel": np.asarray(scope["out"]["kernel"]).reshape(-1, model.width), "bias": scope["out"]["bias"]}
        x = norm(g("Add", x, g.dense(y, out)), params[f"LayerNorm_{2 * i}"])
        y = g("Gelu", g.dense(x, params[f"Dense_{2 * i + 1}"]), approximate="tanh")  # Flax numbers the outer first
        x = norm(g("Add", x, g.dense(y, params[f"Dense_{2 * i}"])), params[f"LayerNorm_{2 * i + 1}"])
    return x


def write(net: Net, path: pathlib.Path) -> np.ndarray:
    """Writes the float model; returns the input as it wants it (images as NCHW)."""
    x = np.asarray(net.x)
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x
    graph = Graph()
    build = {ResNet: _resnet, MobileNetV1: _mobilenet, Encoder: _encoder}[type(net.model)]
    result = build(graph, net.model, net.variables, "x")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    outputs = [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)]
    made = helper.make_graph(graph.nodes, "net", inputs, outputs, graph.constants)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10), path)
    return x


def quantize(path: pathlib.Path, x: np.ndarray, to: pathlib.Path) -> None:
    """uint8 activations (its int8 is slow on x86), int8 weights per channel; static, but dynamic for an encoder."""
    from onnxruntime import quantization as q

    if x.ndim == 3:
        q.quantize_dynamic(path, to, weight_type=q.QuantType.QInt8)
        return

    class Batches(q.CalibrationDataReader):
        rest: typing.ClassVar = [{"x": x}]

        def get_next(self) -> typing.Any:
            return self.rest.pop() if self.rest else None

    q.quantize_static(
        path,
        to,
        Batches(),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
    )
