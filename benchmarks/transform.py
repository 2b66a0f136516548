"""How fast do quantize and dequantize pass over a tree of 100 million parameters?

    python benchmarks/transform.py [--parameters 100e6] [--rounds 9] [--tuned] [--cpu] [--json] [--only WORD]

300 float32 leaves of 20 shapes. Every candidate runs once a round, in turn, so that a machine that
slows down slows all of them; the table shows medians over the rounds and ratios of them. GB/s count
the bytes of the float tree, whichever way they go. ``--tuned`` keeps glibc from handing freed blocks
back to the kernel, whose page faults otherwise cost as much as the work. ``--cpu`` counts seconds of
the processor instead of the clock's: on a busy machine they tell more. qwix is optional.

"one jit" is quantize inside a jitted function; without it, quantize also looks for NaN and infinity,
which qwix does not.
"""

import argparse
import json
import os
import statistics
import sys
import time

SHAPES = (
    (512, 512), (512, 2048), (2048, 512), (3, 3, 64, 64), (3, 3, 128, 128), (3, 3, 256, 256), (1, 1, 256, 512),
    (1, 1, 64, 256), (384, 384), (384, 1536), (1536, 384), (7, 7, 3, 64), (768, 256), (256, 768), (4000, 128),
    (128, 1000), (3, 3, 512, 128), (640, 640), (100, 300), (257, 129),
)  # fmt: skip
COPIES = 15  # of each shape: 300 leaves


def make_tree(parameters):
    """The shapes scaled along their last axis to add up to about this many parameters."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    noise = rng.normal(size=2**20).astype(np.float32) * 0.05
    share = parameters / (COPIES * sum(int(np.prod(shape)) for shape in SHAPES))
    tree = {}
    for i, shape in enumerate(SHAPES):
        shape = (*shape[:-1], max(1, round(shape[-1] * share)))
        for copy in range(COPIES):
            start = int(rng.integers(2**19))
            leaf = np.resize(noise[start:], int(np.prod(shape))).reshape(shape) * np.float32(1 + 0.1 * copy)
            tree[f"block_{copy}", f"kernel_{i}"] = jax.device_put(leaf)
    nested = {}
    for (block, name), leaf in tree.items():
        nested.setdefault(block, {})[name] = leaf
    return nested


def candidates(tree):
    """name -> (what it is compared with, function without arguments)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jqz

    leaves = jax.tree.leaves(tree)
    arrays = [np.asarray(leaf) for leaf in leaves]
    room = [np.empty_like(a) for a in arrays]

    def copy_numpy():
        for a, b in zip(arrays, room, strict=True):
            np.copyto(b, a)

    def int8_numpy():
        out = []
        for a in arrays:
            scale = np.float32(max(a.max(), -a.min()) / 127)
            out.append((np.clip(np.rint(a / scale), -127, 127).astype(np.int8), scale))
        return out

    def decode_numpy(coded):
        return [codes.astype(np.float32) * scale for codes, scale in coded]

    copy_jit = jax.jit(lambda tree: jax.tree.map(lambda x: x + 0, tree))
    rows = {
        "copy, NumPy, into warm memory": ("encode", copy_numpy),
        "copy, x + 0 under jit": ("encode", lambda: copy_jit(tree)),
        "int8 NumPy": ("encode", int8_numpy),
    }
    coded = int8_numpy()
    rows["decode int8 NumPy"] = ("decode", lambda: decode_numpy(coded))

    try:
        import qwix
    except ImportError:
        print("qwix is not installed: its rows are left out (pip install qwix)", file=sys.stderr)
    else:
        one = lambda x: qwix.quantize(x, jnp.int8)  # noqa: E731
        is_q = lambda x: isinstance(x, qwix.QArray)  # noqa: E731
        whole = jax.jit(lambda tree: jax.tree.map(one, tree))
        channel = jax.jit(lambda tree: jax.tree.map(lambda x: qwix.quantize(x, jnp.int8, channelwise_axes=(-1,)), tree))
        back = jax.jit(lambda tree: jax.tree.map(qwix.dequantize, tree, is_leaf=is_q))
        rows["int8 qwix, one jit"] = ("encode", lambda: whole(tree))
        rows["int8 qwix, eager"] = ("encode", lambda: jax.tree.map(one, tree))
        rows["int8 by channel qwix, one jit"] = ("encode", lambda: channel(tree))
        qwix_coded = whole(tree)
        rows["decode int8 qwix, one jit"] = ("decode", lambda: back(qwix_coded))
        rows["decode int8 qwix, eager"] = ("decode", lambda: jax.tree.map(qwix.dequantize, qwix_coded, is_leaf=is_q))

    for name, scheme in {
        "int8": jqz.Symmetric(8),
        "int8 by channel": jqz.Symmetric(8, jqz.PerAxis(-1)),
        "pow2 all exponents": jqz.PowerOfTwo(bits=None),
        "pow2 4 bits": jqz.PowerOfTwo(bits=4),
        "int4": jqz.Symmetric(4),
    }.items():
        jitted = jax.jit(lambda tree, scheme=scheme: jqz.quantize(tree, scheme))
        rows[f"{name} jqz"] = ("encode", lambda scheme=scheme: jqz.quantize(tree, scheme))
        rows[f"{name} jqz, one jit"] = ("encode", lambda jitted=jitted: jitted(tree))
        rows[f"decode {name} jqz"] = ("decode", lambda q=jqz.quantize(tree, scheme): jqz.dequantize(q))
    return rows


