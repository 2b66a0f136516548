import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jqz
from jqz._policy import resolve

S8, S4, S3 = (jqz.Symmetric(bits=b) for b in (8, 4, 3))


def _tree():
    return {
        "params": {
            "Dense_0": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)},
            "Dense_1": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
            "norm": {"scale": jnp.ones((2, 3)), "var": jnp.ones((2, 3))},
            "step": jnp.zeros((), jnp.int32),
            "ids": jnp.zeros((4, 3), jnp.int32),
        }
    }


def _chosen(policy, tree=None):
    decisions, _ = resolve("quantize", policy, _tree() if tree is None else tree)
    return {d.path: d.scheme for d in decisions if d.scheme is not None}


def test_first_match_wins():
    policy = jqz.Policy({"**/Dense_1/*": None, "**/Dense_0/**": S4, "**/kernel": S8})
    assert _chosen(policy) == {"params/Dense_0/kernel": S4}
    policy = jqz.Policy({"**/kernel": S8, "**/Dense_0/kernel": S4})
    assert _chosen(policy) == {"params/Dense_0/kernel": S8, "params/Dense_1/kernel": S8}
    assert policy.scheme_at("params/Dense_0/kernel") == S8
    assert policy.scheme_at("params/Dense_0/bias") is None


def test_only_weights_are_taken_unless_named():
    kernels = {"params/Dense_0/kernel": S8, "params/Dense_1/kernel": S8}
    for policy in (S8, jqz.Policy(S8), {"**": S8}, {"params/**": S8}, {"**/*": S8}, {"**/Dense_?/*": S8}):
        assert _chosen(policy) == kernels
    assert set(_chosen({"**/bias": S8})) == {"params/Dense_0/bias", "params/Dense_1/bias"}
    assert set(_chosen({"**/norm/{scale,var}": S8})) == {"params/norm/scale", "params/norm/var"}
    assert set(_chosen({"**/b*": S8})) == {"params/Dense_0/bias", "params/Dense_1/bias"}


def test_integers_are_never_taken_by_rules():
    assert set(_chosen({"**/{ids,Dense_0/kernel}": S8})) == {"params/Dense_0/kernel"}
    assert _chosen({"**/ids": None, "**/step*": None}) == {}


@pytest.mark.parametrize(("glob", "path"), [("**/ids", "params/ids"), ("params/st*", "params/step")])
def test_a_rule_that_names_integers_alone_is_a_mistake(glob, path):
    message = f"quantize: rule '{glob}' names nothing but what has no codes: '{path}' is int32, wanted a floating dtype"
    with pytest.raises(TypeError, match=re.escape(message)):
        _chosen({glob: S8})
    with pytest.raises(TypeError, match="'a' is float, wanted"):
        _chosen({"**/a": S8}, {"a": 1.0})


def test_biases_of_scanned_layers_stay_float():
    stack = {"layers": {"kernel": jnp.ones((5, 4, 3)), "bias": jnp.ones((5, 3)), "scale": jnp.ones((5, 3))}}
    assert set(_chosen(S8, stack)) == {"layers/kernel"}


def test_a_rule_that_matches_nothing_names_what_is_near():
    message = (
        r"quantize: rule '\*\*/Dense_0/kernle' matches none of 8 leaves. "
        r"Nearest paths: 'params/Dense_0/kernel', .* Use one of these, or remove the rule."
    )
    with pytest.raises(ValueError, match=message):
        jqz.quantize(_tree(), jqz.Policy({"**/kernel": S8, "**/Dense_0/kernle": S4}))
    with pytest.raises(ValueError, match="fake_quantize: rule 'x' matches none"):
        jqz.fake_quantize(_tree(), jqz.Policy({"x": None}))
    with pytest.raises(ValueError, match="none, the tree is empty"):
        jqz.quantize({}, jqz.Policy({"**/kernel": S8}))
    assert jqz.quantize({}, S8) == {}  # a bare scheme asks for no leaf in particular


def test_callable_policies_decide_alone():
    seen = []

    def policy(path, leaf):
        seen.append((path, leaf.shape))
        return S3 if path.endswith("Dense_1/bias") else None

    assert _chosen(policy) == {"params/Dense_1/bias": S3}
    assert ("params/Dense_0/kernel", (4, 3)) in seen
    with pytest.raises(TypeError, match=r"quantize: 'params/ids' has dtype int32.*map this path to None"):
        jqz.quantize(_tree(), lambda path, leaf: S8 if path.endswith("ids") else None)
    with pytest.raises(TypeError, match="the policy gives 'params/Dense_0/bias' 4, wanted a Scheme or None"):
        jqz.quantize(_tree(), lambda path, leaf: 4)


