"""What do rounding, merged batch norms, pruning and entropy coding take off a MobileNetV1's file?

    python benchmarks/rounding.py                    # about 25 minutes on a quiet core; goes on where it stopped
    python benchmarks/rounding.py --alpha 1.0        # the full width, twice as long

The table is that of PaddlePaddle/Mobile (deployment/model/rounding) by its method, on Fashion-MNIST; its figures,
of MobileNet 1.0-224 on flowers102, stand beside ours. Rounding is to 8 bits a tensor from its least to its largest
value, of every parameter, after training; the file holds float32 and is compressed by gzip -9. Merging moves batch
norms into weights and biases. Pruning sets 75 % of the weights of 1x1 convolutions and 80 % of the last layer's to
zero while the float network is trained further, by Paddle's schedule; batch norms are measured again at its end.

Rows of jqz are what it makes of the same networks, and of two with more zeros: pruned or not, merged, 1x1 convolutions
in 4 or 3 bits and other kernels in 8, codes of little entropy, biases corrected, on 512 unlabelled training images.
Their bytes are those of the file that ``jqz.save`` wrote; their accuracy is that of the network that ``jqz.load`` read,
run on its codes.

Data: see examples/parts/fashion_mnist.py. Long runs are kept in --cache.
"""

import argparse
import gzip
import itertools
import pathlib
import sys
import tempfile
import typing

import jax
import jax.numpy as jnp
import optax
import report
from networks import MobileNetV1
from tables import FLOAT, prepare, sgd

import jqz
import jqz.training
from jqz import algorithms

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
from parts import fashion_mnist, loop, steps

CHANNEL = jqz.PerAxis(-1)
EIGHT = jqz.Symmetric(bits=8, granularity=CHANNEL)
EVERY = {"**/{kernel,bias,scale,mean,var}": jqz.Asymmetric(bits=8, anchor=jqz.schemes.Minimum())}

#: MB after gzip, and accuracy (%), by (pruned, merged, rounded).
DOCUMENT = {
    (False, False, False): (12.0, 97.16),
    (False, False, True): (3.2, 97.05),
    (False, True, False): (12.0, 97.16),
    (False, True, True): (3.0, 96.96),
    (True, False, False): (4.4, 96.96),
    (True, False, True): (2.3, 96.7),
}

#: Who is packed: the network, by how it was pruned, and the bits of its 1x1 convolutions.
PACKED = [("float", 4), ("document", 4), ("90 %", 4), ("95 %", 4), ("95 %", 3)]


class Pruning(typing.NamedTuple):
    """Shares of zeros in the 1x1 convolutions and the dense layer, who teaches, and the first rate of learning."""

    pointwise: float
    dense: float
    taught: bool
    rate: float
    threshold: jqz.training.Threshold = jqz.training.LeafThreshold()


#: The document's shares, by its rule; and more zeros, wherever they are best placed, learned from the float network.
PRUNED = {
    "document": Pruning(0.75, 0.8, taught=False, rate=0.01),
    "90 %": Pruning(0.9, 0.8, taught=True, rate=0.02, threshold=jqz.training.GlobalThreshold()),
    "95 %": Pruning(0.95, 0.8, taught=True, rate=0.02, threshold=jqz.training.GlobalThreshold()),
}


def is_pointwise(path: str, leaf: jax.Array) -> bool:
    return path.endswith("kernel") and leaf.shape[:2] == (1, 1)


def selects(chosen: typing.Callable[[str, jax.Array], bool]) -> typing.Callable[[str, jax.Array], jqz.Scheme | None]:
    return lambda path, leaf: jqz.Identity() if chosen(path, leaf) else None


