"""Processes that are killed while they save.

As a program, it forks a child for every line of the standard input, prints its number, and the child saves trees whose
arrays all hold one number until it is killed: one start of Python serves many kills.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np

import jqz

SHAPES = ((300, 401), (77,), (0, 3), (1000, 33))


def tree(number):
    """A tree in which every value tells which one it is."""
    return {str(i): np.full(shape, number, np.float32) for i, shape in enumerate(SHAPES)} | {"number": number}


def kill_savers(path, times, seed=0):
    """Kills processes that save to a path, after random times; yields the number of the tree that is there."""
    rng = np.random.default_rng(seed)
    command = [sys.executable, __file__, os.fspath(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    ) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for _ in range(times):
            nursery.stdin.write("\n")
            child = int(nursery.stdout.readline())
            time.sleep(rng.uniform(0.002, 0.06))
            os.kill(child, signal.SIGKILL)
            nursery.stdout.readline()  # it is gone
            yield whole(jqz.load(path))
        nursery.stdin.close()


def whole(got):
    """The number of a tree, if it is one tree and all of it."""
    wanted = tree(got["number"])
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array)
    return got["number"]


def _nursery(path):
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            number = jqz.load(path)["number"]
            while True:
                number += 1
                jqz.save(path, tree(number))
        print(child, flush=True)
        os.waitpid(child, 0)
        print(flush=True)


if __name__ == "__main__":
    _nursery(pathlib.Path(sys.argv[1]))
