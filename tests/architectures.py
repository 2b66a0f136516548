"""Published architectures on tiny shapes: their layers, joints and order, with few channels and repetitions."""

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen as nn


class LeNet5(nn.Module):
    """Two convolutions with average pooling, three dense layers, tanh."""

    @nn.compact
    def __call__(self, x):
        for channels in (6, 8):
            x = nn.tanh(nn.Conv(channels, (3, 3), padding="VALID")(x))
            x = nn.pooling.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4
        x = x.reshape(len(x), -1)
        for width in (12, 8):
            x = nn.tanh(nn.Dense(width)(x))
        return nn.Dense(5)(x)


def _normed(x, channels, size, strides=1, groups=1):
    x = nn.Conv(channels, (size, size), strides, feature_group_count=groups, use_bias=False)(x)
    return nn.BatchNorm(use_running_average=True)(x)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a strided pixel convolution, or slices and pads as in ResNet-20."""

    channels: int
    strides: int = 1
    padded: bool = False

    @nn.compact
    def __call__(self, x):
        y = _normed(nn.relu(_normed(x, self.channels, 3, self.strides)), self.channels, 3)
        if x.shape != y.shape and self.padded:
            x = jnp.pad(x[:, :: self.strides, :: self.strides], [(0, 0)] * 3 + [(0, self.channels - x.shape[-1])])
        elif x.shape != y.shape:
            x = _normed(x, self.channels, 1, self.strides)
        return nn.relu(x + y)


class ResNet20(nn.Module):
    """Three stages over a 3 x 3 stem; shortcuts without weights."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(_normed(x, 4, 3))
        for channels, strides in ((4, 1), (8, 2), (12, 2)):
            x = ResidualBlock(channels, strides, padded=True)(x)
        return nn.Dense(5)(x.mean((1, 2)))


class ResNet18(nn.Module):
    """A strided 7 x 7 stem, max pooling, stages whose first block has a convolution for a shortcut."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(_normed(x, 8, 7, 2)), (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for channels, strides in ((8, 1), (12, 2)):
            x = ResidualBlock(channels, strides)(x)
        return nn.Dense(5)(x.mean((1, 2)))


class MobileNetV1(nn.Module):
    """Depthwise and pixel convolutions in turn."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(_normed(x, 8, 3, 2))
        for channels, strides in ((12, 1), (16, 2)):
            x = nn.relu(_normed(x, x.shape[-1], 3, strides, groups=x.shape[-1]))
            x = nn.relu(_normed(x, channels, 1))
        return nn.Dense(5)(x.mean((1, 2)))


class MobileNetV2(nn.Module):
    """Inverted residuals: pixels to more channels, depthwise, linear back to few; relu6."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu6(_normed(x, 8, 3, 2))
        for channels, strides in ((8, 1), (12, 2)):
            y = nn.relu6(_normed(x, 3 * x.shape[-1], 1))
            y = nn.relu6(_normed(y, y.shape[-1], 3, strides, groups=y.shape[-1]))
            y = _normed(y, channels, 1)
            x = x + y if x.shape == y.shape else y
        return nn.Dense(5)(nn.relu6(_normed(x, 16, 1)).mean((1, 2)))


class Encoder(nn.Module):
    """Token and position embeddings, blocks of attention and a wide layer with norms behind them, mean pooling."""

    @nn.compact
    def __call__(self, tokens):
        positions = self.param("positions", nn.initializers.normal(), (tokens.shape[-1], 12))
        x = nn.LayerNorm()(nn.Embed(20, 12)(tokens) + positions[None])
        for _ in range(2):
            x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(num_heads=2)(x))
            x = nn.LayerNorm()(x + nn.Dense(12)(nn.gelu(nn.Dense(24)(x))))
        return nn.Dense(5)(x.mean(1))


class DecoderLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        mask = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x), mask=mask)
        return x + nn.Dense(12)(nn.silu(nn.Dense(24)(nn.LayerNorm()(x)))), None


class Decoder(nn.Module):
    """Causal layers stacked by nn.scan; the embedding is also the last layer."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(20, 12)
        stack = nn.scan(DecoderLayer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return embed.attend(nn.LayerNorm()(stack(name="layers")(embed(tokens), None)[0]))


class LSTM(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5)(nn.RNN(nn.OptimizedLSTMCell(12))(x)[:, -1])


class Experts(nn.Module):
    """A mixture of experts: each token goes to the one that a router chooses, all experts in one ragged dot."""

    @nn.compact
    def __call__(self, x):
        chosen = jnp.argmax(nn.Dense(3, use_bias=False, name="router")(x), -1)
        order = jnp.argsort(chosen)
        sizes = jnp.bincount(chosen, length=3)
        up = self.param("up", nn.initializers.normal(), (3, 12, 16))
        down = self.param("down", nn.initializers.normal(), (3, 16, 12))
        hidden = nn.relu(jax.lax.ragged_dot(x[order], up, sizes))
        return x + jax.lax.ragged_dot(hidden, down, sizes)[jnp.argsort(order)]


class EquinoxConvNet(eqx.Module):
    """Channels first, one image at a time: to be mapped over a batch."""

    convolutions: list[eqx.nn.Conv2d]
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.convolutions = [
            eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0]),
            eqx.nn.Conv2d(8, 12, 3, stride=2, key=keys[1]),
        ]
        self.head = eqx.nn.Linear(12, 5, key=keys[2])

    def __call__(self, image):
        for convolution in self.convolutions:
            image = jax.nn.relu(convolution(image))
        return self.head(image.mean((1, 2)))