def train(
    name: str,
    model: MobileNetV1,
    start: typing.Any,
    optimizer: optax.GradientTransformation,
    data: fashion_mnist.Data,
    plan: loop.Plan,
    folder: pathlib.Path,
    taught: bool = False,
) -> typing.Any:
    """The variables that training ends with, from those of ``start``, which also teach where ``taught``."""
    run = jqz.simulated(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]), FLOAT)

    def apply(params: typing.Any, rest: typing.Any, x: jax.Array) -> typing.Any:
        return run({"params": params, **rest}, None, x)

    teacher = (lambda x: jqz.lowered(model.apply)(start, x)) if taught else None
    step = steps.make_step(apply, optimizer, prepare, (steps.shift(2), steps.flip), teacher)
    infer = jqz.lowered(model.apply)
    predict = jax.jit(lambda state, x: infer({"params": state.params, **state.rest}, prepare(x)))
    params = start["params"]
    state = steps.State(params, {"batch_stats": start["batch_stats"]}, optimizer.init(params))
    record = loop.train(name, step, predict, state, data, plan, folder)
    return {"params": record.state.params, **record.state.rest}


def train_float(model: MobileNetV1, data: fashion_mnist.Data, plan: loop.Plan, cache: pathlib.Path) -> typing.Any:
    start = jax.jit(model.init)(jax.random.key(plan.seed), jnp.zeros((1, *data.train.images.shape[1:])))
    rates = optax.cosine_onecycle_schedule(plan.steps(data), 0.05, pct_start=0.3)
    return train("float", model, start, sgd(rates, 5e-4), data, plan, cache / "float")


def train_pruned(
    name: str, model: MobileNetV1, start: typing.Any, data: fashion_mnist.Data, plan: loop.Plan, cache: pathlib.Path
) -> typing.Any:
    """Paddle's schedule: its share of zeros grows in 20 choices over the first three fifths of the training."""
    how, total = PRUNED[name], plan.steps(data)
    every = max(1, round(0.6 * total / 20))

    def prune(chosen: typing.Any, share: float, threshold: jqz.training.Threshold) -> optax.GradientTransformation:
        grows = jqz.training.Logarithmic(share, end=20 * every, interval=every)
        return jqz.training.prune(selects(chosen), grows, every=every, threshold=threshold)

    optimizer = optax.chain(
        sgd(optax.cosine_decay_schedule(how.rate, total), 1e-4),
        prune(is_pointwise, how.pointwise, how.threshold),
        prune(lambda path, _: path.endswith("Dense_0/kernel"), how.dense, jqz.training.LeafThreshold()),
    )
    folder = cache / f"pruned-{name.split()[0]}-{plan.epochs}"
    pruned = train(f"pruned, {name}", model, start, optimizer, data, plan, folder, how.taught)
    images = [prepare(data.train.images[i : i + 500]) for i in range(0, min(2000, len(data.train.images)), 500)]
    return algorithms.reestimate_batch_norm(model.apply, pruned, images)


# --- the tables -------------------------------------------------------------------------------------------------------


class Row(typing.NamedTuple):
    """A file and what the network in it does: bytes, and percent of the test images."""

    size_bytes: int
    accuracy: float


def merge(model: MobileNetV1, variables: typing.Any, images: jax.Array) -> typing.Any:
    """Variables of the network without batch norms."""
    folded = algorithms.fold_batch_norm(model.apply, variables, images)

    def layer(name: str, own: typing.Any) -> typing.Any:
        norm = name.replace("Conv", "BatchNorm")
        if norm == name:
            return own
        shift = folded["params"][norm]["bias"] - folded["batch_stats"][norm]["mean"]
        return {"kernel": own["kernel"], "bias": shift}

    return {"params": {name: layer(name, own) for name, own in folded["params"].items() if "Norm" not in name}}


def gzipped(variables: typing.Any) -> int:
    """Bytes of the float32 file, compressed."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "net.safetensors"
        jqz.files.safetensors.write(path, variables)
        return len(gzip.compress(path.read_bytes(), 9, mtime=0))


def compiled(fn: typing.Any) -> typing.Any:
    return jax.jit(lambda variables, x: fn(variables, prepare(x)))


def accuracy(run: typing.Any, variables: typing.Any, data: fashion_mnist.Data) -> float:
    return loop.accuracy(loop.evaluate(run, variables, data.test), data.test)


def rounding(model: MobileNetV1, nets: dict[str, typing.Any], data: fashion_mnist.Data) -> dict[typing.Any, Row]:
    """The document's table, by (pruned, merged, rounded)."""
    runs = {merged: compiled(jqz.lowered(model.clone(merged=merged).apply)) for merged in (False, True)}
    rows = {}
    for pruned, merged, rounded in itertools.product((False, True), repeat=3):
        variables = nets["document" if pruned else "float"]
        if merged:
            variables = merge(model, variables, prepare(data.train.images[:8]))
        if rounded:
            variables = jqz.dequantize(jqz.quantize(variables, EVERY))
        rows[pruned, merged, rounded] = Row(gzipped(variables), accuracy(runs[merged], variables, data))
    return rows


