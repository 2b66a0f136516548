"""Key-value caches: what is written is coded, what stays keeps its codes, and the tensor comes back as one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jqz

Symmetric, PerAxis, Given = jqz.Symmetric, jqz.PerAxis, jqz.ranges.Given
SHAPE = (2, 8, 3, 4)  # batch, position, head, size


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


#: Schemes whose grids are fixed, and of their own for each position.
FIXED = {
    "one scale": Symmetric(bits=8, range=Given(-4.0, 4.0)),
    "a scale for each channel": Symmetric(bits=8, granularity=PerAxis(-1), range=Given(-4.0, 4.0)),
    "packed": Symmetric(bits=4, range=Given(-4.0, 4.0)),
    "a zero point": jqz.Asymmetric(bits=8, range=Given(-4.0, 4.0)),
}
POSITIONS = {
    "positions": Symmetric(bits=8, granularity=PerAxis((0, 1))),
    "positions and heads": Symmetric(bits=8, granularity=PerAxis((0, 1, 2))),
    "positions, packed": Symmetric(bits=4, granularity=PerAxis((0, 1))),
    "positions, zero points": jqz.Asymmetric(bits=8, granularity=PerAxis((0, 1))),
    "groups": Symmetric(bits=4, granularity=jqz.PerGroup(2, axis=-1)),
    "a codebook": jqz.NormalFloat(bits=4, granularity=PerAxis((0, 1))),
    "a chain": Symmetric(bits=8, granularity=PerAxis((0, 1))) >> jqz.PowerOfTwo(bits=4, granularity=PerAxis((0, 1))),
}
SCHEMES = FIXED | POSITIONS

ROW, ONE = normal(1, 2, 1, 3, 4), normal(2, 2, 3, 4)
WRITES = {
    "a slice": (lambda c, at: jax.lax.dynamic_update_slice(c, ROW, (0, at, 0, 0)), lambda at: np.s_[:, at : at + 1]),
    "a slice beyond the end": (
        lambda c, at: jax.lax.dynamic_update_slice(c, ROW, (0, at + 100, 0, 0)),
        lambda at: np.s_[:, 7:8],
    ),
    "several positions": (
        lambda c, at: jax.lax.dynamic_update_slice(c, normal(3, 2, 4, 3, 4), (0, at, 0, 0)),
        lambda at: np.s_[:, at : at + 4],
    ),
    "an index": (lambda c, at: c.at[:, at].set(ONE), lambda at: np.s_[:, at]),
    "an index on two axes": (lambda c, at: c.at[1, at].set(ONE[0]), lambda at: np.s_[1, at]),
    "a range": (lambda c, at: c.at[:, 2:4].set(normal(3, 2, 2, 3, 4)), lambda at: np.s_[:, 2:4]),
    "a position for each sequence": (
        lambda c, at: c.at[jnp.arange(2), jnp.stack([at, at + 2])].set(ONE),
        lambda at: (np.arange(2), np.array([at, at + 2])),
    ),
    "rows in any order": (
        lambda c, at: c.at[:, jnp.stack([at + 2, at])].set(normal(3, 2, 2, 3, 4)),
        lambda at: (np.s_[:], np.array([at + 2, at])),
    ),
    "under vmap": (
        lambda c, at: jax.vmap(lambda c, u, i: jax.lax.dynamic_update_slice(c, u, (i, 0, 0)))(
            c, ROW, jnp.stack([at, at + 2])
        ),
        lambda at: (np.arange(2), np.array([at, at + 2])),
    ),
    "everything": (
        lambda c, at: jax.lax.dynamic_update_slice(c, normal(3, *SHAPE), (0, at, 0, 0)),
        lambda at: np.s_[:],
    ),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes(name):
    """What is written is what its own blocks decode to; all else is as it was, code for code."""
    write, where = WRITES[name]
    start = normal(0, *SHAPE)
    run = jax.jit(lambda caches, at: {s: jqz.quantized(write)(q, at) for s, q in caches.items()})
    before = {s: jqz.quantize(start, scheme) for s, scheme in SCHEMES.items()}
    at = 3
    exact, after = write(start, at), run(before, at)
    inside = np.zeros(SHAPE, bool)
    inside[where(at)] = True
    for s, scheme in SCHEMES.items():
        assert isinstance(after[s], jqz.QTensor), s
        assert jax.tree.structure(after[s]) == jax.tree.structure(before[s]), s
        assert after[s].size_bytes == before[s].size_bytes, s
        decoded = np.asarray(after[s].dequantize())
        np.testing.assert_array_equal(decoded[~inside], np.asarray(before[s].dequantize())[~inside], err_msg=s)
        if s in FIXED:
            wanted = scheme.decode(scheme.encode(exact, before[s].grid), before[s].grid)
        else:  # every block lies within what is written: the codes are those of the values by themselves
            wanted = jqz.quantize(exact, scheme).dequantize()
        np.testing.assert_allclose(decoded[inside], np.asarray(wanted)[inside], rtol=1e-6, atol=1e-6, err_msg=s)


def test_a_write_out_of_bounds_is_dropped_where_the_float_function_drops_it():
    q = jqz.quantize(normal(0, *SHAPE), POSITIONS["positions"])
    got = jqz.quantized(lambda c, i: c.at[:, i].set(ONE, mode="drop"))(q, jnp.array(9))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(q), strict=True):
        np.testing.assert_array_equal(a, b)


def test_where_blocks_are_written_in_part_and_have_no_fixed_grid_the_result_is_float():
    """A scale for each position that two sequences share cannot follow a write into one of them."""
    q = jqz.quantize(normal(0, *SHAPE), Symmetric(bits=8, granularity=PerAxis(1)))

    def write(c):
        return c.at[1, 3].set(ONE[0])

    np.testing.assert_allclose(jqz.quantized(write)(q), write(q.dequantize()), rtol=1e-6)


def test_what_is_not_written_to_is_decoded_when_it_is_returned():
    q = jqz.quantize(normal(0, *SHAPE), Symmetric(bits=8))
    np.testing.assert_array_equal(jqz.quantized(lambda c: c)(q), q.dequantize())
    np.testing.assert_allclose(jqz.quantized(lambda c: c.at[0].add(1.0))(q), q.dequantize().at[0].add(1.0), rtol=1e-6)


def test_reading_after_writing_decodes_what_is_read():
    q = jqz.quantize(normal(0, *SHAPE), POSITIONS["positions"])

    def fn(c, at):
        c = c.at[:, at].set(ONE)
        return jax.lax.dynamic_slice_in_dim(c, at, 2, 1), c[:, at], c.transpose(0, 2, 1, 3).sum(2), c[1], c

    *read, after = jqz.quantized(fn)(q, 3)
    d = np.asarray(after.dequantize())
    for got, wanted in zip(read, (d[:, 3:5], d[:, 3], d.transpose(0, 2, 1, 3).sum(2), d[1]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


# --- loops ------------------------------------------------------------------------------------------------------------


def fill(cache, values, loop):
    """Writes values (position, ...) one after another, by each kind of loop."""

    def put(cache, at, value):
        return jax.lax.dynamic_update_slice(cache, value[:, None], (0, at, 0, 0))

    def step(cache, at):
        return put(cache, at, values[at])

    if loop == "scan":
        return jax.lax.scan(lambda c, x: (put(c, *x), None), cache, (jnp.arange(len(values)), values))[0]
    if loop == "while":
        return jax.lax.while_loop(lambda s: s[0] < len(values), lambda s: (s[0] + 1, step(s[1], s[0])), (0, cache))[1]
    if loop == "fori":
        return jax.lax.fori_loop(0, len(values), lambda at, c: step(c, at), cache)
    if loop == "jit":
        return functools.reduce(jax.jit(step), range(len(values)), cache)
    if loop == "checkpoint":
        return functools.reduce(lambda c, at: jax.checkpoint(step)(c, at), range(len(values)), cache)
    assert loop == "cond"
    even = lambda at, c: jax.lax.cond(at % 2 == 0, step, lambda c, at: c, c, at)  # noqa: E731
    return jax.lax.fori_loop(0, len(values), even, cache)


@pytest.mark.parametrize("loop", ["scan", "while", "fori", "jit", "checkpoint", "cond"])
def test_a_cache_stays_coded_through(loop):
    values = normal(4, 8, 2, 3, 4)
    scheme = POSITIONS["positions"]
    empty = jqz.quantize(jnp.zeros(SHAPE), scheme)
    run = jax.jit(jqz.quantized(functools.partial(fill, loop=loop)))
    got = run(empty, values)
    assert jax.tree.structure(got) == jax.tree.structure(empty)
    wanted = jqz.quantize(fill(jnp.zeros(SHAPE), values, loop), scheme)
    np.testing.assert_allclose(got.dequantize(), wanted.dequantize(), rtol=1e-6)
    again = run(got, values)  # the structure that came out goes in
    np.testing.assert_array_equal(again.codes, got.codes)


def test_loops_that_do_more_than_write_decode():
    def scaled(c):
        return jax.lax.fori_loop(0, 2, lambda i, c: 2 * c.at[:, i].set(ONE), c)

    q = jqz.quantize(normal(0, *SHAPE), FIXED["one scale"])
    np.testing.assert_allclose(jqz.quantized(scaled)(q), scaled(q.dequantize()), rtol=1e-5)


@pytest.mark.parametrize("scheme", [
    Symmetric(bits=8, granularity=PerAxis((0, 1, 2))), Symmetric(bits=8, range=Given(-4.0, 4.0)),
    Symmetric(bits=4, granularity=PerAxis((0, 1, 2))),
])  # fmt: skip
def test_a_stack_of_caches_in_a_scan_over_layers(scheme):
    """Scanned over and stacked again, as nn.scan does with the caches of its layers."""
    cache, values = jqz.quantize(normal(0, 3, *SHAPE), scheme), normal(5, 3, 2, 3, 4)

    def fn(cache, values):
        return jax.lax.scan(lambda total, x: (total + x[0].sum(), x[0].at[:, 5].set(x[1])), 0.0, (cache, values))

    _, got = jax.jit(jqz.quantized(fn))(cache, values)
    assert jax.tree.structure(got) == jax.tree.structure(cache)
    assert [leaf.shape for leaf in jax.tree.leaves(got)] == [leaf.shape for leaf in jax.tree.leaves(cache)]
    wanted = cache.dequantize().at[:, :, 5].set(jqz.quantize(values[:, :, None], scheme).dequantize()[:, :, 0])
    np.testing.assert_allclose(got.dequantize(), wanted, rtol=1e-6, atol=1e-6)


# --- attention --------------------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """Two layers of Flax's own attention with its own cache."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(20, 64)(tokens)
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(num_heads=2, decode=True)(nn.LayerNorm()(x))
            x = x + nn.Dense(64)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(20)(x)


