"""Looking up rows of a coded table decodes those rows alone, and treats every index as the float function does."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jqz

ROWS, WIDTH = 300, 10


def table(dtype=np.float32):
    return jnp.asarray(np.random.default_rng(0).standard_normal((ROWS, WIDTH)), dtype)


SCHEMES = {
    "per tensor": jqz.Symmetric(bits=8),
    "per column, packed": jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1)),
    "per row, packed": jqz.Symmetric(bits=3, granularity=jqz.PerAxis(0)),
    "groups of columns": jqz.Symmetric(bits=4, granularity=jqz.PerGroup(4, axis=-1)),
    "groups of rows": jqz.Symmetric(bits=4, granularity=jqz.PerGroup(7, axis=0)),
    "blocks": jqz.Asymmetric(bits=8, granularity=jqz.PerBlock((8, 5))),
    "not affine": jqz.Asymmetric(bits=4, granularity=jqz.PerAxis(0), anchor=jqz.schemes.Minimum()),
    "chain": jqz.Symmetric(bits=8, granularity=jqz.PerAxis(0)) >> jqz.PowerOfTwo(bits=4),
}


def largest_float(fn, *args):
    """The most floating numbers that any step of a program makes at once."""
    program = str(jax.make_jaxpr(fn)(*args))
    made = re.findall(r":(?:f|bf)\d+\[([\d,]*)\]", program)
    return max(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in made)


def look_up(w, i):
    return w[i]


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_only_the_rows_taken_are_decoded(scheme):
    q = jqz.quantize(table(), scheme)
    indices = jnp.array([[0, 299, 7], [6, -1, 150]])
    np.testing.assert_array_equal(jqz.quantized(look_up)(q, indices), q.dequantize()[indices])
    grid = max(leaf.size for leaf in jax.tree.leaves(q.grid))
    assert largest_float(jqz.quantized(look_up), q, indices) <= max(grid, indices.size * WIDTH)
    assert largest_float(lambda w, i: w.dequantize()[i], q, indices) >= ROWS * WIDTH  # what would be seen otherwise


INDICES = {
    "in bounds": jnp.array([0, 5, 299]),
    "negative": jnp.array([-1, -300, -7]),
    "far out": jnp.array([300, -301, 10**6]),
    "none": jnp.zeros((0,), jnp.int32),
    "a matrix": jnp.array([[1, 2], [3, 400]]),
    "one": jnp.array(7),
    "unsigned": jnp.array([3, 200], jnp.uint16),
}
MODES = {
    "indexing": look_up,
    "fill": lambda w, i: w.at[i].get(mode="fill"),
    "fill with a value": lambda w, i: w.at[i].get(mode="fill", fill_value=2.5),
    "clip": lambda w, i: w.at[i].get(mode="clip"),
    "take": lambda w, i: jnp.take(w, i, axis=0),
    "take and clip": lambda w, i: jnp.take(w, i, axis=0, mode="clip"),
    "take and wrap": lambda w, i: jnp.take(w, i, axis=0, mode="wrap"),
}


@pytest.mark.parametrize("mode", MODES)
def test_indices_mean_what_they_mean_to_the_float_function(mode):
    q = jqz.quantize(table(), SCHEMES["per row, packed"])
    w, fn = q.dequantize(), MODES[mode]
    for name, indices in INDICES.items():
        np.testing.assert_array_equal(jqz.quantized(fn)(q, indices), fn(w, indices), err_msg=name)


def test_narrow_indices_reach_a_long_table_unwidened():
    """lax.gather itself takes int8 indices, whose range ends before the table does."""
    numbers = jax.lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))

    def rows(w, i):
        return jax.lax.gather(w, i, numbers, (1, WIDTH), mode="fill")

    q = jqz.quantize(table(), SCHEMES["per tensor"])
    indices = jnp.array([[5], [127], [-3]], jnp.int8)
    np.testing.assert_array_equal(jqz.quantized(rows)(q, indices), rows(q.dequantize(), indices))


OTHER_GATHERS = {
    "columns": lambda w, i: w[:, i % 10],
    "single values": lambda w, i: w[i, i % 10],
    "parts of rows": lambda w, i: w[i, 2:5],
    "a row for each batch": lambda w, i: jax.vmap(lambda w, i: w[i])(w.reshape(3, 100, 10), i),
    "rows under vmap": lambda w, i: jax.vmap(lambda i: w[i])(i),
    "rows of a transposed table": lambda w, i: w.T[i % 10],
    "rows laid across": lambda w, i: jax.vmap(lambda i: w[i], out_axes=1)(i),
    "of a vector": lambda w, i: w.ravel()[i],
}


@pytest.mark.parametrize("name", OTHER_GATHERS)
def test_other_gathers(name):
    q = jqz.quantize(table(), SCHEMES["groups of rows"])
    indices = jnp.array([0, 99, 41])
    fn = OTHER_GATHERS[name]
    np.testing.assert_array_equal(jqz.quantized(fn)(q, indices), fn(q.dequantize(), indices))


def test_a_table_of_one_row():
    q = jqz.quantize(table()[:1], SCHEMES["per row, packed"])
    np.testing.assert_array_equal(jqz.quantized(look_up)(q, jnp.array([0, 3])), q.dequantize()[jnp.array([0, 3])])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_tables_and_narrow_models(dtype):
    """A table stored narrow, and a float32 table that the model converts before it looks rows up."""
    indices = jnp.array([4, 400, -1])
    q = jqz.quantize(table(dtype), SCHEMES["per row, packed"])
    out = jqz.quantized(look_up)(q, indices)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, q.dequantize()[indices])

    model = nn.Embed(ROWS, WIDTH, dtype=dtype)
    variables = {"params": {"embedding": jqz.quantize(table(), SCHEMES["per row, packed"])}}
    indices = jnp.array([4, 299])
    out = jqz.quantized(model.apply)(variables, indices)
    np.testing.assert_array_equal(out, model.apply(jqz.dequantize(variables), indices))
    assert out.dtype == dtype
    assert largest_float(jqz.quantized(model.apply), variables, indices) <= ROWS


def test_a_tensor_of_numpy_arrays():
    """What comes from a file or from jax.device_get."""
    q = jqz.quantize(table(), SCHEMES["per row, packed"])
    host = jax.tree.map(np.asarray, q)
    for fn, i in ((look_up, np.array([3, 1])), (lambda w, i: w.T @ i, np.ones(ROWS, np.float32))):
        np.testing.assert_array_equal(jqz.quantized(fn)(host, i), jqz.quantized(fn)(q, jnp.asarray(i)))
