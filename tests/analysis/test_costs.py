"""Costs against counts made by hand."""

import math

import jax
import jax.numpy as jnp
import models
import pytest

import jqz
from jqz.analysis import costs

FOUR, EIGHT = jqz.Symmetric(bits=4), jqz.Asymmetric(bits=8)


def test_layers_in_order_with_their_bits():
    case = models.MODELS["mlp"]()
    policy = jqz.Policy({"**/Dense_2/kernel": None, "**/kernel": FOUR}, inputs={"**/Dense_0/*": EIGHT})
    found = costs(case.fn, policy)(case.variables, case.x)
    assert [layer.name for layer in found.layers] == [f"params/Dense_{i}/kernel" for i in range(3)]
    assert [layer.macs for layer in found.layers] == [4 * 12 * 24, 4 * 24 * 16, 4 * 16 * 10]
    assert [layer.weights for layer in found.layers] == [12 * 24, 24 * 16, 16 * 10]
    assert [layer.weight_bits for layer in found.layers] == [4, 4, 32]
    assert [layer.input_bits for layer in found.layers] == [8, 32, 32]
    assert [layer.weight_bytes for layer in found.layers] == [12 * 24 // 2 + 4, 24 * 16 // 2 + 4, 16 * 10 * 4]
    operations = 4 * 12 * 24 * 4 * 8 + 4 * 24 * 16 * 4 * 32 + 4 * 16 * 10 * 32 * 32
    assert found.bit_operations == operations
    assert found.macs == sum(layer.macs for layer in found.layers)
    assert f"{operations:,}" in str(found)


def test_it_runs_nothing_and_takes_shapes():
    case = models.MODELS["convolution and batch norm"]()
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (case.variables, case.x))
    found = costs(case.fn, FOUR)(*shapes)
    assert found == costs(case.fn, FOUR)(case.variables, case.x)
    assert found.layers[0].macs == 2 * 6 * 6 * 16 * 3 * 3 * 3
    assert costs(case.fn)(*shapes).macs == found.macs
    assert costs(case.fn)(*shapes).bit_operations == 32 * 32 * found.macs


def test_quantized_variables_count_as_they_are():
    case = models.MODELS["mlp"]()
    coded = jqz.quantize(case.variables, FOUR)
    assert costs(case.fn)(coded, case.x) == costs(case.fn, FOUR)(case.variables, case.x)


def test_weights_used_twice_and_products_without_weights():
    def model(params, x):
        y = x @ params["w"] @ params["w"]
        return jnp.dot(y, y.T)

    inputs = {"(dot lhs)": EIGHT, "(dot rhs)": FOUR}
    found = costs(model, jqz.Policy({"w": FOUR}, inputs=inputs))({"w": jnp.ones((6, 6))}, jnp.ones((2, 6)))
    assert [layer.name for layer in found.layers] == ["w", "w#2", "(dot)"]
    assert found.weight_bytes == 6 * 6 // 2 + 4
    last = found.layers[-1]
    assert (last.macs, last.weights, last.weight_bits, last.input_bits, last.weight_bytes) == (2 * 2 * 6, 0, 4, 8, 0)


def test_unknown_rules_are_refused():
    case = models.MODELS["mlp"]()
    with pytest.raises(ValueError, match="costs: rule"):
        costs(case.fn, {"**/Dense_9/*": FOUR})(case.variables, case.x)
    assert math.isfinite(costs(case.fn)(case.variables, case.x).macs)