@functools.cache
def decoder():
    """The model, its parameters, and an empty cache for 12 tokens."""
    model = Decoder()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((2, 12), jnp.int32))
    return model, variables["params"], jax.tree.map(jnp.zeros_like, variables["cache"])


def decode(run, params, cache, tokens):
    """Logits of each step, the cache being carried by scan."""

    def step(cache, token):
        logits, state = run({"params": params, "cache": cache}, token[:, None], mutable=["cache"])
        return state["cache"], logits[:, 0]

    return jax.lax.scan(step, cache, tokens.T)


def test_a_decoder_generates_what_it_generates_with_a_float_cache():
    """Logits to 2 %, in a quarter of the memory: one byte a number, and a scale for each token."""
    model, params, cache = decoder()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 12)))
    coded = jqz.quantize(cache, {"**": Symmetric(bits=8, granularity=PerAxis((0, 1)))})
    exact_cache, exact = jax.jit(functools.partial(decode, model.apply))(params, cache, tokens)
    after, got = jax.jit(functools.partial(decode, jqz.quantized(model.apply)))(params, coded, tokens)
    assert jax.tree.structure(after) == jax.tree.structure(coded)
    assert np.linalg.norm(got - exact) < 0.02 * np.linalg.norm(exact)
    assert np.linalg.norm(got - exact) > 0
    np.testing.assert_array_equal(np.argmax(got, -1), np.argmax(exact, -1))
    assert jqz.size_bytes(after) < 0.27 * jqz.size_bytes(exact_cache)
    for a, b in zip(jax.tree.leaves(jqz.dequantize(after)), jax.tree.leaves(exact_cache), strict=True):
        np.testing.assert_allclose(a, b, atol=0.03 * max(1.0, float(np.abs(b).max())))


