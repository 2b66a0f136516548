"""Integer convolutions against loops over NumPy integers, and against XLA's float convolution.

Values are integers that span their range, so that scales and zero points are known and sums exact.
"""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz

Symmetric, Asymmetric, PerAxis = jqz.Symmetric, jqz.Asymmetric, jqz.PerAxis

#: A scheme at 8 bits, and the integers whose scale it finds to be exactly 1.
RANGES = {Symmetric: (-127, 127), Asymmetric: (-40, 215)}


def integers(rng, shape, low, high, axis):
    """Random integers; the first two of every slice at an index of ``axis`` are the extremes."""
    values = np.moveaxis(rng.integers(low, high + 1, shape), axis, 0)
    flat = values.reshape(len(values), -1)
    flat[:, :2] = (low, high)
    return np.moveaxis(flat.reshape(values.shape), 0, axis)


def convolve(x, w, strides, padding, lhs_dilation, rhs_dilation, groups):
    """A convolution by its definition: x (batch, in, ...), w (out, in / groups, ...), integers throughout."""
    space = x.shape[2:]
    wide = np.zeros([*x.shape[:2], *((n - 1) * d + 1 for n, d in zip(space, lhs_dilation, strict=True))], x.dtype)
    wide[(..., *(slice(None, None, d) for d in lhs_dilation))] = x
    wide = np.pad(wide, [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in padding)])
    crop = [slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(padding, wide.shape[2:], strict=True)]
    wide = wide[(..., *crop)]
    reach = [(n - 1) * d + 1 for n, d in zip(w.shape[2:], rhs_dilation, strict=True)]
    size = [max((n - r) // s + 1, 0) for n, r, s in zip(wide.shape[2:], reach, strides, strict=True)]
    outs, ins = w.shape[0] // groups, w.shape[1]
    out = np.zeros([x.shape[0], w.shape[0], *size], np.int64)
    for place in itertools.product(*map(range, size)):
        window = tuple(
            slice(p * s, p * s + r, d) for p, s, r, d in zip(place, strides, reach, rhs_dilation, strict=True)
        )
        for g in range(groups):
            patch = wide[(slice(None), slice(g * ins, (g + 1) * ins), *window)].reshape(x.shape[0], -1)
            out[(slice(None), slice(g * outs, (g + 1) * outs), *place)] = (
                patch @ w[g * outs : (g + 1) * outs].reshape(outs, -1).T
            )
    return out


LAYOUTS = {  # by number of spatial axes; the first is the canonical one
    1: [("NCH", "OIH", "NCH"), ("NHC", "HIO", "NHC")],
    2: [("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NHWC"), ("NHWC", "OHWI", "NCHW"), ("HWNC", "IHWO", "CNHW")],
    3: [("NCDHW", "OIDHW", "NCDHW"), ("NDHWC", "DHWIO", "NDHWC")],
}


@st.composite
def convolutions(draw):
    space = draw(st.integers(1, 3))
    low_rank = space < 3
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    ins, outs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3 if low_rank else 2)) for _ in range(space)]
    size = [draw(st.integers(4, 6)) for _ in range(space)]
    padding = [(draw(st.integers(-1, 2)), draw(st.integers(-1, 2))) for _ in range(space)]
    strides, rhs_dilation, lhs_dilation = ([draw(st.integers(1, 2)) for _ in range(space)] for _ in range(3))
    if draw(st.booleans()):
        lhs_dilation = [1] * space
    layout = draw(st.sampled_from(LAYOUTS[space]))
    return (
        (2, ins, *size),
        (outs, ins // groups, *kernel),
        layout,
        (strides, padding, lhs_dilation, rhs_dilation, groups),
    )


def moved(axes, to):
    """The permutation that brings an array with the first layout into the second."""
    return [axes.index(letter) for letter in to]


@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
@hypothesis.given(convolutions(), *[st.sampled_from([Symmetric, Asymmetric])] * 2, st.booleans(), st.booleans())
def test_every_convolution(case, weight_kind, input_kind, per_channel, per_image):
    x_shape, w_shape, layout, (strides, padding, lhs_dilation, rhs_dilation, groups) = case
    hypothesis.assume(np.prod(w_shape[1:]) >= 2)
    rng = np.random.default_rng(0)
    x, w = integers(rng, x_shape, *RANGES[input_kind], axis=0), integers(rng, w_shape, *RANGES[weight_kind], axis=0)
    wanted = convolve(x, w, strides, padding, lhs_dilation, rhs_dilation, groups)

    lhs, rhs, out = layout
    first = LAYOUTS[len(strides)][0]
    weight_scheme = weight_kind(bits=8, granularity=PerAxis(rhs.index("O")) if per_channel else jqz.PerTensor())
    input_scheme = input_kind(bits=8, granularity=PerAxis(lhs.index("N")) if per_image else jqz.PerTensor())
    scales = 2.0 ** np.arange(len(w)) if per_channel else np.ones(len(w))
    w = w * scales.reshape(-1, *[1] * (w.ndim - 1))
    wanted = wanted * scales.reshape(1, -1, *[1] * (w.ndim - 2))
    x, w = x.transpose(moved(first[0], lhs)), w.transpose(moved(first[1], rhs))
    q = jqz.quantize(jnp.asarray(w, jnp.float32), weight_scheme)
    np.testing.assert_array_equal(q.dequantize(), w)

    def fn(w, x):
        return jax.lax.conv_general_dilated(
            x, w, strides, padding, lhs_dilation, rhs_dilation, layout, feature_group_count=groups
        )

    x = jnp.asarray(x, jnp.float32)
    assert [p.how for p in jqz.audit(fn, inputs=input_scheme)(q, x).products] == ["int8"]
    got = jax.jit(jqz.quantized(fn, inputs=input_scheme))(q, x)
    np.testing.assert_allclose(got, wanted.transpose(moved(first[2], out)), rtol=1e-6, atol=0)


# --- which arithmetic -------------------------------------------------------------------------------------------------


def programs(fn, q, x, inputs=Symmetric(bits=8)):
    """The result, and the result dtypes of the convolutions that it may take."""
    traced = jax.jit(jqz.quantized(fn, inputs=inputs)).trace(q, x)
    program = str(traced.jaxpr)
    types = {dtype for dtype in ("int32", "float32") if f"preferred_element_type={dtype}" in program}
    return traced.lower().compile()(q, x), types


def same(w, x, groups=1, **kwargs):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups, **kwargs
    )


