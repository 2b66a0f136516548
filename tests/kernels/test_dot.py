"""Integer dots against NumPy's int64 einsum.

Values are integers times a power of two, and each block holds its extreme values, so that every scale
and zero point is known exactly and results have no rounding error to hide behind.
"""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz

Symmetric, Asymmetric = jqz.Symmetric, jqz.Asymmetric
PerTensor, PerAxis, PerGroup = jqz.PerTensor, jqz.PerAxis, jqz.PerGroup


def integers(rng, shape, low, high, axis):
    """Random integers; along ``axis`` the first two are the extremes, so every slice that holds it spans the range."""
    values = np.moveaxis(rng.integers(low, high + 1, shape), axis, 0)
    values[0], values[1] = low, high
    return np.moveaxis(values, 0, axis)


#: A scheme at 8 bits, and the integers whose scale it finds to be exactly 1.
RANGES = {Symmetric: (-127, 127), Asymmetric: (-40, 215)}


def compiled(fn, *args):
    """The result, and the program."""
    traced = jax.jit(fn).trace(*args)
    return traced.lower().compile()(*args), str(traced.jaxpr)


def in_integers(program):
    return "preferred_element_type=int32" in program


# --- every dimension numbering ----------------------------------------------------------------------------------------


@st.composite
def einsums(draw):
    """(subscripts, sizes, the position of the weight) with batched, contracted and free axes in any order."""
    batch, summed = "ab"[: draw(st.integers(0, 2))], "kl"[: draw(st.integers(1, 2))]
    mine, other = "xy"[: draw(st.integers(0, 2))], "uv"[: draw(st.integers(0, 2))]
    terms = [draw(st.permutations(batch + summed + free)) for free in (mine, other)]
    out = draw(st.permutations(batch + mine + other))
    sizes = {letter: draw(st.integers(1, 4)) for letter in batch + mine + other}
    sizes |= {letter: draw(st.integers(2, 5)) for letter in summed}
    subscripts = ",".join("".join(term) for term in terms) + "->" + "".join(out)
    return subscripts, sizes, draw(st.integers(0, 1))


KINDS = st.sampled_from([Symmetric, Asymmetric])


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(einsums(), st.tuples(KINDS, KINDS), st.data())
def test_every_einsum(case, kinds, data):
    subscripts, sizes, side = case
    rng = np.random.default_rng(len(subscripts))
    terms = subscripts.split("->")[0].split(",")
    exact, arrays, schemes = [], [], []
    for term, kind in zip(terms, kinds, strict=True):
        kept = [axis for axis, letter in enumerate(term) if letter not in "kl"]
        own = data.draw(st.lists(st.sampled_from(kept), unique=True) if kept else st.just([]), label=f"grid of {term}")
        values = integers(rng, [sizes[letter] for letter in term], *RANGES[kind], axis=term.index("k"))
        powers = np.zeros_like(values)
        for axis in own:  # a scale of its own for each index
            shape = [1] * len(term)
            shape[axis] = -1
            powers = powers + rng.integers(-3, 4, sizes[term[axis]]).reshape(shape)
        exact.append(values * 2.0**powers)
        arrays.append(jnp.asarray(exact[-1], jnp.float32))
        schemes.append(kind(bits=8, granularity=PerAxis(tuple(own)) if own else PerTensor()))
    q = jqz.quantize(arrays[side], schemes[side])
    np.testing.assert_array_equal(q.dequantize(), exact[side])

    def fn(w, x):
        return jnp.einsum(subscripts, *((w, x) if side == 0 else (x, w)))

    got, program = compiled(jqz.quantized(fn, inputs=schemes[1 - side]), q, arrays[1 - side])
    assert in_integers(program), program
    np.testing.assert_array_equal(got, np.einsum(subscripts, *exact))


# --- shapes at the edge -----------------------------------------------------------------------------------------------


def exact_pair(x_shape, w_shape, weight_scheme=Symmetric, input_scheme=Symmetric):
    """Arrays whose last and first axes meet, and the product that they ought to have."""
    rng = np.random.default_rng(0)
    x = integers(rng, x_shape, *RANGES[input_scheme], axis=-1)
    w = integers(rng, w_shape, *RANGES[weight_scheme], axis=0)
    return jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32), np.tensordot(x, w, 1)


def dot(w, x):
    return jnp.tensordot(x, w, 1)


