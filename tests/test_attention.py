"""Products of two activations, as in attention: named by scope, rounded where a rule says so."""

import functools

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import linen as nn

import jqz

WEIGHTS = jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1))
ASKED = jqz.Policy(WEIGHTS, inputs={"**/(dot*)": jqz.Asymmetric(bits=8), "**": jqz.Asymmetric(bits=8)})
SCORES = "MultiHeadDotProductAttention_0/...qhd,...khd->...hqk"
MIXING = "MultiHeadDotProductAttention_0/...hqk,...khd->...qhd"


@functools.cache
def case(name):
    return models.MODELS[name]()


@functools.cache
def observed(name):
    fn, variables, x = case(name)
    return jax.jit(jqz.observe(fn, ASKED))(variables, x)


def products(sites):
    return {name for name in sites if "/(" in name}


@pytest.mark.parametrize("name", ["attention", "encoder", "decoder"])
def test_the_law_with_rounded_attention(name):
    fn, variables, x = case(name)
    sites = jqz.calibrate(observed(name), ASKED)
    q = jqz.quantize(variables, ASKED)
    got = jax.jit(jqz.quantized(fn, sites))(q, x)
    wanted = jax.jit(jqz.simulated(fn, ASKED))(variables, sites, x)
    error = np.abs(got - wanted) / np.abs(wanted).max()
    assert np.median(error) < 1e-5
    assert error.max() < 0.03


def test_both_operands_of_both_products_have_sites():
    scope = "Attention/" + SCORES, "Attention/" + MIXING
    wanted = {f"{s}/(dot {side})" for s in scope for side in ("lhs", "rhs")}
    assert products(observed("attention")) == wanted


