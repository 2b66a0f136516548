import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jqz
from jqz.training import BatchNorm, fold_batch_norm, folded_batch_norm

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 6, 6, 3)).astype(np.float32)
KERNEL = RNG.standard_normal((3, 3, 3, 5)).astype(np.float32) / 5
NORM = BatchNorm(*(RNG.uniform(0.5, 1.5, 5).astype(np.float32) for _ in range(4)))
SCHEME = jqz.Symmetric(bits=4)


def _conv(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def _float64(x, kernel, norm, rounded):
    """The formulas, with the convolution of a rounded kernel given."""
    plain = np.asarray(_conv(x, kernel), np.float64)
    scale, bias, mean, var = (part.astype(np.float64) for part in norm)
    batch_mean, batch_var = plain.mean((0, 1, 2)), plain.var((0, 1, 2))
    sigma, batch = np.sqrt(var + 1e-5), np.sqrt(batch_var + 1e-5)
    y = np.asarray(rounded, np.float64) * sigma / batch + bias - scale * batch_mean / batch
    return y, 0.9 * mean + 0.1 * batch_mean, 0.9 * var + 0.1 * batch_var


def test_the_correction():
    folded = KERNEL * (NORM.scale / np.sqrt(NORM.var + 1e-5))
    wanted = _float64(X, KERNEL, NORM, _conv(X, jqz.fake_quantize(jnp.asarray(folded), SCHEME)))
    y, norm = jax.jit(lambda: folded_batch_norm(_conv, X, KERNEL, NORM, SCHEME, momentum=0.9))()
    for got, want in zip((y, norm.mean, norm.var), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(norm.scale, NORM.scale)


@pytest.mark.parametrize("train", [True, False])
def test_without_rounding_it_is_batch_norm(train):
    layer = nn.BatchNorm(use_running_average=not train, momentum=0.9)
    variables = {
        "params": {"scale": NORM.scale, "bias": NORM.bias},
        "batch_stats": {"mean": NORM.mean, "var": NORM.var},
    }

    def flax(kernel, scale):
        params = {"params": {"scale": scale, "bias": NORM.bias}, "batch_stats": variables["batch_stats"]}
        return layer.apply(params, _conv(X, kernel), mutable=["batch_stats"])

    def folded(kernel, scale):
        return folded_batch_norm(_conv, X, kernel, NORM._replace(scale=scale), None, not train, momentum=0.9)

    g = RNG.standard_normal((4, 6, 6, 5)).astype(np.float32)

    def with_gradients(fn):
        def run(kernel, scale):
            y, pull, state = jax.vjp(fn, kernel, scale, has_aux=True)
            return y, pull(g), state

        return jax.jit(run)(KERNEL, NORM.scale)

    wanted, gradients, state = with_gradients(flax)
    got, gradients_folded, norm = with_gradients(folded)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm.var, state["batch_stats"]["var"], rtol=1e-4)
    for one, other in zip(gradients_folded, gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-4)


def test_frozen_is_what_is_deployed():
    run = jax.jit(lambda frozen: folded_batch_norm(_conv, X, KERNEL, NORM, SCHEME, frozen))
    kernel, bias = fold_batch_norm(jnp.asarray(KERNEL), NORM)
    deployed = _conv(X, jqz.dequantize(jqz.quantize(kernel, SCHEME))) + bias[None, None, None]
    y, norm = run(jnp.bool_(True))
    np.testing.assert_allclose(y, deployed, rtol=1e-4, atol=1e-5)
    for got, want in zip(norm, NORM, strict=True):
        np.testing.assert_array_equal(got, want)
    loose, moved = run(jnp.bool_(False))
    plain, same = jax.jit(lambda: folded_batch_norm(_conv, X, KERNEL, NORM, SCHEME))()
    np.testing.assert_allclose(loose, plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moved.mean, same.mean, rtol=1e-5)


def test_training_beats_rounding_after_folding():
    """Inputs that go together, so that the errors of some weights make up for those of others."""
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((256, 4)) @ rng.standard_normal((4, 16))).astype(np.float32)
    kernel = rng.standard_normal((16, 6)).astype(np.float32)
    plain = x @ kernel
    norm = BatchNorm(np.linspace(0.3, 2, 6, dtype=np.float32), np.zeros(6, np.float32), plain.mean(0), plain.var(0))
    folded, bias = fold_batch_norm(kernel, norm)
    target, scheme = x @ folded + bias[None], jqz.Symmetric(bits=3)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 200))

    def loss(params, stats, frozen):
        norm = BatchNorm(*params[1:], *stats)
        y, norm = folded_batch_norm(jnp.dot, x, params[0], norm, scheme, frozen, momentum=0.9)
        return jnp.mean((y - target) ** 2), norm[2:]

    def step(carry, turn):
        params, stats, moments = carry
        grads, stats = jax.grad(loss, has_aux=True)(params, stats, turn >= 120)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), stats, moments), None

    params, stats = jax.tree.map(jnp.asarray, ((kernel, *norm[:2]), norm[2:]))
    carry = params, stats, optimizer.init(params)
    trained, moved, _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(200))[0])(carry)
    assert float(loss(trained, moved, True)[0]) < 0.5 * float(loss(params, stats, True)[0])


@pytest.mark.parametrize(
    ("kernels", "norms"), [("bfloat16", "float32"), ("bfloat16", "bfloat16"), ("float32", "bfloat16")]
)
@pytest.mark.parametrize("frozen", [False, True, jnp.array(False), jnp.array(True)])
def test_mixed_precision_keeps_its_dtypes(kernels, norms, frozen):
    def product(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, kernel = jnp.asarray(X, kernels), jnp.asarray(KERNEL, kernels)
    norm = jax.tree.map(lambda part: jnp.asarray(part, norms), NORM)
    y, moved = folded_batch_norm(product, x, kernel, norm, SCHEME, frozen)
    exact, same = folded_batch_norm(product, jnp.asarray(X), jnp.asarray(KERNEL), NORM, SCHEME, frozen)
    assert y.dtype == kernels
    assert [part.dtype for part in moved] == [norms] * 4
    assert jnp.linalg.norm(y.astype(jnp.float32) - exact) < 0.1 * jnp.linalg.norm(exact)
    np.testing.assert_allclose(moved.var.astype(jnp.float32), same.var, rtol=0.02)
    folded, bias = fold_batch_norm(kernel, norm)
    assert (folded.dtype, bias.dtype) == (kernels, norms)