def compile_seconds(tree):
    """Tracing and compiling the verbs for the whole tree, without any cache."""
    import jax

    import jqz

    seconds = {}
    for name, scheme in {"int8": jqz.Symmetric(8), "pow2 all exponents": jqz.PowerOfTwo(bits=None)}.items():
        jax.clear_caches()
        start = time.perf_counter()
        coded = jax.jit(lambda tree, scheme=scheme: jqz.quantize(tree, scheme)).lower(tree).compile()
        seconds[f"quantize {name}"] = time.perf_counter() - start
        coded = jax.eval_shape(lambda tree, scheme=scheme: jqz.quantize(tree, scheme), tree)
        start = time.perf_counter()
        jax.jit(jqz.dequantize).lower(coded).compile()
        seconds[f"dequantize {name}"] = time.perf_counter() - start
    return seconds


def measure(rows, rounds, clock):
    """Median seconds of each row, the rows in turn."""
    import jax

    times = {name: [] for name in rows}
    for turn in range(rounds + 2):  # the first rounds compile and warm up
        for name, (_, run) in rows.items():
            start = clock()
            out = jax.block_until_ready(run())
            elapsed = clock() - start
            del out
            if turn >= 2:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def show(results, seconds):
    """A table: GB/s, and ratios to qwix, to jqz int8 and to the copy."""
    import report

    names = ("", "ms", "GB/s", "/ copy", "/ qwix jit", "/ qwix eager", "/ jqz int8")
    table = [
        (
            name,
            f"{1e3 * row['seconds']:.0f}",
            f"{row['gb_per_s']:.1f}",
            *(f"{row[key]:.2f}" if row.get(key) else "" for key in ("to_copy", "to_qwix", "to_qwix_eager", "to_int8")),
        )
        for name, row in results.items()
    ]
    report.table(names, table, "speed as a multiple of the column's head")
    print("trace + compile, seconds:", {name: round(value, 1) for name, value in seconds.items()})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=100e6)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tuned", action="store_true", help="keep freed memory in the process (glibc)")
    parser.add_argument("--cpu", action="store_true", help="processor seconds, all threads together")
    parser.add_argument("--json", action="store_true", help="one JSON line, after the table")
    parser.add_argument("--only", default="", help="rows whose name holds this word")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import report

    allocator = report.tune(args)
    tree = make_tree(args.parameters)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    seconds = compile_seconds(tree)
    rows = {name: row for name, row in candidates(tree).items() if args.only in name}
    medians = measure(rows, args.rounds, time.process_time if args.cpu else time.perf_counter)
    results = {}
    for name, (kind, _) in rows.items():
        peers = {
            "to_copy": "copy, x + 0 under jit",
            "to_qwix": "int8 qwix, one jit" if kind == "encode" else "decode int8 qwix, one jit",
            "to_qwix_eager": "int8 qwix, eager" if kind == "encode" else "decode int8 qwix, eager",
            "to_int8": "int8 jqz, one jit" if "one jit" in name or kind == "decode" else "int8 jqz",
        }
        ratios = {key: medians[peer] / medians[name] for key, peer in peers.items() if peer in medians}
        results[name] = {"seconds": medians[name], "gb_per_s": size / medians[name] / 1e9, **ratios}
    leaves = jax.tree.leaves(tree)
    facts = report.facts(
        parameters=f"{sum(leaf.size for leaf in leaves) / 1e6:.1f} M",
        leaves=len(leaves),
        rounds=args.rounds,
        allocator=allocator,
        clock="processor" if args.cpu else "wall",
    )
    print(report.in_words(facts))
    show(results, seconds)
    if args.json:
        print(json.dumps({**facts, "rows": results, "compile_s": seconds}))


if __name__ == "__main__":
    main()
