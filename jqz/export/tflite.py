"""LiteRT (TensorFlow Lite) flatbuffers."""

import typing

import numpy as np

from jqz import _graph as g
from jqz._litert import FUNCTIONS, File, sharing
from jqz._runtime import (
    Integers,
    Interface,
    Numbers,
    Values,
    bounds,
    clip_codes,
    code_of,
    inner_tensors,
    is_mean,
    pooled_shape,
    real_weights,
    side_by_side,
    sound_weights,
)
from jqz._target import target_graph, write_each


def tflite(
    net: typing.Any, example: typing.Any, *, interface: Interface = Values(), numbers: Numbers = Integers()
) -> bytes:
    """A quantized net as the bytes of a ``.tflite`` file: int8 or int16 activations, a scale for each output channel.

    The file computes what ``complete(net, example)`` computes, with its ``requant=jqz.requant.XNNPACK()``: bit for
    bit where LiteRT runs on XNNPACK, its default; and with ``Gemmlowp()`` where it runs its reference kernels.
    ``float32`` inputs are coded by an operator of the runtime, whose division may differ in the last place. What no
    operator on codes computes (functions, quotients, normalization, products of two activations) is float32 between
    codes on both sides, to the last places of a function: a code may differ by a step where that decides a tie.

    The policy that the net was converted with says what is stored. Weights of at most 4 bits take half a byte each:
    LiteRT's reference kernels know them all, while XNNPACK leaves them to kernels that round by other rules, a step
    or two apart. With no ``inputs`` activations are float32, and LiteRT decodes the weights when it loads the file:
    int8, int4, float16 where that holds a weight exactly, as ``Float(Float16())`` makes them, and float32 else.

    ``inputs=Symmetric(bits=16)`` makes activations of 16 bits, with int64 biases: the codes are those of
    ``jqz.requant.Int16x8()`` in all kernels that LiteRT has for these, which are its reference kernels, many times as
    slow as those for 8 bits. ``Symmetric(bits=16, codes=jqz.schemes.Full())`` saves an operator behind every other,
    which keeps -2**15 out.

    With ``numbers=Dynamic()`` such a file has products of int8 instead, as ``quantized(fn, inputs=...)`` has: LiteRT
    codes what meets int8 or int4 weights on the fly, as ``Asymmetric(bits=8, granularity=PerAxis(0))`` does: a grid
    for each image of a convolution and each row of a dense layer (``PerAxis((0, 1))`` where rows stand in a batch of
    matrices). Results are equal to the last places of float32 but where one of these decides a tie.

    Use it for phones, boards and microcontrollers. A function that is no chain of operators is refused: sort, loops.

    Args:
      net: from ``convert``, with ``inputs=Asymmetric(bits=8)`` or ``Symmetric(bits=16)`` and weights with integers
        about zero, such as ``Symmetric(bits=8, granularity=PerAxis(-1))``; or without ``inputs`` and with any weights.
      example: an input, or a tuple of arguments: its shape is the file's, and it calibrates what ``complete`` adds
        unless the net is complete.
      interface: ``Values()``: float32 in and out; ``Codes()``: int8 or int16.
      numbers: ``Integers()``; ``Floats()`` to compare with; or ``Dynamic()``.

    Raises:
      ValueError: an equation has no operator; the message names it and its line.
      ImportError: the extra is missing: ``pip install 'jqz[tflite]'``.

    >>> import jax.numpy as jnp, jqz, jqz.export
    >>> policy = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Asymmetric(bits=8))
    >>> net = jqz.convert(lambda params, x: x @ params["w"], {"w": jnp.eye(4)}, [jnp.ones((2, 4))], policy)
    >>> jqz.export.tflite(net, jnp.ones((1, 4)))[4:8]
    b'TFL3'

    References: arXiv:1712.05877.
    """
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise ImportError("tflite: LiteRT's schema is missing. Use pip install 'jqz[tflite]'.") from error
    graph = target_graph(net, example, interface, numbers, without={"erf"})
    writer = _Writer(schema, graph, numbers.dynamic)
    builder = sharing(flatbuffers.Builder)(1 << 20)
    builder.Finish(writer.model().Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _Writer(File):
    def __init__(self, schema: typing.Any, graph: g.Graph, dynamic: bool):
        super().__init__(schema)
        self.graph, self.dynamic = graph, dynamic
        made = {op.result for op in graph.operators if isinstance(op, g.Constant)}
        self.numbers = {
            i: self._tensor(tensor.shape, tensor.grid, "BOOL" if tensor.boolean else "FLOAT32")
            for i, tensor in ((i, graph.tensors[i]) for i in inner_tensors(graph) if i not in made)
        }

    def model(self) -> typing.Any:
        write_each(self, self.graph)
        return self._model(*([self.numbers[i] for i in ends] for ends in (self.graph.inputs, self.graph.outputs)))

    def _grid(self, index: int) -> g.Grid | None:
        return self.graph.tensors[index].grid

    def _long(self, index: int) -> bool:
        """Whether a tensor has codes of 16 bits: biases are int64 then, and weights int8."""
        grid = self._grid(index)
        return grid is not None and grid.long

    def _scale(self, index: int) -> np.float32:
        grid = self._grid(index)
        assert grid is not None
        return np.float32(grid.scale)

    def _finished(self, op: typing.Any, kind: str, inputs: list[int], name: str | None, **settings: typing.Any) -> None:
        """An operator with its bounds: as an activation of its own where there is one, else by more operators."""
        result, grid = self.numbers[op.result], self._grid(op.result)
        fused: dict[str, tuple[float, float]] = {
            "NONE": (-np.inf, np.inf), "RELU": (0, np.inf), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)
        }  # fmt: skip
        if grid is None:
            (low, high), free = bounds(op), (-np.inf, np.inf)
        else:
            (low, high), free = clip_codes(op, grid), grid.ends
            fused = {name: (code_of(a, grid), code_of(b, grid)) for name, (a, b) in fused.items()}
        can = name is not None and hasattr(getattr(self.schema, f"{name}T")(), "fusedActivationFunction")
        choice = next((a for a, ends in fused.items() if ends == (low, high) and (can or a == "NONE")), None)
        if can:
            activation = getattr(self.schema.ActivationFunctionType, choice or "NONE")
            settings["fusedActivationFunction"] = activation
        later = [] if choice else [("MAXIMUM", low, free[0]), ("MINIMUM", high, free[1])]
        later = [(kind, end) for kind, end, free in later if end != free]
        targets = [self._tensor(self.tensors[result].shape, grid) for _ in later] + [result]
        self._operator(kind, inputs, targets[0], name, **settings)
        for (kind, end), source, target in zip(later, targets[:-1], targets[1:], strict=True):
            self._operator(kind, [source, self._number(end, grid)], target, "MaximumMinimumOptions")

    def _on_convert(self, op: g.Convert) -> None:
        source, target = self._grid(op.inputs[0]), self._grid(op.result)
        if target is None:
            self._operator("DEQUANTIZE", [self.numbers[op.inputs[0]]], self.numbers[op.result], "DequantizeOptions")
        else:
            name = "QuantizeOptions"
            self._finished(op, "QUANTIZE", [self.numbers[op.inputs[0]]], name)
        assert source is not target

    def _weights(self, op: g.Convolution | g.Dense, order: tuple[int, ...], axis: int) -> list[int]:
        if self._grid(op.inputs[0]) is None:
            values, scale, bias = real_weights(op)
            weight = values.transpose(order)
            if weight.dtype == np.float32:
                return [self._constant(weight), self._constant(bias)]
            decoded, coded = self._tensor(weight.shape, None), weight.dtype == np.int8
            stored = self._codes(weight, op.limit, scale, axis) if coded else self._constant(weight)
            if coded and self.dynamic:  # the operators code activations where they find codes for weights
                return [stored, self._constant(bias)]
            self._operator("DEQUANTIZE", [stored], decoded, "DequantizeOptions")
            return [decoded, self._constant(bias)]
        codes, scale, bias = sound_weights(op, self._scale(op.inputs[0]), self._scale(op.result))
        scale, long = _once(scale), self._long(op.inputs[0])
        scales = np.asarray(self._scale(op.inputs[0]) * scale)
        weight = self._codes(codes.transpose(order), 127 if long else op.limit, scale, axis)
        return [weight, self._constant(bias.astype(np.int64 if long else np.int32), scales)]

    def _padded(self, op: typing.Any, window: typing.Sequence[int], dilation: typing.Sequence[int]) -> tuple[int, int]:
        """The input, padded by an operator if need be, and the kind of padding that is left."""
        x, kinds = self.numbers[op.inputs[0]], self.schema.Padding
        shape = self.graph.tensors[op.inputs[0]].shape
        if not any(map(any, op.padding)):
            return x, kinds.VALID
        same = []
        for n, k, d, s in zip(shape[1:3], window, dilation, op.strides, strict=True):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            same.append((total // 2, total - total // 2))
        if tuple(same) == tuple(map(tuple, op.padding)):
            return x, kinds.SAME
        grid = self._grid(op.inputs[0])
        config = ((0, 0), *op.padding, (0, 0))
        target = self._tensor([n + sum(p) for n, p in zip(shape, config, strict=True)], grid)
        if isinstance(op, g.MaxPool):  # what never is a maximum
            lowest = self._number(-np.inf if grid is None else grid.ends[0], grid)
            inputs = [x, self._constant(np.array(config, np.int32)), lowest]
            self._operator("PADV2", inputs, target, "PadV2Options")
        else:
            self._operator("PAD", [x, self._constant(np.array(config, np.int32))], target, "PadOptions")
        return target, kinds.VALID

    def _on_convolution(self, op: g.Convolution) -> None:
        x, padding = self._padded(op, op.codes.shape[1:3], op.dilation)
        settings: dict[str, typing.Any] = {
            "padding": padding, "strideH": op.strides[0], "strideW": op.strides[1],
            "dilationHFactor": op.dilation[0], "dilationWFactor": op.dilation[1],
        }  # fmt: skip
        channels = self.graph.tensors[op.inputs[0]].shape[-1]
        if op.groups == channels and op.groups > 1:
            settings["depthMultiplier"] = op.codes.shape[0] // channels
            inputs = [x, *self._weights(op, (3, 1, 2, 0), 3)]
            self._finished(op, "DEPTHWISE_CONV_2D", inputs, "DepthwiseConv2DOptions", **settings)
        else:
            self._finished(op, "CONV_2D", [x, *self._weights(op, (0, 1, 2, 3), 0)], "Conv2DOptions", **settings)

    def _on_dense(self, op: g.Dense) -> None:
        """A matrix in float32 as such, one on codes as a convolution of single pixels.

        That takes a scale for each row in all runtimes of such files, and rounds by one rule in all kernels of LiteRT.
        """
        x, weight, bias = self.numbers[op.inputs[0]], *self._weights(op, (0, 1), 0)
        shape, grid = self.graph.tensors[op.result].shape, self._grid(op.result)
        if self._grid(op.inputs[0]) is None:
            settings = {"keepNumDims": len(shape) > 2, "asymmetricQuantizeInputs": self.dynamic}
            self._finished(op, "FULLY_CONNECTED", [x, weight, bias], "FullyConnectedOptions", **settings)
            return
        outs, ins = op.codes.shape
        pixels = int(np.prod(shape[:-1]))
        image, result = (
            self._tensor((pixels, 1, 1, ins), self._grid(op.inputs[0])),
            self._tensor((pixels, 1, 1, outs), grid),
        )
        self.tensors[weight].shape = [outs, 1, 1, ins]
        self._reshaped(x, (-1, 1, 1, ins), image)
        ones = dict.fromkeys(("strideH", "strideW", "dilationHFactor", "dilationWFactor"), 1)
        settings = {"padding": self.schema.Padding.VALID, **ones}
        final, self.numbers[op.result] = self.numbers[op.result], result
        self._finished(op, "CONV_2D", [image, weight, bias], "Conv2DOptions", **settings)
        self.numbers[op.result] = final
        self._reshaped(result, (-1, outs) if len(shape) == 2 else shape, final)

    def _on_add(self, op: g.Add) -> None:
        # powers of two as scales would otherwise make 16-bit codes meet other kernels
        self._finished(op, "ADD", [self.numbers[i] for i in op.inputs], "AddOptions", potScaleInt16=False)

    def _on_sum(self, op: g.Sum) -> None:
        shape, grid = self.graph.tensors[op.inputs[0]].shape, self._grid(op.inputs[0])
        mean = is_mean(op.factor, [shape[axis] for axis in op.axes])
        if grid is not None and not mean:
            self._sum_of_codes(op, grid)
            return
        inputs = [self.numbers[op.inputs[0]], self._constant(np.array(op.axes, np.int32))]
        keeps = len(self.graph.tensors[op.result].shape) == len(shape)
        self._finished(op, "MEAN" if mean else "SUM", inputs, "ReducerOptions", keepDims=keeps)

    def _sum_of_codes(self, op: g.Sum, grid: g.Grid) -> None:
        """The runtime's own sums of codes do not saturate."""
        if not side_by_side(op.axes):
            raise ValueError(f"tflite: codes are summed over axes {op.axes}, wanted axes side by side.")
        rows, window, channels = pooled_shape(self.graph.tensors[op.inputs[0]].shape, op.axes)
        source = self._tensor((rows, window, 1, channels), grid)
        target = self._tensor((rows, 1, 1, channels), self._grid(op.result))
        self._reshaped(self.numbers[op.inputs[0]], (rows if min(op.axes) == 0 else -1, window, 1, channels), source)
        final, self.numbers[op.result] = self.numbers[op.result], target
        valid = {"padding": self.schema.Padding.VALID, "strideH": 1, "strideW": 1}
        self._summed(op, source, (window, 1), op.factor, valid)
        self.numbers[op.result], whole = final, self.graph.tensors[op.result].shape
        self._reshaped(target, (-1, *whole[1:]) if min(op.axes) else whole, final)

    def _on_sumpool(self, op: g.SumPool) -> None:
        grid, source = self._grid(op.result), self.numbers[op.inputs[0]]
        settings = {"padding": self.schema.Padding.VALID, "strideH": op.strides[0], "strideW": op.strides[1]}
        if grid is None:
            if not is_mean(op.factor, op.window):
                raise ValueError("tflite: sums over windows in float32 have no operator. Use means.")
            settings |= {"filterHeight": op.window[0], "filterWidth": op.window[1]}
            self._operator("AVERAGE_POOL_2D", [source], self.numbers[op.result], "Pool2DOptions", **settings)
            return
        self._summed(op, source, op.window, op.factor, settings)  # pooling keeps the grid, and rounds once more

    def _summed(
        self, op: g.Sum | g.SumPool, source: int, window: tuple[int, ...], factor: typing.Any, settings: typing.Any
    ) -> None:
        """Sums over windows as products with ones, which are rounded once."""
        channels = self.tensors[source].shape[-1]
        scale = np.array([factor], np.float32)
        ones = self._constant(np.ones((1, *window, channels), np.int8), scale, 3)
        zeros = np.zeros(channels, np.int64 if self._long(op.inputs[0]) else np.int32)
        bias = self._constant(zeros, np.asarray(self._scale(op.inputs[0]) * scale))
        settings = settings | {"depthMultiplier": 1, "dilationHFactor": 1, "dilationWFactor": 1}
        self._finished(op, "DEPTHWISE_CONV_2D", [source, ones, bias], "DepthwiseConv2DOptions", **settings)

    def _on_maxpool(self, op: g.MaxPool) -> None:
        x, padding = self._padded(op, op.window, (1, 1))
        settings: dict[str, typing.Any] = {
            "padding": padding, "strideH": op.strides[0], "strideW": op.strides[1],
            "filterHeight": op.window[0], "filterWidth": op.window[1],
        }  # fmt: skip
        self._operator("MAX_POOL_2D", [x], self.numbers[op.result], "Pool2DOptions", **settings)

    def _on_reshape(self, op: g.Reshape) -> None:
        shape, first = self.graph.tensors[op.result].shape, self.graph.tensors[op.inputs[0]].shape[:1]
        wanted = (-1, *shape[1:]) if shape[:1] == first else shape
        self._reshaped(self.numbers[op.inputs[0]], wanted, self.numbers[op.result])

    def _reshaped(self, source: int, shape: typing.Sequence[int], target: int) -> None:
        numbers = np.array(shape, np.int32)
        self._operator("RESHAPE", [source, self._constant(numbers)], target, "ReshapeOptions", newShape=numbers)

    def _on_transpose(self, op: g.Transpose) -> None:
        inputs = [self.numbers[op.inputs[0]], self._constant(np.array(op.permutation, np.int32))]
        self._operator("TRANSPOSE", inputs, self.numbers[op.result], "TransposeOptions")

    def _on_pad(self, op: g.Pad) -> None:
        inputs = [self.numbers[op.inputs[0]], self._constant(np.array(op.padding, np.int32))]
        self._operator("PAD", inputs, self.numbers[op.result], "PadOptions")

    def _on_slice(self, op: g.Slice) -> None:
        ends = (self._constant(np.array(end, np.int32)) for end in (op.start, op.limit, op.strides))
        inputs = [self.numbers[op.inputs[0]], *ends]
        self._operator("STRIDED_SLICE", inputs, self.numbers[op.result], "StridedSliceOptions")

    def _on_take(self, op: g.Take) -> None:
        inputs = [self.numbers[op.inputs[0]], self._constant(np.asarray(op.indices, np.int32))]
        self._operator("GATHER", inputs, self.numbers[op.result], "GatherOptions", axis=op.axis)

    def _on_concatenate(self, op: g.Concatenate) -> None:
        inputs = [self.numbers[i] for i in op.inputs]
        self._operator("CONCATENATION", inputs, self.numbers[op.result], "ConcatenationOptions", axis=op.axis)

    def _on_softmax(self, op: g.Softmax) -> None:
        self._operator("SOFTMAX", [self.numbers[op.inputs[0]]], self.numbers[op.result], "SoftmaxOptions", beta=1.0)

    def _on_matmul(self, op: g.MatMul) -> None:
        self._operator("BATCH_MATMUL", [self.numbers[i] for i in op.inputs], self.numbers[op.result],
                       "BatchMatMulOptions")  # fmt: skip

    def _on_constant(self, op: g.Constant) -> None:
        self.numbers[op.result] = self._constant(np.asarray(op.values))

    def _on_function(self, op: g.Function) -> None:
        inputs, result = [self.numbers[i] for i in op.inputs], self.numbers[op.result]
        if op.name == "clamp":
            low, x, high = inputs
            above = self._tensor(self.graph.tensors[op.result].shape, None)
            self._operator("MAXIMUM", [x, low], above, "MaximumMinimumOptions")
            self._operator("MINIMUM", [above, high], result, "MaximumMinimumOptions")
        elif op.name == "select_n":
            which, *cases = inputs
            self._operator("SELECT_V2", [which, *reversed(cases)], result, "SelectV2Options")
        else:
            kind = FUNCTIONS[op.name]
            name = {"MAXIMUM": "MaximumMinimum", "MINIMUM": "MaximumMinimum"}.get(kind, kind.title().replace("_", ""))
            known = hasattr(self.schema, f"{name}OptionsT")
            self._operator(kind, inputs, result, f"{name}Options" if known else None)


def _once(scale: np.ndarray) -> np.ndarray:
    """The scale that all channels have, if they do: a file spends 16 bytes on each otherwise."""
    return scale[:1] if (scale == scale[0]).all() else scale
