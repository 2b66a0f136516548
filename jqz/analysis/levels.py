"""How many levels a tensor uses, and how evenly."""

import dataclasses
import math
import typing
from collections.abc import Sequence

import numpy as np

from jqz._samples import float64


@typing.final
@dataclasses.dataclass(frozen=True)
class Levels:
    """The levels that a rounded tensor uses.

    Attributes:
      count: distinct values, sign and zero included.
      span_bits: ceil(log2(octaves from the smallest to the largest magnitude)) + 1 for the sign: what a power-of-two
        code of all these exponents takes; 1 where no value differs from 0.
      entropy: of the levels, in bits: no code for single values takes fewer on average.
      weights: how many values.
    """

    count: int
    span_bits: int
    entropy: float
    weights: int

    @property
    def bits(self) -> float:
        """log2(count)."""
        return math.log2(self.count)

    def utilization(self, bits: float) -> float:
        """entropy / bits: the share of stored bits that carry information."""
        return self.entropy / bits


def levels(rounded: typing.Any) -> Levels:
    """Counts the levels that a rounded tensor uses, and measures their entropy.

    Codes do as well as values, and better where each channel has a scale of its own: codes are what is stored.

    Raises:
      ValueError: the array is empty or not finite.

    >>> from jqz.analysis import levels
    >>> used = levels([-0.5, 0.0, 0.0, 0.25])
    >>> used.count, used.span_bits, used.entropy, used.utilization(bits=2)
    (3, 2, 1.5, 0.75)

    References: "average bit-levels" of arXiv:1910.04877.
    """
    values, counts = np.unique(float64("levels", rounded), return_counts=True)
    shares = counts / counts.sum()
    exponents = np.frexp(values[values != 0])[1]
    octaves = int(np.ptp(exponents)) + 1 if exponents.size else 1
    return Levels(
        len(values),
        math.ceil(math.log2(octaves)) + 1,
        float(-np.sum(shares * np.log2(shares))) + 0.0,
        int(counts.sum()),
    )


@typing.final
@dataclasses.dataclass(frozen=True)
class AverageLevels:
    """Levels of a model's tensors, in bits.

    Attributes:
      bits: the mean of log2(count) over tensors, each counting once.
      whole_bits: the same, each rounded up to a whole bit.
      weighted_bits: the mean over weights.
      span_bits: the mean of the tensors' ``span_bits``.
      entropy: the mean over weights of the tensors' entropies.
    """

    bits: float
    whole_bits: float
    weighted_bits: float
    span_bits: float
    entropy: float


def average_levels(tensors: Sequence[Levels]) -> AverageLevels:
    """The levels of a model: how many bits its tensors' levels would need on average.

    >>> from jqz.analysis import average_levels, levels
    >>> average_levels([levels([-1, 0, 1, 2]), levels([0, 0, 1, 1])]).bits
    1.5

    Raises:
      ValueError: there are none.
    """
    if not tensors:
        raise ValueError("average_levels: got no tensors, wanted at least one. Use levels on each.")
    weights = [one.weights for one in tensors]

    def mean(numbers: list[float], by: list[int] | None = None) -> float:
        return float(np.average(numbers, weights=by))

    return AverageLevels(
        mean([one.bits for one in tensors]),
        mean([math.ceil(one.bits) for one in tensors]),
        mean([one.bits for one in tensors], weights),
        mean([one.span_bits for one in tensors]),
        mean([one.entropy for one in tensors], weights),
    )