@pytest.mark.parametrize(
    ("x_shape", "w_shape"),
    [((1, 8), (8, 5)), ((8,), (8, 5)), ((1, 1, 8), (8, 5)), ((3, 8), (8,)), ((8,), (8,)), ((1, 8), (8, 1))],
)
def test_rows_and_vectors(x_shape, w_shape):
    for schemes in itertools.product((Symmetric, Asymmetric), repeat=2):
        x, w, exact = exact_pair(x_shape, w_shape, *schemes)
        q = jqz.quantize(w, schemes[0](bits=8))
        got, program = compiled(jqz.quantized(dot, inputs=schemes[1](bits=8)), q, x)
        assert in_integers(program)
        np.testing.assert_array_equal(got, exact)


@pytest.mark.parametrize(
    "scheme", [Symmetric(bits=8), Symmetric(bits=8, granularity=PerAxis(0)), Asymmetric(bits=8)], ids=repr
)
@pytest.mark.parametrize(
    ("x_shape", "w_shape"), [((0, 8), (8, 5)), ((2, 0, 8), (8, 5)), ((3, 0), (0, 5)), ((3, 8), (8, 0))]
)
def test_nothing(scheme, x_shape, w_shape):
    q = jqz.quantize(jnp.ones(w_shape), Symmetric(bits=8, granularity=PerAxis(-1)))
    got = jqz.quantized(dot, inputs=scheme)(q, jnp.ones(x_shape))
    np.testing.assert_array_equal(got, np.zeros(x_shape[:-1] + w_shape[1:], np.float32))


def test_zeros_and_one_value():
    """Blocks without extent: all zeros, or one value throughout."""
    for value in (0.0, 3.0, -3.0):
        for inputs in (Symmetric(bits=8), Asymmetric(bits=8)):
            q = jqz.quantize(jnp.full((4, 2), 0.5), Asymmetric(bits=8))
            got = jqz.quantized(dot, inputs=inputs)(q, jnp.full((3, 4), value))
            np.testing.assert_allclose(got, np.full((3, 2), 4 * 0.5 * value), rtol=1e-6)


# --- groups -----------------------------------------------------------------------------------------------------------


def test_even_groups_run_in_integers():
    """Each group along the summed axis has a scale and a zero point; the activation has a scale for each row."""
    rng = np.random.default_rng(0)
    for weight_scheme, input_scheme in itertools.product((Symmetric, Asymmetric), repeat=2):
        groups = integers(rng, (3, 4, 5), *RANGES[weight_scheme], axis=1) * 2.0 ** rng.integers(-3, 4, (3, 1, 5))
        w = groups.reshape(12, 5)
        x = integers(rng, (2, 12), *RANGES[input_scheme], axis=1) * 2.0 ** np.array([[0], [3]])
        q = jqz.quantize(jnp.asarray(w, jnp.float32), weight_scheme(bits=8, granularity=PerGroup(4)))
        inputs = input_scheme(bits=8, granularity=PerAxis(0))
        got, program = compiled(jqz.quantized(dot, inputs=inputs), q, jnp.asarray(x, jnp.float32))
        assert in_integers(program)
        np.testing.assert_array_equal(got, x @ w)


def test_groups_of_a_contraction_over_two_axes():
    """Attention's output kernel, (head, size, features), grouped along the second of its two summed axes."""
    rng = np.random.default_rng(0)
    w = (integers(rng, (2, 3, 4, 5), -127, 127, axis=2) * 2.0 ** rng.integers(-3, 4, (2, 3, 1, 5))).reshape(2, 12, 5)
    x = integers(rng, (7, 2, 12), -127, 127, axis=2)
    q = jqz.quantize(jnp.asarray(w, jnp.float32), Symmetric(bits=8, granularity=PerGroup(4, axis=1)))
    np.testing.assert_array_equal(q.dequantize(), w)

    def fn(w, x):
        return jnp.einsum("bhd,hdf->bf", x, w)

    got = jqz.quantized(fn, inputs=Symmetric(bits=8))(q, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, np.einsum("bhd,hdf->bf", x, w), rtol=1e-6)


def test_blocks_of_summed_terms_and_outputs():
    rng = np.random.default_rng(0)
    blocks = rng.permuted(integers(rng, (3, 2, 12), -127, 127, axis=2), axis=2) * 2.0 ** rng.integers(-3, 4, (3, 2, 1))
    w = blocks.reshape(3, 2, 4, 3).swapaxes(1, 2).reshape(12, 6)
    x = integers(rng, (2, 12), -127, 127, axis=1)
    q = jqz.quantize(jnp.asarray(w, jnp.float32), Symmetric(bits=8, granularity=jqz.PerBlock((4, 3))))
    got, program = compiled(jqz.quantized(dot, inputs=Symmetric(bits=8)), q, jnp.asarray(x, jnp.float32))
    assert in_integers(program)
    np.testing.assert_array_equal(got, x @ w)


