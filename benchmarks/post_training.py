"""What does rounding after training cost ResNet-20 on Fashion-MNIST, with no data and with a few images?

    python benchmarks/post_training.py                      # minutes on two cores
    python benchmarks/post_training.py --images 512 --only "2 bits"
    python benchmarks/post_training.py --network FILE.npz   # another one, of benchmarks/tables.py --export

The network is the one of tests/data. All weights of convolutions and of the last layer have one grid for each output
channel. Columns, top-1 on the 10,000 test images:

- nearest: every weight to its nearest level; in brackets, with a grid that covers the largest magnitude
- data-free: GPTQ on inputs synthesized from the statistics of the batch norms
- images: GPTQ on unlabelled training images; batch norms measured again on them
- blocks: the same, then rounding learned for whole blocks on these images
"""

import argparse
import pathlib
import sys
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np
from networks import ResNet

import jqz
from jqz import algorithms

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
import checkpoints
from parts import fashion_mnist

MODEL = ResNet((3, 3, 3), 16, stem=3, classes=10, stem_stride=2)
CHANNEL = jqz.PerAxis(-1)

#: name -> (scheme, its plain form, points below float that are aimed at: data-free, with images)
ROWS: dict[str, tuple[jqz.Scheme, jqz.Scheme, tuple[float, float]]] = {
    f"{bits} bits": (
        jqz.Asymmetric(bits, CHANNEL, range=jqz.ranges.MSE()),
        jqz.Symmetric(bits, CHANNEL),
        goal,
    )
    for bits, goal in ((4, (0.30, 0.12)), (3, (0.9, 0.35)), (2, (6.0, 1.5)))
}
POWERS = jqz.PowerOfTwo(bits=4, granularity=CHANNEL)
ROWS["powers of two, 4 bits"] = (POWERS, POWERS, (0.8, 0.3))


def prepare(images: np.ndarray) -> jax.Array:
    return (jnp.asarray(images, jnp.float32) / 255 - 0.286) / 0.353


class Setting(typing.NamedTuple):
    """The float network, the test images in batches, and inputs to measure with."""

    variables: typing.Any
    tests: list[tuple[jax.Array, np.ndarray]]
    inputs: dict[str, jax.Array]


def setting(network: pathlib.Path, images: int, synthetic: int, steps: int) -> Setting:
    data, variables = fashion_mnist.load(), jax.tree.map(jnp.asarray, checkpoints.resnet20(network))
    order = np.random.default_rng(0).permutation(len(data.train.images))[:images]
    shape = (synthetic, *data.test.images.shape[1:])
    inputs = {
        "data-free": algorithms.synthesize_inputs(MODEL.apply, variables, shape, jax.random.key(0), steps=steps),
        "images": prepare(data.train.images[order]),
    }
    starts = range(0, len(data.test.images), 2000)
    tests = [(prepare(data.test.images[i : i + 2000]), data.test.labels[i : i + 2000]) for i in starts]
    return Setting(variables, tests, inputs)


@jax.jit
def _classes(variables: typing.Any, x: jax.Array) -> jax.Array:
    return jqz.lowered(MODEL.apply)(variables, x).argmax(-1)


def accuracy(variables: typing.Any, tests: list[tuple[jax.Array, np.ndarray]]) -> float:
    decoded = jqz.dequantize(variables)
    return 100 * float(np.mean(np.concatenate([np.asarray(_classes(decoded, x)) == y for x, y in tests])))


def row(scheme: jqz.Scheme, plain: jqz.Scheme, s: Setting) -> dict[str, float]:
    """The accuracy by each method, and the bits a weight, grids included."""
    policy = jqz.Policy({"**/kernel": scheme}, inputs=jqz.Identity())
    watch = jax.jit(jqz.observe(MODEL.apply, policy, jqz.observers.Gram()))
    nearest = jqz.quantize(s.variables, policy)
    found = {
        "bits": jqz.bits_per_weight(jax.tree.leaves(nearest["params"])),
        "plain": accuracy(jqz.quantize(s.variables, jqz.Policy({"**/kernel": plain})), s.tests),
        "nearest": accuracy(nearest, s.tests),
    }
    for name, x in s.inputs.items():
        qparams = algorithms.gptq(s.variables, policy, watch(s.variables, x))
        if name == "images":
            qparams = algorithms.reestimate_batch_norm(MODEL.apply, qparams, [x])
        found[name] = accuracy(qparams, s.tests)
    batches = [x[i : i + 64] for i in range(0, len(x) - 63, 64)]
    found["blocks"] = accuracy(algorithms.reconstruct(MODEL.apply, s.variables, qparams, batches, steps=300), s.tests)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", type=pathlib.Path, default=checkpoints.RESNET20)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--synthetic", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200, help="of synthesis")
    parser.add_argument("--only", choices=ROWS)
    args = parser.parse_args()
    jqz.tune_allocator()
    start = time.perf_counter()
    s = setting(args.network, args.images, args.synthetic, args.steps)
    exact = accuracy(s.variables, s.tests)
    print(f"float32: {exact:.2f} %\n")
    print(
        "| weights | nearest | data-free | lost (goal) | images | lost (goal) | blocks |\n|---|---|---|---|---|---|---|"
    )
    for name, (scheme, plain, goals) in ROWS.items():
        if args.only in (None, name):
            found = row(scheme, plain, s)
            lost = [f"{exact - found[key]:.2f} ({goal})" for key, goal in zip(s.inputs, goals, strict=True)]
            print(
                f"| {name} | {found['nearest']:.2f} ({found['plain']:.2f}) | {found['data-free']:.2f} | {lost[0]} "
                f"| {found['images']:.2f} | {lost[1]} | {found['blocks']:.2f} |",
                flush=True,
            )
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
