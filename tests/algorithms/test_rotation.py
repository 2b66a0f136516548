"""Rotated weights: what they were multiplied with is found by least squares, and must be a Hadamard matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rewritable

import jqz
from jqz.algorithms import hadamard

KEY = jax.random.key(5)


def multiplied(before, after):
    """The matrix R of after = before R, both (rows, channels)."""
    return np.linalg.lstsq(np.asarray(before, np.float64), np.asarray(after, np.float64), rcond=None)[0]


def model(params, x):
    return (x @ params["down"] + params["bias"][None]) @ params["up"].T


def drawn(rank):
    rng = np.random.default_rng(0)
    params = {"down": rng.normal(size=(20, rank)), "bias": rng.normal(size=rank), "up": rng.normal(size=(7, rank))}
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    return params, jnp.asarray(rng.normal(size=(3, 20)), jnp.float32)


@pytest.mark.parametrize(("rank", "run"), [(8, 8), (12, 4)])
def test_weights_are_multiplied_with_a_hadamard_matrix(rank, run):
    params, x = drawn(rank)
    rotated = hadamard(model, params, KEY, x)
    r = multiplied(params["down"], rotated["down"])
    np.testing.assert_allclose(r @ r.T, np.eye(rank), atol=1e-5)
    blocks = np.kron(np.eye(rank // run), np.ones((run, run)))
    np.testing.assert_allclose(np.abs(r), blocks / np.sqrt(run), atol=1e-5)
    np.testing.assert_allclose(rotated["bias"], params["bias"] @ r, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rotated["up"], params["up"] @ r, rtol=1e-4, atol=1e-5)


def test_the_stream_of_a_transformer_is_rotated_and_heads_apart():
    fn, params, inputs = rewritable.drawn(rewritable.RootMeanSquare(), (2, 5), tokens=11)
    before, after = (tree["params"] for tree in (params, hadamard(fn, params, KEY, inputs[0])))
    r = multiplied(before["Embed_0"]["embedding"], after["Embed_0"]["embedding"])
    np.testing.assert_allclose(np.abs(r), 8**-0.5, atol=1e-4)
    np.testing.assert_allclose(after["positions"], before["positions"] @ r, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(after["down"]["bias"], before["down"]["bias"] @ r, rtol=1e-3, atol=1e-4)
    head = r.T @ (before["RMSNorm_2"]["scale"][:, None] * before["head"]["kernel"])
    np.testing.assert_allclose(after["head"]["kernel"], head, rtol=1e-3, atol=1e-4)
    assert all((after[f"RMSNorm_{i}"]["scale"] == 1).all() for i in range(3))
    values, out = (
        [tree["MultiHeadDotProductAttention_0"][name]["bias"] for tree in (before, after)] for name in ("value", "out")
    )
    np.testing.assert_allclose(np.linalg.norm(values[0], axis=1), np.linalg.norm(values[1], axis=1), rtol=1e-5)
    np.testing.assert_allclose(out[1], out[0] @ r, rtol=1e-3, atol=1e-4)


def test_outliers_are_gone():
    params, x = drawn(32)
    params |= {"down": params["down"].at[2, 3].set(30)}

    def distance(tree):
        return np.linalg.norm(model(jqz.dequantize(jqz.quantize(tree, jqz.Symmetric(4))), x) - model(params, x))

    assert distance(hadamard(model, params, KEY, x)) < 0.5 * distance(params)


def test_what_cannot_be_rotated_is_refused():
    (params, x), seven = drawn(8), drawn(7)
    with pytest.raises(ValueError, match="hadamard: found no channels"):
        hadamard(lambda p, x: jax.nn.relu(x @ p["down"]) @ p["up"].T, params, KEY, x)
    with pytest.raises(ValueError, match="in a number that 2"):
        hadamard(lambda p, x: (x @ p["down"][:, :7]) @ p["up"].T[:7], params, KEY, x)
    with pytest.raises(ValueError, match="in a number that 2"):
        hadamard(model, seven[0], KEY, seven[1])
    with pytest.raises(ValueError, match=r"outputs change by .* one of"):
        hadamard(lambda p, x: model(p, x) + p["up"].max(), params, KEY, x)
