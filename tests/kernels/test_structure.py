"""A rule that moves codes gives what the primitive gives on decoded values, and a weight stays a weight."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz import _values
from jqz._interpret import interpret, trace
from jqz._walk import Walk
from jqz.kernels import structure

few = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)


def values(*shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


def run(fn, weight, *operands):
    """What the rules make of one coded weight, possibly still lazy."""
    jaxpr, _ = trace(fn, jax.ShapeDtypeStruct(weight.shape, weight.dtype), *operands)
    (out,) = interpret(jaxpr, [weight, *operands], Walk(structure.RULES))
    return out


def check(fn, q, *operands, kind=_values.Levels):
    """Rule and primitive agree bit for bit; the result is still a weight of the same name, of the kind given."""
    out = run(fn, _values.Coded(q, "block/kernel"), *operands)
    wanted = fn(q.dequantize(), *operands)
    assert isinstance(out, kind), type(out)
    assert out.path == "block/kernel"
    assert (out.shape, out.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_array_equal(out.decode(), wanted)
    if isinstance(out, _values.Levels):
        assert out.levels.dtype == jnp.int8
        assert all(n % s == 0 for s, n in zip(out.scale.shape, out.shape, strict=True) if s)
    return out


SCHEMES = {
    "per tensor": jqz.Symmetric(bits=8),
    "per channel": jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1)),
    "two axes": jqz.Symmetric(bits=3, granularity=jqz.PerAxis((0, 2))),
    "groups": jqz.Symmetric(bits=8, granularity=jqz.PerGroup(2, axis=1)),
    "blocks": jqz.Symmetric(bits=5, granularity=jqz.PerBlock((2, 3))),
    "zero points": jqz.Asymmetric(bits=8, granularity=jqz.PerGroup(2, axis=1)),
}

MOVES = {
    "transpose": lambda w: jnp.transpose(w, (2, 0, 1)),
    "swap": lambda w: jnp.swapaxes(w, 0, 1),
    "reverse": lambda w: w[::-1, ::-1, ::-1],
    "new axis": lambda w: w[:, None],
    "squeeze": lambda w: jax.lax.squeeze(w[1:2], (0,)),
    "broadcast": lambda w: jnp.broadcast_to(w, (2, *w.shape)),
    "broadcast a cut axis": lambda w: jnp.broadcast_to(w[:, :1], w.shape),
    "merge": lambda w: w.reshape(12, 6),
    "split": lambda w: w.reshape(3, 2, 2, 2, 3),
    "cut whole groups": lambda w: w[:, 2:4],
    "cut other axes": lambda w: w[1:3, :, 3:],
    "stop gradient": jax.lax.stop_gradient,
    "copy": jnp.copy,
    "to the same dtype": lambda w: jax.lax.convert_element_type(w, jnp.float32),
}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_moves(scheme):
    q = jqz.quantize(values(3, 4, 6), scheme)
    for name, move in MOVES.items():
        try:
            check(move, q, kind=_values.Levels | _values.Coded)
        except AssertionError as error:
            error.add_note(name)
            raise


MISALIGNED = {
    "cut inside a group": lambda w: w[:, 1:3],
    "stride over groups": lambda w: w[:, ::3],
    "merge with an axis to the right": lambda w: w.reshape(3, 24),
    "split across groups": lambda w: w.reshape(1, 3, 4, 6)[:, :, 0:3:2],
}


@pytest.mark.parametrize("name", MISALIGNED)
def test_where_a_grid_cannot_follow_the_decoded_weight_moves_and_keeps_its_name(name):
    q = jqz.quantize(values(3, 4, 6), jqz.Symmetric(bits=8, granularity=jqz.PerGroup(2, axis=1)))
    check(MISALIGNED[name], q, kind=_values.Weight)


UNLEVELLED = [
    jqz.Symmetric(bits=12),  # levels beyond int8
    jqz.Symmetric(bits=4, granularity=jqz.PerGroup(3, axis=1)),  # an uneven last group
    jqz.Asymmetric(bits=4, anchor=jqz.schemes.Minimum()),  # zero is no level
]


@pytest.mark.parametrize("scheme", UNLEVELLED, ids=repr)
def test_schemes_without_levels_move_decoded_and_keep_their_name(scheme):
    q = jqz.quantize(values(3, 4, 6), scheme)
    for name in ("transpose", "merge", "cut other axes", "broadcast", "reverse"):
        check(MOVES[name], q, kind=_values.Weight)


def test_float_weights_move_as_coded_ones_do():
    w = values(3, 4, 6)
    for move in (*MOVES.values(), *MISALIGNED.values()):
        out = run(move, _values.Weight(w, "block/kernel"))
        assert isinstance(out, _values.Weight)
        assert out.path == "block/kernel"
        np.testing.assert_array_equal(out.value, move(w))


# --- reshape: exhaustive against NumPy --------------------------------------------------------------------------------


def expand(grid, shape):
    for axis, n in enumerate(shape):
        grid = np.repeat(grid, n // grid.shape[axis], axis)
    return grid


def divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]


@st.composite
def reshapes(draw):
    """(old shape, new shape, grid shape) of up to 36 values, with axes of length 1 in between."""
    n = draw(st.sampled_from([1, 4, 6, 8, 12, 18, 24, 36]))

    def shape():
        sizes, rest = [], n
        while rest > 1:
            sizes.append(draw(st.sampled_from(divisors(rest)[1:])))
            rest //= sizes[-1]
        for _ in range(draw(st.integers(0, 2))):
            sizes.insert(draw(st.integers(0, len(sizes))), 1)
        return tuple(sizes)

    old = shape()
    return old, shape(), tuple(draw(st.sampled_from(divisors(size))) for size in old)


@hypothesis.settings(max_examples=400, deadline=None, derandomize=True)
@hypothesis.given(reshapes())
def test_a_reshaped_grid_serves_the_same_values_whenever_any_grid_could(case):
    old, new, grid = case
    entries = np.arange(math.prod(grid)).reshape(grid)
    wanted = expand(entries, old).reshape(new)

    def serves(shape):
        return math.prod(shape) == entries.size and np.array_equal(expand(entries.reshape(shape), new), wanted)

    got = structure._reshaped_grid(old, new, grid)
    if got is None:
        assert not any(serves(shape) for shape in itertools.product(*map(divisors, new)))
    else:
        assert serves(got)


def test_reshaping_nothing_gives_up():
    assert structure._reshaped_grid((0, 3), (3, 0), (1, 3)) is None
    q = jqz.quantize(values(0, 3), jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1)))
    check(lambda w: w.reshape(3, 0), q, kind=_values.Weight)


# --- slices at random -------------------------------------------------------------------------------------------------


@few
@hypothesis.given(st.data())
def test_slices(data):
    """Any slice, of any grid, decodes to the slice; one that cuts no group stays in codes."""
    granularities = [jqz.PerAxis(0), jqz.PerGroup(2, 0), jqz.PerGroup(3, 1), jqz.PerBlock((4, 2))]
    granularity = data.draw(st.sampled_from(granularities))
    q = jqz.quantize(values(8, 6), jqz.Symmetric(bits=8, granularity=granularity))
    starts, limits, strides, aligned = [], [], [], True
    for n, block in zip((8, 6), granularity.block((8, 6)), strict=True):
        starts.append(data.draw(st.integers(0, n)))
        limits.append(data.draw(st.integers(starts[-1], n)))
        strides.append(data.draw(st.integers(1, 3)))
        groups = strides[-1] == 1 and starts[-1] % block == 0 and limits[-1] % block == 0
        inside = starts[-1] // block == (limits[-1] - 1) // block or starts[-1] == limits[-1]
        aligned &= block in (1, n) or groups or inside
    kind = _values.Levels if aligned else _values.Weight
    check(lambda w: jax.lax.slice(w, starts, limits, strides), q, kind=kind)


@pytest.mark.parametrize("start", [-9, -1, 0, 1, 2, 7, 100])
@pytest.mark.parametrize(("granularity", "kind"), [
    (jqz.PerAxis((0, 1)), _values.Levels),
    (jqz.PerAxis(-1), _values.Levels),
    (jqz.PerGroup(2, axis=1), _values.Levels),
    (jqz.PerGroup(2, axis=0), _values.Weight),
])  # fmt: skip
def test_dynamic_slices_clamp_as_the_primitive_does(start, granularity, kind):
    q = jqz.quantize(values(4, 6), jqz.Symmetric(bits=4, granularity=granularity))

    def cut(w, start):
        return jax.lax.dynamic_slice(w, (start, jnp.int32(0)), (2, 6))

    check(cut, q, jnp.int32(start), kind=kind)


def test_a_layer_taken_from_a_stack_by_a_traced_index():
    q = jqz.quantize(values(3, 4, 6), jqz.Symmetric(bits=8, granularity=jqz.PerAxis((0, -1))))
    out = check(lambda w, i: jax.lax.dynamic_index_in_dim(w, i, 0, keepdims=False), q, jnp.int32(-1))
    assert out.scale.shape == (1, 6)


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [
    (jnp.bfloat16,), (jnp.float16,), (jnp.float16, jnp.float32), (jnp.bfloat16, jnp.float16, jnp.float32),
])  # fmt: skip
@pytest.mark.parametrize("scheme", [jqz.Symmetric(bits=8), jqz.Symmetric(bits=12)], ids=repr)
def test_casts_round_as_the_primitive_does_however_many_there_are(path, scheme):
    q = jqz.quantize(values(5, 7), scheme)

    def cast(w):
        for dtype in path:
            w = w.astype(dtype)
        return w.T

    check(cast, q, kind=_values.Levels if scheme.bits == 8 else _values.Weight)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_tensors_stay_narrow_where_they_are_widened(dtype):
    q = jqz.quantize(values(5, 7, dtype=dtype), jqz.Symmetric(bits=8))
    check(lambda w: w.T.astype(jnp.float32), q)
    check(lambda w: w.astype(jnp.float32).T, q)


def test_integers_are_no_weights():
    q = jqz.quantize(values(2, 3), jqz.Symmetric(bits=8))
    out = run(lambda w: w.astype(jnp.int32), _values.Coded(q, "kernel"))
    assert isinstance(out, jax.Array)
    np.testing.assert_array_equal(out, np.asarray(q.dequantize()).astype(np.int32))


def test_a_barrier_holds_the_arrays_and_passes_the_codes():
    q = jqz.quantize(values(2, 3), jqz.Symmetric(bits=8))
    jaxpr, _ = trace(lambda w, x: jax.lax.optimization_barrier((w, x)), jax.ShapeDtypeStruct((2, 3), jnp.float32), 1.0)
    weight = _values.Coded(q, "kernel")
    out = interpret(jaxpr, [weight, jnp.float32(2)], Walk(structure.RULES))
    assert out[0] is weight
    assert float(out[1]) == 2


def test_what_is_no_weight_is_not_named_one():
    """A rounded activation that is moved is an array again, never a weight."""
    x = values(3, 4)
    rounded = _values.Activation(x, x, jqz.Symmetric(bits=8), "kernel")
    for move in (jnp.transpose, jnp.ravel, lambda x: x[1:], lambda x: x.astype(jnp.float16), lambda x: x[::-1]):
        out = run(move, rounded)
        assert not _values.is_weight(out)
        np.testing.assert_array_equal(_values.decode(out), move(x))