def test_trees_of_schemes():
    tree = {"a": jnp.ones((2, 2)), "b": [jnp.ones((2, 2)), jnp.ones(2)]}
    assert _chosen({"a": None, "b": [S8, S4]}, tree) == {"b/0": S8, "b/1": S4}
    with pytest.raises(ValueError, match=r"got .* wanted a Policy, a Scheme, a callable, or a tree"):
        jqz.quantize(tree, {"a": S8})
    with pytest.raises(ValueError, match="got None, wanted a Policy"):
        jqz.quantize(tree, None)


def test_one_array_takes_its_scheme_whatever_it_is():
    for x in (jnp.ones(()), jnp.ones(3), jnp.ones((2, 2))):
        assert isinstance(jqz.quantize(x, S8), jqz.QTensor)
    with pytest.raises(TypeError, match="the array has dtype int32, wanted a floating dtype"):
        jqz.quantize(jnp.ones(3, jnp.int32), S8)
    with pytest.raises(TypeError, match="the array is float, wanted an array"):
        jqz.quantize(1.5, S8)


def test_wrong_policies_are_refused():
    with pytest.raises(TypeError, match=r"got the class Symmetric, wanted a policy. Use Symmetric\(\.\.\.\)"):
        jqz.quantize(_tree(), jqz.Symmetric)
    with pytest.raises(TypeError, match=r"rule '\*\*/kernel' maps to .*Symmetric.*a class needs its parentheses"):
        jqz.Policy({"**/kernel": jqz.Symmetric})
    with pytest.raises(TypeError, match="got 8, wanted a dict of rules"):
        jqz.Policy(8)
    with pytest.raises(TypeError, match=r"Policy\(inputs=...\): rule 'x' maps to 8"):
        jqz.Policy(S8, inputs={"x": 8})


def test_quantized_leaves_are_not_quantized_again():
    once = jqz.quantize(_tree(), {"**/Dense_0/kernel": S8})
    twice = jqz.quantize(once, {"**/kernel": S4})
    assert {p: q.scheme for p, q in _quantized(twice).items()} == {
        "params/Dense_0/kernel": S8,
        "params/Dense_1/kernel": S4,
    }
    with pytest.raises(ValueError, match=r"'params/Dense_0/kernel' is quantized already .*Use dequantize first"):
        jqz.quantize(once, lambda path, leaf: S4)


def _quantized(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, jqz.QTensor))
    return {"/".join(k.key for k in path): leaf for path, leaf in flat if isinstance(leaf, jqz.QTensor)}


def test_inputs():
    policy = jqz.Policy({"**/kernel": S4}, inputs={"**/Dense_0/kernel": None, "**/kernel": S8})
    assert policy.input_at("params/Dense_1/kernel") == S8
    assert policy.input_at("params/Dense_0/kernel") is None
    assert jqz.Policy(S4).input_at("a") is None
    assert jqz.Policy(S4, inputs=S8).input_at("anything") == S8


def test_repr_hash_and_equality():
    policy = jqz.Policy({"**/head": None, "**/kernel": jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1))}, inputs=S8)
    again = eval(repr(policy), vars(jqz))
    assert again == policy
    assert hash(again) == hash(policy)
    assert policy != jqz.Policy({"**/kernel": S4})
    assert repr(jqz.Policy({"**/kernel": S4})) == "Policy({'**/kernel': Symmetric(bits=4)})"


def test_linen_variables():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(nn.Conv(3, (2, 2))(x)).mean((1, 2)))

    variables = jax.eval_shape(Model().init, jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    assert _chosen(jqz.Policy(S8), variables) == {"params/Conv_0/kernel": S8, "params/Dense_0/kernel": S8}


def test_nnx_states_and_modules():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)])
            self.norm = nnx.BatchNorm(2, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.layers[1](self.layers[0](x)), use_running_average=True)

    model = Model(nnx.Rngs(0))
    policy = jqz.Policy({"layers/0/kernel": None, "**/kernel": S8})
    graph, state = nnx.split(model)
    for tree in (state, model):
        assert _chosen(policy, tree) == {"layers/1/kernel": S8}
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)
    by_state = nnx.merge(graph, jqz.dequantize(jqz.quantize(state, policy)))(x)
    by_module = jqz.dequantize(jqz.quantize(model, policy))(x)
    by_hand = nnx.merge(graph, state)
    by_hand.layers[1].kernel[...] = jqz.fake_quantize(by_hand.layers[1].kernel[...], S8)
    np.testing.assert_allclose(by_state, by_hand(x), rtol=1e-6)
    np.testing.assert_allclose(by_module, by_hand(x), rtol=1e-6)
