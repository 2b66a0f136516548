"""How few bits does ResNet-20 on Fashion-MNIST need, when each layer gets its own?

    python benchmarks/mixed_precision.py            # some minutes on two cores
    python benchmarks/mixed_precision.py --only absmax --measures KL

The network is tests/data/resnet20_fashion.npz. ``sensitivity`` scores all layers under schemes of 8 to 2 bits, one grid
a channel, on training images without their labels; ``search`` chooses from the scores. The first table compares one
width for all layers with chosen widths of the same average, all on the test images. The second says how many bits
suffice for a loss of one point, by the accuracy on training images that the scores do not use (the network was trained
on them). Rounding is to the nearest level; nothing else is repaired.

Then the same with everything that 512 unlabelled images can repair, --only repaired: GPTQ, with batch norms measured
again behind it, in the scores and in the accuracy that decides; behind the choice also rounding learned by blocks.
"""

import argparse
import pathlib
import sys
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np
import report
from networks import ResNet

import jqz
from jqz import algorithms
from jqz.algorithms import Sensitivity, sensitivity

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
import checkpoints
from parts import fashion_mnist

MODEL = ResNet((3, 3, 3), 16, stem=3, classes=10, stem_stride=2)
CHANNEL = jqz.PerAxis(-1)
WIDTHS = range(8, 1, -1)
ABSMAX = tuple(jqz.Symmetric(bits=bits, granularity=CHANNEL) for bits in WIDTHS)
OCTAV = tuple(jqz.Symmetric(bits=bits, granularity=CHANNEL, range=jqz.ranges.OCTAV()) for bits in WIDTHS)
POWERS = tuple(jqz.PowerOfTwo(bits=bits, granularity=CHANNEL) for bits in (4, 3))
#: Candidates: the largest magnitude is a level; a range that clips for the least error; whichever suits a layer.
KINDS: dict[str, tuple[jqz.Scheme, ...]] = {
    "absmax": ABSMAX,
    "OCTAV": OCTAV,
    "any": (*(s for s in (*ABSMAX, *OCTAV) if s.bits <= 5), *POWERS),
}
MEASURES = {
    "KL": jqz.measures.OutputKL(),
    "Fisher": jqz.measures.FisherDiagonal(),
    "weights": jqz.measures.WeightNoise(),
}


def prepare(images: np.ndarray) -> np.ndarray:
    return (images.astype(np.float32) / 255 - 0.286) / 0.353


