"""What do damaged and hostile files do to the readers, and a kill to the writer?

    python benchmarks/fuzz_files.py [--files 100000] [--kills 100] [--seed 0] [--json]

Mutates files that ``save`` wrote (tests/files/mutants.py says how: flipped bits, cuts, length bombs, forged documents
under right checksums) and reads each through ``jqz.load``, ``jqz.files.metadata`` and ``jqz.files.scan``, which is what
``jqz inspect`` does; and a tenth as many files of each other format, in Orbax's folders one file at a time. Counts what
came of them: a tree, or a ValueError, by what it says. Any other error ends the program, as does a file that takes ten
seconds. Then it kills processes that save, after random times, and looks for a whole tree of before or after.
"""

import argparse
import collections
import json
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "files"))

import killed
import mutants
import numpy as np
import report
from orbax import checkpoint

import jqz


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


class Count:
    """Reads files, and counts what comes of them."""

    def __init__(self):
        self.outcomes, self.slowest = collections.Counter(), 0.0

    def reads(self, read, path, *names):
        signal.alarm(10)
        begun = time.perf_counter()
        try:
            read(path)
            outcome = "read"
        except ValueError as error:
            outcome = mutants.reason(error)
        signal.alarm(0)
        self.slowest = max(self.slowest, time.perf_counter() - begun)
        self.outcomes[(*names, outcome)] += 1


def plain(folder, rng):
    """A sound file of each format of plain arrays; PyTorch's two as PyTorch wrote them, Orbax's three forms."""
    tree = {f"layer_{i}": {"w": rng.normal(size=(8, 32)).astype(np.float32)} for i in range(4)}
    for suffix, room in jqz.files.FORMATS.items():
        room.write(folder / f"plain{suffix}", tree)
    for path in (pathlib.Path(__file__).parents[1] / "tests" / "data").glob("torch*.pth"):
        shutil.copy(path, folder)
    for name, options in (("files", {"use_ocdbt": False}), ("zarr3", {"use_zarr3": True})):
        with checkpoint.Checkpointer(checkpoint.PyTreeCheckpointHandler(**options)) as saver:
            saver.save(folder / f"{name}.orbax", args=checkpoint.args.PyTreeSave({**tree, "note": "text"}))
    return sorted(folder.iterdir())


def fuzz(files, seed):
    """Counts by kind and outcome, seconds, and megabytes of memory before and at the most."""
    rng, count, foreign = np.random.default_rng(seed), Count(), Count()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        sound = list(mutants.sound(folder).values())
        path = folder / "mutant.safetensors"
        before, started = peak_mb(), time.perf_counter()
        for i in range(files):
            kind = mutants.KINDS[i % len(mutants.KINDS)]
            path.write_bytes(kind(rng, sound[rng.integers(len(sound))]))
            for read in (jqz.load, jqz.files.metadata, jqz.files.scan):
                count.reads(read, path, kind.__name__, read.__name__)
        (folder / "plain").mkdir()
        for path in plain(folder / "plain", rng):
            suffix, room = path.suffix, jqz.files.format_of(path)
            for i in range(files // 10):
                kind = (mutants.flipped, mutants.cut, mutants.stained, mutants.bomb)[i % 4]
                with mutants.damaged(kind, rng, path):
                    foreign.reads(room.read, path, suffix)
    return count.outcomes, {
        "files": files,
        "files_of_other_formats": sum(foreign.outcomes.values()),
        "of_which_read": sum(n for (_, outcome), n in foreign.outcomes.items() if outcome == "read"),
        "seconds": round(time.perf_counter() - started, 1),
        "slowest_read_s": round(max(count.slowest, foreign.slowest), 2),
        "peak_mb_before": round(before),
        "peak_mb": round(peak_mb()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    counts, facts = fuzz(arguments.files, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "net.safetensors"
        jqz.save(path, killed.tree(0))
        numbers = list(killed.kill_savers(path, arguments.kills, arguments.seed))
    facts = report.facts(**facts, kills=len(numbers), trees_saved_between_kills=numbers[-1] if numbers else 0)
    if arguments.json:
        rows = [{"kind": k, "reader": r, "outcome": o, "count": n} for (k, r, o), n in counts.most_common()]
        print(json.dumps({**facts, "outcomes": rows}, indent=2))
        return
    print(report.in_words(facts))
    kinds = [kind.__name__ for kind in mutants.KINDS]
    of_load = collections.Counter()
    for (kind, reader, outcome), count in counts.items():
        if reader == "load":
            of_load[kind, outcome] += count
    outcomes = sorted({outcome for _, outcome in of_load}, key=lambda o: -sum(of_load[k, o] for k in kinds))
    shown, rest = outcomes[:25], outcomes[25:]
    lines = [[o, *(str(of_load[k, o]) for k in kinds)] for o in shown]
    lines.append([f"{len(rest)} others", *(str(sum(of_load[k, o] for o in rest)) for k in kinds)])
    report.table(["load", *kinds], lines)


if __name__ == "__main__":
    main()
