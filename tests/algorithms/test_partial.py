"""Partial policies: what stays out, on networks whose order and ends are known."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

import jqz
from jqz.algorithms import heads, layers, most_sensitive, only, residual_ties, sensitivity, skip_first, skip_last

FOUR, EIGHT = jqz.Symmetric(bits=4), jqz.Symmetric(bits=8)
NAMES = ("stem", "one", "two", "boxes", "classes")


def detector(params, x):
    x = jax.nn.relu(x @ params["stem"] + params["bias"][None])
    x = x + jax.jit(lambda w, x: jnp.tanh(x @ w))(params["one"], x) @ params["two"].T
    boxes = (x @ params["boxes"]).reshape(-1, 2, 2)
    return jnp.concatenate([boxes, jax.nn.softmax(x @ params["classes"])[:, None]], axis=1), x.sum()


PARAMS = {
    "bias": jnp.zeros(6),
    "stem": jnp.ones((3, 6)),
    "one": jnp.ones((6, 5)),
    "two": jnp.ones((6, 5)),
    "boxes": jnp.ones((6, 4)),
    "classes": jnp.ones((6, 2)),
}
X = jnp.ones((2, 3))


def test_layers_heads_and_ties_of_a_detector():
    assert layers(detector, PARAMS, X) == NAMES
    # the sum that is returned too ends at the stem and at the residual
    assert heads(detector, PARAMS, X) == ("stem", "two", "boxes", "classes")
    assert heads(lambda p, x: detector(p, x)[0], PARAMS, X) == ("boxes", "classes")
    assert residual_ties(detector, PARAMS, X) == (("stem", "two"),)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
    assert layers(detector, shapes, X) == NAMES


@pytest.mark.parametrize("kind", ["mlp", "convolution and batch norm", "equinox", "nnx", "MobileNetV2"])
def test_layers_run_in_the_order_of_the_audit(kind):
    case = models.MODELS[kind]()
    named = jax.eval_shape(lambda tree: jqz.quantize(tree, jqz.Identity()), case.variables)
    audited = [product.name for product in jqz.audit(case.fn)(named, case.x).products]
    assert list(layers(case.fn, case.variables, case.x)) == audited
    assert heads(case.fn, case.variables, case.x) == (audited[-1],)


def test_the_ends_are_skipped():
    assert skip_first(NAMES, FOUR, 2, instead=EIGHT) == jqz.Policy(
        {"stem": EIGHT, "one": EIGHT, "two": FOUR, "boxes": FOUR, "classes": FOUR}
    )
    assert skip_last(NAMES, FOUR, 2) == jqz.Policy(
        {"stem": FOUR, "one": FOUR, "two": FOUR, "boxes": None, "classes": None}
    )
    every = jqz.Policy(dict.fromkeys(NAMES, FOUR))
    assert skip_first(NAMES, FOUR, 0) == skip_last(NAMES, FOUR, 0) == every
    assert skip_first(NAMES, FOUR, 5) == skip_last(NAMES, FOUR, 5) == jqz.Policy(dict.fromkeys(NAMES))
    coded = jqz.quantize(PARAMS, skip_last(NAMES, FOUR, 2))
    assert [name for name in NAMES if isinstance(coded[name], jqz.QTensor)] == ["stem", "one", "two"]


def test_backbone_and_heads():
    ends = heads(lambda p, x: detector(p, x)[0], PARAMS, X)
    backbone = only(NAMES, set(NAMES) - set(ends), FOUR, instead=jqz.Symmetric(bits=16))
    assert dict(backbone.rules) == {
        **dict.fromkeys(NAMES[:3], FOUR),
        **dict.fromkeys(NAMES[3:], jqz.Symmetric(bits=16)),
    }


def test_the_most_sensitive_are_spared():
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal((5, 5)).astype(np.float32) for name in "abc"}

    def model(p, x):  # what goes through b alone is seen
        return x @ p["b"] + 1e-3 * (x @ p["a"] + 0.1 * (x @ p["c"]))

    scores = sensitivity(
        model, params, [rng.standard_normal((9, 5)).astype(np.float32)], [FOUR], jqz.measures.OutputNoise()
    )
    assert dict(most_sensitive(scores, FOUR, 1).rules) == {"a": FOUR, "b": None, "c": FOUR}
    assert dict(most_sensitive(scores, EIGHT, 2, instead=FOUR).rules) == {"a": FOUR, "b": FOUR, "c": EIGHT}


def test_what_they_refuse():
    with pytest.raises(ValueError, match="wanted 0 to 5"):
        skip_first(NAMES, FOUR, 6)
    with pytest.raises(ValueError, match="wanted 0 to 5"):
        skip_last(NAMES, FOUR, -1)
    with pytest.raises(TypeError, match="paths of weights"):
        skip_last("abc", FOUR)
    with pytest.raises(ValueError, match="'stem2' is not among"):
        only(NAMES, ["stem2"], FOUR)


def test_heads_of_a_product_of_two_activations():
    params = {"img": jnp.ones((4, 3)), "txt": jnp.ones((5, 3))}
    found = jqz.algorithms.heads(
        lambda p, i, t: (i @ p["img"]) @ (t @ p["txt"]).T, params, jnp.ones((2, 4)), jnp.ones((2, 5))
    )
    assert set(found) == {"img", "txt"}