def flattened(w, x):
    """A contraction over two axes."""
    return jnp.einsum("bkl,klo->bo", x.reshape(-1, 4, 3), w.reshape(4, 3, 6))


FLOAT = {
    "an uneven last group": (Symmetric(bits=8, granularity=PerGroup(5)), dot),
    "a scale for each summed term": (Symmetric(bits=8, granularity=PerAxis(0)), dot),
    "groups across two summed axes": (Symmetric(bits=8, granularity=PerGroup(2)), flattened),
    "levels beyond 8 bits": (Symmetric(bits=12), dot),
    "no integer levels": (Asymmetric(bits=8, anchor=jqz.schemes.Minimum()), dot),
}


@pytest.mark.parametrize("name", FLOAT)
def test_where_integers_cannot_go_the_activation_is_rounded_all_the_same(name):
    scheme, fn = FLOAT[name]
    rng = np.random.default_rng(0)
    w, x = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((12, 6), (3, 12)))
    q, inputs = jqz.quantize(w, scheme), Symmetric(bits=3, granularity=PerAxis(0))
    got, program = compiled(jqz.quantized(fn, inputs=inputs), q, x)
    assert not in_integers(program)
    np.testing.assert_allclose(got, fn(q.dequantize(), inputs.simulate(x)), rtol=1e-5, atol=1e-6)


def test_input_schemes_without_integer_levels_round_in_float():
    rng = np.random.default_rng(0)
    w, x = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((12, 6), (3, 12)))
    q = jqz.quantize(w, Symmetric(bits=8))
    for inputs in (Symmetric(bits=12), Asymmetric(bits=3, anchor=jqz.schemes.Minimum())):
        got, program = compiled(jqz.quantized(dot, inputs=inputs), q, x)
        assert not in_integers(program)
        np.testing.assert_allclose(got, dot(q.dequantize(), inputs.simulate(x)), rtol=1e-5, atol=1e-6)


LEVELLED = [
    jqz.Binary(),
    jqz.Ternary(),
    jqz.FixedPoint(bits=8),
    jqz.FixedPoint(bits=8, sign=jqz.schemes.Unsigned()),
    jqz.PowerOfTwo(bits=4),
    Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4),
    Symmetric(bits=2, codes=jqz.schemes.Full()),
]


@pytest.mark.parametrize("scheme", LEVELLED, ids=repr)
def test_every_scheme_with_integer_levels_runs_in_integers(scheme):
    """As a weight and as an activation."""
    rng = np.random.default_rng(0)
    w, x = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((12, 6), (3, 12)))
    for weight, inputs in ((scheme, Asymmetric(bits=8)), (Asymmetric(bits=8), scheme)):
        q = jqz.quantize(w, weight)
        got, program = compiled(jqz.quantized(dot, inputs=inputs), q, x)
        assert in_integers(program)
        np.testing.assert_allclose(got, dot(q.dequantize(), inputs.simulate(x)), rtol=1e-5, atol=1e-5)


# --- sums that int32 cannot hold --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "most"), [(Symmetric(bits=8), 133144), (Asymmetric(bits=8), 32767)], ids=repr)
def test_sums_that_could_leave_int32_are_taken_in_float(scheme, most):
    low, high = RANGES[type(scheme)]
    for terms in (most, most + 1):
        x = np.full((1, terms), high)
        x[0, 0] = low
        x, w = jnp.asarray(x, jnp.float32), jnp.asarray(x.T, jnp.float32)
        got, program = compiled(jqz.quantized(dot, inputs=scheme), jqz.quantize(w, scheme), x)
        assert in_integers(program) == (terms == most)
        # summing in float32 loses a few digits; an overflow would lose all of them
        np.testing.assert_allclose(got[0, 0], (terms - 1) * high**2 + low**2, rtol=1e-6 if terms == most else 1e-3)


