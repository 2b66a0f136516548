"""What a file for LiteRT is made of: tensors, buffers and operators, under its names of them."""

import typing
from collections.abc import Sequence

import numpy as np

from jqz import _graph as g
from jqz._runtime import is_half, nibbles

#: LiteRT's names of JAX's functions of numbers.
FUNCTIONS = {
    "add": "ADD", "add_any": "ADD", "sub": "SUB", "mul": "MUL", "div": "DIV", "max": "MAXIMUM", "min": "MINIMUM",
    "neg": "NEG", "abs": "ABS", "exp": "EXP", "log": "LOG", "sqrt": "SQRT", "rsqrt": "RSQRT", "tanh": "TANH",
    "logistic": "LOGISTIC", "gt": "GREATER", "ge": "GREATER_EQUAL", "lt": "LESS", "le": "LESS_EQUAL",
}  # fmt: skip
#: The versions of operators that a file asks for: 2 where nothing is said.
VERSIONS = {
    **dict.fromkeys(FUNCTIONS.values(), 1), "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2,
    "MAXIMUM": 2, "MINIMUM": 2, "RESHAPE": 1, "SOFTMAX": 1, "SUM": 1, "SELECT_V2": 1, "BATCH_MATMUL": 1,
}  # fmt: skip


def sharing(kind: typing.Any) -> typing.Any:
    """A builder that writes equal vectors of numbers once: zero points, above all, are 8 bytes a channel."""

    class Sharing(kind):
        def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802
            known = self.__dict__.setdefault("vectors", {})
            key = x.dtype.str, x.tobytes()
            if key not in known:
                known[key] = super().CreateNumpyVector(x)
            return known[key]

    return Sharing


class File:
    """The parts of a file so far."""

    def __init__(self, schema: typing.Any):
        self.schema = schema
        self.buffers, self.tensors, self.operators = [self._buffer(None)], [], []
        self.kinds: list[str] = []
        self.constants: dict[typing.Any, int] = {}

    def _model(self, inputs: list[int], outputs: list[int]) -> typing.Any:
        """The whole, from these tensors to those."""
        subgraph = self.schema.SubGraphT()
        subgraph.tensors, subgraph.operators, subgraph.name = self.tensors, self.operators, b"main"
        subgraph.inputs, subgraph.outputs = inputs, outputs
        model = self.schema.ModelT()
        model.version, model.description, model.subgraphs, model.buffers = 3, b"jqz", [subgraph], self.buffers
        model.operatorCodes = [self._code(kind) for kind in self.kinds]
        return model

    def _code(self, kind: str) -> typing.Any:
        code, number = self.schema.OperatorCodeT(), getattr(self.schema.BuiltinOperator, kind)
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), VERSIONS.get(kind, 2)
        return code

    def _buffer(self, data: np.ndarray | None) -> typing.Any:
        buffer = self.schema.BufferT()
        if data is not None:
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
        return buffer

    def _tensor(
        self, shape: Sequence[int], grid: g.Grid | None, dtype: str = "FLOAT32", buffer: int = 0,
        scales: np.ndarray | None = None, axis: int = 0,
    ) -> int:  # fmt: skip
        tensor = self.schema.TensorT()
        tensor.name = f"{len(self.tensors)}".encode()
        tensor.shape, tensor.buffer = list(shape), buffer
        if grid is not None:
            dtype = "INT16" if grid.long else "INT8"
        tensor.type = getattr(self.schema.TensorType, dtype)
        if grid is not None or scales is not None:
            q = self.schema.QuantizationParametersT()
            q.scale = np.asarray([grid.scale] if grid is not None else scales, np.float32)
            q.zeroPoint = np.asarray([grid.zero_point] if grid is not None else np.zeros(len(q.scale)), np.int64)
            q.quantizedDimension = axis
            tensor.quantization = q
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _codes(self, codes: np.ndarray, limit: int, scales: np.ndarray, axis: int) -> int:
        """Weights: in half a byte each where they fit."""
        if not is_half(limit):
            return self._constant(codes, scales, axis)
        self.buffers.append(self._buffer(nibbles(codes)))
        return self._tensor(codes.shape, None, "INT4", len(self.buffers) - 1, scales, axis)

    def _constant(self, array: np.ndarray, scales: np.ndarray | None = None, axis: int = 0) -> int:
        array = np.asarray(array)
        key = (array.dtype.name, array.shape, array.tobytes()) if array.dtype == np.int32 and scales is None else None
        if key is None or key not in self.constants:
            self.buffers.append(self._buffer(array))
            dtype = array.dtype.name.upper()
            index = self._tensor(array.shape, None, dtype, len(self.buffers) - 1, scales, axis)
            if key is None:
                return index
            self.constants[key] = index
        return self.constants[key]

    def _number(self, number: float, grid: g.Grid | None) -> int:
        """A code on a grid, or a number in float32, as a tensor of rank 0."""
        dtype = np.float32 if grid is None else np.int16 if grid.long else np.int8
        self.buffers.append(self._buffer(np.array(number, dtype)))
        return self._tensor((), grid, buffer=len(self.buffers) - 1)

    def _operator(
        self, kind: str, inputs: Sequence[int], output: int, name: str | None = None, **settings: typing.Any
    ) -> None:
        if kind not in self.kinds:
            self.kinds.append(kind)
        operator = self.schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = self.kinds.index(kind), list(inputs), [output]
        if name is not None:
            options = getattr(self.schema, f"{name}T")()
            for key, value in settings.items():
                assert hasattr(options, key), (name, key)
                setattr(options, key, value)
            operator.builtinOptions, operator.builtinOptionsType = options, getattr(self.schema.BuiltinOptions, name)
        self.operators.append(operator)
