"""How long does a quantized model take to trace, against the float model?

    python benchmarks/tracing.py [--rounds 7] [--only WORD] [--json] [--profile ROW]

Tracing runs once for each shape, in Python: the model's own code, and for a quantized model the walk over its
jaxpr after that. Every candidate is traced and lowered once a round, in turn, with empty caches; the table shows
seconds of the processor, medians over the rounds, and ratios to the float model. Lowering writes StableHLO; compiling
it, which is XLA's work, is left out. Nothing runs on arrays. The garbage collector is off, as in timeit: what a pass
of it costs depends on all else that the process holds.
"""

import argparse
import cProfile
import gc
import json
import os
import pstats
import statistics
import time


def networks():
    """name -> (model, shape of its input)."""
    import networks

    return {
        "ResNet-50": (networks.ResNet50(), (1, 224, 224, 3)),
        "encoder": (networks.Encoder(), (1, 128, 384)),
    }


def candidates(model, shape):
    """name -> (function, shapes of its arguments)."""
    import jax
    import jax.numpy as jnp

    import jqz

    fn, x = model.apply, jax.ShapeDtypeStruct(shape, jnp.float32)
    policy = jqz.Policy(
        {"**/kernel": jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1))}, inputs=jqz.Asymmetric(bits=8)
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    qparams = jax.eval_shape(lambda v: jqz.quantize(v, policy), variables)
    stats = jax.eval_shape(jqz.observe(fn, policy), variables, x)
    sites = jax.eval_shape(lambda s: jqz.calibrate(s, policy), stats)
    return {
        "float": (fn, (variables, x)),
        "weight-only": (jqz.quantized(fn), (qparams, x)),
        "dynamic": (jqz.quantized(fn, inputs=policy), (qparams, x)),
        "static": (lambda q, s, x: jqz.quantized(fn, s)(q, x), (qparams, sites, x)),
        "simulated": (jqz.simulated(fn, policy), (variables, sites, x)),
        "observe": (jqz.observe(fn, policy), (variables, x)),
    }


def trace_and_lower(fn, arguments):
    """Seconds of each."""
    import jax

    jax.clear_caches()
    gc.collect()
    gc.disable()
    start = time.process_time()
    traced = jax.jit(lambda *arguments: fn(*arguments)).trace(*arguments)
    middle = time.process_time()
    traced.lower()
    end = time.process_time()
    gc.enable()
    return middle - start, end - middle


def measure(rows, rounds):
    """Median seconds of both for each row, the rows in turn."""
    times = {name: [] for name in rows}
    for turn in range(rounds + 1):  # the first round imports and warms up
        for name, row in rows.items():
            seconds = trace_and_lower(*row)
            if turn:
                times[name].append(seconds)
    return {name: [statistics.median(part) for part in zip(*values, strict=True)] for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="networks whose name holds this word")
    parser.add_argument("--json", action="store_true", help="one JSON line, after the tables")
    parser.add_argument("--profile", help="show where tracing this row spends its time instead")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import report

    results = {}
    for network, (model, shape) in networks().items():
        if args.only not in network:
            continue
        rows = candidates(model, shape)
        if args.profile:
            trace_and_lower(*rows[args.profile])
            profile = cProfile.Profile()
            profile.runcall(trace_and_lower, *rows[args.profile])
            pstats.Stats(profile).sort_stats("cumulative").print_stats(60)
            continue
        medians = measure(rows, args.rounds)
        base, lines = medians["float"], []
        for name, (trace, lower) in medians.items():
            ratios = trace / base[0], lower / base[1], (trace + lower) / sum(base)
            lines.append((name, f"{trace:.2f}", f"{ratios[0]:.2f}", f"{lower:.2f}", *(f"{r:.2f}" for r in ratios[1:])))
            results[f"{network}, {name}"] = {"trace_s": trace, "lower_s": lower, "to_float": ratios[2]}
        report.table((network, "trace, s", "/ float", "lower, s", "/ float", "both / float"), lines)
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
