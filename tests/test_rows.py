"""Gram matrices of dots and convolutions against what these compute, and where channels lie."""

import jax
import jax.numpy as jnp
import layers
import numpy as np
import pytest

import jqz
from jqz._rows import Place
from jqz.observers import Gram


@pytest.fixture(scope="module")
def seen():
    params, inputs = layers.draw()
    return params, inputs, jax.jit(jqz.observe(layers.model, layers.POLICY, Gram()))(params, inputs)


@pytest.mark.parametrize("name", [name for name in layers.LAYERS if name != "stack"])
def test_energy_of_the_outputs_is_a_quadratic_form(seen, name):
    """sum(f(w, x)**2) == sum over groups of tr(M^T G M) for every weight w, M being w as a matrix."""
    params, inputs, stats = seen
    gram, rng = stats[name].observer, np.random.default_rng(1)
    for _ in range(3):
        w = rng.normal(size=params[name].shape)
        out = np.asarray(layers.LAYERS[name][0](w.astype(np.float32), inputs[name]), np.float64)
        matrix, products = gram.contraction.matrix(w), np.asarray(gram.products, np.float64)
        products = products.reshape(gram.contraction.groups, *products.shape[-2:])
        np.testing.assert_allclose(np.einsum("gto,gtu,guo->", matrix, products, matrix), np.sum(out**2), rtol=1e-5)
        np.testing.assert_array_equal(gram.contraction.weight(matrix, w.shape), w)


def test_scanned_layers_have_a_matrix_each(seen):
    params, inputs, stats = seen
    x = np.asarray(inputs["stack"], np.float64)
    rows = np.stack([x, np.tanh(x)])
    np.testing.assert_allclose(
        stats["stack"].observer.products, np.einsum("lrt,lru->ltu", rows, rows), rtol=1e-4, atol=1e-3
    )
    assert stats["stack"].observer.contraction.axes == (0,)
    assert params["stack"].shape[0] == 2


def test_places_lay_channels_out_in_their_order():
    array = np.arange(24.0).reshape(2, 3, 4)
    place = Place("w", (2, 0))
    first = place.channels_first(array)
    assert first.shape == (8, 3)
    for i in range(4):
        for j in range(2):
            np.testing.assert_array_equal(first[2 * i + j], array[j, :, i])
    np.testing.assert_array_equal(place.back(first, array.shape), array)
    along = place.along(jnp.arange(8.0), array.shape)
    assert along.shape == (2, 1, 4)
    np.testing.assert_array_equal(along[:, 0], np.arange(8.0).reshape(4, 2).T)
