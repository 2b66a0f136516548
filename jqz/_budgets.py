"""What a search over schemes may spend."""

import abc
import dataclasses
import typing
from collections.abc import Callable


class Item(typing.NamedTuple):
    """A weight under a scheme: how many numbers, the width of a code, bytes stored, and what it is multiplied with.

    ``macs`` is the number of multiply-accumulate operations for one batch; 0 where the budget does not ask.
    """

    weights: int
    bits: int
    size_bytes: int
    macs: int = 0


class Budget(abc.ABC):
    """A limit, and what each weight under a scheme adds to what it limits."""

    #: What costs are, for tables and axes.
    unit: typing.ClassVar[str]
    #: Whether the model has to be traced for its operations.
    needs_macs: typing.ClassVar[bool] = False

    @abc.abstractmethod
    def cost(self, item: Item) -> int:
        """What an item adds."""

    @abc.abstractmethod
    def limit_for(self, weights: int) -> float | None:
        """The largest sum of costs, given how many weights there are; None where costs are not limited."""


def _check(budget: typing.Any) -> None:
    if not budget.limit > 0:
        name = type(budget).__name__
        raise ValueError(f"{name}: got limit={budget.limit!r}, wanted a positive number. Use {name}(limit=4).")


@typing.final
@dataclasses.dataclass(frozen=True)
class Bytes(Budget):
    """At most ``limit`` bytes for the searched weights as ``quantize`` stores them, grids and padding included.

    >>> import jqz
    >>> jqz.budgets.Bytes(100_000)
    Bytes(limit=100000)
    """

    limit: int
    unit: typing.ClassVar[str] = "bytes"

    def __post_init__(self) -> None:
        _check(self)

    def cost(self, item: Item) -> int:
        return item.size_bytes

    def limit_for(self, weights: int) -> float:
        return self.limit


@typing.final
@dataclasses.dataclass(frozen=True)
class AverageBits(Budget):
    """At most ``limit`` bits for a code, on average over the searched weights; grids are not counted.

    >>> import jqz
    >>> jqz.budgets.AverageBits(3.0)
    AverageBits(limit=3.0)
    """

    limit: float
    unit: typing.ClassVar[str] = "bits of codes"

    def __post_init__(self) -> None:
        _check(self)

    def cost(self, item: Item) -> int:
        return item.weights * item.bits

    def limit_for(self, weights: int) -> float:
        return self.limit * weights


@typing.final
@dataclasses.dataclass(frozen=True)
class BitOperations(Budget):
    """At most ``limit`` bit operations ("BOPs") for one batch: multiplications times both widths.

    Args:
      limit: for a batch like the first one of those that the search gets.
      input_bits: the width of what meets the weights.

    >>> import jqz
    >>> jqz.budgets.BitOperations(2_000_000_000)
    BitOperations(limit=2000000000, input_bits=8)

    References: HAWQ-V3, arXiv:2011.10680.
    """

    limit: int
    input_bits: int = 8
    unit: typing.ClassVar[str] = "bit operations"
    needs_macs = True

    def __post_init__(self) -> None:
        _check(self)

    def cost(self, item: Item) -> int:
        return item.macs * item.bits * self.input_bits

    def limit_for(self, weights: int) -> float:
        return self.limit


@typing.final
@dataclasses.dataclass(frozen=True)
class AccuracyDrop(Budget):
    """The fewest bytes with which a measured accuracy falls by at most ``limit``.

    The accuracy of the float model and of a few points of the front is measured: the search halves the front each
    time, as if accuracy rose along it. Where it does not quite, a smaller point that would do may be missed; what is
    returned has been measured and does.

    Args:
      limit: what may be lost, in the unit of ``evaluate``.
      evaluate: the accuracy of a model with these (float or rounded) parameters; on examples that the final figure
        is not measured on.

    >>> import jqz
    >>> budget = jqz.budgets.AccuracyDrop(0.01, evaluate=lambda params: 0.9)
    >>> budget.unit
    'bytes'
    """

    limit: float
    evaluate: Callable[[typing.Any], float]
    unit: typing.ClassVar[str] = "bytes"

    def cost(self, item: Item) -> int:
        return item.size_bytes

    def limit_for(self, weights: int) -> None:
        return None
