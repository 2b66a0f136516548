"""What do 8 to 1 bits a weight cost ResNet-20 on Fashion-MNIST, after training and in training?

    python benchmarks/tables.py                      # an hour or two on two cores; goes on where it stopped
    python benchmarks/tables.py --only rounding      # the first table alone
    python benchmarks/tables.py --only "QAT 4"       # one row of the second
    python benchmarks/tables.py --export FILE.npz    # the float network in int8 codes

The first table is Table 1 of arXiv:1910.04877 by its method: every parameter rounded after training, batch norm
included, one grid a tensor, no data; and the same for kernels alone. Its figures, for CIFAR-10, stand beside ours.

The second trains with the rounding for a quarter of the float epochs, from the float network, which also teaches
(temperature 1): SGD on a cosine, learned steps (LSQ) for integers, one grid a channel, the first and the last layer in
8 bits, batch norm measured again at the end. Networks are evaluated by ``jqz.quantized``: on their codes, and on
integers alone, with activations in 8 bits (in 4 for W4A4, of whose products alone the operands have 4: residuals
have 8).

Data: see examples/parts/fashion_mnist.py. Long runs are kept in --cache.
"""

import argparse
import gzip
import json
import lzma
import pathlib
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
from networks import ResNet

import jqz

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
from parts import fashion_mnist, loop, steps

MODEL = ResNet((3, 3, 3), 16, stem=3, classes=10, stem_stride=2)
CHANNEL = jqz.PerAxis(-1)
EIGHT = jqz.Symmetric(bits=8, granularity=CHANNEL)
#: Gradients of convolutions in forms that are fast on CPU; weights as they are.
FLOAT = jqz.Policy({"**/kernel": jqz.Identity()})

#: Table 1 of arXiv:1910.04877: accuracy (%) of its network on CIFAR-10, by bits; 90.87 in float.
PAPER = {
    "ASYMM": {8: 90.83, 7: 90.80, 6: 90.90, 5: 90.61, 4: 90.04, 3: 85.93, 2: 22.46},
    "SYMM": {8: 90.51, 7: 90.46, 6: 90.48, 5: 90.41, 4: 89.54, 3: 88.93, 2: 77.24},
    "POWER-OF-2": {None: 86.90},
}


class Row(typing.NamedTuple):
    """How the network trains: schemes of the inner layers' weights and of what meets them."""

    weights: jqz.Scheme
    inputs: jqz.Scheme | None = None

    @property
    def policy(self) -> jqz.Policy:
        ends = ("params/Conv_0/kernel", "params/Dense_0/kernel")
        eight = dict.fromkeys((*ends, "**/(residual)"), jqz.Asymmetric(bits=8))
        inputs = None if self.inputs is None else {**eight, "**": self.inputs}
        return jqz.Policy({**dict.fromkeys(ends, EIGHT), "**/kernel": self.weights}, inputs=inputs)


def learned(bits: int) -> jqz.Scheme:
    return jqz.Symmetric(bits, CHANNEL, range=jqz.ranges.MeanMagnitude(), gradient=jqz.gradients.LSQ())


ROWS = {
    **{f"QAT {bits} bits": Row(learned(bits)) for bits in range(8, 1, -1)},
    "QAT power of two, 4 bits": Row(jqz.PowerOfTwo(bits=4, granularity=CHANNEL)),
    "QAT ternary": Row(jqz.Ternary(granularity=CHANNEL)),
    "QAT binary": Row(jqz.Binary(granularity=CHANNEL)),
    "QAT W4A4": Row(
        learned(4),
        jqz.Asymmetric(bits=4, anchor=jqz.schemes.FromZero(), gradient=jqz.gradients.LSQ(batch_axes=(0,))),
    ),
    "QAT W8A8": Row(EIGHT, jqz.Asymmetric(bits=8)),
}


def prepare(images: jax.Array) -> jax.Array:
    """Mean 0, deviation 1 over the training images of Fashion-MNIST."""
    return (images.astype(jnp.float32) / 255 - 0.286) / 0.353


def training(variables: typing.Any, x: jax.Array) -> typing.Any:
    return MODEL.apply(variables, x, train=True, mutable=["batch_stats"])


def sgd(rate: typing.Any, decay: float) -> optax.GradientTransformation:
    """Nesterov's momentum; weight decay for kernels, not for the grids beside them."""

    def kernels(params: typing.Any) -> typing.Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "kernel" in jax.tree_util.keystr(path) and "grid" not in jax.tree_util.keystr(path), params
        )

    return optax.chain(optax.add_decayed_weights(decay, kernels), optax.sgd(rate, momentum=0.9, nesterov=True))


class Net(typing.NamedTuple):
    """A trained network: the float parameters that round to it, its sites, and the epochs' accuracies."""

    variables: typing.Any
    sites: typing.Any
    accuracy: np.ndarray
    seconds: float


