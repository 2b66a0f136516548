"""Networks that the benchmarks share, as a Flax user would write them."""

import typing

import flax.linen as nn
import jax
import jax.numpy as jnp


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def norm(y: jax.Array) -> jax.Array:
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(y)

        y = nn.relu(norm(nn.Conv(self.features, (3, 3), self.strides, padding=1, use_bias=False)(x)))
        y = norm(nn.Conv(self.features, (3, 3), padding=1, use_bias=False)(y))
        if self.strides != 1 or x.shape[-1] != self.features:
            x = norm(nn.Conv(self.features, (1, 1), self.strides, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet-18 by default; ``ResNet((3, 3, 3), 16, stem=3, classes=10)`` is ResNet-20."""

    stages: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    stem: int = 7
    classes: int = 1000
    stem_stride: int | None = None  # 2 for a stem of 7, else 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        strides = self.stem_stride or (2 if self.stem == 7 else 1)
        x = nn.Conv(self.width, (self.stem, self.stem), strides, padding=self.stem // 2, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        if self.stem == 7:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                x = Block(self.width * 2**stage, 2 if stage and not block else 1)(x, train)
        return nn.Dense(self.classes)(x.mean((1, 2)))


class MobileNetV1(nn.Module):
    """Depthwise separable convolutions, each with a batch norm, or with a bias that it was merged into."""

    alpha: float = 1.0
    classes: int = 1000
    #: features and strides of the separable convolutions
    plan: tuple[tuple[int, int], ...] = (
        *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
        *((512, 1),) * 5,
        *((1024, 2), (1024, 1)),
    )
    merged: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def layer(x: jax.Array, features: int, kernel: int, strides: int = 1, groups: int = 1) -> jax.Array:
            conv = nn.Conv(features, (kernel, kernel), strides, feature_group_count=groups, use_bias=self.merged)
            norm = (lambda x: x) if self.merged else nn.BatchNorm(use_running_average=not train)
            return nn.relu6(norm(conv(x)))

        x = layer(x, int(32 * self.alpha), 3, 2)
        for features, strides in self.plan:
            x = layer(x, x.shape[-1], 3, strides, groups=x.shape[-1])
            x = layer(x, int(features * self.alpha), 1)
        return nn.Dense(self.classes)(x.mean((1, 2)))


class Encoder(nn.Module):
    """A MiniLM-like transformer encoder."""

    layers: int = 6
    width: int = 384
    heads: int = 12

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.layers):
            y = nn.MultiHeadDotProductAttention(self.heads)(x)
            x = nn.LayerNorm()(x + y)
            y = nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(x)))
            x = nn.LayerNorm()(x + y)
        return x


class Net(typing.NamedTuple):
    """A model, its apply, its variables, and an input."""

    model: nn.Module
    fn: typing.Callable[..., jax.Array]
    variables: typing.Any
    x: jax.Array


def _build(model: nn.Module, shape: tuple[int, ...]) -> Net:
    x = jax.random.normal(jax.random.key(1), shape)
    variables = jax.jit(model.init)(jax.random.key(0), x[:1])
    if "batch_stats" in variables:  # statistics that keep activations in a trained network's range
        _, updated = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables, x)
        scaled = jax.tree.map(lambda old, new: old + (new - old) * 10, variables["batch_stats"], updated["batch_stats"])
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.maximum(leaf, 0.05) if "var" in str(path[-1]) else leaf, scaled
        )
        variables = {**variables, "batch_stats": scaled}
    return Net(model, model.apply, variables, x)


NETWORKS: dict[str, typing.Callable[[int], Net]] = {
    "ResNet-18 224": lambda batch: _build(ResNet(), (batch, 224, 224, 3)),
    "ResNet-20 32": lambda batch: _build(ResNet((3, 3, 3), 16, 3, 10), (batch, 32, 32, 3)),
    "MobileNetV1 1.0-224": lambda batch: _build(MobileNetV1(), (batch, 224, 224, 3)),
    "MobileNetV1 0.25-128": lambda batch: _build(MobileNetV1(0.25), (batch, 128, 128, 3)),
    "encoder 6x384 seq 128": lambda batch: _build(Encoder(), (batch, 128, 384)),
}


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 convolutions, and a shortcut."""

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def layer(y: jax.Array, features: int, kernel: int, strides: int = 1) -> jax.Array:
            y = nn.Conv(features, (kernel, kernel), strides, padding=kernel // 2, use_bias=False)(y)
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(y)

        y = nn.relu(layer(x, self.features, 1))
        y = layer(nn.relu(layer(y, self.features, 3, self.strides)), 4 * self.features, 1)
        if x.shape != y.shape:
            x = layer(x, 4 * self.features, 1, self.strides)
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """53 convolutions and a dense layer."""

    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(64, (7, 7), 2, padding=3, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                x = Bottleneck(64 * 2**stage, 2 if stage and not block else 1)(x, train)
        return nn.Dense(self.classes)(x.mean((1, 2)))


NETWORKS["ResNet-50 224"] = lambda batch: _build(ResNet50(), (batch, 224, 224, 3))
