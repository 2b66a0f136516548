"""How short do the codes of ResNet-20 become, and what does that cost on Fashion-MNIST?

    python benchmarks/short_codes.py                  # minutes on two cores
    python benchmarks/short_codes.py --errors 0.5     # one limit alone

The network is the one of tests/data, its kernels in 4 bits, symmetric, with the least squared error, a grid for each
output channel; 256 unlabelled images; nothing else is corrected. Columns: KB of the codes at their zeroth-order
entropy, tensor by tensor, with the grids; KB of the file of ``jqz.save(..., compress=jqz.files.Entropy())``; top-1 of
the 10,000 test images; and the error of the layers against that of nearest rounding, in the median, on other images.
"""

import argparse
import pathlib
import sys
import tempfile
import typing

import jax
import numpy as np
import report
from post_training import CHANNEL, MODEL, accuracy, checkpoints, prepare

import jqz
from jqz import algorithms, analysis
from jqz._transform import named_leaves

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
from parts import fashion_mnist

POLICY = jqz.Policy({"**/kernel": jqz.Symmetric(4, CHANNEL, range=jqz.ranges.MSE())}, inputs=jqz.Identity())


def layer_errors(variables: typing.Any, qparams: typing.Any, stats: typing.Any) -> dict[str, float]:
    """The squared change of what each layer computes."""
    exact, rounded = (dict(named_leaves(tree)) for tree in (variables, jqz.dequantize(qparams)))
    found = {}
    for path, seen in stats.items():
        gram: typing.Any = seen.observer
        moved = gram.contraction.matrix(rounded[path] - exact[path])
        products = np.asarray(gram.products, np.float64).reshape(moved.shape[0], moved.shape[1], -1)
        found[path] = float(np.einsum("gio,gij,gjo->", moved, products, moved))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--images", type=int, default=256)
    arguments = parser.parse_args()
    data = fashion_mnist.load()
    variables = jax.device_put(checkpoints.resnet20(checkpoints.RESNET20))
    order = np.random.default_rng(0).permutation(len(data.train.images))
    seen, others = (prepare(data.train.images[order[i : i + arguments.images]]) for i in (0, arguments.images))
    starts = range(0, len(data.test.images), 2000)
    tests = [(prepare(data.test.images[i : i + 2000]), data.test.labels[i : i + 2000]) for i in starts]
    watch = jax.jit(jqz.observe(MODEL.apply, POLICY, jqz.observers.Gram()))
    stats, elsewhere = watch(variables, seen), watch(variables, others)
    rows: dict[str, typing.Any] = {
        "nearest": jqz.quantize(variables, POLICY),
        "gptq": algorithms.gptq(variables, POLICY, stats),
    }
    for error in arguments.errors:
        rows[f"error={error}"] = algorithms.entropy_constrained(variables, POLICY, stats, error=error)
    base, lines = layer_errors(variables, rows["nearest"], elsewhere), []
    for name, qparams in rows.items():
        kernels = {path: leaf for path, leaf in named_leaves(qparams) if isinstance(leaf, jqz.QTensor)}
        entropy = analysis.sizes(kernels).total.size_bytes["entropy"]
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "net.safetensors"
            jqz.save(file, qparams, compress=jqz.files.Entropy())
            size = file.stat().st_size
        ours = layer_errors(variables, qparams, elsewhere)
        ratio = float(np.median([ours[path] / base[path] for path in base]))
        lines.append(
            [name, f"{entropy / 1e3:.1f}", f"{size / 1e3:.1f}", f"{accuracy(qparams, tests):.2f}", f"{ratio:.2f}"]
        )
    report.table(["codes", "KB", "KB of the file", "top-1 %", "error of layers"], lines)


if __name__ == "__main__":
    main()
