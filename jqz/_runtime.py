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

    codes = False


@typing.final
@dataclasses.dataclass(frozen=True)
class Codes(Interface):
    """Codes; the file says their scale and zero point."""

    codes = True


def as_codes(graph: g.Graph, interface: Interface) -> g.Graph:
    """The graph with codes for inputs and outputs, where the interface wants them; softmax stays float32."""
    if not interface.codes:
        return graph
    readers = collections.Counter(i for op in graph.operators for i in op.inputs)
    first = {op.inputs[0]: op for op in graph.operators if isinstance(op, g.Convert) and op.inputs[0] in graph.inputs}
    last = {op.result: op for op in graph.operators if isinstance(op, g.Convert) and op.result in graph.outputs}
    for i in graph.inputs:
        if readers[i] != 1 or i not in first:
            raise ValueError("export: an input has not one reader that codes it. Use interface=Values().")
    gone = {id(op) for op in (*first.values(), *last.values())}
    return g.Graph(
        [op for op in graph.operators if id(op) not in gone],
        graph.tensors,
        tuple(first[i].result for i in graph.inputs),
        tuple(last[i].inputs[0] if i in last else i for i in graph.outputs),
    )


def inner_tensors(graph: g.Graph) -> list[int]:
    """The tensors that are read, made or returned, in order."""
    used = {*graph.inputs, *graph.outputs}
    for op in graph.operators:
        used.update(op.inputs, (op.result,))
    return sorted(used)


def code_of(x: float, grid: g.Grid) -> int:
    """The int8 code of a real number."""
    return int(np.clip(np.rint(np.float32(x) / np.float32(grid.scale)) + int(grid.zero_point), -128, 127))


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


class Weights(typing.NamedTuple):
    """Codes, one positive scale a channel, and biases."""

    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray


def sound_weights(op: g.Convolution | g.Dense, source: np.float32, target: np.float32) -> Weights:
    """Weights whose scales are positive.

    A channel with a negative scale gets negated codes. One whose scale is as good as 0 keeps its bias alone, in steps
    of the result.
    """
    codes, scale, bias = np.array(op.codes), np.array(op.scale, np.float32), np.array(op.bias, np.int32)
    dead = (scale == 0) | (np.asarray(op.rest) != 0)
    across = (slice(None),) + (None,) * (codes.ndim - 1)
    if (codes[scale < 0] == -128).any():
        raise ValueError(
            "export: a channel with the code -128 has a negative scale, as under a negative gamma of a batch norm. "
            "Use Symmetric(bits=8), whose codes begin at -127."
        )
    codes = codes * np.where(dead, 0, np.where(scale < 0, -1, 1)).astype(np.int8)[across]
    bias = np.where(dead, op.rest, np.where(scale < 0, -bias, bias)).astype(np.int32)
    return Weights(codes, np.where(dead, target / source, np.abs(scale)).astype(np.float32), bias)
