"""What does a training step cost that rounds weights, or weights and activations, next to the float step?

    python benchmarks/training_step.py                       # ResNet-20, batch 128
    python benchmarks/training_step.py --tuned               # the same with freed memory kept in the process
    python benchmarks/training_step.py --model encoder       # a transformer encoder, 8 sequences of 128
    python benchmarks/training_step.py --only float jqz      # leave the peers out
    python benchmarks/training_step.py --quick --json        # does it run?

One step is loss, gradient and an SGD update with momentum, under one jit; batch norm trains. Every variant
runs once a round, in turn, so that a machine that slows down slows all of them; a ratio is the median over
the rounds of a variant's time over the float model's in the same round. Processor time counts all threads
and suffers less from other work on the machine. qwix is optional (pip install qwix).

The float model is plain Flax. What ``jqz.simulated`` saves, it saves in the gradients of the convolutions'
kernels, which XLA's CPU backend runs slowly as JAX writes them; ``jqz.fake_quantize`` leaves them alone.
"""

import argparse
import collections.abc
import functools
import json
import statistics
import sys
import time
import typing

import jax
import jax.numpy as jnp
import optax
import report
from networks import Encoder, ResNet

import jqz

Apply = collections.abc.Callable[[typing.Any, jax.Array], tuple[jax.Array, typing.Any]]
SGD = optax.sgd(0.1, momentum=0.9)
GOALS = {"jqz weights": 1.05, "jqz simulated, weights": 1.05, "jqz simulated, weights + activations": 0.85}


class Task(typing.NamedTuple):
    """A Flax model, its variables, a batch, and the loss of what it returns."""

    model: typing.Any
    apply: Apply
    variables: typing.Any
    x: jax.Array
    loss: typing.Callable[[jax.Array], jax.Array]


class Row(typing.NamedTuple):
    """A function of variables and batch, to be trained by an optimizer; timed after so many updates.

    ``variables`` are those that it starts from, if not the task's. ``penalty(variables, x, out)`` adds to the loss.
    """

    apply: Apply
    optimizer: typing.Any = SGD
    updates: int = 0
    variables: typing.Any = None
    penalty: collections.abc.Callable[[typing.Any, jax.Array, jax.Array], jax.Array] | None = None


def make_task(name: str, quick: bool) -> Task:
    if name == "resnet":
        model = ResNet((1, 1, 1) if quick else (3, 3, 3), 16, stem=3, classes=10)
        x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3) if quick else (128, 32, 32, 3))
        labels = jnp.arange(len(x)) % 10

        def loss(logits: jax.Array) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    else:
        model = Encoder(layers=1, width=24, heads=2) if quick else Encoder()
        x = jax.random.normal(jax.random.key(0), (2, 4, 24) if quick else (8, 128, 384))

        def loss(y: jax.Array) -> jax.Array:
            return jnp.square(y - jnp.roll(x, 1, axis=1)).mean()

        apply = functools.partial(model.apply, mutable=["batch_stats"])
    return Task(model, apply, model.init(jax.random.key(1), x), x, loss)


def variants(task: Task) -> dict[str, Row]:
    """Name -> what is rounded in a step."""
    channel, heads = jqz.Symmetric(8, jqz.PerAxis(-1)), jqz.Symmetric(8, jqz.PerAxis((-2, -1)))
    rules = {"**/kernel": channel}
    if isinstance(task.model, Encoder):
        rules = {"**/{query,key,value}/kernel": heads, **rules}
    weights, both = jqz.Policy(rules), jqz.Policy(rules, inputs=jqz.Symmetric(8))
    rows = {
        "float": Row(task.apply),
        "jqz weights": Row(lambda v, x: task.apply(jqz.fake_quantize(v, weights), x)),
        "jqz simulated, weights": Row(lambda v, x: jqz.simulated(task.apply, weights)(v, None, x)),
        "jqz simulated, weights + activations": Row(lambda v, x: jqz.simulated(task.apply, both)(v, None, x)),
    }
    try:
        import qwix
    except ImportError:
        print("qwix is not installed: its rows are left out (pip install qwix)", file=sys.stderr)
        return rows
    for name, inputs in {"qwix weights": None, "qwix weights + activations": jnp.int8}.items():
        rule = qwix.QuantizationRule(weight_qtype=jnp.int8, act_qtype=inputs)
        model = qwix.quantize_model(task.model, qwix.QtProvider([rule]))
        rows[name] = Row(functools.partial(model.apply, **task.apply.keywords))
    return rows


