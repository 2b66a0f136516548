"""Learned grids against the formulas of LSQ, LSQ+ and PACT in float64, and in training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz._gradients import LSQ, PACT, RCF
from jqz.schemes import FromZero, Full, Minimum, Offset

RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 6)).astype(np.float32) * 2
G = RNG.standard_normal((12, 6)).astype(np.float32)


def _grads(scheme, grid, x=X, g=G):
    """Value, gradient of x and gradients of the grid, as training gets them."""

    @jax.jit
    def run(x, grid, g):
        value, back = jax.vjp(scheme.simulate, x, grid)
        return value, *back(g)

    return run(jnp.asarray(x), grid, jnp.asarray(g))


def _lsq(x, g, scale, bottom, top, origin=0.0):
    """LSQ as published: -Qn = bottom, Qp = top; one scale. With an origin, LSQ+."""
    x, g = x.astype(np.float64), g.astype(np.float64)
    v = (x - origin) / scale
    value = np.rint(np.clip(v, bottom, top)) * scale + origin
    factor = 1 / np.sqrt(x.size * top)
    of_scale = np.where(v <= bottom, bottom, np.where(v >= top, top, np.rint(v) - v))
    outside = (v <= bottom) | (v >= top)
    return value, g * ~outside, (g * of_scale).sum() * factor, (g * outside).sum() * factor


@pytest.mark.parametrize(("bits", "codes", "bottom"), [(2, None, -1), (3, None, -3), (3, Full(), -4), (8, None, -127)])
def test_lsq_of_a_symmetric_grid(bits, codes, bottom):
    scheme = jqz.Symmetric(bits=bits, gradient=LSQ())
    scheme = scheme if codes is None else dataclasses.replace(scheme, codes=codes)
    grid = scheme.calibrate(jnp.full((1, 1), 1.7, jnp.float32))
    wanted = _lsq(X, G, float(grid.scale[0, 0]), bottom, 2 ** (bits - 1) - 1)
    value, of_x, of_grid = _grads(scheme, grid)
    for got, want in zip((value, of_x, of_grid.scale), wanted, strict=False):
        np.testing.assert_allclose(np.squeeze(got), want, rtol=1e-4, atol=1e-5)


def test_lsq_of_values_after_relu():
    scheme = jqz.Asymmetric(bits=3, anchor=FromZero(), gradient=LSQ())
    grid = scheme.calibrate(jnp.array([[0.0, 2.1]], jnp.float32))
    wanted = _lsq(X, G, float(grid.scale[0, 0]), 0, 7)
    value, of_x, of_grid = _grads(scheme, grid)
    for got, want in zip((value, of_x, of_grid.scale), wanted, strict=False):
        np.testing.assert_allclose(np.squeeze(got), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("anchor", "offset"), [(Offset(), -0.6), (Minimum(), -0.57), (Offset(), 0.0)])
def test_lsq_plus(anchor, offset):
    """With a real zero point anywhere; an integer one where the offset is a multiple of the scale."""
    scheme = jqz.Asymmetric(bits=3, anchor=anchor, gradient=LSQ())
    grid = scheme.calibrate(jnp.array([[-0.6, 1.5]], jnp.float32))
    grid = type(grid)(jnp.full((1, 1), 0.3, jnp.float32), jnp.full((1, 1), offset, jnp.float32))
    wanted = _lsq(X, G, np.float64(np.float32(0.3)), 0, 7, origin=np.float64(np.float32(offset)))
    value, of_x, of_grid = _grads(scheme, grid)
    for got, want in zip((value, of_x, *of_grid), wanted, strict=True):
        np.testing.assert_allclose(np.squeeze(got), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("granularity", [jqz.PerAxis(-1), jqz.PerAxis(0), jqz.PerGroup(4, axis=0)])
def test_each_scale_sums_over_the_values_that_share_it(granularity):
    fine = jqz.Symmetric(bits=3, granularity=granularity, gradient=LSQ())
    one = dataclasses.replace(fine, granularity=jqz.PerTensor())
    grid = jax.tree.map(lambda scale: scale * 0.5, fine.calibrate(jnp.asarray(X)))
    _, _, of_grid = _grads(fine, grid)
    steps = [n // m for n, m in zip(X.shape, grid.scale.shape, strict=True)]
    for place in np.ndindex(grid.scale.shape):
        block = tuple(slice(i * step, (i + 1) * step) for i, step in zip(place, steps, strict=True))
        alone = type(grid)(grid.scale[place].reshape(1, 1))
        _, _, wanted = _grads(one, alone, X[block], G[block])
        np.testing.assert_allclose(of_grid.scale[place], wanted.scale[0, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4])
def test_pact(bits):
    """d / d clip is the cotangent where x >= clip, d / d x that where 0 <= x < clip."""
    scheme = jqz.Asymmetric(bits=bits, anchor=FromZero(), gradient=PACT())
    clip, top = 1.5, 2**bits - 1
    x = np.append(X, np.zeros((1, 6), np.float32), 0)
    g = np.append(G, np.ones((1, 6), np.float32), 0)
    _, of_x, of_grid = _grads(scheme, scheme.calibrate(jnp.array([[clip]], jnp.float32)), x, g)
    np.testing.assert_allclose(of_x, g * ((x >= 0) & (x < clip)), rtol=1e-6)
    np.testing.assert_allclose(of_grid.scale[0, 0], top * g[x >= clip].sum(dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize(("signs", "top"), [(None, 10), (jqz.schemes.NonNegative(), 48)])
def test_rcf(signs, top):
    """d / d clip is sign(x) beyond the clip and (value - x) / clip inside; weights get every gradient."""
    scheme = jqz.AdditivePowerOfTwo(bits=4, gradient=RCF())
    scheme = scheme if signs is None else dataclasses.replace(scheme, signs=signs)
    grid, x, g = scheme.calibrate(jnp.full((1, 1), 1.7)), X.astype(np.float64), G.astype(np.float64)
    value, of_x, of_grid = _grads(scheme, grid)
    clip = float(grid.scale[0, 0]) * top
    assert clip == pytest.approx(1.7, rel=1e-6)
    inside = (x > (-clip if signs is None else 0)) & (x < clip)
    beyond = np.sign(x) if signs is None else (x > 0)
    of_clip = np.where(inside, (np.asarray(value, np.float64) - x) / clip, beyond)
    np.testing.assert_allclose(of_grid.scale[0, 0], top * (g * of_clip).sum(), rtol=1e-4)
    np.testing.assert_array_equal(of_x, G if signs is None else G * inside)


def test_sums_of_powers_learn_as_lsq_does():
    scheme = jqz.AdditivePowerOfTwo(bits=2, gradient=LSQ())  # levels -1, 0, 1, as of Symmetric
    grid = scheme.calibrate(jnp.full((1, 1), 1.2))
    for got, want in zip(_grads(scheme, grid), _lsq(X, G, float(grid.scale[0, 0]), -1, 1), strict=False):
        np.testing.assert_allclose(np.squeeze(jax.tree.leaves(got)[0]), want, rtol=1e-4, atol=1e-5)


def test_by_hand():
    """Scale 1, levels -1, 0, 1: errors of rounding inside, ends outside and where they are reached."""
    scheme = jqz.Symmetric(bits=2, gradient=LSQ())
    x = jnp.array([-3.0, -1.0, -0.75, 0.25, 0.5, 1.0, 2.0])
    for i, wanted in enumerate((-1, -1, -0.25, -0.25, -0.5, 1, 1)):
        _, of_x, of_grid = _grads(scheme, scheme.calibrate(jnp.ones(1)), x, np.eye(7, dtype=np.float32)[i])
        assert float(of_grid.scale[0] * 7**0.5) == pytest.approx(wanted, rel=1e-6)
        assert float(of_x[i]) == (abs(float(x[i])) < 1)


def test_batch_does_not_count_in_the_factor():
    scheme = jqz.Symmetric(bits=3, gradient=LSQ(batch_axes=(0,)))
    grid = scheme.calibrate(jnp.ones((1, 1)))
    one = _grads(scheme, grid)[2].scale
    two = _grads(scheme, grid, np.concatenate([X, X]), np.concatenate([G, G]) / 2)[2].scale
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert float(one[0, 0]) == pytest.approx(_lsq(X, G, 1 / 3, -3, 3)[2] * 12**0.5, rel=1e-4)


def test_half_types_get_float32_gradients_of_their_grid():
    scheme = jqz.Symmetric(bits=3, gradient=LSQ())
    x, g = X.astype(jnp.bfloat16), G.astype(jnp.bfloat16)
    value, of_x, of_grid = _grads(scheme, scheme.calibrate(jnp.ones((1, 1))), x, g)
    assert (value.dtype, of_x.dtype, of_grid.scale.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    wanted = _lsq(x.astype(np.float32), g.astype(np.float32), 1 / 3, -3, 3)[2]
    assert float(of_grid.scale[0, 0]) == pytest.approx(wanted, rel=1e-3)


def test_a_fixed_grid_gets_no_gradient():
    scheme = jqz.Symmetric(bits=3)
    _, _, of_grid = _grads(scheme, scheme.calibrate(jnp.ones((1, 1))))
    assert float(of_grid.scale[0, 0]) == 0


def test_steps_start_where_lsq_starts():
    for bits in (2, 4):
        scheme = jqz.Symmetric(bits=bits, range=jqz.ranges.MeanMagnitude())
        wanted = 2 * np.abs(X.astype(np.float64)).mean(0) / np.sqrt(2 ** (bits - 1) - 1)
        fine = dataclasses.replace(scheme, granularity=jqz.PerAxis(-1))
        np.testing.assert_allclose(fine.calibrate(jnp.asarray(X)).scale[0], wanted, rtol=1e-5)
        unsigned = jqz.Asymmetric(bits=bits, range=jqz.ranges.MeanMagnitude(), anchor=FromZero())
        wanted = 2 * np.maximum(X.astype(np.float64), 0).mean() / np.sqrt(2**bits - 1)
        np.testing.assert_allclose(unsigned.calibrate(jnp.maximum(X, 0)).scale[0, 0], wanted, rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("shift", [0.0, -0.7])
def test_steps_start_where_lsq_plus_starts(bits, shift):
    x = X.astype(np.float64) + shift
    scheme = jqz.Symmetric(bits=bits, granularity=jqz.PerAxis(-1), range=jqz.ranges.Sigmas(), codes=Full())
    ends = [np.abs(x.mean(0) + sign * 3 * x.std(0)) for sign in (-1, 1)]
    got = scheme.calibrate(jnp.asarray(x, jnp.float32)).scale[0]
    np.testing.assert_allclose(got, np.maximum(*ends) / 2 ** (bits - 1), rtol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match=r"integer that has no gradient.*Use anchor=jqz\.schemes\.Offset\(\)"):
        jqz.Asymmetric(bits=4, gradient=LSQ())
    with pytest.raises(ValueError, match=r"chain: .*learns its grid"):
        jqz.Symmetric(bits=8, gradient=LSQ()) >> jqz.PowerOfTwo(bits=4)
    params = jqz.learnable({"w": jnp.ones((2, 2))}, jqz.Symmetric(bits=4, gradient=LSQ()))
    for verb in (jqz.quantize, jqz.fake_quantize):
        with pytest.raises(ValueError, match=r"'w' has learned a grid of .*Use the policy that learnable was given"):
            verb(params, jqz.Symmetric(bits=4))
    with pytest.raises(TypeError, match="met a JAX function"):
        jnp.sum(params["w"])


# --- in models --------------------------------------------------------------------------------------------------------


def _model(params, x):
    x = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    return x @ params["b"]["kernel"]


def _policy(bits, learn):
    gradient = {"gradient": LSQ()} if learn else {}
    of_inputs = {"gradient": LSQ(batch_axes=(0,))} if learn else {}
    weights = jqz.Symmetric(bits=bits, granularity=jqz.PerAxis(-1), range=jqz.ranges.MeanMagnitude(), **gradient)
    return jqz.Policy(
        {"**/kernel": weights},
        inputs={
            "a/*": jqz.Asymmetric(bits=bits + 1, anchor=Offset(), **of_inputs),
            "b/*": jqz.Asymmetric(bits=bits + 1, anchor=FromZero(), **of_inputs),
        },
    )


def _task():
    keys = jax.random.split(jax.random.key(0), 6)
    teacher = {
        "a": {"kernel": jax.random.normal(keys[0], (8, 32)) / 8**0.5, "bias": jax.random.normal(keys[1], (32,)) / 3},
        "b": {"kernel": jax.random.normal(keys[2], (32, 4)) / 32**0.5},
    }
    x = jax.random.normal(keys[3], (256, 8))
    return teacher, x, _model(teacher, x)


def _trained(bits, learn, steps=200):
    """Momentum and a cosine, from calibrated grids; the last loss."""
    params, x, y = _task()
    policy = _policy(bits, learn)
    sites = jqz.calibrate(jqz.observe(_model, policy, jqz.observers.MSE(bins=512))(params, x), policy)
    apply = jqz.simulated(_model, policy)

    def loss(trained):
        return jnp.mean((apply(*trained, x) - y) ** 2)

    def step(carry, turn):
        trained, speed = carry
        speed = jax.tree.map(lambda v, g: 0.9 * v + g, speed, jax.grad(loss)(trained))
        rate = 0.005 * (1 + jnp.cos(jnp.pi * turn))
        return (jax.tree.map(lambda p, v: p - rate * v, trained, speed), speed), None

    @jax.jit
    def run(trained):
        start = trained, jax.tree.map(jnp.zeros_like, trained)
        (trained, _), _ = jax.lax.scan(step, start, jnp.linspace(0, 1, steps))
        return trained, loss(trained)

    trained, last = run((jqz.learnable(params, policy), sites))
    return policy, *trained, float(last)


@pytest.mark.parametrize("bits", [2, 3])
def test_learned_grids_beat_calibrated_ones_and_run_on_integers(bits):
    policy, variables, sites, learned = _trained(bits, learn=True)
    assert learned < 0.75 * _trained(bits, learn=False)[-1]
    _, x, _ = _task()
    qparams = jqz.quantize(variables, policy)
    on_codes = jax.jit(jqz.quantized(_model, sites))(qparams, x)
    in_training = jax.jit(jqz.simulated(_model, policy))(variables, sites, x)
    assert np.median(np.abs(on_codes - in_training)) <= 1e-5
    np.testing.assert_allclose(on_codes, in_training, atol=0.2 * float(np.abs(in_training).max()))
    assert {product.how for product in jqz.audit(_model, sites)(qparams, x).products} == {"int8"}


def test_weights_keep_their_grid_through_every_verb():
    scheme = jqz.Symmetric(bits=3, range=jqz.ranges.MeanMagnitude(), gradient=LSQ())
    params = jqz.learnable({"w": jnp.asarray(X), "v": jnp.asarray(X[0])}, scheme)
    params = jax.tree.map(lambda leaf: leaf * 1.25, params)
    assert params["v"].shape == (6,)
    coded = jqz.quantize(params, scheme)
    np.testing.assert_array_equal(coded["w"].grid.scale, params["w"].grid.scale)
    np.testing.assert_array_equal(jqz.dequantize(coded)["w"], jqz.fake_quantize(params, scheme)["w"])
    assert jqz.learnable(params, scheme)["w"] is params["w"]
    float_again = jqz.fake_quantize(params, {"**/w": None})
    np.testing.assert_array_equal(float_again["w"], params["w"].value)


def test_rcf_stops_no_weight_where_levels_have_both_signs():
    scheme = jqz.Asymmetric(3, anchor=Offset(), gradient=RCF())
    x = jnp.array([-5.0, 0.3, 5.0])
    for ends, slopes in [((-1.0, 2.0), [1, 1, 1]), ((0.0, 2.0), [0, 1, 0])]:
        grid = scheme.calibrate(jnp.array(ends))
        assert jax.grad(lambda x, grid=grid: scheme.simulate(x, grid).sum())(x).tolist() == slopes


def test_axes_of_a_batch_are_axes_of_the_values():
    scheme = jqz.Symmetric(3, gradient=LSQ(batch_axes=(3,)))
    x = jnp.ones((2, 2))
    with pytest.raises(ValueError, match=r"LSQ: got batch_axes=\(3,\) for values of shape \(2, 2\)"):
        jax.grad(lambda grid: scheme.simulate(x, grid).sum())(scheme.calibrate(x))
