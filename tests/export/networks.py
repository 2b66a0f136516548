"""Small networks for other runtimes: between them, every operator that is exported."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import jqz
import jqz.export

POLICY = jqz.Policy({"**/kernel": jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1))}, inputs=jqz.Asymmetric(bits=8))


class Mobile(nn.Module):
    """Strided, depthwise and plain convolutions, batch norm, relu6, a residual, global mean."""

    @nn.compact
    def __call__(self, x):
        def layer(x, features, kernel, strides=1, groups=1, padding="SAME"):
            x = nn.Conv(features, (kernel, kernel), strides, padding, feature_group_count=groups, use_bias=False)(x)
            return nn.BatchNorm(use_running_average=True)(x)

        x = nn.relu6(layer(x, 8, 3, 2))
        y = nn.relu6(layer(x, 16, 3, groups=8))
        y = nn.relu(layer(y, 8, 1))
        y = layer(y, 8, 3, padding=((1, 1), (1, 1)), groups=2)
        x = nn.relu(x + y)
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        x = layer(x, 12, 3, strides=2, padding=((1, 1), (1, 1)))
        return nn.Dense(5)(x.mean((1, 2)))


def lenet(params, x):
    """Average pooling, tanh, flattening, softmax; images with their channels first."""
    spec = ("NCHW", "HWIO", "NCHW")
    x = jax.lax.conv_general_dilated(x, params["a/kernel"], (1, 1), "VALID", dimension_numbers=spec)
    x = jnp.clip(x + params["a/bias"][:, None, None][None], -0.75, 1.5).transpose(0, 2, 3, 1)
    x = nn.pooling.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4
    x = jax.lax.conv_general_dilated(
        x, params["b/kernel"], (1, 1), "VALID", rhs_dilation=(2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jnp.tanh(x.reshape(x.shape[0], -1) @ params["c/kernel"])
    return jax.nn.softmax((x @ params["d/kernel"]) * 4)


def branches(params, x):
    """Slices, concatenation, padding, a batch of rows, a shortcut of padded codes, bounds of its own."""
    a = jnp.clip(x @ params["a/kernel"], -1.0, 1.0)
    b = x[:, 1:] @ params["b/kernel"]
    y = jnp.concatenate([a[:, 1:], b], axis=-1)
    y = jax.nn.relu(y @ params["c/kernel"] + params["c/bias"][None, None])
    padded = jnp.pad(y, ((0, 0), (0, 1), (0, 0)))
    return jax.nn.sigmoid(padded + (x @ params["d/kernel"])), jnp.minimum(a @ params["e/kernel"], 2.0)


def functions(params, x):
    """Functions of numbers, each between products: both gelus, silu, hard swish, leaky relu, powers and quotients."""
    kinds = (jax.nn.gelu, jax.nn.silu, jax.nn.hard_swish, jax.nn.leaky_relu, lambda y: y / (1 + jnp.abs(y)) ** 2,
             functools.partial(jax.nn.gelu, approximate=False),
             lambda y: jnp.exp(-jnp.square(y)) - jnp.sqrt(jnp.log(jnp.maximum(2 - y, 0) + 1.5)))  # fmt: skip
    for kind, name in zip(kinds, "abcdefh", strict=True):
        x = kind(x @ params[f"{name}/kernel"])
    return jax.nn.relu(x @ params["float"] @ params["g/kernel"]) @ params["float"]  # which is not coded


def transformer(params, x):
    """Layer norm, attention over heads, a residual stream, a gate, a difference of products."""

    def normalized(x):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * params["scale"][None, None]

    y = normalized(x @ params["a/kernel"])
    q, k, v = (
        (y @ params[f"{name}/kernel"]).reshape(*y.shape[:2], 2, 4).transpose(0, 2, 1, 3) for name in ("q", "k", "v")
    )
    scores = jnp.where(jnp.tril(jnp.ones((4, 4), bool))[None, None], q @ k.transpose(0, 1, 3, 2) / 2, -1e9)
    mixed = (jax.nn.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(y.shape)
    y = y + mixed @ params["b/kernel"]
    z = normalized(y)
    return y + (jax.nn.sigmoid(z @ params["c/kernel"]) * (z @ params["d/kernel"])), (x @ params["e/kernel"]) - y


def resized(params, x):
    """Bilinear resizing, which is products with matrices of its own, and the nearest neighbours of codes."""
    x = jax.nn.relu(x @ params["a/kernel"])
    near = jax.image.resize(x, (x.shape[0], 6, 3, 3), "nearest")
    return jax.image.resize(x, (x.shape[0], 6, 5, 3), "bilinear") @ params["b/kernel"], near @ params["c/kernel"]


def filled(shapes):
    rng = np.random.default_rng(7)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        values = 1.5 * rng.standard_normal(leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        return jnp.asarray(
            rng.uniform(0.5, 1.5, leaf.shape) if "var" in name or "scale" in name else values, jnp.float32
        )

    return jax.tree_util.tree_map_with_path(fill, shapes)


def _mobile():
    variables = filled(jax.eval_shape(Mobile().init, jax.random.key(0), jnp.ones((1, 12, 12, 3))))
    scale = variables["params"]["BatchNorm_1"]["scale"]
    variables["params"]["BatchNorm_1"]["scale"] = scale.at[0].set(0).at[1].multiply(-1)
    return Mobile().apply, variables, (12, 12, 3)


def kernels(**shapes):
    return filled({name.replace("_", "/"): jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()})


def _nnx():
    graph, state = nnx.split(nnx.eval_shape(lambda: nnx.Linear(6, 7, rngs=nnx.Rngs(0))))
    return lambda state, x: jax.nn.relu(nnx.merge(graph, state)(x)), filled(state), (6,)


def _means():
    """Means of 5 x 3 codes, of which one in twelve ends halfway between two codes of the result."""
    codes = np.random.default_rng(5).integers(-100, 156, (40, 5, 3, 64))
    codes[0, ..., 0], codes[0, ..., 1] = 104, -100  # sums 12 * 255 apart
    assert codes.sum((1, 2)).max() == 104 * 15

    def fn(params, x):
        means = (x @ params["a/kernel"]).mean((1, 2), keepdims=True)
        return means.reshape(len(x), 64) @ params["b/kernel"]

    return fn, {"a/kernel": jnp.eye(64), "b/kernel": jnp.eye(64)}, np.float32(0.02) * codes.astype(np.float32)


def sums(params, x):
    """Sums over axes and windows."""
    y = jax.nn.relu(x @ params["a/kernel"])
    windows = jax.lax.reduce_window(y, np.float32(0), jax.lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")
    return (
        y.sum((1, 2)) @ params["b/kernel"],
        y.sum(1, keepdims=True) @ params["b/kernel"],
        windows @ params["c/kernel"],
    )


NETWORKS: dict[str, typing.Callable] = {
    "mobile": _mobile,
    "lenet": lambda: (
        lenet,
        kernels(a_kernel=(3, 3, 2, 6), a_bias=(6,), b_kernel=(2, 2, 6, 4), c_kernel=(16, 9), d_kernel=(9, 5)),
        (2, 10, 10),
    ),
    "branches": lambda: (
        branches,
        kernels(
            a_kernel=(8, 6), b_kernel=(8, 4), c_kernel=(10, 3), c_bias=(3,), d_kernel=(8, 3), e_kernel=(6, 3)
        ),
        (4, 8),
    ),
    "functions": lambda: (functions, kernels(float=(9, 9), **{f"{name}_kernel": (9, 9) for name in "abcdefgh"}), (9,)),
    "transformer": lambda: (
        transformer,
        kernels(scale=(8,), **{f"{name}_kernel": (8, 8) for name in "abcdeqkv"}),
        (4, 8),
    ),
    "resized": lambda: (resized, kernels(a_kernel=(2, 3), b_kernel=(3, 5), c_kernel=(3, 5)), (4, 4, 2)),
    "sums": lambda: (sums, kernels(a_kernel=(4, 8), b_kernel=(8, 8), c_kernel=(8, 8)), (5, 3, 4)),
    "nnx": _nnx,
    "means": _means,
}  # fmt: skip


class Case(typing.NamedTuple):
    net: typing.Any
    x: np.ndarray


#: Activations of 16 bits.
LONG = jqz.Policy(dict(POLICY.rules), inputs=jqz.Symmetric(bits=16))


@functools.cache
def case(name, policy=POLICY):
    """A complete net and 40 inputs, of which it has seen 20, on the grid of the input."""
    fn, variables, x = NETWORKS[name]()
    if isinstance(x, tuple):  # a shape
        x = np.random.default_rng(3).standard_normal((40, *x)).astype(np.float32)
    net = jqz.export.complete(jqz.convert(fn, variables, [x[:20]], policy), x[:20])
    return Case(net, x)


#: Schemes of weights, and the bytes that a kernel's value takes in a file.
FORMATS = {
    "float32": (None, 4),
    "float16": (jqz.Float(jqz.schemes.Float16()), 2),
    "int8": (jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1)), 1),
    "int4": (jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1)), 0.5),
}


@functools.cache
def weights_only(name):
    """A dense net and a convolution whose weights alone are coded, and inputs."""

    def fn(params, x):
        spec = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, params["a/kernel"], (1, 1), "SAME", dimension_numbers=spec)
        y = jax.nn.relu(y + params["a/bias"][None, None, None]).reshape(x.shape[0], -1) @ params["b/kernel"]
        return jax.nn.gelu(y - y.mean(-1, keepdims=True)) @ params["c/kernel"]

    params = kernels(a_kernel=(3, 3, 2, 8), a_bias=(8,), b_kernel=(200, 64), c_kernel=(64, 5))
    x = np.random.default_rng(3).standard_normal((12, 5, 5, 2)).astype(np.float32)
    return Case(jqz.convert(fn, params, [], jqz.Policy({"**/kernel": FORMATS[name][0]})), x)


@functools.cache
def four_bits():
    """A dense net on codes, with weights of 4 bits, and inputs."""
    params = kernels(a_kernel=(64, 64), b_kernel=(64, 64))
    x = np.random.default_rng(3).standard_normal((12, 64)).astype(np.float32)
    policy = jqz.Policy({"**/kernel": FORMATS["int4"][0]}, inputs=jqz.Asymmetric(bits=8))

    def fn(params, x):
        return jax.nn.relu(x @ params["a/kernel"]) @ params["b/kernel"]

    return Case(jqz.export.complete(jqz.convert(fn, params, [x], policy), x), x)


@functools.cache
def wanted(name, rule):
    """What the net returns under a rule."""
    net, x = case(name)
    return [np.asarray(y) for y in jax.tree.leaves(dataclasses.replace(net, requant=rule)(x))]
