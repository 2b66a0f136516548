"""A model with one layer of every kind, each with a scheme of its own: what rounders are tried on."""

import jax
import jax.numpy as jnp
import numpy as np

import jqz

CHANNEL = jqz.PerAxis(-1)


def _conv(x, w, **kwargs):
    return jax.lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **kwargs)


#: name -> (function of (weight, input), weight's shape, input's shape, scheme)
LAYERS = {
    "dense": (lambda w, x: x @ w, (12, 5), (40, 12), jqz.Symmetric(3, CHANNEL)),
    "groups": (lambda w, x: x @ w, (12, 4), (40, 12), jqz.Asymmetric(2, jqz.PerGroup(5))),
    "transposed": (
        lambda w, x: x @ w.T,
        (12, 12),
        (40, 12),
        jqz.Codebook(2),
    ),
    "heads": (lambda w, x: jnp.einsum("bhd,hdo->bo", x, w), (3, 4, 5), (40, 3, 4), jqz.PowerOfTwo(bits=3)),
    "chain": (lambda w, x: jnp.einsum("oi,bi->bo", w, x), (5, 12), (40, 12), jqz.Symmetric(8) >> jqz.PowerOfTwo(3)),
    "conv": (
        lambda w, x: _conv(x, w, window_strides=(2, 1), padding=((1, 0), (0, 2)), rhs_dilation=(1, 2)),
        (3, 2, 3, 4),
        (6, 7, 6, 3),
        jqz.PowerOfTwo(bits=3, granularity=CHANNEL),
    ),
    "grouped": (
        lambda w, x: _conv(
            x, w, window_strides=(1, 1), padding=((1, 0), (0, 1)), lhs_dilation=(2, 1), feature_group_count=2
        ),
        (2, 2, 3, 4),
        (4, 3, 5, 6),
        jqz.Symmetric(2, CHANNEL),
    ),
    "stack": (
        lambda w, x: jax.lax.scan(lambda h, w: (jnp.tanh(h), h @ w), x, w)[1],
        (2, 8, 8),
        (30, 8),
        jqz.Symmetric(3, jqz.PerAxis((0, -1))),
    ),
}

POLICY = jqz.Policy({name: layer[3] for name, layer in LAYERS.items()}, inputs=jqz.Identity())


def model(params, inputs):
    """What each layer computes from an input of its own."""
    return {name: LAYERS[name][0](w, inputs[name]) for name, w in params.items()}


def draw(seed=0):
    """Weights, and inputs whose terms are correlated, one of them dead."""
    rng = np.random.default_rng(seed)
    params, inputs = {}, {}
    for name, (_, shape, seen, _) in LAYERS.items():
        mix = rng.normal(size=(seen[-1], seen[-1])) + 2
        x = rng.normal(size=seen) @ mix
        x[..., 1] = 0
        params[name], inputs[name] = (jnp.asarray(a, jnp.float32) for a in (rng.normal(size=shape), x))
    return params, inputs


def errors(params, inputs, qparams):
    """The squared change of what each layer computes, by the layers themselves."""
    outputs = [model(tree, inputs) for tree in (params, jqz.dequantize(qparams))]
    return jax.tree.map(lambda a, b: float(np.sum((np.asarray(a, np.float64) - b) ** 2)), *outputs)
