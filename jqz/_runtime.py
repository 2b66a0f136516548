"""What writers of different files share: their interface, and the numbers as runtimes want them."""

import abc
import collections
import dataclasses
import math
import typing
from collections.abc import Sequence

import numpy as np

from jqz import _graph as g


class Interface(abc.ABC):
    """What a file takes and returns."""

    @property
    @abc.abstractmethod
    def codes(self) -> bool:
        """Whether these are codes."""


@typing.final
@dataclasses.dataclass(frozen=True)
class Values(Interface):
    """float32 values."""

    @property
    def codes(self) -> bool:
        return False


@typing.final
@dataclasses.dataclass(frozen=True)
class Codes(Interface):
    """Codes; the file says their scale and zero point."""

    @property
    def codes(self) -> bool:
        return True


class Numbers(abc.ABC):
    """What a file computes on."""

    #: Whether the runtime codes activations itself, on the fly.
    dynamic: typing.ClassVar[bool] = False

    @abc.abstractmethod
    def of(self, graph: g.Graph) -> g.Graph:
        """The graph on such numbers."""


@typing.final
@dataclasses.dataclass(frozen=True)
class Integers(Numbers):
    """8-bit codes of weights and activations, 32-bit sums."""

    def of(self, graph: g.Graph) -> g.Graph:
        return graph


@typing.final
@dataclasses.dataclass(frozen=True)
class Floats(Numbers):
    """float32 everywhere, with the values that the weights' codes stand for: the same net to compare with."""

    def of(self, graph: g.Graph) -> g.Graph:
        same: dict[int, int] = {}  # a conversion changes nothing
        operators = []
        for op in graph.operators:
            inputs = tuple(same.get(i, i) for i in typing.cast(tuple[int, ...], op.inputs))
            if isinstance(op, g.Convert) and op.low is None and op.high is None:
                same[op.result] = inputs[0]
                continue
            if isinstance(op, g.Convolution | g.Dense):
                coded = graph.tensors[op.inputs[0]].grid is not None
                op = _in_values(op, *(_scale(graph, i) for i in (op.inputs[0], op.result) if coded))
            operators.append(dataclasses.replace(op, inputs=inputs))
        tensors = [dataclasses.replace(tensor, grid=None) for tensor in graph.tensors]
        return g.Graph(operators, tensors, graph.inputs, tuple(same.get(i, i) for i in graph.outputs))


@typing.final
@dataclasses.dataclass(frozen=True)
class Dynamic(Numbers):
    """float32 between products, whose activations the runtime codes on the fly where weights are int8."""

    dynamic = True

    def of(self, graph: g.Graph) -> g.Graph:
        return graph


def _scale(graph: g.Graph, i: int) -> np.float32:
    grid = graph.tensors[i].grid
    assert grid is not None
    return np.float32(grid.scale)


def _in_values(op: typing.Any, source: typing.Any = None, target: typing.Any = None) -> typing.Any:
    """A product with the values of its weights; on codes, with the scales of its input and result."""
    scale = np.asarray(op.scale, np.float32)
    codes = np.asarray(op.codes, np.float32) * scale.reshape((-1,) + (1,) * (np.ndim(op.codes) - 1))
    bias = op.bias if source is None else np.float32(op.bias * (source * scale) + op.rest * target)
    return dataclasses.replace(op, codes=codes, scale=np.ones_like(scale), bias=bias)


def as_codes(graph: g.Graph, interface: Interface) -> g.Graph:
    """The graph with codes for inputs and outputs, where the interface wants them; softmax stays float32."""
    if not interface.codes:
        return graph
    readers = collections.Counter(i for op in graph.operators for i in op.inputs)
    first = {op.inputs[0]: op for op in graph.operators if isinstance(op, g.Convert) and op.inputs[0] in graph.inputs}
    last = {op.result: op for op in graph.operators if isinstance(op, g.Convert) and op.result in graph.outputs}
    for i in graph.inputs:
        if readers[i] != 1 or i not in first:
            raise ValueError(
                "export: an input is read by none, by several or in float32, wanted one product to read its codes. "
                "Use interface=Values(), where the target has it, or leave out what is not read."
            )
    gone = {id(op) for op in (*first.values(), *last.values())}
    return g.Graph(
        [op for op in graph.operators if id(op) not in gone],
        graph.tensors,
        tuple(first[i].result for i in graph.inputs),
        tuple(last[i].inputs[0] if i in last else i for i in graph.outputs),
    )


def narrow(graph: g.Graph) -> g.Graph:
    """The graph with constants of length 1 along axes where they repeat, if the other operand has the whole shape."""
    makers = {op.result: op for op in graph.operators}
    operators, tensors = {id(op): op for op in graph.operators}, list(graph.tensors)
    for op in graph.operators:
        constants = [makers[i] for i in op.inputs if isinstance(makers.get(i), g.Constant)]
        wide = any(tensors[i].shape == tensors[op.result].shape for i in op.inputs if i not in makers or
                   not isinstance(makers[i], g.Constant))  # fmt: skip
        for constant in constants if wide else ():
            values = np.asarray(constant.values)
            for axis in range(values.ndim):
                first = values.take([0], axis)
                same = np.broadcast_to(first, values.shape)
                values = first if np.array_equal(same, values, equal_nan=values.dtype.kind == "f") else values
            operators[id(constant)] = dataclasses.replace(constant, values=values)
            tensors[constant.result] = dataclasses.replace(tensors[constant.result], shape=values.shape)
    return g.Graph(list(operators.values()), tensors, graph.inputs, graph.outputs)