def test_groups_need_only_hold_their_own_sums():
    terms = 133144
    values = np.full((1, 2 * terms), 127)
    values[0, 0] = -127
    q = jqz.quantize(jnp.asarray(values.T, jnp.float32), Symmetric(bits=8, granularity=PerGroup(terms)))
    x = jnp.asarray(values, jnp.float32)
    got, program = compiled(jqz.quantized(dot, inputs=Symmetric(bits=8)), q, x)
    assert in_integers(program)
    np.testing.assert_allclose(got[0, 0], values.size * 127**2, rtol=1e-6)


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats(dtype):
    """Integers up to 215 are exact in either dtype; the result is the exact one, rounded once."""
    x, w, exact = exact_pair((3, 8), (8, 5), Symmetric, Asymmetric)
    x, w, exact = x.astype(dtype), w.astype(dtype), exact / 128
    q, inputs = jqz.quantize(w / 128, Symmetric(bits=8)), Asymmetric(bits=8)
    got, program = compiled(jqz.quantized(dot, inputs=inputs), q, x)
    assert in_integers(program)
    np.testing.assert_array_equal(got, jnp.asarray(exact, jnp.float32).astype(dtype))

    def wide(w, x):
        return jax.lax.dot(x, w, preferred_element_type=jnp.float32)

    got, program = compiled(jqz.quantized(wide, inputs=inputs), q, x)
    assert in_integers(program)
    np.testing.assert_array_equal(got, jnp.asarray(exact, jnp.float32))


def test_a_wide_weight_in_a_narrow_model():
    """float32 parameters that the model converts, as Flax layers with a ``dtype`` do."""
    x, w, exact = exact_pair((3, 8), (8, 5))
    q = jqz.quantize(w, Symmetric(bits=8))

    def fn(w, x):
        return x @ w.astype(jnp.bfloat16)

    got, program = compiled(jqz.quantized(fn, inputs=Symmetric(bits=8)), q, x.astype(jnp.bfloat16))
    assert in_integers(program)
    np.testing.assert_array_equal(got, jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16))


def test_float64():
    with jax.enable_x64(True):
        x, w, exact = exact_pair((3, 8), (8, 5), Asymmetric, Asymmetric)
        for weight_dtype in (jnp.float64, jnp.float32):
            q = jqz.quantize(w.astype(weight_dtype), Asymmetric(bits=8))
            assert q.dtype == weight_dtype
            fn = jqz.quantized(lambda w, x: x @ w.astype(x.dtype), inputs=Asymmetric(bits=8))
            got, program = compiled(fn, q, x.astype(jnp.float64) / 3)
            assert in_integers(program)
            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, exact / 3, rtol=1e-12)


def test_integer_activations_are_left_alone():
    """One-hot integers, say: they are what they are."""
    q = jqz.quantize(jnp.eye(4) * 0.3, Symmetric(bits=8))
    x = jnp.array([[0, 1, 0, 2]])
    got = jqz.quantized(lambda w, x: jax.lax.dot(x, w, preferred_element_type=jnp.float32), inputs=Symmetric(bits=2))(
        q, x
    )
    np.testing.assert_allclose(got, np.asarray(x) @ np.asarray(q.dequantize()))


def test_a_weight_that_meets_a_weight_is_decoded():
    q = jqz.quantize(jnp.asarray(np.random.default_rng(0).standard_normal((5, 5)), jnp.float32), Symmetric(bits=4))
    w = q.dequantize()
    got = jqz.quantized(lambda a, b: a @ b, inputs=Symmetric(bits=2))(q, q)
    np.testing.assert_allclose(got, w @ w, rtol=1e-6)


# --- which activations ------------------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_the_weights_path_decides():
    rng = np.random.default_rng(0)
    params = {name: {"kernel": jnp.asarray(rng.standard_normal((6, 6)), jnp.float32)} for name in ("a", "b", "c")}
    x = jnp.asarray(rng.standard_normal((2, 6)), jnp.float32)

    def fn(params, x):
        return [x @ params[name]["kernel"] for name in "abc"]

    q = jqz.quantize(params, Symmetric(bits=8))
    coarse, fine = Symmetric(bits=2), Symmetric(bits=8)
    got = jqz.quantized(fn, inputs={"a/*": coarse, "b/*": None, "**": fine})(q, x)
    w = jqz.dequantize(q)
    for out, rounded, name in zip(got, (coarse.simulate(x), x, fine.simulate(x)), "abc", strict=True):
        np.testing.assert_allclose(out, rounded @ w[name]["kernel"], rtol=1e-5, atol=1e-6)


def test_scales_are_as_fine_as_the_contraction_allows():
    """A row's scale is its own under PerAxis(0), and shared under PerAxis(-1), whose scales the sum cannot undo."""
    x = jnp.asarray([[1.0, 0.5], [1000.0, 500.0]])
    q = jqz.quantize(jnp.eye(2), Symmetric(bits=8))
    rows = jqz.quantized(dot, inputs=Symmetric(bits=8, granularity=PerAxis(0)))(q, x)
    np.testing.assert_allclose(rows, x, rtol=0.01)
    shared = jqz.quantized(dot, inputs=Symmetric(bits=8, granularity=PerAxis(-1)))(q, x)
    np.testing.assert_array_equal(shared[0], [0, 0])
