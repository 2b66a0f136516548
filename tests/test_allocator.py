"""The allocator, tuned in a process of its own: it is for the whole process."""

import subprocess
import sys

PROGRAM = """
import platform, resource, numpy, jqz
glibc = platform.libc_ver()[0] == "glibc"
assert jqz.tune_allocator() is glibc
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(2**25, numpy.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, second = faults(), faults()
assert not glibc or second < 64, (first, second)  # of 8192 pages, or 16 huge ones
"""


def test_freed_memory_is_kept():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