def train_float(data: fashion_mnist.Data, epochs: int, batch: int, seed: int, cache: pathlib.Path) -> Net:
    plan = loop.Plan(epochs, batch, seed)
    optimizer = sgd(optax.cosine_onecycle_schedule(plan.steps(data), 0.2, pct_start=0.3), 5e-4)
    variables = jax.jit(MODEL.init)(jax.random.key(seed), jnp.zeros((1, *data.train.images.shape[1:])))
    params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
    run = jqz.simulated(training, FLOAT)

    def apply(params: typing.Any, rest: typing.Any, x: jax.Array) -> typing.Any:
        return run({"params": params, **rest}, None, x)

    step = steps.make_step(apply, optimizer, prepare, (steps.shift(2), steps.flip))
    predict = jax.jit(lambda state, x: MODEL.apply({"params": state.params, **state.rest}, prepare(x)))
    state = steps.State(params, rest, optimizer.init(params))
    record = loop.train("float", step, predict, state, data, plan, cache / f"resnet20-float-{epochs}-{seed}")
    return Net({"params": record.state.params, **record.state.rest}, None, record.accuracy, float(record.seconds))


def train_row(
    name: str, start: typing.Any, data: fashion_mnist.Data, plan: loop.Plan, folder: pathlib.Path, rate: float = 0.02
) -> Net:
    """Trains through the rounding, from the variables of the float network and by its answers."""
    policy = ROWS[name].policy
    optimizer = sgd(optax.cosine_decay_schedule(rate, plan.steps(data)), 1e-4)
    sites = {}
    if policy.inputs:
        watch = jax.jit(jqz.observe(MODEL.apply, policy, jqz.observers.MSE()))
        sites = jqz.calibrate(watch(start, prepare(data.train.images[:1000])), policy)
    learning = {name: site for name, site in sites.items() if site.scheme.learns}
    params = {"weights": jqz.learnable(start, policy)["params"], "sites": learning}
    run, infer = jqz.simulated(training, policy), jqz.simulated(MODEL.apply, policy)

    def all_sites(params: typing.Any) -> typing.Any:
        return {**sites, **params["sites"]} or None

    def apply(params: typing.Any, rest: typing.Any, x: jax.Array) -> typing.Any:
        return run({"params": params["weights"], **rest}, all_sites(params), x)

    def predict(state: steps.State, x: jax.Array) -> jax.Array:
        return infer({"params": state.params["weights"], **state.rest}, all_sites(state.params), prepare(x))

    def answers(x: jax.Array) -> jax.Array:
        return jqz.lowered(MODEL.apply)(start, x)

    step = steps.make_step(apply, optimizer, prepare, (steps.shift(2), steps.flip), answers)
    state = steps.State(params, {"batch_stats": start["batch_stats"]}, optimizer.init(params))
    record = loop.train(name, step, jax.jit(predict), state, data, plan, folder)
    params = record.state.params
    rest = steps.reestimate(apply, record.state, data.train.images, prepare)
    return Net({"params": params["weights"], **rest}, all_sites(params), record.accuracy, float(record.seconds))


# --- the tables -------------------------------------------------------------------------------------------------------


def answers_of(fn: typing.Any, data: fashion_mnist.Data, *args: typing.Any) -> np.ndarray:
    """The class of each test image by ``fn(*args, images)``."""
    run = jax.jit(lambda args, x: fn(*args, prepare(x)))
    return loop.evaluate(run, args, data.test)


def rounding(net: Net, data: fashion_mnist.Data) -> None:
    """Table 1: parameters of the trained network rounded, nothing else done."""
    run = jax.jit(lambda variables, x: MODEL.apply(variables, prepare(x)))
    exact = loop.evaluate(run, net.variables, data.test)
    base = loop.accuracy(exact, data.test)
    print(f"float32: {base:.2f} %, {jqz.size_bytes(net.variables):,} bytes (paper: 90.87 %)")
    print(f"{'scheme':14}{'of':>8}{'bits':>5}{'top-1 %':>9}{'change':>8}{'paper':>8}{'change':>8}", end="")
    print(f"{'as float %':>11}{'packed':>9}{'gzip':>9}{'xz':>9}{'levels':>8}")
    minimum = {"anchor": jqz.schemes.Minimum()}
    schemes = {
        "ASYMM": lambda bits: jqz.Asymmetric(bits, **minimum),
        "ASYMM, printed": lambda bits: jqz.Asymmetric(bits, levels=jqz.schemes.Paper(), **minimum),
        "SYMM": jqz.Symmetric,
        "POWER-OF-2": lambda bits: jqz.PowerOfTwo(bits=None, rounding=jqz.schemes.Geometric()),
    }
    for part, glob in (("all", "**/{kernel,bias,scale,mean,var}"), ("kernels", "**/kernel")):
        for name, scheme in schemes.items():
            paper = PAPER[name.split(",")[0]]
            for bits in paper:
                coded = jqz.quantize(net.variables, {glob: scheme(bits)})
                plain = jax.device_get(jqz.dequantize(coded))
                ours = loop.evaluate(run, plain, data.test)
                top = loop.accuracy(ours, data.test)
                whole = jax.tree.leaves(coded, is_leaf=lambda leaf: isinstance(leaf, jqz.QTensor))
                stored = b"".join(leaf.tobytes() for leaf in jax.tree.leaves(plain))
                levels = np.mean([np.log2(len(np.unique(q.codes))) for q in whole if isinstance(q, jqz.QTensor)])
                print(
                    f"{name:14}{part:>8}{bits or '-':>5}{top:9.2f}{top - base:8.2f}{paper[bits]:8.2f}"
                    f"{paper[bits] - 90.87:8.2f}{100 * (ours == exact).mean():11.2f}{jqz.size_bytes(coded):9,}"
                    f"{len(gzip.compress(stored, 9, mtime=0)):9,}{len(lzma.compress(stored)):9,}{levels:8.2f}",
                    flush=True,
                )


