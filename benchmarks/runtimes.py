"""What do LiteRT, ONNX Runtime, Arm NN and jqz make of one quantized MobileNetV1?

    python benchmarks/runtimes.py                                  # both sizes, two threads
    python benchmarks/runtimes.py --only 0.25-128 --images 20      # one of them, faster

One net (int8 weights with a scale a channel, 8-bit activations) is exported to both runtimes, and as the float32
function of the same weights; and once more "trained": with weights, scales and ranges that a few steps of learned step
sizes (LSQ) on random images left, aiming at the float net's answers. That moves codes and scales, as training does; it
says nothing of accuracy. Medians of rounds in which every candidate runs in turn, one image at a time. Output codes are
compared on random images with those of jqz under the rule that the runtime follows. ``goal`` is the size of the int8
file that the model's authors publish, which has one scale a tensor: so has the row of that name, of the same weights
with batch norms folded in. Needs pip install 'jqz[tflite,onnx]'.
"""

import argparse
import dataclasses
import statistics
import time
import typing
from collections.abc import Callable

import armnn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
from networks import NETWORKS, Net

import jqz
import jqz.export
from jqz.algorithms import fold_batch_norm, layers

GOALS = {"0.25-128": 486, "1.0-224": 4177}
POLICY = jqz.Policy({"**/kernel": jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1))}, inputs=jqz.Asymmetric(bits=8))
LEARNED = jqz.Policy(
    {"**/kernel": jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1), gradient=jqz.gradients.LSQ())},
    inputs={
        "params/Conv_0/kernel": jqz.Asymmetric(bits=8),
        "**": jqz.Asymmetric(8, anchor=jqz.schemes.FromZero(), gradient=jqz.gradients.LSQ(batch_axes=(0,))),
    },
)
WRITERS = (jqz.export.tflite, jqz.export.onnx)
Run = Callable[[np.ndarray], np.ndarray]


class Row(typing.NamedTuple):
    """A candidate: its file's bytes, how it runs an image; the rule that it follows and its net, if it has codes."""

    size_bytes: int | None
    run: Run
    rule: typing.Any = None
    net: typing.Any = None


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


def trained(model: Net, steps: int) -> typing.Any:
    """The net on grids and weights that were trained through the rounding, and what that did to its error."""
    start = jqz.convert(model.fn, model.variables, [model.x], LEARNED)
    run, optimizer = jqz.simulated(model.fn, LEARNED), optax.adam(optax.cosine_decay_schedule(1e-5, steps))
    target = jax.jit(jqz.lowered(model.fn))(model.variables, model.x)
    first = jqz.learnable(model.variables, LEARNED)
    rest = {"batch_stats": first["batch_stats"]}
    params: typing.Any = first["params"], {name: site for name, site in start.sites.items() if site.scheme.learns}

    def loss(params: typing.Any) -> jax.Array:
        answers = run({"params": params[0], **rest}, {**start.sites, **params[1]}, model.x)
        return jnp.mean((answers - target) ** 2) / jnp.var(target)

    @jax.jit
    def step(params: typing.Any, state: typing.Any) -> typing.Any:
        error, slope = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), state, error

    state, errors = optimizer.init(params), []
    for _ in range(steps):
        params, state, error = step(params, state)
        errors.append(float(error))
    print(f"trained for {steps} steps: squared error {errors[0]:.2g} to {errors[-1]:.2g} of the output's variance")
    qparams = jqz.quantize({"params": params[0], **rest}, LEARNED)
    return dataclasses.replace(start, qparams=qparams, sites={**start.sites, **params[1]})


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
    parser.add_argument("--steps", type=int, default=10, help="of training (default 10)")
    arguments = parser.parse_args()
    print(report.in_words(report.facts(threads=arguments.threads)))
    for size in [arguments.only] if arguments.only else GOALS:
        compare(size, arguments)


def compare(size: str, arguments: argparse.Namespace) -> None:
    model, threads = NETWORKS[f"MobileNetV1 {size}"](4), arguments.threads
    images = np.random.default_rng(0).standard_normal((arguments.images, *model.x.shape[1:])).astype(np.float32)
    after = jqz.convert(model.fn, model.variables, [model.x], POLICY)
    values = jqz.dequantize(after.qparams)
    rows = {"jqz float32, lowered": Row(None, on_jax(jax.jit(lambda x: jqz.lowered(model.fn)(values, x))))}
    after_training: typing.Any = None
    for name, start in {"int8": after, "int8 trained": trained(model, arguments.steps)}.items():
        net = jqz.export.complete(start, model.x)
        if name == "int8":
            lite, onnx = (write(net, images[:1], numbers=jqz.export.Floats()) for write in WRITERS)
            rows["LiteRT float32"] = Row(len(lite), litert(lite, threads))
            rows["ONNX Runtime float32"] = Row(len(onnx), onnx_runtime(onnx, threads))
        lite, onnx = (write(net, images[:1], interface=jqz.export.Codes()) for write in WRITERS)
        after_training = (lite, net) if name == "int8" else after_training
        rows |= {
            f"LiteRT {name}": Row(len(lite), litert(lite, threads), jqz.requant.XNNPACK(), net),
            f"LiteRT {name}, reference": Row(len(lite), litert(lite, threads, True), jqz.Gemmlowp(), net),
            f"ONNX Runtime {name}": Row(len(onnx), onnx_runtime(onnx, threads), jqz.requant.ONNXRuntime(), net),
            f"jqz {name}": Row(jqz.size_bytes(net.qparams), on_jax(net), net=net),
        }
    small = _one_scale(model)
    tensors = jqz.export.tflite(small, images[:1], interface=jqz.export.Codes())
    rows["LiteRT int8, a scale a tensor"] = Row(len(tensors), litert(tensors, threads), jqz.requant.XNNPACK(), small)
    coded = {name: row for name, row in rows.items() if row.rule is not None}
    inputs = {name: own_codes(name, rows[name].net, images) if name in coded else images for name in rows}
    wrong = {name: mismatches(row.net, row, inputs[name], images) for name, row in coded.items()}
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
        file, net = after_training
        levels = own_codes("LiteRT", net, images[:1])
        codes, taken = armnn.run(file, levels)
        row = Row(len(file), lambda one: codes, jqz.requant.HalfAway())
        bad = "{} of {}".format(*mismatches(net, row, levels, images))
        lines.append(["Arm NN int8, reference", f"{len(file) / 1024:,.0f}", f"{taken:,.0f}", bad])
    heads = ["", "KiB", "ms", f"codes that differ, {arguments.images} images"]
    report.table(heads, sorted(lines), f"MobileNetV1 {size}; goal for a scale a tensor: {GOALS[size]} KiB")


def own_codes(name: str, net: typing.Any, images: np.ndarray) -> np.ndarray:
    """Images in codes as a runtime wants them: LiteRT's are signed, ONNX Runtime's are not."""
    levels = input_codes(net, images)
    return levels if "LiteRT" in name else (levels.astype(np.int16) + 128).astype(np.uint8)


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
