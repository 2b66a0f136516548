"""One float row times a coded weight, against float64 products of the decoded weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz

Symmetric, Asymmetric, PerAxis, PerGroup = jqz.Symmetric, jqz.Asymmetric, jqz.PerAxis, jqz.PerGroup


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def dot(x, w):
    return x @ w


#: A scheme, the weight's shape, the row's shape and the product.
CASES = {
    "int8": (Symmetric(8, PerAxis(-1)), (256, 301), (1, 256), dot),
    "int8, one scale, a vector": (Symmetric(8), (256, 301), (256,), dot),
    "int4, an odd number of columns": (Symmetric(4, PerAxis(-1)), (256, 301), (1, 256), dot),
    "int4 groups": (Symmetric(4, PerGroup(32)), (256, 301), (1, 1, 256), dot),
    "int2 groups": (Symmetric(2, PerGroup(64)), (256, 301), (1, 256), dot),
    "zero points": (Asymmetric(4, PerGroup(32)), (256, 301), (1, 256), dot),
    "zero points of columns": (Asymmetric(8, PerAxis(-1)), (256, 301), (1, 256), dot),
    "powers of two": (jqz.PowerOfTwo(4), (256, 301), (1, 256), dot),
    "a chain": (Symmetric(8, PerAxis(-1)) >> jqz.PowerOfTwo(4), (256, 301), (1, 256), dot),
    "two fields": (Symmetric(5, PerAxis(-1)), (256, 301), (1, 256), dot),
    "heads": (Symmetric(4, PerAxis((-2, -1))), (128, 8, 66), (1, 128), lambda x, w: jnp.einsum("bi,ihd->bhd", x, w)),
    "from heads": (
        Symmetric(4, PerAxis(-1)), (8, 32, 257), (1, 8, 32), lambda x, w: jnp.einsum("bhd,hdo->bo", x, w)
    ),
    "axes of the row in another order": (
        Symmetric(4, PerAxis(-1)), (8, 32, 257), (1, 32, 8), lambda x, w: jnp.einsum("bdh,hdo->bo", x, w)
    ),
    "the weight first": (Symmetric(4), (256, 301), (1, 256), lambda x, w: jnp.einsum("io,bi->ob", w, x)),
}  # fmt: skip


def forms(fn, *args):
    return str(jax.make_jaxpr(fn)(*args)).count("platform_index")


@pytest.mark.parametrize("name", CASES)
def test_on_codes(name):
    scheme, w_shape, x_shape, product = CASES[name]
    w, x = jqz.quantize(normal(*w_shape), scheme), normal(*x_shape, seed=1)
    fn = jqz.quantized(lambda w, x: product(x, w))
    assert forms(fn, w, x) > 0
    exact = product(np.asarray(x, np.float64), np.asarray(w.dequantize(), np.float64)) if product is dot else None
    wanted = product(x, w.dequantize()) if exact is None else exact
    got = jax.jit(fn)(w, x)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


PLAIN = {
    "two rows": (Symmetric(8), (256, 301), (2, 256), dot),
    "a small weight": (Symmetric(8), (64, 64), (1, 64), dot),
    "a scale for each input": (Symmetric(8, PerAxis(0)), (256, 301), (1, 256), dot),
    "few inputs in a group": (Symmetric(8, PerGroup(8)), (256, 301), (1, 256), dot),
    "blocks of outputs": (Symmetric(8, jqz.PerBlock((64, 7))), (256, 301), (1, 256), dot),
    "no integer levels": (jqz.Codebook(2), (256, 301), (1, 256), dot),
    "groups of heads": (
        Symmetric(4, PerGroup(2, axis=0)), (8, 32, 257), (1, 8, 32), lambda x, w: jnp.einsum("bhd,hdo->bo", x, w)
    ),
    "inputs last": (Symmetric(8), (301, 256), (1, 256), lambda x, w: x @ w.T),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_decoded_instead(name):
    scheme, w_shape, x_shape, product = PLAIN[name]
    w, x = jqz.quantize(normal(*w_shape), scheme), normal(*x_shape, seed=1)
    fn = jqz.quantized(lambda w, x: product(x, w))
    assert forms(fn, w, x) == 0
    np.testing.assert_allclose(jax.jit(fn)(w, x), product(x, w.dequantize()), rtol=1e-5, atol=1e-4)


def test_a_stack_under_scan_and_vmap():
    """One grid a layer; beside them a policy whose inputs leave the products alone."""
    w, x = normal(3, 256, 257), normal(1, 256, seed=1)
    q = jqz.quantize(w, Symmetric(4, PerAxis((0, -1))))
    fn = jqz.quantized(lambda w, x: x @ w, inputs={"nothing": Symmetric(8)})

    @jax.jit
    def run(q, x):
        scanned = jax.lax.scan(lambda c, w: (c, fn(w, x)), 0, q)[1]
        return scanned, jax.vmap(fn, (0, None))(q, x), jnp.einsum("bi,lio->lbo", x, q.dequantize())

    scanned, mapped, wanted = run(q, x)
    for got in (scanned, mapped):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)