def pair(channels, outs, groups=1, size=3):
    rng = np.random.default_rng(0)
    x = integers(rng, (2, 5, 5, channels), -127, 127, axis=0)
    w = integers(rng, (size, size, channels // groups, outs), -127, 127, axis=3)
    return jnp.asarray(w, jnp.float32), jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize(("channels", "outs", "groups"), [(3, 4, 1), (24, 24, 24), (24, 20, 1), (128, 2, 2)])
def test_the_same_integers_by_every_arithmetic(channels, outs, groups):
    """Of the last case, 1600 products of 127 * 127 exceed float32's 24 bits."""
    w, x = pair(channels, outs, groups, size=5 if groups == 2 else 3)
    got, found = programs(lambda w, x: same(w, x, groups), jqz.quantize(w, Symmetric(bits=8)), x)
    assert "int32" in found
    x, w = np.asarray(x, np.int64).transpose(0, 3, 1, 2), np.asarray(w, np.int64).transpose(3, 2, 0, 1)
    half = w.shape[2] // 2
    wanted = convolve(x, w, (1, 1), [(half, half)] * 2, (1, 1), (1, 1), groups)
    np.testing.assert_array_equal(got, wanted.transpose(0, 2, 3, 1).astype(np.float32))


FLOAT = {
    "a scale for each input channel": (Symmetric(bits=8, granularity=PerAxis(2)), same),
    "groups of input channels": (Symmetric(bits=8, granularity=jqz.PerGroup(2, axis=2)), same),
    "levels beyond 8 bits": (Symmetric(bits=12), same),
    "no integer levels": (Asymmetric(bits=8, anchor=jqz.schemes.Minimum()), same),
    "groups of images": (Symmetric(bits=8), lambda w, x: same(w, x[..., :4], batch_group_count=2)),
}


@pytest.mark.parametrize("name", FLOAT)
def test_where_integers_cannot_go_the_activation_is_rounded_all_the_same(name):
    scheme, fn = FLOAT[name]
    rng = np.random.default_rng(0)
    w, x = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((3, 3, 4, 6), (2, 5, 5, 4)))
    q, inputs = jqz.quantize(w, scheme), Asymmetric(bits=3, granularity=PerAxis(0))
    got, types = programs(fn, q, x, inputs)
    assert types <= {"float32"}
    np.testing.assert_allclose(got, fn(q.dequantize(), inputs.simulate(x)), rtol=1e-5, atol=1e-5)


def test_zeros_between_pixels_are_real_zeros():
    """A transposed convolution puts zeros between pixels, which no code of an asymmetric grid need stand for."""
    w, x = pair(4, 6)
    x = x + 300  # the zero point lies outside of the data

    def fn(w, x):
        return jax.lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    q = jqz.quantize(w, Symmetric(bits=8))
    for inputs in (Asymmetric(bits=8), Symmetric(bits=8)):
        got, types = programs(fn, q, x, inputs)
        assert "int32" in types
        np.testing.assert_allclose(got, fn(q.dequantize(), inputs.simulate(x)), rtol=1e-5, atol=1e-2)


def test_groups_of_output_channels_run_in_integers():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((3, 3, 4, 6)), jnp.float32)
    q = jqz.quantize(w.transpose(3, 2, 0, 1).reshape(6, -1), Symmetric(bits=8, granularity=jqz.PerBlock((2, 36))))
    x = pair(4, 6)[1]

    def fn(w, x):
        return same(w.reshape(6, 4, 3, 3).transpose(2, 3, 1, 0), x)

    got, types = programs(fn, q, x)
    assert "int32" in types
    np.testing.assert_allclose(got, fn(q.dequantize(), x), rtol=1e-5, atol=1e-3)


def test_the_weight_first():
    """A weight that is filtered by an activation is decoded; the activation is rounded for each output channel."""
    w, x = pair(4, 6)
    q = jqz.quantize(x, Symmetric(bits=8))
    inputs = Symmetric(bits=3, granularity=PerAxis(3))
    got, types = programs(lambda image, kernel: same(kernel, image), q, w / 7, inputs)
    assert types <= {"float32"}
    np.testing.assert_allclose(got, same(inputs.simulate(w / 7), q.dequantize()), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats(dtype):
    w, x = pair(4, 6)
    got, types = programs(same, jqz.quantize((w / 4096).astype(dtype), Symmetric(bits=8)), x.astype(dtype))
    wide, _ = programs(same, jqz.quantize(w / 4096, Symmetric(bits=8)), x)
    assert "int32" in types
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, wide.astype(dtype))


def test_nothing():
    w, x = pair(4, 6)
    q = jqz.quantize(w, Symmetric(bits=8))
    for inputs in (Symmetric(bits=8), Asymmetric(bits=8, granularity=PerAxis(0))):
        assert jqz.quantized(same, inputs=inputs)(q, x[:0]).shape == (0, 5, 5, 6)
