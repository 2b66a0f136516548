"""What do LiteRT, ONNX Runtime, Arm NN and jqz make of one quantized MobileNetV1?

    python benchmarks/runtimes.py                                  # both sizes, two threads
    python benchmarks/runtimes.py --only 0.25-128 --images 20      # one of them, faster

One net (int8 weights with a scale a channel, 8-bit activations) is exported to both runtimes, and as the float32
function of the same weights. Medians of rounds in which every candidate runs in turn, one image at a time. Output
codes are compared on random images with those of jqz under the rule that the runtime follows. ``goal`` is the size
of the int8 file that the model's authors publish, which has one scale a tensor: so has the row of that name, of the
same weights with batch norms folded in. Needs pip install 'jqz[tflite,onnx]'.
"""

import argparse
import dataclasses
import statistics
import time
import typing
from collections.abc import Callable

import armnn
import jax
import numpy as np
import report
from networks import NETWORKS

import jqz
import jqz.export
from jqz.algorithms import fold_batch_norm, layers

GOALS = {"0.25-128": 486, "1.0-224": 4177}
POLICY = jqz.Policy({"**/kernel": jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1))}, inputs=jqz.Asymmetric(bits=8))
Run = Callable[[np.ndarray], np.ndarray]


class Row(typing.NamedTuple):
    """A candidate: its file's bytes, how it runs an image, and the rule that it follows, if it computes on codes."""

    size_bytes: int | None
    run: Run
    rule: typing.Any = None


def litert(file: bytes, threads: int, reference: bool = False) -> Run:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    interpreter = Interpreter(model_content=file, num_threads=threads, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    source, target = (d()[0]["index"] for d in (interpreter.get_input_details, interpreter.get_output_details))

    def run(x: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return run


def onnx_runtime(file: bytes, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def on_jax(fn: typing.Any) -> Run:
    return lambda x: np.asarray(fn(x))


def median_ms(rows: dict[str, Row], x: dict[str, np.ndarray], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(rounds + 3):
        for name, row in rows.items():
            start = time.perf_counter()
            row.run(x[name])
            if turn >= 3:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=GOALS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    print(report.in_words(report.facts(threads=arguments.threads)))
    for size in [arguments.only] if arguments.only else GOALS:
        compare(size, arguments)


def compare(size: str, arguments: argparse.Namespace) -> None:
    model = NETWORKS[f"MobileNetV1 {size}"](4)
    net = jqz.convert(model.fn, model.variables, [model.x], POLICY)
    net = jqz.export.complete(net, model.x)
    images = np.random.default_rng(0).standard_normal((arguments.images, *model.x.shape[1:])).astype(np.float32)
    values = jqz.dequantize(net.qparams)
    small = _one_scale(model)
    tensors = jqz.export.tflite(small, images[:1], interface=jqz.export.Codes())
    floats, codes = {"numbers": jqz.export.Floats()}, {"interface": jqz.export.Codes()}
    lite, lite_float = (jqz.export.tflite(net, images[:1], **how) for how in (codes, floats))
    onnx, onnx_float = (jqz.export.onnx(net, images[:1], **how) for how in (codes, floats))
    threads = arguments.threads
    rows = {
        "LiteRT float32": Row(len(lite_float), litert(lite_float, threads)),
        "LiteRT int8": Row(len(lite), litert(lite, threads), jqz.requant.XNNPACK()),
        "LiteRT int8, a scale a tensor": Row(len(tensors), litert(tensors, threads), jqz.requant.XNNPACK()),
        "LiteRT int8, reference": Row(len(lite), litert(lite, threads, True), jqz.Gemmlowp()),
        "ONNX Runtime float32": Row(len(onnx_float), onnx_runtime(onnx_float, threads)),
        "ONNX Runtime int8": Row(len(onnx), onnx_runtime(onnx, threads), jqz.requant.ONNXRuntime()),
        "jqz float32, lowered": Row(None, on_jax(jax.jit(lambda x: jqz.lowered(net.fn)(values, x)))),
        "jqz int8": Row(jqz.size_bytes(net.qparams), on_jax(net)),
    }
    levels = input_codes(net, images)
    unsigned = (levels.astype(np.int16) + 128).astype(np.uint8)
    inputs = {
        name: images if row.rule is None else levels if "LiteRT" in name else unsigned for name, row in rows.items()
    }
    nets = {name: small if "a tensor" in name else net for name in rows}
    wrong = {n: mismatches(nets[n], row, inputs[n], images) for n, row in rows.items() if row.rule is not None}
    slow = {name for name in rows if "reference" in name}
    timed = {name: row for name, row in rows.items() if name not in slow}
    ms = median_ms(timed, {name: inputs[name][:1] for name in timed}, arguments.rounds)
    lines = []
    for name, row in rows.items():
        bad = "{} of {}".format(*wrong[name]) if name in wrong else ""
        kilobytes = "" if row.size_bytes is None else f"{row.size_bytes / 1024:,.0f}"
        lines.append([name, kilobytes, f"{ms[name]:.2f}" if name in ms else "", bad])
    if why := armnn.missing():
        print(f"Arm NN is left out: {why}")
    else:  # its reference backend, the one that Debian has for this machine
        codes, taken = armnn.run(lite, levels[:1])
        row = Row(len(lite), lambda one: codes, jqz.requant.HalfAway())
        bad = "{} of {}".format(*mismatches(net, row, levels[:1], images))
        lines.append(["Arm NN int8, reference", f"{len(lite) / 1024:,.0f}", f"{taken:,.0f}", bad])
    heads = ["", "KiB", "ms", f"codes that differ, {arguments.images} images"]
    report.table(heads, lines, f"MobileNetV1 {size}; goal for a scale a tensor: {GOALS[size]} KiB")


def _one_scale(model: typing.Any) -> typing.Any:
    """The net with batch norms in the weights and one scale for each of these."""
    folded = fold_batch_norm(model.fn, model.variables, model.x)
    policy = jqz.Policy({"**/kernel": jqz.Symmetric(bits=8)}, inputs=jqz.Asymmetric(bits=8))
    return jqz.export.complete(jqz.convert(model.fn, folded, [model.x], policy), model.x)


def input_codes(net: typing.Any, x: np.ndarray) -> np.ndarray:
    """The input on the grid of the first layer."""
    first = layers(net.fn, jqz.dequantize(net.qparams), x[:1])[0]
    scale, zero_point = (np.asarray(a).reshape(()) for a in _affine(net, first))
    return np.clip(np.rint(x / scale) + zero_point, -128, 127).astype(np.int8)


def _affine(net: typing.Any, name: str) -> tuple[jax.Array, jax.Array]:
    affine = net.sites[name].scheme.affine(net.sites[name].grid)
    return affine.scale, affine.zero_point


def mismatches(net: typing.Any, row: Row, x: np.ndarray, images: np.ndarray) -> tuple[int, int]:
    """Output codes that differ from those of jqz by the runtime's rule, and how many there are."""
    ruled, count = dataclasses.replace(net, requant=row.rule), 0
    scale, zero_point = (np.asarray(a).reshape(()) for a in _affine(net, "(result)"))
    for i in range(len(x)):
        wanted = np.rint(np.asarray(ruled(images[i : i + 1])) / scale) + zero_point
        got = row.run(x[i : i + 1])
        got = got.astype(int) - (128 if got.dtype == np.uint8 else 0)
        count += int((got != wanted).sum())
    return count, len(x) * wanted.size


if __name__ == "__main__":
    main()