class Accuracy:
    """Percent of right answers on one split, through one compiled program."""

    def __init__(self, split: fashion_mnist.Split, batch: int = 500):
        self.batches = np.split(prepare(split.images), len(split.images) // batch)
        self.labels = split.labels
        self.predict = jax.jit(lambda variables, x: jnp.argmax(jqz.lowered(MODEL.apply)(variables, x), -1))

    def __call__(self, variables: typing.Any) -> float:
        answers = np.concatenate([self.predict(variables, x) for x in self.batches])
        return 100 * float((answers == self.labels).mean())


class Rounded:
    """The network under any choice of these schemes, each of which rounds it once."""

    def __init__(self, variables: typing.Any, schemes: tuple[jqz.Scheme, ...]):
        flat, self.structure = jax.tree_util.tree_flatten_with_path(variables)
        self.paths = ["/".join(key.key for key in path) for path, _ in flat]
        self.leaves = {None: [leaf for _, leaf in flat]}
        for scheme in schemes:
            rounded = jax.jit(lambda tree, scheme=scheme: jqz.fake_quantize(tree, scheme))(variables)
            self.leaves[scheme] = jax.tree.leaves(rounded)

    def __call__(self, policy: jqz.Policy) -> typing.Any:
        return self.structure.unflatten([self.leaves[policy.scheme_at(path)][i] for i, path in enumerate(self.paths)])


def scored(variables: typing.Any, images: np.ndarray, schemes: tuple[jqz.Scheme, ...], name: str) -> Sensitivity:
    start = time.perf_counter()
    processor = time.process_time()
    found = sensitivity(jqz.lowered(MODEL.apply), variables, [images], schemes, MEASURES[name])
    print(
        f"{name}: {len(found.paths)} layers x {len(schemes)} widths on {len(images)} images in "
        f"{time.perf_counter() - start:.1f} s ({time.process_time() - processor:.1f} s of processor time)",
        flush=True,
    )
    return found


REPAIRED = tuple(jqz.Asymmetric(bits, CHANNEL, range=jqz.ranges.MSE()) for bits in (4, 3, 2, 1))


def repaired(variables: typing.Any, images: np.ndarray, test: Accuracy, held_out: Accuracy) -> None:
    """Widths chosen for what GPTQ, and batch norms measured again, make of them."""
    every = jqz.Policy({"**/kernel": REPAIRED[0]}, inputs=jqz.Identity())
    grams = jax.jit(jqz.observe(MODEL.apply, every, jqz.observers.Gram()))(variables, images)
    exact = test(variables)

    def rounder(params: typing.Any, policy: jqz.Policy) -> typing.Any:
        return algorithms.gptq(params, policy, grams)

    def normed(variables: typing.Any, x: jax.Array) -> jax.Array:
        return MODEL.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    def again(params: typing.Any) -> typing.Any:
        return algorithms.reestimate_batch_norm(MODEL.apply, params, [images])

    drop = jqz.budgets.AccuracyDrop(1.0, lambda params: held_out(jqz.dequantize(again(params))))
    choice = jqz.search(normed, variables, [images[:256]], REPAIRED, drop, rounder=rounder)
    points = {round(choice.average_bits(i), 4): i for i in range(len(choice.front))}
    wanted = [max(bits for bits in points if bits <= limit) for limit in (3, 2.5, 2.25, 2, 1.75, 1.5)]
    batches = [images[i : i + 64] for i in range(0, len(images) - 63, 64)]
    lines = []
    for bits in sorted({*wanted, round(choice.average_bits(), 4)}, reverse=True):
        rounded = again(rounder(variables, choice.policy_at(points[bits])))
        cells = [test(jqz.dequantize(rounded))]
        if points[bits] == choice.index or bits in wanted[2:4]:
            rounded = algorithms.reconstruct(MODEL.apply, variables, rounded, batches, steps=300)
            cells.append(test(jqz.dequantize(rounded)))
        mark = " (chosen)" if points[bits] == choice.index else ""
        lines.append([f"{bits:.2f}{mark}", *(f"{cell:.2f} ({exact - cell:.2f})" for cell in cells)])
        print(lines[-1], flush=True)
    lines = [[*line, *[""] * (3 - len(line))] for line in lines]
    report.table(
        ["average bits", "GPTQ (lost)", "and blocks"], lines, f"repaired with 512 images, {exact:.2f} in float"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FOLDER", help="of Fashion-MNIST's idx files")
    parser.add_argument("--images", type=int, default=256, help="unlabelled, for the scores (default 256)")
    kinds = [*KINDS, "repaired"]
    parser.add_argument("--only", nargs="+", default=kinds, choices=kinds, metavar="KIND", help=", ".join(kinds))
    parser.add_argument("--network", type=pathlib.Path, default=checkpoints.RESNET20, help="of tables.py --export")
    parser.add_argument("--measures", nargs="+", default=[*MEASURES], choices=MEASURES, help="of sensitivity")
    args = parser.parse_args()
    jqz.tune_allocator()
    data = fashion_mnist.load(args.data)
    print(data.source, report.in_words(report.facts()), sep="\n")
    variables = jax.tree.map(jnp.asarray, checkpoints.resnet20(args.network))
    images = prepare(data.train.images[: args.images])
    test = Accuracy(data.test)
    held_out = Accuracy(fashion_mnist.Split(data.train.images[-5000:], data.train.labels[-5000:]))
    exact = test(variables)
    print(f"float: {exact:.2f} % of the test images")

    if "repaired" in args.only:
        order = np.random.default_rng(0).permutation(len(data.train.images) - 5000)[:512]
        repaired(variables, prepare(data.train.images[order]), test, held_out)
    for kind in args.only:
        if kind not in KINDS:
            continue
        schemes = KINDS[kind]
        rounded = Rounded(variables, schemes)
        given = (MODEL.apply, variables, [images], schemes)
        scores = {name: scored(variables, images, schemes, name) for name in args.measures}

        lines = []
        for bits in (8.0, 6.0, 5.0, 4.0, 3.5, 3.0, 2.75, 2.5, 2.25, 2.0):
            one = [s for s in schemes if s.bits == bits]
            if bits > max(s.bits for s in schemes):
                continue
            cells = [f"{test(rounded(jqz.Policy(one[0]))):.2f}" if one else ""]
            for name in args.measures:
                choice = jqz.search(*given, jqz.budgets.AverageBits(bits), scores=scores[name])
                cells.append(f"{test(rounded(choice.policy)):.2f}")
            lines.append([f"{bits:g}", *cells])
            print(lines[-1], flush=True)
        report.table(["bits", "one width", *args.measures], lines, f"test accuracy, %: {kind}, {exact:.2f} in float")

        lines = []
        for name in args.measures:
            choice = jqz.search(*given, jqz.budgets.AccuracyDrop(1.0, held_out), scores=scores[name])
            reached = test(rounded(choice.policy))
            coded = jqz.size_bytes(jqz.quantize(variables, choice.policy))
            lines.append(
                [name, f"{choice.average_bits():.2f}", f"{reached:.2f}", f"{exact - reached:.2f}", f"{coded:,}"]
            )
        report.table(["scores", "bits", "test accuracy", "lost", "bytes"], lines, f"one point lost: {kind}")


if __name__ == "__main__":
    main()