def test_ranges_are_those_of_queries_keys_probabilities_and_values():
    """Against the attention block in NumPy: extremes of q / sqrt(d), k, softmax(q k) and v."""
    _, variables, x = case("attention")
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), variables["params"])
    x = np.asarray(x, np.float64)
    norm, attention = p["LayerNorm_0"], p["MultiHeadDotProductAttention_0"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * norm["scale"] + norm["bias"]
    q, k, v = (
        np.einsum("bte,ehd->bthd", x, attention[part]["kernel"]) + attention[part]["bias"]
        for part in ("query", "key", "value")
    )
    scores = np.einsum("bqhd,bkhd->bhqk", q / 2, k)
    probabilities = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    stats = observed("attention")

    def seen(scope):
        return {
            tuple(np.round([s.observer.low, s.observer.high], 4)) for name, s in stats.items() if scope + "/(" in name
        }

    def extremes(*arrays):
        return {tuple(np.round(np.float32([a.min(), a.max()]), 4)) for a in arrays}

    for scope, arrays in ((SCORES, (q / 2, k)), (MIXING, (probabilities, v))):
        np.testing.assert_allclose(sorted(seen(scope)), sorted(extremes(*arrays)), atol=2e-4)


def test_layers_of_a_scanned_stack_have_grids_of_their_own():
    sites = jqz.calibrate(observed("decoder"), ASKED)
    assert len(products(sites)) == 4
    for name in products(sites):
        assert name.startswith("Decoder/layers/MultiHeadDotProductAttention_0/")
        assert sites[name].lengths == (2,)
        assert sites[name].grid.scale.shape[0] == 2


def test_attention_stays_float_unless_a_rule_names_it():
    fn, variables, x = case("attention")
    everything = jqz.Policy(WEIGHTS, inputs={"**": jqz.Asymmetric(bits=8), "Attention/**": jqz.Symmetric(bits=8)})
    assert not products(jqz.observe(fn, everything)(variables, x))
    q = jqz.quantize(variables, everything)
    hows = {p.name: p.how for p in jqz.audit(fn, inputs=everything)(q, x).products}
    assert {how for name, how in hows.items() if "/(" in name} == {"float"}
    assert {how for name, how in hows.items() if "/(" not in name} == {"int8"}


def test_the_audit_uses_the_names_of_the_sites():
    fn, variables, x = case("attention")
    sites = jqz.calibrate(observed("attention"), ASKED)
    audit = jqz.audit(fn, sites)(jqz.quantize(variables, ASKED), x)
    assert {p.how for p in audit.products} == {"int8"}
    assert {p.why for p in audit.products} == {"static range"}
    names = {p.name for p in audit.products}
    assert {name.replace(" lhs)", ")").replace(" rhs)", ")") for name in sites} == names


def test_one_operand_alone():
    def fn(x):
        with jax.named_scope("self"):
            return jnp.einsum("bi,bj->ij", x, x * 2)

    x = jax.random.normal(jax.random.key(0), (4, 3))
    name = "self/bi,bj->ij/(dot lhs)"
    scheme = jqz.Symmetric(bits=3)
    inputs = {"**/(dot lhs)": scheme}
    (product,) = jqz.audit(fn, inputs=inputs)(x).products
    assert (product.name, product.how) == ("self/bi,bj->ij/(dot)", "rounded float")
    assert product.why == "the other operand stays float"
    assert list(jqz.observe(fn, jqz.Policy({}, inputs=inputs))(x)) == [name]
    left, right = fn_operands(fn, x)
    wanted = scheme.simulate(left).T @ right
    got = jqz.quantized(fn, inputs=inputs)(x)
    assert min(np.abs(got - wanted).max(), np.abs(got - wanted.T).max()) < 1e-5


def fn_operands(fn, x):
    """The operands of the only dot, in the order that JAX gives them."""
    seen = jax.make_jaxpr(fn)(x)
    ((dot, _),) = [(e, i) for i, e in enumerate(seen.eqns) if e.primitive.name == "dot_general"]
    return (x, 2 * x) if dot.invars[0] is seen.jaxpr.invars[0] else (2 * x, x)


def test_names_are_stable():
    """Under batch size, sequence length, jit, remat and vmap; scopes around a jit are those within."""
    model = nn.MultiHeadDotProductAttention(num_heads=2)
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    variables = model.init(jax.random.key(1), x)

    def names(fn, x):
        return set(jax.eval_shape(jqz.observe(fn, ASKED), variables, x))

    wanted = names(model.apply, x)
    assert len(products(wanted)) == 4
    assert names(model.apply, x[:1, :3]) == wanted
    assert names(jax.jit(model.apply), x) == wanted
    assert names(jax.checkpoint(model.apply), x) == wanted
    assert names(jax.vmap(model.apply, in_axes=(None, 0)), x[:, None]) == wanted
    outer, inner = jax.named_scope("outer"), jax.jit(model.apply)
    assert products(names(outer(inner), x)) == {f"outer/{name}" for name in products(wanted)}


def test_dynamic_filters():
    """A convolution of two activations."""

    def fn(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    keys = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(keys[0], (2, 5, 5, 3)), jax.random.normal(keys[1], (3, 3, 3, 4))
    policy = jqz.Policy({}, inputs={"(conv *)": jqz.Asymmetric(bits=8)})
    run = jqz.quantized(fn, inputs=policy)
    (product,) = jqz.audit(fn, inputs=policy)(x, kernel).products
    assert (product.name, product.how) == ("(conv)", "int8")
    scheme = jqz.Asymmetric(bits=8)
    np.testing.assert_allclose(run(x, kernel), fn(scheme.simulate(x), scheme.simulate(kernel)), rtol=1e-4, atol=1e-4)


def test_gradients_pass_straight_through_both():
    def fn(x, y):
        return (x @ y.T).sum()

    policy = jqz.Policy({}, inputs={"(dot *)": jqz.Symmetric(bits=4)})
    x, y = jax.random.normal(jax.random.key(0), (2, 3, 4))
    run = jqz.simulated(lambda variables, x, y: fn(x, y), policy)
    got = jax.grad(lambda x, y: run({}, None, x, y), argnums=(0, 1))(x, y)
    rounded = [jqz.Symmetric(bits=4).simulate(v) for v in (x, y)]
    for a, b in zip(got, jax.grad(fn, argnums=(0, 1))(*rounded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
