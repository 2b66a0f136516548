"""Arrays that are read or computed when a file asks for them, one at a time."""

import dataclasses
import typing
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Lazy:
    """An array whose shape and dtype are known; ``make`` gives it, anew at each call."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=object))


class Unsettled(Lazy):
    """A Lazy that may turn out to be other, fewer bytes."""


def value(x: typing.Any) -> typing.Any:
    """What a Lazy stands for, and anything else as it is."""
    return x.make() if isinstance(x, Lazy) else x
