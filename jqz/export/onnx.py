"""ONNX models with QuantizeLinear and DequantizeLinear."""

import importlib
import typing

import numpy as np

from jqz import _graph as g
from jqz._runtime import (
    Integers,
    Interface,
    Numbers,
    Values,
    bounds,
    clip_codes,
    code_of,
    is_half,
    is_mean,
    nibbles,
    pooled_shape,
    real_weights,
    side_by_side,
    sound_weights,
)
from jqz._target import target_graph, write_each

_FUNCTIONS = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "neg": "Neg",
    "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "erf": "Erf", "tanh": "Tanh", "logistic": "Sigmoid",
    "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual",
}  # fmt: skip
#: The versions of operators and of the format that files ask for.
OPSET, FORMAT = 21, 10


def onnx(
    net: typing.Any, example: typing.Any, *, interface: Interface = Values(), numbers: Numbers = Integers()
) -> bytes:
    """A quantized net as the bytes of an ``.onnx`` file: operators between DequantizeLinear and QuantizeLinear.

    Activations are uint8 and weights int8 with a scale for each channel: what ONNX Runtime fuses into integer
    operators by default and runs fastest on CPUs with VNNI. (Older x86 CPUs add pairs of products in 16 bits there,
    which saturates; 7-bit weights avoid it.) Between two convolutions images have their channels first.

    The file computes what ``complete(net, example)`` does with ``requant=jqz.requant.ONNXRuntime()``: products, sums
    and means bit for bit. What is float32 between codes, sums and means that several operators read among it, may
    fall otherwise at a tie, since terms are added in another order. A softmax that is coded again is ONNX Runtime's
    own, up to a step apart.

    Weights of at most 4 bits take half a byte each. With no ``inputs`` in the policy activations are float32, and
    weights int8, int4, float16 where that holds them exactly, or float32, as of ``tflite``. ONNX Runtime may code
    activations on the fly there, unless its option ``session.qdq_matmulnbits_accuracy_level`` is "1".

    Args:
      net: from ``convert``; as for ``tflite``.
      example: an input, or a tuple of arguments; as for ``tflite``. The leading axis, of batches, may have any length
        later on, unless the function spells it out in a reshape or sums over it; with attention, give at least two, as
        JAX multiplies single matrices otherwise.
      interface: ``Values()``: float32 in and out; ``Codes()``: uint8, 128 more than the int8 codes of jqz.
      numbers: ``Integers()``, or ``Floats()`` to compare with.

    Raises:
      ValueError: an equation has no operator; the message names it and its line.
      ImportError: the extra is missing: ``pip install 'jqz[onnx]'``.

    >>> import jax.numpy as jnp, jqz, jqz.export
    >>> policy = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Asymmetric(bits=8))
    >>> net = jqz.convert(lambda params, x: x @ params["w"], {"w": jnp.eye(4)}, [jnp.ones((2, 4))], policy)
    >>> type(jqz.export.onnx(net, jnp.ones((1, 4)))).__name__
    'bytes'
    """
    try:
        library, helper = map(importlib.import_module, ("onnx", "onnx.helper"))
    except ImportError as error:
        raise ImportError("onnx: the package is missing. Use pip install 'jqz[onnx]'.") from error
    if numbers.dynamic:
        raise ValueError("onnx: got numbers=Dynamic(), which is for tflite. Use numbers=Integers().")
    writer = _Writer(helper, target_graph(net, example, interface, numbers, without={"int16"}))
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(writer.graph_proto(), opset_imports=opset, ir_version=FORMAT, producer_name="jqz")
    library.checker.check_model(model)
    return model.SerializeToString()


Order = tuple[int, ...]


