"""Small networks in which each rewriter of ``jqz.algorithms`` finds something to do.

A case is a function, its parameters, the inputs on which it must stay as it is (the first of which is measured), and
how the rewriter is called.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jqz


class Convolutions(nn.Module):
    """A convolution, a depthwise one and a pixel convolution with batch norms, and a dense layer."""

    @nn.compact
    def __call__(self, x):
        for channels, size, groups in ((6, 3, 1), (6, 3, 6), (5, 1, 1)):
            x = nn.Conv(channels, (size, size), feature_group_count=groups, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(3)(x.mean((1, 2)))


class AlwaysOn(nn.Module):
    """Convolutions that do not pad, with biases and batch norms, a depthwise one and pixels to two readers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), padding="VALID")(x))
        x = nn.Conv(6, (2, 2), padding="VALID", feature_group_count=6, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.Conv(5, (1, 1))(x) + nn.BatchNorm(use_running_average=True)(nn.Conv(5, (1, 1), use_bias=False)(x))
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


class Transformer(nn.Module):
    """Attention and a wide layer, each behind a norm, summed into a residual stream."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x))))


class RootMeanSquare(nn.Module):
    """The same with tokens, RMS norms, a gate and a last layer: its residual stream can be rotated."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8)(tokens) + self.param("positions", nn.initializers.normal(), (tokens.shape[1], 8))[None]
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.RMSNorm()(x))
        y = nn.RMSNorm()(x)
        x = x + nn.Dense(8, name="down")(nn.silu(nn.Dense(12, name="gate")(y)) * nn.Dense(12, name="up")(y))
        return nn.Dense(5, name="head")(nn.RMSNorm()(x))


class Case(typing.NamedTuple):
    fn: typing.Callable
    params: typing.Any
    inputs: list[jax.Array]
    run: typing.Callable


def drawn(model, shape, seed=0, tokens=0):
    """Parameters with no bias at 0, no scale at 1 and ranges of channels apart; two inputs."""
    rng = np.random.default_rng(seed)
    inputs = [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)]
    if tokens:
        inputs = [jnp.asarray(rng.integers(0, tokens, shape), jnp.int32) for _ in range(2)]

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        values = np.exp(rng.normal(size=leaf.shape[-1])) * rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape))
        if "var" in name or "scale" in name:
            values = rng.uniform(0.5, 2, leaf.shape)
        return jnp.asarray(values, jnp.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs[0])
    return model.apply, jax.tree_util.tree_map_with_path(fill, shapes), inputs


WEIGHTS = jqz.Policy({"**/kernel": jqz.Symmetric(3, jqz.PerAxis(-1))})


def _convolutions():
    fn, params, inputs = drawn(Convolutions(), (2, 6, 6, 3))
    return Case(fn, params, inputs, lambda rewriter: rewriter(fn, params, inputs[0]))


def _absorbed():
    fn, params, inputs = drawn(AlwaysOn(), (2, 6, 6, 3))
    params["params"]["Conv_0"]["bias"] = jnp.array([9.0, 0.1, 5.0, -1.0, 8.0, 12.0])
    params["params"]["BatchNorm_0"]["bias"] = jnp.array([9.0, -3.0, 7.0, 6.0, 8.0, 0.1])
    return Case(fn, params, inputs, lambda rewriter: rewriter(fn, params, inputs))


def _smooth():
    fn, params, inputs = drawn(Transformer(), (2, 5, 8))
    return Case(fn, params, inputs, lambda rewriter: rewriter(fn, params, inputs[:1]))


def _aware():
    fn, params, inputs = drawn(Transformer(), (2, 5, 8))
    return Case(fn, params, inputs, lambda rewriter: rewriter(fn, params, WEIGHTS, inputs[:1]))


def _rotated():
    fn, params, inputs = drawn(RootMeanSquare(), (2, 5), tokens=11)
    return Case(fn, params, inputs, lambda rewriter: rewriter(fn, params, jax.random.key(0), inputs[0]))


#: The name of each rewriter -> its case.
CASES: dict[str, typing.Callable[[], Case]] = {
    "equalize": _convolutions,
    "fold_batch_norm": _convolutions,
    "absorb_high_bias": _absorbed,
    "smooth_quant": _smooth,
    "awq": _aware,
    "hadamard": _rotated,
}
