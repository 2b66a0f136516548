"""ResNet-20 on Fashion-MNIST."""

import argparse
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import optax
from networks import ResNet

import jqz

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
from parts import fashion_mnist, loop, steps

MODEL = ResNet((3, 3, 3), 16, stem=3, classes=10, stem_stride=2)
FLOAT = jqz.Policy({"**/kernel": jqz.Identity()})


def prepare(x):
    return (x.astype(jnp.float32) / 255 - 0.286) / 0.353


def training(policy):
    """ResNet-20 as it trains under a policy, with the gradients of its convolutions in forms that are fast on CPU."""
    apply = jqz.simulated(functools.partial(MODEL.apply, train=True, mutable=["batch_stats"]), policy)
    return lambda params, rest, x: apply({"params": params, **rest}, None, x)


def schedule(total, peak):
    return optax.cosine_onecycle_schedule(total, peak, pct_start=0.3)


def sgd(rate):
    decay = optax.add_decayed_weights(5e-4, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree))
    return optax.chain(decay, optax.sgd(rate, momentum=0.9, nesterov=True))


def train_float(data, plan, folder, peak=0.2):
    optimizer = sgd(schedule(plan.steps(data), peak))
    variables = MODEL.init(jax.random.key(plan.seed), jnp.zeros((1, *data.train.images.shape[1:])))
    params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
    step = steps.make_step(training(FLOAT), optimizer, prepare, (steps.shift(2), steps.flip))
    infer = jax.jit(lambda s, x: MODEL.apply({"params": s.params, **s.rest}, prepare(x)))
    state = steps.State(params, rest, optimizer.init(params))
    return loop.train("float", step, infer, state, data, plan, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--cache", default=".cache")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    jqz.tune_allocator()
    cache = pathlib.Path(args.cache)
    data = fashion_mnist.load(args.data, cache)
    print(data.source)
    train_float(data, loop.Plan(args.epochs, 128, args.seed), cache / f"resnet20-float-{args.epochs}-{args.seed}")


if __name__ == "__main__":
    main()
