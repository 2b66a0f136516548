"""Every kind of weight with every kind of activation, in dots and convolutions as models write them.

Each runs on the values that its schemes round to: in integers where both grids allow it, and otherwise in float.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jqz

Symmetric, Asymmetric, PerAxis, PerGroup = jqz.Symmetric, jqz.Asymmetric, jqz.PerAxis, jqz.PerGroup
FP8 = jqz.Float(jqz.schemes.E4M3())


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def conv(*size, **kwargs):
    return nn.Conv(8, size, use_bias=False, **kwargs)


#: A module without biases, and the shape of its input.
MODULES = {
    "dense over two axes": (nn.DenseGeneral(6, axis=(-2, -1), use_bias=False), (3, 4, 8)),
    "a batch of matrices": (nn.Einsum((2, 8, 5), "bni,nio->bno", use_bias=False), (3, 2, 8)),
    "3-D": (conv(2, 2, 2), (2, 4, 4, 4, 8)),
    "pixels": (conv(1, 1), (2, 5, 5, 8)),
    "few channels": (conv(3, 3), (2, 6, 6, 3)),
    "strided": (conv(3, 3, strides=2), (2, 7, 7, 8)),
    "dilated, grouped": (conv(3, 3, kernel_dilation=2, feature_group_count=2), (2, 7, 7, 8)),
    "spread": (conv(3, 3, input_dilation=2, padding=1), (2, 4, 4, 8)),
    "causal": (conv(3, padding="CAUSAL"), (2, 9, 8)),
    "depthwise, strided": (conv(3, 3, feature_group_count=8, strides=2, padding="VALID"), (2, 7, 7, 8)),
    "transposed": (nn.ConvTranspose(8, (2, 2), strides=(2, 2), use_bias=False), (2, 4, 4, 8)),
    "transposed, 1-D": (nn.ConvTranspose(8, (3,), strides=(2,), padding="VALID", use_bias=False), (2, 5, 8)),
}

#: A scheme of the weights, one of the activations, and whether integers can do it in a dot, and in a convolution.
PAIRS = {
    "int8 of a tensor, uint8 of a row": (Symmetric(bits=8), Asymmetric(bits=8, granularity=PerAxis(0)), True, True),
    "zero points on both sides": (Asymmetric(bits=8, granularity=PerAxis(-1)), Asymmetric(bits=8), True, True),
    "int4, int8": (Symmetric(bits=4, granularity=PerAxis(-1)), Asymmetric(bits=8), True, True),
    "int4, int4": (Symmetric(bits=4, granularity=PerAxis(-1)), Symmetric(bits=4), True, True),
    "int4 in groups, int8": (Symmetric(bits=4, granularity=PerGroup(2)), Asymmetric(bits=8), None, False),
    "powers of two, int8": (Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4), Asymmetric(bits=8), True, True),
    "fp8, int8": (FP8, Symmetric(bits=8), False, False),
    "int8, fp8": (Symmetric(bits=8), FP8, False, False),
}


@pytest.mark.parametrize("name", MODULES)
def test_pairs(name):
    module, shape = MODULES[name]
    x = normal(1, *shape) + 0.5
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: normal(0, *leaf.shape), shapes)
    coded = {pair: jqz.quantize(variables, weights) for pair, (weights, *_) in PAIRS.items()}

    @jax.jit
    def both(coded, x):
        return {
            pair: (
                jqz.quantized(module.apply, inputs=PAIRS[pair][1])(q, x),
                jqz.simulated(module.apply, jqz.Policy({}, inputs=PAIRS[pair][1]))(q, None, x),
            )
            for pair, q in coded.items()
        }

    is_conv = isinstance(module, nn.Conv | nn.ConvTranspose)
    for pair, (got, wanted) in both(coded, x).items():
        _, inputs, *integral = PAIRS[pair]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()), err_msg=pair)
        (product,) = jqz.audit(module.apply, inputs=inputs)(coded[pair], x).products
        if integral[is_conv] is not None:
            assert product.how == ("int8" if integral[is_conv] else "rounded float"), (pair, product)


def test_embeddings_by_look_up_one_hot_product_and_attend():
    """Three ways to read a table, and the one to multiply by it."""
    q = jqz.quantize({"params": {"embedding": normal(0, 10, 8)}}, Symmetric(bits=4, granularity=PerAxis(0)))
    rows, embed, tokens = q["params"]["embedding"].dequantize(), nn.Embed(10, 8), jnp.array([[1, 9], [0, 4]])

    def one_hot(variables, tokens):
        return jax.nn.one_hot(tokens, 10) @ variables["params"]["embedding"]

    def take(variables, tokens):
        return jnp.take(variables["params"]["embedding"], tokens, axis=0)

    for read in (embed.apply, take):
        np.testing.assert_array_equal(jqz.quantized(read)(q, tokens), rows[tokens])
    for inputs in (None, Symmetric(bits=8)):  # ones and zeros are exact at 8 bits
        np.testing.assert_allclose(jqz.quantized(one_hot, inputs=inputs)(q, tokens), rows[tokens], rtol=1e-6)
    (product,) = jqz.audit(one_hot, inputs=Symmetric(bits=8))(q, tokens).products
    assert product.how == "rounded float"  # each row has a scale, and the product sums over rows
    columns = jqz.quantize(jqz.dequantize(q), Symmetric(bits=8, granularity=PerAxis(-1)))
    (product,) = jqz.audit(one_hot, inputs=Symmetric(bits=8))(columns, tokens).products
    assert product.how == "int8"

    x, inputs = normal(1, 3, 8), Symmetric(bits=8)

    def attend(variables, x):
        return embed.apply(variables, x, method="attend")

    np.testing.assert_allclose(jqz.quantized(attend)(q, x), x @ rows.T, rtol=1e-5, atol=1e-5)
    got = jqz.quantized(attend, inputs=inputs)(q, x)
    np.testing.assert_allclose(got, inputs.simulate(x) @ rows.T, rtol=1e-5, atol=1e-5)
    assert [p.how for p in jqz.audit(attend, inputs=inputs)(q, x).products] == ["int8"]
