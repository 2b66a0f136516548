"""Arrays that are read or computed when a file asks for them, one at a time."""

import contextlib
import dataclasses
import os
import threading
import typing
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

Made = typing.TypeVar("Made")

#: Where JAX takes an array of NumPy as it is; it copies others.
_ALIGNMENT = 64


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
        self.lock = threading.Lock()  # a file has one place where it is read

    def bytes_at(self, start: int, count: int) -> np.ndarray:
        """Bytes of the file, or fewer where it ends."""
        room = np.empty(min(count, max(self.size - start, 0)) + _ALIGNMENT, np.uint8)
        view = room[-room.ctypes.data % _ALIGNMENT :][: room.size - _ALIGNMENT]
        done = 0
        with self.lock, open(self.descriptor, "rb", buffering=0, closefd=False) as file:
            file.seek(start)
            while got := file.readinto(view[done:].data):  # some systems read 2 GB at most
                done += got
        return view[:done]


class Ahead(contextlib.AbstractContextManager["Ahead[Made]"], typing.Generic[Made]):
    """Does numbered jobs when they are asked for, and the next few before, on threads: reading beside computing.

    Args:
      work: does a job.
      sizes: what each job holds while it is under way.
      room: what those that were not asked for yet may hold together, with the one that is asked for.
    """

    def __init__(self, work: Callable[[int], Made], sizes: Sequence[int], room: int):
        self.work, self.sizes, self.room = work, sizes, room
        self.pool = ThreadPoolExecutor(_WORKERS)
        self.under_way: dict[int, Future[Made]] = {}
        self.begun: set[int] = set()

    def take(self, job: int) -> Made:
        """What a job makes, or raises."""
        held = sum(self.sizes[other] for other in {*self.under_way, job})
        if job not in self.under_way:
            self._begin(job)
        for other in range(job + 1, min(job + 1 + 2 * _WORKERS, len(self.sizes))):
            if other not in self.begun:
                held += self.sizes[other]
                if held > self.room:
                    break
                self._begin(other)
        return self.under_way.pop(job).result()

    def _begin(self, job: int) -> None:
        self.begun.add(job)
        self.under_way[job] = self.pool.submit(self.work, job)

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)


#: Threads that read and compute; one computation uses all cores, so these only fill its gaps.
_WORKERS = 2


class Unsettled(Lazy):
    """A Lazy that may turn out to be other, fewer bytes."""


def value(x: typing.Any) -> typing.Any:
    """What a Lazy stands for, and anything else as it is."""
    return x.make() if isinstance(x, Lazy) else x
