import jax
import jax.numpy as jnp
import numpy as np
import pytest
import teacher

import jqz
from jqz import ste
from jqz.schemes import ThroughMean, UnitScale
from jqz.training import xnor_input_scale

X = np.random.default_rng(0).standard_normal((2, 7, 6, 3)).astype(np.float32)


@pytest.mark.parametrize(("strides", "pads"), [((1, 1), ((1, 1), (0, 1))), ((2, 3), ((0, 0), (0, 0)))])
def test_by_brute_force(strides, pads):
    wide = np.pad(np.abs(X.astype(np.float64)).mean(-1), ((0, 0), *pads))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 2), (1, 2)).mean((-1, -2))
    wanted = windows[:, :: strides[0], :: strides[1], None]
    np.testing.assert_allclose(xnor_input_scale(jnp.asarray(X), (3, 2), strides, pads), wanted, rtol=1e-5)


def test_gradient():
    """sign(x) / (channels * window) for each window that sees a value."""
    x = jnp.asarray(X[:, :, :1].reshape(2, 7, 3))
    grad = jax.grad(lambda x: xnor_input_scale(x, (3,), padding="VALID").sum())(x)
    seen = np.array([1, 2, 3, 3, 3, 2, 1])[None, :, None]
    np.testing.assert_allclose(grad, np.sign(x) * seen / 9, rtol=1e-5)


def test_a_scale_a_window_is_nearer_to_the_convolution():
    rng = np.random.default_rng(1)
    kernel = rng.standard_normal((3, 3, 3, 4)).astype(np.float32)
    x = X * np.geomspace(0.1, 5, 7).astype(np.float32)[None, :, None, None]  # a side of the image is brighter

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    signs = jqz.fake_quantize(jnp.asarray(x), jqz.Binary(scale=UnitScale()))
    coded = conv(signs, jqz.fake_quantize(jnp.asarray(kernel), jqz.Binary(jqz.PerAxis(-1))))
    fine, coarse = coded * xnor_input_scale(x, (3, 3)), coded * np.abs(x).mean()
    wanted = conv(x, kernel)
    assert float(((fine - wanted) ** 2).mean()) < 0.9 * float(((coarse - wanted) ** 2).mean())


def test_refuses_another_rank():
    with pytest.raises(ValueError, match=r"got window=\(3,\) .*wanted 2 lengths"):
        xnor_input_scale(jnp.asarray(X), (3,))


def test_training_beats_rounding():
    """Signs times signs behind the first layer, with the scales of the paper."""
    params, x, _ = teacher.task()
    policy = {"**/b/kernel": jqz.Binary(jqz.PerAxis(-1), estimator=ThroughMean())}
    signs = jqz.Binary(scale=UnitScale(), estimator=ste.Clipped())

    def loss(params, turn):
        fake = jqz.fake_quantize(params, policy)
        hidden = x @ params["a"]["kernel"] + params["a"]["bias"][None]
        return teacher.error((jqz.fake_quantize(hidden, signs) @ fake["b"]["kernel"]) * xnor_input_scale(hidden))

    trained, _ = teacher.train(loss, params)
    assert float(jax.jit(loss)(trained, 0)) < 0.5 * float(jax.jit(loss)(params, 0))
