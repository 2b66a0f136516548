"""Arrays that are read or computed when a file asks for them, one at a time."""

import dataclasses
import os
import typing
import weakref
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


class Source:
    """A file that stays open, and the same, while something may want to read from it."""

    def __init__(self, path: str | os.PathLike[str]):
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.descriptor)
        self.size = os.fstat(self.descriptor).st_size

    def bytes_at(self, start: int, count: int) -> np.ndarray:
        """Bytes of the file, or fewer where it ends."""
        with open(self.descriptor, "rb", buffering=0, closefd=False) as file:
            file.seek(start)
            return np.fromfile(file, np.uint8, count)


class Unsettled(Lazy):
    """A Lazy that may turn out to be other, fewer bytes."""


def value(x: typing.Any) -> typing.Any:
    """What a Lazy stands for, and anything else as it is."""
    return x.make() if isinstance(x, Lazy) else x
