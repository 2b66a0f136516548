"""How fast is one row times a weight matrix, as in decoding a token, with weights in float32 down to 4 bits?

    python benchmarks/decode.py                       # 4096 x 4096 and 4096 x 11008, jqz and its peers
    python benchmarks/decode.py --only float32 jqz    # rows that begin so
    python benchmarks/decode.py --quick --json        # does it run?

Such a product reads every weight once, so memory bounds it: GB/s count the bytes of the stored weights, and the
first row reads memory and does nothing else. Every row runs over copies of its weights that no cache
holds, all rows in turn, round after round; a ratio is the median over the rounds of float32's time over a
row's: more is faster. "512" compiles with ``xla_cpu_prefer_vector_width=512``. ONNX Runtime (MatMulNBits) and
torch are optional.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import statistics
import sys
import time
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import report

import jqz

WIDE = {"xla_cpu_prefer_vector_width": 512}
GOALS = {"jqz int8": 2.2, "jqz int4": 4.0, "jqz int4 group 128": 2.7}
SHAPES = ((4096, 4096), (4096, 11008))


class Row(typing.NamedTuple):
    """Bytes of a weight, and a call for each copy of it."""

    size_bytes: int
    calls: list[Callable[[], typing.Any]]


def copies(size_bytes: int, working_set: int) -> range:
    return range(max(1, -(-working_set // size_bytes)))


def memory_row(working_set: int) -> Row:
    """As many threads as cores look for the largest number of a block each."""
    cores = len(os.sched_getaffinity(0))
    blocks = np.ones((cores, max(1, working_set // 4 // cores)), np.float32)
    pool = concurrent.futures.ThreadPoolExecutor(cores)
    return Row(blocks.nbytes, [lambda: list(pool.map(np.max, blocks))])


def jax_rows(w: jax.Array, x: jax.Array, working_set: int) -> dict[str, Callable[[], Row]]:
    def product(w: typing.Any, x: jax.Array) -> jax.Array:
        return x @ w

    def row(fn: typing.Any, w: typing.Any, x: jax.Array, options: typing.Any = None) -> Row:
        size = jqz.size_bytes(w)
        many = [jax.block_until_ready(jax.tree.map(jnp.copy, w)) for _ in copies(size, working_set)]
        run = jax.jit(fn, compiler_options=options).lower(w, x).compile()
        return Row(size, [lambda w=w: jax.block_until_ready(run(w, x)) for w in many])

    schemes = {
        "jqz int8": jqz.Symmetric(8, jqz.PerAxis(-1)),
        "jqz int4": jqz.Symmetric(4, jqz.PerAxis(-1)),
        "jqz int4 group 128": jqz.Symmetric(4, jqz.PerGroup(128)),
    }
    rows: dict[str, Callable[[], Row]] = {
        "float32": lambda: row(product, w, x),
        "bfloat16": lambda: row(product, w.astype(jnp.bfloat16), x.astype(jnp.bfloat16)),
    }
    for name, scheme in schemes.items():
        for suffix, options in (("", None), (" 512", WIDE)):
            rows[name + suffix] = lambda scheme=scheme, options=options: row(
                jqz.quantized(product), jqz.quantize(w, scheme), x, options
            )
    return rows


def onnx_rows(w: jax.Array, x: jax.Array, working_set: int) -> dict[str, Callable[[], Row]]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    (length, width), block = w.shape, 128
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle sessions would take the cores
    codes = np.random.default_rng(0).integers(0, 256, (width, length // block, block // 2), np.uint8)
    scales = np.ones(width * length // block, np.float32)

    def session(level: int) -> typing.Any:
        node = helper.make_node(
            "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=length, N=width, bits=4,
            block_size=block, accuracy_level=level,
        )  # fmt: skip
        shapes = (("x", [1, length]), ("y", [1, width]))
        info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
        weights = [numpy_helper.from_array(codes, "w"), numpy_helper.from_array(scales, "s")]
        graph = helper.make_graph([node], "row", info[:1], info[1:], weights)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def row(level: int) -> Row:
        size = codes.nbytes + scales.nbytes
        sessions, feed = [session(level) for _ in copies(size, working_set)], {"x": np.asarray(x)}
        return Row(size, [lambda s=s: s.run(None, feed) for s in sessions])

    return {"onnxruntime int4 group 128": lambda: row(1), "onnxruntime int4 group 128, int8 row": lambda: row(4)}


def torch_rows(w: jax.Array, x: jax.Array, working_set: int) -> dict[str, Callable[[], Row]]:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    weight, row_of = torch.tensor(np.asarray(w).T.copy()), torch.tensor(np.asarray(x))

    def row(fn: typing.Any, w: typing.Any, x: typing.Any) -> Row:
        size = w.numel() * w.element_size()
        return Row(size, [lambda w=w: fn(x, w) for w in [w.clone() for _ in copies(size, working_set)]])

    def int8(x: typing.Any, w: typing.Any) -> typing.Any:
        return torch._weight_int8pack_mm(x, w, scales)

    scales = torch.ones(weight.shape[0], dtype=torch.bfloat16)
    return {
        "torch float32": lambda: row(torch.nn.functional.linear, weight, row_of),
        "torch bfloat16": lambda: row(torch.nn.functional.linear, weight.bfloat16(), row_of.bfloat16()),
        "torch int8": lambda: row(int8, weight.to(torch.int8), row_of.bfloat16()),
    }


def measure(makers: dict[str, Callable[[], Row]], rounds: int) -> dict[str, dict[str, float]]:
    rows, seconds = {name: make() for name, make in makers.items()}, collections.defaultdict(list)
    for row in rows.values():
        row.calls[0]()
    for _ in range(rounds):
        for name, row in rows.items():
            time.sleep(0.01)  # threads of the row before stop spinning
            start = time.perf_counter()
            for call in row.calls:
                call()
            seconds[name].append((time.perf_counter() - start) / len(row.calls))
    return {
        name: {
            "us": 1e6 * statistics.median(seconds[name]),
            "times_as_fast": statistics.median(
                a / b for a, b in zip(seconds["float32"], seconds[name], strict=True)
            ),
            "gb_per_s": row.size_bytes / statistics.median(seconds[name]) / 1e9,
        }
        for name, row in rows.items()
    }  # fmt: skip


def show(title: str, results: dict[str, dict[str, float]], goals: dict[str, float]) -> None:
    lines = [
        (
            name,
            f"{row['us']:.0f}",
            "" if name == "read memory" else f"{row['times_as_fast']:.2f}",
            f">= {goals[name]:.1f}" if name in goals else "",
            f"{row['gb_per_s']:.1f}",
        )
        for name, row in results.items()
    ]
    report.table((title, "us", "x float32", "goal", "GB/s"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[""], help="rows that begin with one of these")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--working-set", type=float, default=256e6, help="bytes of copies that a row runs over")
    parser.add_argument("--quick", action="store_true", help="a small matrix, two rounds: a smoke test")
    parser.add_argument("--json", action="store_true", help="one JSON line a shape, after its table")
    args = parser.parse_args()
    jqz.tune_allocator()
    for shape in [(512, 256)] if args.quick else SHAPES:
        working_set = 2**20 if args.quick else int(args.working_set)
        w, x = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate((shape, (1, shape[0]))))
        makers = {"read memory": lambda working_set=working_set: memory_row(working_set)}
        makers |= jax_rows(w, x, working_set)
        for peer, make in {"onnxruntime": onnx_rows, "torch": torch_rows}.items():
            try:
                makers |= make(w, x, working_set)
            except ImportError as error:
                print(f"{peer} is left out: {error}", file=sys.stderr)
        wanted = ("read", "float32", *args.only)
        results = measure({k: m for k, m in makers.items() if k.startswith(wanted)}, 2 if args.quick else args.rounds)
        show(f"{shape[0]} x {shape[1]}", results, {} if args.quick else GOALS)
        if args.json:
            print(json.dumps({**report.facts(shape=shape), "rows": results}))


if __name__ == "__main__":
    main()
