"""Fast forms of convolutions against the primitive."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jqz.lowerings import convolution as lowering

LAYOUTS = {
    1: [("NHC", "HIO", "NHC"), ("NCH", "OIH", "NCH")],
    2: [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NHWC", "OHWI", "NCHW"), ("HWNC", "IHWO", "CNHW")],
    3: [("NDHWC", "DHWIO", "NDHWC")],
}


def values(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    whole = rng.integers(-128, 128, shape)
    return jnp.asarray(whole, jnp.int8) if dtype == jnp.int8 else jnp.asarray(whole / 64, dtype)


def convolution_of(layout, x, kernel, strides, padding, lhs_dilation, rhs_dilation, groups):
    """Parameters and operands, given shapes in the layout NHWC, HWIO."""
    lhs, rhs, _ = layout
    first = LAYOUTS[len(strides)][0]
    x = [x[first[0].index(letter)] for letter in lhs]
    kernel = [kernel[first[1].index(letter)] for letter in rhs]
    numbers = lax.conv_dimension_numbers(x, kernel, layout)
    how = lowering.Convolution(strides, padding, lhs_dilation, rhs_dilation, numbers, groups)
    return how, x, kernel


@st.composite
def convolutions(draw):
    n = draw(st.sampled_from([1, 2, 2, 2, 3]))
    groups, ins, outs = draw(
        st.sampled_from([(1, 3, 18), (1, 2, 5), (1, 17, 3), (6, 1, 1), (5, 1, 2), (4, 3, 1), (2, 33, 1), (6, 9, 1)])
    )
    pairs = [draw(st.sampled_from([(0, 0), (1, 1), (0, 1), (2, -1)])) for _ in range(n)]
    ones = (1,) * n
    numbers = st.tuples(*[st.integers(1, 2)] * n)
    kernel = draw(st.sampled_from([ones, None])) or draw(st.tuples(*[st.integers(1, 4 if n < 3 else 2)] * n))
    return convolution_of(
        draw(st.sampled_from(LAYOUTS[n])),
        (draw(st.integers(1, 2)), *(draw(st.integers(6, 9)) for _ in range(n)), groups * ins),
        (*kernel, ins, groups * outs),
        draw(st.one_of(st.just((2,) * n), numbers)),
        tuple(pairs),
        draw(st.one_of(st.just(ones), st.just(ones), numbers)),
        draw(st.one_of(st.just(ones), numbers)),
        groups,
    )


#: With lower limits, shapes small enough for a test take the forms of large ones.
LARGE = {"PATCHES": 0, "PATCHES_OF_MANY": 0, "FEW_WINDOWS": 0, "FEW_OF_STEM": 0, "MANY_NARROW": 0}
LIMITS = {"small": {}, "large": LARGE}


def both(how, x, kernel, limit=128 * 127):
    """The primitive and the fast form."""
    return how.plain(x, kernel), lowering.convolve(x, kernel, how, limit)


@pytest.mark.parametrize("limits", LIMITS)
@hypothesis.settings(
    max_examples=14, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
@hypothesis.given(convolutions(), st.sampled_from([128, 127, 7, 1]))
def test_every_convolution(limits, case, largest):
    how, x, kernel = case
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LIMITS[limits].items():
            patch.setattr(lowering, name, value)
        x8, kernel8 = values(x, jnp.int8, 0), values(kernel, jnp.int8, 1).clip(-largest, min(largest, 127))
        wanted, got = jax.jit(functools.partial(both, how, limit=128 * largest))(x8, kernel8)
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(got, wanted)

        def with_gradients(x, kernel):
            results = both(how, x, kernel)
            pull = jax.vjp(functools.partial(both, how), x, kernel)[1]
            zero, ones = jnp.zeros_like(results[0]), jnp.cos(jnp.arange(results[0].size, dtype=jnp.float32))
            ones = ones.reshape(zero.shape)
            return (results[0], pull((ones, zero))), (results[1], pull((zero, ones)))

        wanted, got = jax.jit(with_gradients)(values(x, jnp.float32, 0), values(kernel, jnp.float32, 1))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("largest", [128, 127, 85, 64, 7, 1])
def test_depthwise_sums_of_the_largest_codes(largest):
    """int16 holds as many products as are summed in it, at either end."""
    how, x, kernel = convolution_of(LAYOUTS[2][0], (1, 6, 6, 4), (3, 3, 1, 4), (1, 1), ((1, 1),) * 2, (1, 1), (1, 1), 4)
    for code in (-largest, min(largest, 127)):
        ends = jnp.full(kernel, jnp.int8(code))
        wanted, got = both(how, jnp.full(x, jnp.int8(-128)), ends, 128 * largest)
        np.testing.assert_array_equal(got, wanted)


def test_forms_of_large_shapes():
    """The shapes of real networks, at the limits as they are."""
    rows = [  # size, channels, outputs, kernel, stride, groups
        (30, 3, 64, 7, 2, 1),  # a stem
        (56, 16, 16, 3, 1, 1),  # few channels, many pixels
        (24, 24, 24, 3, 2, 24),  # depthwise
        (10, 128, 128, 3, 1, 32),  # groups
        (8, 256, 32, 3, 1, 1),  # a matrix of patches
        (5, 48, 40, 1, 2, 1),
    ]
    cases = []
    for size, channels, outs, kernel, stride, groups in rows:
        same = ((kernel // 2, kernel // 2),) * 2
        shapes = (1, size, size, channels), (kernel, kernel, channels // groups, outs)
        layout = LAYOUTS[2][0]
        cases.append(convolution_of(layout, *shapes, (stride, stride), same, (1, 1), (1, 1), groups))

    @jax.jit
    def all_of(operands):
        return [both(how, *pair) for (how, _, _), pair in zip(cases, operands, strict=True)]

    for dtype in (jnp.int8, jnp.float32):
        operands = [(values(x, dtype, 0), values(kernel, dtype, 1)) for _, x, kernel in cases]
        for wanted, got in all_of(operands):
            np.testing.assert_allclose(
                got, wanted, rtol=0 if dtype == jnp.int8 else 1e-5, atol=0 if dtype == jnp.int8 else 1e-3
            )


def test_vmap_and_scan():
    how, x, kernel = convolution_of(LAYOUTS[2][0], (2, 6, 6, 8), (3, 3, 1, 8), (1, 1), ((1, 1),) * 2, (1, 1), (1, 1), 8)
    x, kernel = values((3, *x), jnp.int8, 0), values((3, *kernel), jnp.int8, 1)

    @jax.jit
    def run(x, kernel):
        scanned = lax.scan(lambda carry, pair: (carry, both(how, *pair)), 0, (x, kernel))[1]
        return scanned, jax.vmap(lambda x, kernel: both(how, x, kernel))(x, kernel)

    for wanted, got in run(x, kernel):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int16])
def test_other_dtypes_keep_the_primitive(dtype):
    how, x, kernel = convolution_of(LAYOUTS[2][0], (1, 4, 4, 2), (1, 1, 1, 2), (1, 1), ((0, 0),) * 2, (1, 1), (1, 1), 2)
    x, kernel = jnp.ones(x, dtype), jnp.ones(kernel, dtype)
    assert "platform_index" not in str(jax.make_jaxpr(lambda x, w: lowering.convolve(x, w, how))(x, kernel))
