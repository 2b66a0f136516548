"""Small models of every kind: (name, function of (variables, x), variables, x)."""

import typing

import architectures
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx


class Case(typing.NamedTuple):
    """A function of (variables, x), and arguments for it."""

    fn: typing.Callable
    variables: typing.Any
    x: jax.Array


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i, width in enumerate((24, 16)):
            x = nn.relu(nn.Dense(width, name=f"Dense_{i}")(x))
        return nn.Dense(10, name="Dense_2")(x)


class ConvNet(nn.Module):
    """Strided, dilated, grouped and depthwise convolutions with batch norm and a residual."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(16, (3, 3), strides=2, use_bias=False)(x)))
        y = nn.Conv(16, (3, 3), feature_group_count=16, use_bias=False)(x)
        y = nn.relu6(nn.BatchNorm(use_running_average=not train)(y))
        x = x + nn.Conv(16, (1, 1), kernel_dilation=1)(y)
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Conv(24, (3, 3), padding="VALID", kernel_dilation=1, feature_group_count=2)(x)
        x = nn.ConvTranspose(8, (2, 2), strides=(2, 2))(x)
        return nn.Dense(5)(x.mean((1, 2)))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=16)(nn.LayerNorm()(x))
        return x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))


class Recurrent(nn.Module):
    """An embedding and a GRU under scan."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(20, 12)(tokens)
        x = nn.RNN(nn.GRUCell(features=16))(x)
        return nn.Embed(20, 16, name="out").attend(x)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(12)(x)), None


class Stacked(nn.Module):
    """Layers stacked by nn.scan over nn.remat."""

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return stack(name="layers")(x, None)[0]


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        for layer in self.layers:
            x = nnx.silu(layer(x))
        return x


def _filled(shapes: typing.Any) -> typing.Any:
    """Random values for a tree of shapes: no bias is zero, no scale is one, variances are positive."""
    rng = np.random.default_rng(7)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        values = rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        if "var" in name or "scale" in name:
            values = rng.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def _linen(model: nn.Module, x) -> Case:
    return Case(model.apply, _filled(jax.eval_shape(model.init, jax.random.key(0), x)), x)


def _nnx(x) -> Case:
    graph, state = nnx.split(nnx.eval_shape(lambda: NNXNet(nnx.Rngs(0))))
    return Case(lambda state, x: nnx.merge(graph, state)(x), _filled(state), x)


def _nnx_scan(x) -> Case:
    @nnx.vmap(in_axes=0)
    def make(key):
        return nnx.Linear(12, 12, rngs=nnx.Rngs(key))

    graph, state = nnx.split(nnx.eval_shape(lambda: make(jax.random.split(jax.random.key(0), 3))))

    def forward(state, x):
        return jax.lax.scan(lambda h, s: (jnp.tanh(nnx.merge(graph, s)(h)), None), x, state)[0]

    return Case(forward, _filled(state), x)


def _equinox(make: typing.Callable, x) -> Case:
    net = eqx.filter_eval_shape(lambda: make(jax.random.key(0)))
    params, static = eqx.partition(net, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    return Case(lambda params, x: jax.vmap(eqx.combine(params, static))(x), _filled(params), x)


def _control(x) -> Case:
    """cond, while, custom derivatives, checkpoint, and a dot whose weight comes first and transposed."""

    @jax.custom_vjp
    def product(w, x):
        return jnp.einsum("io,bi->ob", w, x)

    product.defvjp(lambda w, x: (product(w, x), (w, x)), lambda r, g: (r[1].T @ g.T, (r[0] @ g).T))

    def forward(params, x):
        x = jax.lax.cond(x.sum() > 0, lambda p, x: x @ p["a"]["kernel"], lambda p, x: x - 1, params, x)
        x = jax.lax.while_loop(
            lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.tanh(c[1] @ params["b"]["kernel"])), (0, x)
        )[1]
        x = jax.checkpoint(lambda x: nn.silu(x @ params["b"]["kernel"].T))(x)
        return product(params["a"]["kernel"], x), params["b"]["kernel"].sum()

    kernel = jax.ShapeDtypeStruct((6, 6), jnp.float32)
    params = jax.tree.map(lambda w: 2 * w, _filled({"a": {"kernel": kernel}, "b": {"kernel": kernel}}))
    return Case(forward, params, x)


def _normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)


TOKENS = jnp.array([[3, 1, 19, 0, 7], [2, 2, 11, 5, 18]])

KINDS: dict[str, typing.Callable[[], Case]] = {
    "mlp": lambda: _linen(MLP(), _normal(4, 12)),
    "convolution and batch norm": lambda: _linen(ConvNet(), _normal(2, 12, 12, 3)),
    "attention": lambda: _linen(Attention(), _normal(2, 6, 16)),
    "embedding and GRU": lambda: _linen(Recurrent(), TOKENS),
    "scanned stack": lambda: _linen(Stacked(), _normal(4, 12)),
    "nnx": lambda: _nnx(_normal(2, 6, 6, 3)),
    "nnx scan": lambda: _nnx_scan(_normal(4, 12)),
    "equinox": lambda: _equinox(lambda key: eqx.nn.MLP(6, 4, 16, 2, key=key), _normal(4, 6)),
    "control flow": lambda: _control(_normal(4, 6)),
}

#: Published architectures: larger, so with fewer schemes each.
ARCHITECTURES: dict[str, typing.Callable[[], Case]] = {
    "LeNet-5": lambda: _linen(architectures.LeNet5(), _normal(2, 12, 12, 1)),
    "ResNet-20": lambda: _linen(architectures.ResNet20(), _normal(2, 8, 8, 3)),
    "ResNet-18": lambda: _linen(architectures.ResNet18(), _normal(2, 16, 16, 3)),
    "MobileNetV1": lambda: _linen(architectures.MobileNetV1(), _normal(2, 8, 8, 3)),
    "MobileNetV2": lambda: _linen(architectures.MobileNetV2(), _normal(2, 8, 8, 3)),
    "equinox convolutions": lambda: _equinox(architectures.EquinoxConvNet, _normal(2, 3, 6, 6)),
    "encoder": lambda: _linen(architectures.Encoder(), TOKENS),
    "decoder": lambda: _linen(architectures.Decoder(), TOKENS),
    "LSTM": lambda: _linen(architectures.LSTM(), _normal(2, 4, 6)),
    "mixture of experts": lambda: _linen(architectures.Experts(), _normal(8, 12)),
}

MODELS = KINDS | ARCHITECTURES


def some(name: str, table: dict[str, typing.Any], one: str) -> dict[str, typing.Any]:
    """All of a table for a small model, one entry for an architecture or for what another library traces."""
    return table if name in KINDS and not name.startswith(("nnx", "equinox")) else {one: table[one]}
