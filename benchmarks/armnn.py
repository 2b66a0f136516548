"""Runs a ``.tflite`` file of codes in Arm NN's reference backend, which Debian has for its own Python alone.

    /usr/bin/python3 benchmarks/armnn.py net.tflite inputs.npy outputs.npy

The other benchmarks call this where ``apt-get install libarmnn-cpuref-backend22 libarmnntfliteparser22
python3-pyarmnn`` has been run. Inputs are a batch; the file is of one input.
"""

import pathlib
import subprocess
import sys
import tempfile
import time
import typing

import numpy as np

PYTHON = "/usr/bin/python3"


def missing() -> str:
    """Why it cannot be run; nothing if it can."""
    if not pathlib.Path(PYTHON).exists():
        return f"no {PYTHON}"
    found = subprocess.run([PYTHON, "-c", "import pyarmnn"], capture_output=True, check=False)
    return "" if found.returncode == 0 else "no pyarmnn: apt-get install python3-pyarmnn"


class Result(typing.NamedTuple):
    """The output codes of a batch, and milliseconds an input."""

    codes: np.ndarray
    ms: float


def run(file: bytes, codes: np.ndarray) -> Result:
    """Runs a batch of input codes, one by one."""
    with tempfile.TemporaryDirectory() as folder:
        net, source, target = (pathlib.Path(folder) / name for name in ("net.tflite", "in.npy", "out.npy"))
        net.write_bytes(file)
        np.save(source, codes)
        command = [PYTHON, __file__, *map(str, (net, source, target))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"Arm NN ended with {done.returncode}: {done.stderr[-500:]}")
        return Result(np.load(target), float(done.stdout.split()[-1]))


def main(net: str, source: str, target: str) -> None:
    import pyarmnn

    parser = pyarmnn.ITfLiteParser()
    network = parser.CreateNetworkFromBinaryFile(net)
    inputs, outputs = parser.GetSubgraphInputTensorNames(0), parser.GetSubgraphOutputTensorNames(0)
    first = parser.GetNetworkInputBindingInfo(0, inputs[0])
    last = [parser.GetNetworkOutputBindingInfo(0, name) for name in outputs]
    runtime = pyarmnn.IRuntime(pyarmnn.CreationOptions())
    backends = [pyarmnn.BackendId("CpuRef")]
    optimized, _ = pyarmnn.Optimize(network, backends, runtime.GetDeviceSpec(), pyarmnn.OptimizerOptions())
    number, _ = runtime.LoadNetwork(optimized)
    results, start = [], time.perf_counter()
    for codes in np.load(source):
        given = pyarmnn.make_input_tensors([first], [codes[None]])
        made = pyarmnn.make_output_tensors(last)
        runtime.EnqueueWorkload(number, given, made)
        results.append(pyarmnn.workload_tensors_to_ndarray(made)[0])
    print(1000 * (time.perf_counter() - start) / len(results))
    np.save(target, np.concatenate(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