def inner_tensors(graph: g.Graph) -> list[int]:
    """The tensors that are read, made or returned, in order."""
    used = {*graph.inputs, *graph.outputs}
    for op in graph.operators:
        used.update(op.inputs, (op.result,))
    return sorted(used)


def code_of(x: float, grid: g.Grid) -> int:
    """The code of a real number."""
    return int(np.clip(np.rint(np.float32(x) / np.float32(grid.scale)) + int(grid.zero_point), *grid.ends))


def clip_codes(op: g.Operator, grid: g.Grid) -> tuple[int, int]:
    """The lowest and highest code of an operator's result: those of its grid, and its bounds."""
    low, high = grid.low, grid.high
    if op.low is not None:
        low = max(low, code_of(float(op.low), grid))
    if op.high is not None:
        high = min(high, code_of(float(op.high), grid))
    return low, high


def is_mean(factor: typing.Any, sizes: Sequence[int]) -> bool:
    """Whether a sum over so many, times a factor, is a mean (True) or the sum (False)."""
    for mean, wanted in ((True, 1 / math.prod(sizes)), (False, 1.0)):
        if math.isclose(float(factor), wanted, rel_tol=1e-6):
            return mean
    raise ValueError(f"export: a sum over {math.prod(sizes)} is multiplied by {float(factor)}. Use sums or means.")


def side_by_side(axes: Sequence[int]) -> bool:
    """Whether axes follow each other, so that they can be made one."""
    return sorted(axes) == [*range(min(axes), min(axes) + len(axes))]


def pooled_shape(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, int, int]:
    """The lengths before, of, and behind axes side by side."""
    first, end = min(axes), max(axes) + 1
    return math.prod(shape[:first]), math.prod(shape[first:end]), math.prod(shape[end:])


class Weights(typing.NamedTuple):
    """Codes, one positive scale a channel, and biases."""

    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray


def bounds(op: g.Operator) -> tuple[float, float]:
    """Real bounds of an operator's result, infinite where there is none."""
    low, high = -np.inf if op.low is None else float(op.low), np.inf if op.high is None else float(op.high)
    return low, high


def sound_weights(op: g.Convolution | g.Dense, source: np.float32, target: np.float32) -> Weights:
    """Weights whose scales are positive.

    A channel with a negative scale gets negated codes. One whose scale is as good as 0 keeps its bias alone, in steps
    of the result.
    """
    codes, scale, bias = np.array(op.codes), np.array(op.scale, np.float32), np.array(op.bias, np.int64)
    dead = (scale == 0) | (np.asarray(op.rest) != 0)
    across = (slice(None),) + (None,) * (codes.ndim - 1)
    if (codes[scale < 0] == -128).any():
        raise ValueError(
            "export: a channel with the code -128 has a negative scale, as under a negative gamma of a batch norm. "
            "Use Symmetric(bits=8), whose codes begin at -127."
        )
    codes = codes * np.where(dead, 0, np.where(scale < 0, -1, 1)).astype(np.int8)[across]
    bias = np.where(dead, op.rest, np.where(scale < 0, -bias, bias))
    one = target / source
    if float(source) * float(one) < float(target):  # multipliers of 15 bits are a step off below 1
        one = np.nextafter(one, np.float32(np.inf))
    return Weights(codes, np.where(dead, one, np.abs(scale)).astype(np.float32), bias.astype(np.int64))


def real_weights(op: g.Convolution | g.Dense) -> Weights:
    """Weights of a float32 input: codes whose scales are positive, or values with scales of 1; biases are real.

    Values are float16 where that holds them exactly.
    """
    bias = np.asarray(op.bias, np.float32)
    if np.asarray(op.codes).dtype != np.int8:
        whole = _in_values(op)
        values = np.asarray(whole.codes, np.float32)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        return Weights(half if (half == values).all() else values, whole.scale, bias)
    scale = np.array(op.scale, np.float32)
    sign = np.sign(scale).astype(np.int8).reshape((-1,) + (1,) * (np.ndim(op.codes) - 1))
    return Weights(op.codes * sign, np.where(scale == 0, np.float32(1), np.abs(scale)), bias)


def nibbles(codes: np.ndarray) -> np.ndarray:
    """4-bit codes in half a byte each, the first of two in the low half."""
    low, high = np.pad(codes.reshape(-1), (0, codes.size % 2)).reshape(-1, 2).T & 15
    return (low | high << 4).astype(np.uint8)


def is_half(limit: int) -> bool:
    """Whether codes of at most this magnitude fit half a byte; 0 stands for real weights."""
    return 0 < limit <= 7
