"""What is read or computed later, and what is done before it is asked for."""

import threading

import numpy as np
import pytest

from jqz.files.lazy import Ahead, Source


def test_bytes_of_a_file(tmp_path):
    path = tmp_path / "file"
    data = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)
    path.write_bytes(data.tobytes())
    source = Source(path)
    for start, count in ((0, 1000), (3, 7), (990, 100), (1000, 5), (5000, 5), (0, 0)):
        got = source.bytes_at(start, count)
        np.testing.assert_array_equal(got, data[start : start + count])
        assert got.ctypes.data % 64 == 0 or not got.size


def test_threads_read_what_they_asked_for(tmp_path):
    path = tmp_path / "file"
    np.repeat(np.arange(200, dtype=np.uint8), 500).tofile(path)
    source = Source(path)

    def read(i):
        return {int(byte) for _ in range(20) for byte in source.bytes_at(500 * i, 500)}

    with Ahead(read, [1] * 200, room=8) as ahead:
        assert [ahead.take(i) for i in range(200)] == [{i} for i in range(200)]


@pytest.mark.parametrize("order", [range(20), [3, 2, 19, 0, 4, 3, 5, 6, 18, 1]], ids=["in order", "any order"])
def test_jobs_are_done_whatever_the_order(order):
    begun = []

    def work(i):
        begun.append(i)
        return i * i

    with Ahead(work, [1] * 20, room=3) as ahead:
        assert [ahead.take(i) for i in order] == [i * i for i in order]
    assert all(begun.count(i) == list(order).count(i) for i in order)


def test_no_more_is_held_than_there_is_room_for():
    sizes, lock, held, most = [5, 1, 1, 1, 6, 2, 2, 2, 1, 1, 1, 1], threading.Lock(), set(), []

    def work(i):
        with lock:
            held.add(i)
            most.append(sum(sizes[j] for j in held))
        return i

    with Ahead(work, sizes, room=6) as ahead:
        for i in range(len(sizes)):
            assert ahead.take(i) == i
            with lock:
                held.discard(i)
    assert max(most) == 6
    assert most[0] <= 6
    assert len(most) == len(sizes)


def test_a_job_that_fails_says_so_where_it_is_asked_for():
    def work(i):
        if i == 2:
            raise ValueError("job 2")
        return i

    with Ahead(work, [1] * 4, room=4) as ahead:
        assert [ahead.take(0), ahead.take(1)] == [0, 1]
        with pytest.raises(ValueError, match="job 2"):
            ahead.take(2)
        assert ahead.take(3) == 3


def test_what_was_not_asked_for_is_dropped():
    """Leaving early waits for what runs, and begins nothing else."""
    go, begun = threading.Event(), []

    def work(i):
        begun.append(i)
        go.wait(10)

    with Ahead(work, [1] * 50, room=50) as ahead:
        threading.Timer(0.05, go.set).start()
        ahead.take(0)
    assert len(begun) <= 6