class _Writer:
    """Tensors have names; one whose channels come first has another, with ``:first`` behind it."""

    def __init__(self, helper: typing.Any, graph: g.Graph):
        self.helper, self.graph = helper, graph
        self.nodes: list[typing.Any] = []
        self.constants: list[typing.Any] = []
        #: float32 values of a tensor, by its layout.
        self.values: dict[tuple[int, bool], str] = {}
        self.count = 0
        self.batch = {graph.tensors[i].shape[0] for i in graph.inputs if graph.tensors[i].shape}

    def graph_proto(self) -> typing.Any:
        inputs = [self._interface(i, "in") for i in self.graph.inputs]
        write_each(self, self.graph)
        outputs = [self._interface(i, "out") for i in self.graph.outputs]
        return self.helper.make_graph(self.nodes, "jqz", inputs, outputs, self.constants)

    def _interface(self, i: int, side: str) -> typing.Any:
        tensor, name = self.graph.tensors[i], f"{side}{i}"
        codes = tensor.grid is not None
        if side == "in" and codes:
            self.values[i, False] = self._dequantized(name, i)
        elif side == "in":
            self.values[i, False] = name
        elif codes:
            self._node("QuantizeLinear", [self._value(i), *self._grid(i)], name)
        else:
            self._node("Identity", [self._value(i)], name)
        kind = self.helper.np_dtype_to_tensor_dtype(np.dtype(np.uint8 if codes else np.float32))
        shape = [("batch" if axis == 0 and n in self.batch else n) for axis, n in enumerate(tensor.shape)]
        return self.helper.make_tensor_value_info(name, kind, shape)

    # --- names, constants, layouts ------------------------------------------------------------------------------------

    def _name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def _node(self, kind: str, inputs: typing.Sequence[str], output: str | None = None, **settings: typing.Any) -> str:
        output = output or self._name(kind)
        self.nodes.append(self.helper.make_node(kind, list(inputs), [output], output, **settings))
        return output

    def _constant(self, array: typing.Any) -> str:
        array, name = np.asarray(array), self._name("c")
        kind = self.helper.np_dtype_to_tensor_dtype(array.dtype)
        self.constants.append(self.helper.make_tensor(name, kind, np.shape(array), array.tobytes(), raw=True))
        return name

    def _grid(self, i: int) -> list[str]:
        grid = self.graph.tensors[i].grid
        assert grid is not None
        return [self._constant(np.float32(grid.scale)), self._constant(np.uint8(int(grid.zero_point) + 128))]

    def _dequantized(self, codes: str, i: int) -> str:
        return self._node("DequantizeLinear", [codes, *self._grid(i)])

    def _value(self, i: int, first: bool = False) -> str:
        """The float32 values of a tensor, in a layout: moved there as codes where they come from the other one."""
        if (i, first) not in self.values:
            source = self.values[i, not first]
            axes = range(len(self.graph.tensors[i].shape))
            order = (0, len(axes) - 1, *axes[1:-1]) if first else (0, *axes[2:], 1)
            self.values[i, first] = self._node("Transpose", [source], perm=order)
        return self.values[i, first]

    def _made(self, op: typing.Any, value: str, first: bool = False) -> None:
        """Real values, as the operator's result: clipped, rounded and decoded again."""
        grid = self.graph.tensors[op.result].grid
        if grid is None and bounds(op) == (0, np.inf):
            value = self._node("Relu", [value])
        elif grid is None and bounds(op) != (-np.inf, np.inf):
            value = self._node("Clip", [value, *(self._constant(np.float32(end)) for end in bounds(op))])
        elif grid is not None:
            low, high = clip_codes(op, grid)
            if (low, high) != (-128, 127):
                if op.low is not None and code_of(0, grid) == low and float(op.low) == 0 and high == 127:
                    value = self._node("Relu", [value])
                else:
                    scale, zero = np.float32(grid.scale), int(grid.zero_point)
                    ends = [self._constant(np.float32((end - zero) * scale)) for end in (low, high)]
                    value = self._node("Clip", [value, *ends])
            value = self._dequantized(self._node("QuantizeLinear", [value, *self._grid(op.result)]), op.result)
        self.values[op.result, first] = value

    # --- operators ----------------------------------------------------------------------------------------------------

    def _on_convert(self, op: g.Convert) -> None:
        self._made(op, self._value(op.inputs[0]))

    def _decoded(self, codes: np.ndarray, limit: int, scale: np.ndarray, axis: int) -> str:
        """Weights: in half a byte each where they fit."""
        if is_half(limit):
            int4, names = self.helper.TensorProto.INT4, (self._name("c"), self._name("c"))
            for name, numbers in zip(names, (codes, np.zeros(len(scale), np.int8)), strict=True):
                raw = nibbles(numbers).tobytes()
                self.constants.append(self.helper.make_tensor(name, int4, numbers.shape, raw, raw=True))
        else:
            names = self._constant(codes), self._constant(np.zeros(len(scale), np.int8))
        return self._node("DequantizeLinear", [names[0], self._constant(scale), names[1]], axis=axis)

    def _weights(self, op: typing.Any, order: Order) -> list[str]:
        axis = order.index(0)
        if self.graph.tensors[op.inputs[0]].grid is None:
            values, scale, bias = real_weights(op)
            weight = values.transpose(order)
            if values.dtype == np.int8:
                return [self._decoded(weight, op.limit, scale, axis), self._constant(bias)]
            name = self._constant(weight)
            real = name if values.dtype == np.float32 else self._node("Cast", [name], to=self.helper.TensorProto.FLOAT)
            return [real, self._constant(bias)]
        source, target = (np.float32(self.graph.tensors[i].grid.scale) for i in (op.inputs[0], op.result))
        codes, scale, bias = sound_weights(op, source, target)
        weight = self._decoded(codes.transpose(order), op.limit, scale, axis)
        if not bias.any():
            return [weight]
        zeros = self._constant(np.zeros(len(scale), np.int32))
        steps = self._constant(np.float32(source * scale))
        return [weight, self._node("DequantizeLinear", [self._constant(bias.astype(np.int32)), steps, zeros], axis=0)]

    def _on_convolution(self, op: g.Convolution) -> None:
        (top, bottom), (left, right) = op.padding
        settings: dict[str, typing.Any] = {
            "strides": op.strides, "dilations": op.dilation, "pads": (top, left, bottom, right), "group": op.groups,
            "kernel_shape": op.codes.shape[1:3],
        }  # fmt: skip
        inputs = [self._value(op.inputs[0], True), *self._weights(op, (0, 3, 1, 2))]
        self._made(op, self._node("Conv", inputs, **settings), True)

    def _on_dense(self, op: g.Dense) -> None:
        x, (weight, *bias) = self._value(op.inputs[0]), self._weights(op, (1, 0))
        if len(self.graph.tensors[op.result].shape) == 2:
            self._made(op, self._node("Gemm", [x, weight, *bias]))
            return
        product = self._node("MatMul", [x, weight])
        self._made(op, self._node("Add", [product, *bias]) if bias else product)

    def _on_add(self, op: g.Add) -> None:
        first = all((i, True) in self.values for i in op.inputs)
        self._made(op, self._node("Add", [self._value(i, first) for i in op.inputs]), first)

    def _on_sum(self, op: g.Sum) -> None:
        shape = self.graph.tensors[op.inputs[0]].shape
        mean = is_mean(op.factor, [shape[axis] for axis in op.axes])
        keeps = len(self.graph.tensors[op.result].shape) == len(shape)
        if self.graph.tensors[op.inputs[0]].grid is not None and side_by_side(op.axes):
            self._sum_of_codes(op, mean)
            return
        kind = "ReduceMean" if mean else "ReduceSum"
        axes = self._constant(np.array(op.axes, np.int64))
        self._made(op, self._node(kind, [self._value(op.inputs[0]), axes], keepdims=int(keeps)))

    def _sum_of_codes(self, op: g.Sum, mean: bool) -> None:
        """Pooled, as an operator on codes: in float32 a tie falls either way."""
        source, whole = op.inputs[0], self.graph.tensors[op.result].shape
        shape = self.graph.tensors[source].shape
        rows, window, channels = pooled_shape(shape, op.axes)
        if len(shape) == 4 and sorted(op.axes) == [1, 2]:
            x, window = self._value(source, True), (shape[1], shape[2])
        else:
            moved = self._again(
                self._shaped(self._value(source), (rows, window, 1, channels), min(op.axes) > 0), source
            )
            x, window = self._node("Transpose", [moved], perm=(0, 3, 1, 2)), (window, 1)
        self._made(
            op, self._node("GlobalAveragePool", [x]) if mean else self._ones(x, op.factor, window, channels), True
        )
        if len(whole) != 4 or sorted(op.axes) != [1, 2]:
            moved = self._shaped(self.values.pop((op.result, True)), whole, min(op.axes) > 0)
            self.values[op.result, False] = self._again(moved, op.result)

    def _shaped(self, value: str, shape: typing.Sequence[int], batched: bool) -> str:
        """The values in another shape, whose leading axis may have any length if it is of batches."""
        wanted = np.array([-1, *shape[1:]] if batched else shape, np.int64)
        return self._node("Reshape", [value, self._constant(wanted)])

    def _again(self, value: str, i: int) -> str:
        """Values on the grid of a tensor, as such: an operator on codes ends where they are coded."""
        return self._dequantized(self._node("QuantizeLinear", [value, *self._grid(i)]), i)

    def _ones(
        self, x: str, factor: typing.Any, window: typing.Sequence[int], channels: int, **settings: typing.Any
    ) -> str:
        """Sums over windows as products with ones."""
        ones = self._constant(np.ones((channels, 1, *window), np.int8))
        scale, zero = self._constant(np.float32(factor)), self._constant(np.int8(0))
        weight = self._node("DequantizeLinear", [ones, scale, zero])
        return self._node("Conv", [x, weight], group=channels, kernel_shape=window, **settings)

    def _on_sumpool(self, op: g.SumPool) -> None:
        x = self._value(op.inputs[0], True)
        if self.graph.tensors[op.inputs[0]].grid is not None:
            # sums of integers: in float32, which way a tie falls is left to chance
            channels = self.graph.tensors[op.inputs[0]].shape[-1]
            self._made(op, self._ones(x, op.factor, op.window, channels, strides=op.strides), True)
        elif is_mean(op.factor, op.window):
            self._made(op, self._node("AveragePool", [x], kernel_shape=op.window, strides=op.strides), True)
        else:
            raise ValueError("onnx: sums over windows in float32 have no operator. Use means.")

    def _on_maxpool(self, op: g.MaxPool) -> None:
        (top, bottom), (left, right) = op.padding
        settings: dict[str, typing.Any] = {
            "kernel_shape": op.window,
            "strides": op.strides,
            "pads": (top, left, bottom, right),
        }
        self._made(op, self._node("MaxPool", [self._value(op.inputs[0], True)], **settings), True)

    def _on_reshape(self, op: g.Reshape) -> None:
        shape, first = self.graph.tensors[op.result].shape, self.graph.tensors[op.inputs[0]].shape[:1]
        wanted = np.array([0, *shape[1:]] if shape[:1] == first else shape, np.int64)
        self._made(op, self._node("Reshape", [self._value(op.inputs[0]), self._constant(wanted)]))

    def _on_transpose(self, op: g.Transpose) -> None:
        self._made(op, self._node("Transpose", [self._value(op.inputs[0])], perm=op.permutation))

    def _on_pad(self, op: g.Pad) -> None:
        pads = self._constant(np.array([low for low, _ in op.padding] + [high for _, high in op.padding], np.int64))
        self._made(op, self._node("Pad", [self._value(op.inputs[0]), pads, self._constant(np.float32(0))]))

    def _on_slice(self, op: g.Slice) -> None:
        axes = [axis for axis, ends in enumerate(zip(op.start, op.limit, op.strides, strict=True))
                if ends != (0, self.graph.tensors[op.inputs[0]].shape[axis], 1)]  # fmt: skip
        parts = (
            np.array([part[axis] for axis in axes], np.int64) for part in (op.start, op.limit, range(99), op.strides)
        )
        self._made(op, self._node("Slice", [self._value(op.inputs[0]), *map(self._constant, parts)]))

    def _on_take(self, op: g.Take) -> None:
        indices = self._constant(np.asarray(op.indices, np.int64))
        self._made(op, self._node("Gather", [self._value(op.inputs[0]), indices], axis=op.axis))

    def _on_concatenate(self, op: g.Concatenate) -> None:
        self._made(op, self._node("Concat", [self._value(i) for i in op.inputs], axis=op.axis))

    def _on_softmax(self, op: g.Softmax) -> None:
        self._made(op, self._node("Softmax", [self._value(op.inputs[0])], axis=-1))

    def _on_matmul(self, op: g.MatMul) -> None:
        self._made(op, self._node("MatMul", [self._value(i) for i in op.inputs]))

    def _on_constant(self, op: g.Constant) -> None:
        self.values[op.result, False] = self._constant(op.values)

    def _on_function(self, op: g.Function) -> None:
        inputs = [self._value(i) for i in op.inputs]
        if op.name == "clamp":
            low, x, high = inputs
            value = self._node("Min", [self._node("Max", [x, low]), high])
        elif op.name == "select_n":
            which, *cases = inputs
            value = self._node("Where", [which, *reversed(cases)])
        elif op.name == "rsqrt":
            value = self._node("Reciprocal", [self._node("Sqrt", inputs)])
        else:
            value = self._node(_FUNCTIONS[op.name], inputs)
        self._made(op, value)