def trained(name: str, net: Net, teacher: Net, data: fashion_mnist.Data) -> dict[str, float]:
    """What the trained network does on its codes, and on integers alone."""
    policy = ROWS[name].policy
    exact = answers_of(MODEL.apply, data, teacher.variables)
    coded = jqz.quantize(net.variables, policy)
    on_codes = answers_of(jqz.quantized(MODEL.apply, net.sites), data, coded)
    in_training = answers_of(jqz.simulated(MODEL.apply, policy), data, net.variables, net.sites)
    integers = on_codes
    if net.sites is None:  # trained for float activations: 8-bit ones are added now
        eight = jqz.Policy(dict(policy.rules), inputs=jqz.Asymmetric(bits=8))
        seen = jax.jit(jqz.observe(MODEL.apply, eight))(jqz.dequantize(coded), prepare(data.train.images[:1000]))
        integers = answers_of(jqz.quantized(MODEL.apply, jqz.calibrate(seen, eight)), data, coded)
    base = loop.accuracy(exact, data.test)
    top = loop.accuracy(on_codes, data.test)
    return {
        "codes": top,
        "change": top - base,
        "integers": loop.accuracy(integers, data.test),
        "as float %": 100 * float((on_codes == exact).mean()),
        "as simulated": int((on_codes == in_training).sum()),
        "bytes": jqz.size_bytes(coded),
        "seconds": net.seconds,
    }


def export(net: Net, path: pathlib.Path) -> None:
    """The float network in int8 codes, a scale a channel; all but kernels stay float32."""
    coded = jqz.quantize(net.variables, {"**/kernel": EIGHT})
    arrays = {}
    for at, leaf in jax.tree_util.tree_leaves_with_path(coded, is_leaf=lambda x: isinstance(x, jqz.QTensor)):
        name = "/".join(key.key for key in at)
        if isinstance(leaf, jqz.QTensor):
            arrays |= {f"{name}/codes": np.asarray(leaf.codes), f"{name}/scale": np.asarray(leaf.grid.scale)}
        else:
            arrays[name] = np.asarray(leaf)
    fashion_mnist.write_whole(path, lambda file: np.savez_compressed(file, **arrays))
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FOLDER", help="of Fashion-MNIST's idx files")
    parser.add_argument("--cache", default=".cache", metavar="FOLDER", help="for long runs and downloads")
    parser.add_argument("--epochs", type=int, default=12, help="of the float network (default 12)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=["rounding", "QAT"], metavar="WORD", help="rows that begin so")
    parser.add_argument("--export", metavar="FILE", help="writes the float network in int8 codes, and stops")
    args = parser.parse_args()
    jqz.tune_allocator()
    cache = pathlib.Path(args.cache).expanduser()
    data = fashion_mnist.load(args.data, cache)
    print(data.source)
    net = train_float(data, args.epochs, args.batch, args.seed, cache)
    if args.export:
        export(net, pathlib.Path(args.export))
        return
    if "rounding".startswith(tuple(args.only)):
        rounding(net, data)
    plan = loop.Plan(max(1, args.epochs // 4), args.batch, args.seed)
    for name in ROWS:
        if name.startswith(tuple(args.only)):
            folder = cache / f"resnet20-{name.replace(' ', '-').replace(',', '')}-{args.epochs}-{args.seed}"
            kept = folder / "figures.json"
            if not kept.exists():
                figures = trained(name, train_row(name, net.variables, data, plan, folder), net, data)
                fashion_mnist.write_whole(kept, lambda file, figures=figures: file.write(json.dumps(figures).encode()))
            figures = json.loads(kept.read_text())
            print(f"{name}: " + ", ".join(f"{key} {value:,.6g}" for key, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
