"""Files that do not fit into memory: the verbs that stream, under a limit that reading the file whole would break."""

import json
import os
import subprocess
import sys

import numpy as np
from trees import same

import jqz

SHAPE = (1024, 1024)
TENSORS = 60
RULE = "Symmetric(bits=4, granularity=PerAxis(-1))"

#: Runs the verbs on a small file, so that threads are there and programs compiled, then allows the process
#: ``more`` bytes beside those that it holds, and runs them on a large one. RLIMIT_DATA counts what a process must hold
#: in memory or swap; pages of files that it maps, which the system may drop at any time, do not count.
PROGRAM = """
import json, pathlib, re, resource, sys
import numpy as np
import jqz
from jqz import cli

folder, rule, more = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def verbs(name):
    floats, codes, back = (str(folder / f"{part}{name}.safetensors") for part in ("floats_", "codes_", "back_"))
    for arguments in (
        ["inspect", floats], ["quantize", floats, codes, "--policy", rule], ["inspect", codes],
        ["compare", floats, codes], ["dequantize", codes, back],
    ):
        assert cli.main([*arguments, "--json"]) == 0, arguments
    return floats

verbs("small")
held = 1024 * int(re.search(r"VmData:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_DATA, (held + more, held + more))
floats = verbs("large")
try:
    whole = {name: np.array(leaf) for name, leaf in jqz.files.safetensors.read(floats).items()}
except MemoryError:
    print("too large", file=sys.stderr)
"""


def write_sparse(path, count, last):
    """Tensors of zeros that take no room on the disk, and one of numbers."""
    size = 4 * int(np.prod(SHAPE))
    header = {
        f"w{i}": {"dtype": "F32", "shape": list(SHAPE), "data_offsets": [i * size, (i + 1) * size]}
        for i in range(count)
    }
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.seek((count - 1) * size, os.SEEK_CUR)
        file.write(last.tobytes())


def test_a_file_larger_than_memory(tmp_path):
    last = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    write_sparse(tmp_path / "floats_small.safetensors", 2, last)
    write_sparse(tmp_path / "floats_large.safetensors", TENSORS, last)
    size = (tmp_path / "floats_large.safetensors").stat().st_size
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), RULE, str(size // 3)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "too large\n"
    codes = jqz.load(tmp_path / "codes_large.safetensors")
    assert len(codes) == TENSORS
    wanted = jqz.quantize(last, jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1)))
    same(codes[f"w{TENSORS - 1}"], wanted)
    back = jqz.files.safetensors.read(tmp_path / "back_large.safetensors")
    np.testing.assert_array_equal(back[f"w{TENSORS - 1}"], wanted.dequantize())