def test_attention_may_multiply_the_codes_of_the_cache():
    """A rule for the product of queries and keys: keys are read as they are stored, queries are coded."""
    model, params, cache = decoder()
    coded = jqz.quantize(cache, {"**": Symmetric(bits=8, granularity=PerAxis((0, 1, 2)))})
    inputs = {"**/*hqk/(dot *)": Symmetric(bits=8)}
    token = jnp.array([[3], [5]])
    variables = {"params": params, "cache": coded}
    audit = jqz.audit(model.apply, inputs=inputs)(variables, token, mutable=["cache"])
    hows = {p.name: p.how for p in audit.products if "/(dot)" in p.name}
    assert {how for name, how in hows.items() if "hqk/" in name} == {"int8"}
    assert {how for name, how in hows.items() if "qhd/" in name} == {"float"}
    exact, _ = jax.jit(functools.partial(model.apply, mutable=["cache"]))({"params": params, "cache": cache}, token)
    got, _ = jax.jit(functools.partial(jqz.quantized(model.apply, inputs=inputs), mutable=["cache"]))(variables, token)
    assert np.linalg.norm(got - exact) < 0.02 * np.linalg.norm(exact)


def test_a_converted_decoder_takes_a_coded_cache():
    """Calibrated on float caches of several lengths; keys are multiplied as they are stored, queries on their site."""
    model, params, cache = decoder()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 6)))

    def step(params, cache, token):
        logits, state = model.apply({"params": params, "cache": cache}, token, mutable=["cache"])
        return state["cache"], logits

    exact, batches, run = [], [], jax.jit(step)
    for at in range(6):
        batches.append((cache, tokens[:, at : at + 1]))
        cache, logits = run(params, *batches[-1])
        exact.append(logits)
    scheme = jqz.Asymmetric(bits=8)
    policy = jqz.Policy(
        {"**/kernel": Symmetric(bits=8, granularity=PerAxis(-1))}, inputs={"**/(dot *)": scheme, "**": scheme}
    )
    net = jqz.convert(step, params, batches, policy)
    coded = jqz.quantize(batches[0][0], {"**": Symmetric(bits=8, granularity=PerAxis((0, 1, 2)))})
    audit = jqz.audit(step, net.sites)(net.qparams, coded, tokens[:, :1])
    assert {p.how for p in audit.products if not p.name.endswith("qhd/(dot)")} == {"int8"}
    for at in range(6):
        coded, logits = net(coded, tokens[:, at : at + 1])
        assert np.linalg.norm(logits - exact[at]) < 0.06 * np.linalg.norm(exact[at])