def make_step(task: Task, row: Row) -> tuple[typing.Any, typing.Any]:
    """A jitted training step, and the state that it starts from."""
    optimizer = row.optimizer

    def loss(params: typing.Any, rest: typing.Any, x: jax.Array) -> tuple[jax.Array, typing.Any]:
        variables = {"params": params, **rest}
        out, updated = row.apply(variables, x)
        more = 0 if row.penalty is None else row.penalty(variables, x, out)
        return task.loss(out) + more, updated

    @jax.jit
    def step(state: typing.Any, x: jax.Array) -> tuple[typing.Any, jax.Array]:
        params, rest, momentum = state
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params, rest, x)
        updates, momentum = optimizer.update(grads, momentum, params)
        return (optax.apply_updates(params, updates), rest, momentum), value

    variables = task.variables if row.variables is None else row.variables
    params = variables["params"]
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return step, (params, rest, optimizer.init(params))


def measure(task: Task, rows: dict[str, Row], rounds: int) -> dict[str, dict[str, float]]:
    """Compile seconds, medians and ratios of each row, the rows in turn."""
    steps, compile_s, wall, processor = {}, {}, collections.defaultdict(list), collections.defaultdict(list)
    for name, row in rows.items():
        step, state = make_step(task, row)
        start = time.perf_counter()
        step = step.lower(state, task.x).compile()
        compile_s[name] = time.perf_counter() - start
        for _ in range(row.updates):
            state, _ = step(state, task.x)
        steps[name] = functools.partial(step, state, task.x)
        jax.block_until_ready(steps[name]())
    for _ in range(rounds):
        for name, step in steps.items():
            start, used = time.perf_counter(), time.process_time()
            out = jax.block_until_ready(step())
            wall[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - used)
            del out

    def ratio(times: dict[str, list[float]], name: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times["float"], strict=True))

    return {
        name: {
            "ms": 1e3 * statistics.median(wall[name]),
            "to_float": ratio(wall, name),
            "processor_ms": 1e3 * statistics.median(processor[name]),
            "processor_to_float": ratio(processor, name),
            "trace_and_compile_s": compile_s[name],
        }
        for name in rows
    }


def show(results: dict[str, dict[str, float]], goals: dict[str, float]) -> None:
    heads = ("", "ms", "/ float", "goal", "processor ms", "/ float", "compile s")
    lines = [
        (
            name,
            f"{row['ms']:.1f}",
            f"{row['to_float']:.2f}",
            f"<= {goals[name]:.2f}" if name in goals else "",
            f"{row['processor_ms']:.1f}",
            f"{row['processor_to_float']:.2f}",
            f"{row['trace_and_compile_s']:.1f}",
        )
        for name, row in results.items()
    ]
    report.table(heads, lines)


def run(doc: str | None, make_rows: collections.abc.Callable[[Task], dict[str, Row]]) -> None:
    """The command line: measures the rows that it asks for."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("resnet", "encoder"), default="resnet")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[""], help="rows that begin with one of these")
    report.add_tuned(parser)
    parser.add_argument("--quick", action="store_true", help="a tiny model, two rounds: a smoke test")
    parser.add_argument("--json", action="store_true", help="one JSON line, after the table")
    args = parser.parse_args()
    allocator = report.tune(args)
    task = make_task(args.model, args.quick)
    wanted = ("float", *args.only)
    rows = {name: row for name, row in make_rows(task).items() if name.startswith(wanted)}
    rounds = 2 if args.quick else args.rounds
    facts = report.facts(model=args.model, batch=list(task.x.shape), rounds=rounds, allocator=allocator)
    results = measure(task, rows, rounds)
    print(report.in_words(facts))
    show(results, GOALS if args.model == "resnet" and not args.quick else {})
    if args.json:
        print(json.dumps({**facts, "rows": results}))


if __name__ == "__main__":
    run(__doc__, variants)
