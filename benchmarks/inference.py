"""How long does a network take in float32, with weights in int8, and with activations in int8?

    python benchmarks/inference.py                              # every network, jqz and its peers
    python benchmarks/inference.py --nets ResNet-20 Mobile      # networks whose names begin so
    python benchmarks/inference.py --only float jqz --tuned     # rows that begin so; freed memory kept (glibc)
    python benchmarks/inference.py --quick --json               # does it run?

The networks are plain Flax, and every row runs the same architecture on the same variables. "float" is the model as
written, "jqz lowered" the same in ``jqz.lowered``; a good integer figure beats both. "512" compiles with
``xla_cpu_prefer_vector_width=512``. Every row runs once a round, in turn, so that a machine that slows
down slows all of them; a ratio is the median over the rounds of the float model's time over a row's in the same
round: more is faster. Processor time counts all threads and suffers less from other work on the machine.

ONNX Runtime, qwix and torch are optional: pip install onnx onnxruntime qwix torch. ONNX Runtime runs the same
architecture with batch norm folded, in float, and in uint8 (QDQ; dynamic on the encoder).
"""

import argparse
import collections
import functools
import json
import logging
import os
import pathlib
import statistics
import sys
import tempfile
import time
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import report
from networks import NETWORKS, Encoder, Net

import jqz

CASES = [(name, batch) for name in NETWORKS for batch in ((1, 8) if name[:4] in ("enco", "ResN") else (1,))]
CASES.remove(("ResNet-20 32", 8))
WIDE = {"xla_cpu_prefer_vector_width": 512}
#: How many times as fast as the float model as written: (network, batch) to row to goal.
GOALS = {
    ("ResNet-18 224", 1): {"jqz static": 2.8, "jqz dynamic": 1.0},
    ("ResNet-18 224", 8): {"jqz static": 3.0, "jqz dynamic": 1.0},
    ("ResNet-20 32", 1): {"jqz static": 1.3},
    ("MobileNetV1 1.0-224", 1): {"jqz static": 14.0},
    ("MobileNetV1 0.25-128", 1): {"jqz static": 11.0},
    ("encoder 6x384 seq 128", 1): {"jqz dynamic": 1.0},
    ("encoder 6x384 seq 128", 8): {"jqz static": 2.3, "jqz dynamic": 1.0},
}
#: Seconds for which a row runs in a round, call after call, after one call that does not count.
SPELL = 0.03
Row = Callable[[], typing.Any]


def policy_of(net: Net) -> jqz.Policy:
    channel, heads = jqz.Symmetric(8, jqz.PerAxis(-1)), jqz.Symmetric(8, jqz.PerAxis((-2, -1)))
    rules = {"**/kernel": channel}
    if isinstance(net.model, Encoder):
        rules = {"**/{query,key,value}/kernel": heads, **rules}
    return jqz.Policy(rules, inputs=jqz.Symmetric(8))


def jqz_rows(net: Net) -> dict[str, Callable[[], Row]]:
    policy = policy_of(net)

    @functools.cache
    def coded() -> typing.Any:
        return jqz.quantize(net.variables, policy)

    @functools.cache
    def sites() -> typing.Any:
        return jqz.calibrate(jax.jit(jqz.observe(net.fn, policy))(net.variables, net.x), policy)

    def compiled(fn: typing.Any, variables: typing.Any, options: typing.Any = None) -> Row:
        run = jax.jit(fn, compiler_options=options).lower(variables, net.x).compile()
        return lambda: run(variables, net.x)

    def converted(options: typing.Any = None) -> Row:
        run = jqz.convert(net.fn, net.variables, [net.x], policy, compiler_options=options)
        return lambda: run(net.x)

    return {
        "float": lambda: compiled(net.fn, net.variables),
        "float 512": lambda: compiled(net.fn, net.variables, WIDE),
        "jqz lowered": lambda: compiled(jqz.lowered(net.fn), net.variables),
        "jqz weight-only": lambda: compiled(jqz.quantized(net.fn), coded()),
        "jqz dynamic": lambda: compiled(jqz.quantized(net.fn, inputs=policy), coded()),
        "jqz dynamic 512": lambda: compiled(jqz.quantized(net.fn, inputs=policy), coded(), WIDE),
        "jqz static": lambda: compiled(jqz.quantized(net.fn, sites()), coded()),
        "jqz static 512": lambda: compiled(jqz.quantized(net.fn, sites()), coded(), WIDE),
        "jqz convert": lambda: converted(),
        "jqz convert 512": lambda: converted(WIDE),
    }


def qwix_rows(net: Net) -> dict[str, Callable[[], Row]]:
    import qwix

    def row(inputs: typing.Any) -> Row:
        rule = qwix.QuantizationRule(weight_qtype=jnp.int8, act_qtype=inputs)
        model = qwix.quantize_model(net.model, qwix.PtqProvider([rule]))
        abstract = jax.eval_shape(model.init, jax.random.key(0), net.x)["params"]
        variables = {**net.variables, "params": qwix.quantize_params(net.variables["params"], abstract)}
        run = jax.jit(model.apply).lower(variables, net.x).compile()
        return lambda: run(variables, net.x)

    return {"qwix weight-only": lambda: row(None), "qwix dynamic": lambda: row(jnp.int8)}


