"""How fast does ``jqz quantize`` pass over a file, and in how much memory?

    python benchmarks/quantize_file.py [--megabytes 500] [--largest 64] [--policy RULE] [--rounds 3] [--json]

Writes a safetensors file of float32 tensors, the largest of ``--largest`` megabytes, then copies it with ``cp``, with
and without waiting for the disk, and codes it with the command, in turn; medians over the rounds. MB/s count the bytes
of the float file. The peak memory is that of the command's own process, from its start; ``limit_mb`` is twice the
largest tensor and 300 MB.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import report

import jqz
from jqz.files.lazy import Lazy

_RUN = """
import resource, sys
from jqz.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def write_floats(path, megabytes, largest):
    """Layers of a large net in small: shapes that repeat, one of the largest size."""
    noise = np.random.default_rng(0).normal(size=2**18).astype(np.float32) * 0.05
    rows = int(largest * 1e6 / 4 / 4096)
    shapes = [(rows, 4096)]
    while sum(4 * int(np.prod(shape)) for shape in shapes) < megabytes * 1e6:
        shapes.append(((1024, 4096), (4096, 1024), (1024, 1024), (1024,))[len(shapes) % 4])

    def make(shape):
        return np.resize(noise, shape)

    float32 = np.dtype(np.float32)
    tree = {f"layer_{i}": {"kernel": Lazy(s, float32, lambda s=s: make(s))} for i, s in enumerate(shapes)}
    jqz.files.safetensors.write(path, tree)


def timed(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--largest", type=float, default=64)
    parser.add_argument("--policy", default="Symmetric(bits=4, granularity=PerAxis(-1))")
    parser.add_argument("--entropy", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    seconds, peaks, own = {"cp": [], "cp and sync": [], "jqz quantize": []}, [], []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryDirectory() as folder:
        source, copy, target = (pathlib.Path(folder) / f"{name}.safetensors" for name in ("floats", "copy", "codes"))
        write_floats(source, arguments.megabytes, arguments.largest)
        command = [
            sys.executable,
            "-c",
            _RUN,
            "quantize",
            str(source),
            str(target),
            "--policy",
            arguments.policy,
            "--json",
        ]
        command += ["--entropy"] * arguments.entropy

        def quantize():
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            peaks.append(int(done.stderr.split()[-1]) / 1000)
            own.append(json.loads(done.stdout)["seconds"])

        for _ in range(arguments.rounds):
            seconds["cp"].append(timed(lambda: subprocess.run(["cp", source, copy], check=True)))
            copy.unlink()
            both = f"cp {source} {copy} && sync {copy}"
            seconds["cp and sync"].append(timed(lambda both=both: subprocess.run(["sh", "-c", both], check=True)))
            seconds["jqz quantize"].append(timed(quantize))
        size, coded = source.stat().st_size, target.stat().st_size
    seconds["without its start"] = own
    rows = {name: size / 1e6 / statistics.median(took) for name, took in seconds.items()}
    facts = report.facts(
        policy=arguments.policy,
        file_mb=round(size / 1e6, 1),
        codes_mb=round(coded / 1e6, 1),
        peak_mb=round(max(peaks)),
        limit_mb=round(2 * arguments.largest + 300),
        machine_mb=round(os.sysconf("SC_PHYS_PAGES") * resource.getpagesize() / 1e6),
    )
    if arguments.json:
        print(json.dumps({**facts, "mb_per_s": rows}, indent=2))
        return
    print(report.in_words(facts))
    report.table(["", "MB/s", "of cp"], [[n, f"{v:.0f}", f"{v / rows['cp']:.2f}"] for n, v in rows.items()])


if __name__ == "__main__":
    main()
