"""The audit tells what ran how: against hand counts."""

import jax.numpy as jnp
import models

import jqz

INT8 = jqz.Symmetric(bits=8)


def by_name(audit):
    return {product.name: product for product in audit.products}


def test_products_are_counted_and_their_bytes_are_those_stored():
    case = models.MODELS["mlp"]()
    qparams = jqz.quantize(case.variables, {"**/Dense_2/kernel": None, "**/kernel": INT8})
    audit = jqz.audit(case.fn, inputs=INT8)(qparams, case.x)
    rows = by_name(audit)
    assert [p.how for p in audit.products] == ["int8", "int8", "float"]
    assert rows["params/Dense_0/kernel"].multiplications == 4 * 12 * 24
    assert rows["params/Dense_1/kernel"].multiplications == 4 * 24 * 16
    assert rows["params/Dense_0/kernel"].weight_bytes == 12 * 24 + 4
    total = 4 * (12 * 24 + 24 * 16 + 16 * 10)
    assert audit.share("int8") == 4 * (12 * 24 + 24 * 16) / total
    assert "no coded weight" in str(audit)
    assert "90.0 % of MACs in int8" not in str(audit)


def test_convolutions_and_scanned_layers_are_counted():
    case = models.MODELS["convolution and batch norm"]()
    rows = by_name(jqz.audit(case.fn, inputs=INT8)(jqz.quantize(case.variables, INT8), case.x))
    assert rows["params/Conv_0/kernel"].multiplications == 2 * 6 * 6 * 16 * 3 * 3 * 3
    assert rows["params/Conv_1/kernel"].multiplications == 2 * 6 * 6 * 16 * 3 * 3
    stack = models.MODELS["scanned stack"]()
    (row,) = jqz.audit(stack.fn, inputs=INT8)(jqz.quantize(stack.variables, INT8), stack.x).products
    assert row.multiplications == 3 * 4 * 12 * 12


def test_reasons():
    def model(params, x, scaled=True):
        assert scaled is True  # a static argument stays what it is
        return x @ params["a"] @ params["b"] + jnp.einsum("bi,bi->b", x, x)[:, None]

    params = jqz.quantize({"a": jnp.eye(4), "b": jnp.eye(4)}, {"**/a": INT8, "**/b": jqz.Codebook(bits=2)})
    weight_only = jqz.audit(model)(params, jnp.ones((2, 4)), scaled=True)
    assert {p.why for p in weight_only.products} == {"weight-only: activations stay float", "no coded weight"}
    dynamic = by_name(jqz.audit(model, inputs=INT8)(params, jnp.ones((2, 4))))
    assert (dynamic["a"].how, dynamic["a"].why) == ("int8", "dynamic range")
    assert dynamic["b"].how == "rounded float"
    assert "no integer levels" in dynamic["b"].why
    policy = jqz.Policy(INT8, inputs=INT8)
    floats = {"a": jnp.eye(4), "b": jnp.eye(4)}
    sites = jqz.calibrate(jqz.observe(model, policy)(floats, jnp.ones((2, 4))), policy)
    static = by_name(jqz.audit(model, sites)(jqz.quantize(floats, policy), jnp.ones((2, 4))))
    assert (static["b"].how, static["b"].why) == ("int8", "static range")