def onnx_rows(net: Net) -> dict[str, Callable[[], Row]]:
    import onnx_networks
    import onnxruntime

    folder = tempfile.TemporaryDirectory()
    paths = [pathlib.Path(folder.name) / name for name in ("float.onnx", "codes.onnx")]
    x = onnx_networks.write(net, paths[0])
    logging.getLogger().setLevel(logging.ERROR)  # its quantizer recommends passes at every call

    def row(path: pathlib.Path) -> Row:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.log_severity_level = 3
        if path == paths[1]:
            onnx_networks.quantize(paths[0], x, path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        keep = folder  # until the last session is gone
        return lambda: (session.run(None, {"x": x})[0], keep)[0]

    return {"onnxruntime float": lambda: row(paths[0]), "onnxruntime uint8": lambda: row(paths[1])}


def torch_rows(net: Net) -> dict[str, Callable[[], Row]]:
    """The encoder, from torch's own layers; dimensions alone matter for its speed, so its weights are random."""
    import torch

    if not isinstance(net.model, Encoder):
        return {}
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    m = net.model
    layer = torch.nn.TransformerEncoderLayer(m.width, m.heads, 4 * m.width, activation="gelu", batch_first=True)
    model = torch.nn.TransformerEncoder(layer, m.layers).eval()
    x = torch.tensor(np.asarray(net.x))

    def row(model: typing.Any) -> Row:
        def run() -> typing.Any:
            with torch.inference_mode():
                return model(x).numpy()

        return run

    return {"torch float": lambda: row(model)}


def all_rows(net: Net) -> dict[str, Callable[[], Row]]:
    rows = jqz_rows(net)
    for peer, make in {"qwix": qwix_rows, "onnxruntime": onnx_rows, "torch": torch_rows}.items():
        try:
            rows.update(make(net))
        except ImportError as error:
            print(f"{peer} is left out: {error}", file=sys.stderr)
    return rows


def measure(makers: dict[str, Callable[[], Row]], rounds: int) -> dict[str, dict[str, float]]:
    """Medians and ratios of each row, the rows in turn."""
    runs, compile_s, errors = {}, {}, {}
    wall, processor = collections.defaultdict(list), collections.defaultdict(list)
    wanted = None
    for name, make in makers.items():
        start = time.perf_counter()
        try:
            runs[name] = make()
        except (ValueError, NotImplementedError) as error:  # qwix has no weight-only convolutions
            if name.startswith(("float", "jqz")):
                raise
            print(f"{name} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        compile_s[name] = time.perf_counter() - start
        y = np.asarray(jax.block_until_ready(runs[name]()))
        wanted = y if wanted is None else wanted
        errors[name] = float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted))
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(0.01)  # threads of the row before stop spinning
            jax.block_until_ready(run())  # caches and threads belong to the row before
            start, used = time.perf_counter(), time.process_time()
            times = 0
            while times == 0 or time.perf_counter() - start < SPELL:
                jax.block_until_ready(run())
                times += 1
            wall[name].append((time.perf_counter() - start) / times)
            processor[name].append((time.process_time() - used) / times)

    def ratio(seconds: dict[str, list[float]], name: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds["float"], seconds[name], strict=True))

    return {
        name: {
            "ms": 1e3 * statistics.median(wall[name]),
            "times_as_fast": ratio(wall, name),
            "processor_ms": 1e3 * statistics.median(processor[name]),
            "processor_times_as_fast": ratio(processor, name),
            "relative_error": errors[name],
            "trace_and_compile_s": compile_s[name],
        }
        for name in runs
    }


def show(title: str, results: dict[str, dict[str, float]], goals: dict[str, float]) -> None:
    heads = (title, "ms", "x float", "goal", "processor ms", "x float", "error", "compile s")
    lines = [
        (
            name,
            f"{row['ms']:.2f}",
            f"{row['times_as_fast']:.2f}",
            f">= {goals[name]:.1f}" if name in goals else "",
            f"{row['processor_ms']:.2f}",
            f"{row['processor_times_as_fast']:.2f}",
            f"{row['relative_error']:.4f}",
            f"{row['trace_and_compile_s']:.1f}",
        )
        for name, row in results.items()
    ]
    report.table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", metavar="WORD", default=[""], help="networks that begin with one of these")
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[""], help="rows that begin with one of these")
    parser.add_argument("--rounds", type=int, default=21)
    report.add_tuned(parser)
    parser.add_argument("--quick", action="store_true", help="the smallest network, two rounds: a smoke test")
    parser.add_argument("--json", action="store_true", help="one JSON line a network, after its table")
    args = parser.parse_args()
    allocator = report.tune(args)
    cases = [case for case in CASES if case[0].startswith(tuple(args.nets))]
    for name, batch in [("MobileNetV1 0.25-128", 1)] if args.quick else cases:
        net, rounds = NETWORKS[name](batch), 2 if args.quick else args.rounds
        facts = report.facts(network=name, batch=batch, rounds=rounds, allocator=allocator)
        rows = {row: make for row, make in all_rows(net).items() if row.startswith(("float", *args.only))}
        results = measure(rows, rounds)
        print(report.in_words(facts))
        show(f"{name} b{batch}", results, {} if args.quick else GOALS.get((name, batch), {}))
        if args.json:
            print(json.dumps({**facts, "rows": results}))


if __name__ == "__main__":
    main()