def packed(
    model: MobileNetV1,
    variables: typing.Any,
    bits: int,
    data: fashion_mnist.Data,
    path: pathlib.Path,
    images: int = 512,
) -> Row:
    """Merges, rounds, corrects, saves, loads and runs a network."""
    x, net = prepare(data.train.images[:images]), model.clone(merged=True)
    merged = merge(model, variables, x[:8])
    pointwise = [f"params/Conv_{2 * i}/kernel" for i in range(1, len(model.plan) + 1)]
    few = jqz.Symmetric(bits, CHANNEL, range=jqz.ranges.MSE())
    policy = jqz.Policy({**dict.fromkeys(pointwise, few), "**/kernel": EIGHT}, inputs=jqz.Asymmetric(bits=8))
    stats = jax.jit(jqz.observe(net.apply, policy, jqz.observers.Gram()))(merged, x)
    coded = algorithms.entropy_constrained(merged, policy, stats)
    coded = algorithms.correct_bias(net.apply, merged, coded, [x])
    jqz.save(path, coded, compress=jqz.files.Entropy())
    return Row(path.stat().st_size, accuracy(compiled(jqz.quantized(net.apply)), jqz.load(path), data))


def show(rows: dict[typing.Any, Row]) -> None:
    """Prints the table; sizes and losses are relative to the float network's, compressed."""
    base, (base_mb, base_top) = rows[False, False, False], DOCUMENT[False, False, False]
    lines = []
    for name, row in rows.items():
        line = [f"{row.size_bytes / 1e6:.3f}", f"{base.size_bytes / row.size_bytes:.2f}"]
        line += [f"{row.accuracy:.2f}", f"{row.accuracy - base.accuracy:+.2f}"]
        if name in DOCUMENT:
            mb, top = DOCUMENT[name]
            line += [f"{mb}", f"{base_mb / mb:.2f}", f"{top:.2f}", f"{top - base_top:+.2f}"]
        if isinstance(name, tuple):
            name = ", ".join(itertools.compress(("pruned", "merged", "rounded"), name)) or "float"
        lines.append([name, *line, *[""] * (8 - len(line))])
    heads = ["", "MB", "times smaller", "top-1 %", "change", "document: MB", "times", "top-1 %", "change"]
    report.table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FOLDER", help="of Fashion-MNIST's idx files")
    parser.add_argument("--cache", default=".cache", metavar="FOLDER", help="for long runs and downloads")
    parser.add_argument("--alpha", type=float, default=0.5, help="width of the network (default 0.5)")
    parser.add_argument("--epochs", type=int, default=12, help="of the float network (default 12)")
    parser.add_argument("--further", type=int, default=4, help="epochs of pruning (default 4)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    jqz.tune_allocator()
    cache = pathlib.Path(args.cache).expanduser()
    data = fashion_mnist.load(args.data, cache)
    print(data.source)
    model = MobileNetV1(args.alpha, 10)
    folder = cache / f"mobilenet-{args.alpha}-{args.epochs}-{args.batch}-{args.seed}"
    start = train_float(model, data, loop.Plan(args.epochs, args.batch, args.seed), folder)
    shorter = loop.Plan(args.further, args.batch, args.seed)
    nets = {"float": start, **{name: train_pruned(name, model, start, data, shorter, folder) for name in PRUNED}}
    rows: dict[typing.Any, Row] = dict(rounding(model, nets, data))
    for name, bits in PACKED:
        file = folder / f"{name.split()[0]}-{bits}-bits.safetensors"
        how = {"float": "not pruned", "document": "pruned as the document does"}.get(name, f"{name} zeros")
        rows[f"jqz, {how}, {bits} bits"] = packed(model, nets[name], bits, data, file)
    show(rows)


if __name__ == "__main__":
    main()
