"""The walk through every kind of program: the result is the float function's, and weights reach the rules by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz import _values
from jqz._interpret import interpret, trace
from jqz._walk import Walk
from jqz.kernels import structure

W = jnp.asarray(np.random.default_rng(0).standard_normal((6, 6)), jnp.float32) / 2
STACK = jnp.asarray(np.random.default_rng(1).standard_normal((3, 6, 6)), jnp.float32) / 2
X = jnp.asarray(np.random.default_rng(2).standard_normal((4, 6)), jnp.float32)


def walk(fn, q, *args):
    """The result of a walk in which one tensor is coded, and the paths of the weights that met a dot."""
    met = []

    def watch(eqn, *operands):
        met.extend(v.path for v in operands if _values.is_weight(v))

    jaxpr, structure_out = trace(fn, jax.ShapeDtypeStruct(q.shape, q.dtype), *args)
    operands = [_values.Coded(q, "stack/kernel"), *jax.tree.leaves(args)]
    out = interpret(jaxpr, operands, Walk({**structure.RULES, "dot_general": watch}))
    return structure_out.unflatten([_values.decode(v) for v in out]), met


def check(fn, w, *args, met, scheme=jqz.Symmetric(bits=4, granularity=jqz.PerAxis((0, -1)))):
    q = jqz.quantize(w, scheme)
    got, paths = walk(fn, q, *args)
    wanted = fn(q.dequantize(), *args)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert set(paths) <= {"stack/kernel"}
    assert bool(paths) == met
    return paths


# --- programs that hold programs --------------------------------------------------------------------------------------


def layer(w, x):
    return jnp.tanh(x @ w)


@jax.custom_jvp
def with_jvp(w, x):
    return layer(w, x)


with_jvp.defjvp(lambda primals, tangents: (layer(*primals), 3 * layer(*primals)))


@jax.custom_vjp
def with_vjp(w, x):
    return layer(w, x)


with_vjp.defvjp(lambda w, x: (layer(w, x), x), lambda x, g: (None, 100 * g))

PROGRAMS = {
    "jit": lambda w, x: jax.jit(layer)(w, x),
    "jit in jit, a weight through both": lambda w, x: jax.jit(lambda w, x: (jax.jit(jnp.transpose)(w), x @ w))(w, x)[1],
    "a weight that a call returns": lambda w, x: x @ jax.jit(lambda w: w.T)(w),
    "checkpoint": lambda w, x: jax.checkpoint(layer)(w, x),
    "checkpoint with a policy": lambda w, x: jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_saveable)(w, x),
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "cond": lambda w, x: jax.lax.cond(x[0, 0] > 0, layer, lambda w, x: x, w, x),
    "the other branch": lambda w, x: jax.lax.cond(x[0, 0] <= 0, layer, lambda w, x: x - 1, w, x),
    "a branch that gives back the weight": lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda w: w, lambda w: w @ W, w),
    "switch": lambda w, x: jax.lax.switch(x.argmax() % 3, [layer, lambda w, x: x @ w.T, lambda w, x: x], w, x),
    "while": lambda w, x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, layer(w, c[1])), (0, x)),
    "a weight in the condition": lambda w, x: jax.lax.while_loop(
        lambda x: jnp.abs(x @ w).max() > 0.1, lambda x: x / 2, x
    ),
    "fori_loop": lambda w, x: jax.lax.fori_loop(0, 3, lambda i, x: layer(w, x) + i, x),
    "a weight shared by the steps of a scan": lambda w, x: jax.lax.scan(lambda x, _: (layer(w, x), x), x, None, 2),
    "map": lambda w, x: jax.lax.map(lambda row: row @ w, x),
    "vmap over rows": lambda w, x: jax.vmap(lambda row: layer(w, row))(x),
    "vmap over columns of the weight": lambda w, x: jax.vmap(lambda column: x @ column, in_axes=1)(w),
    "a gradient by the input": lambda w, x: jax.grad(lambda x: layer(w, x).sum())(x),
    "a second derivative": lambda w, x: jax.hessian(lambda x: layer(w, x).sum())(x[0]),
    "a forward derivative": lambda w, x: jax.jvp(lambda x: layer(w, x), (x,), (x,)),
    "named": lambda w, x: jax.named_scope("block")(layer)(w, x),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    check(PROGRAMS[name], W, X, met=True)


def scanned(stack, x, **kwargs):
    return jax.lax.scan(lambda x, w: (layer(w, x), x.sum()), x, stack, **kwargs)


STACKED = {
    "scan": scanned,
    "backwards": functools.partial(scanned, reverse=True),
    "unrolled": functools.partial(scanned, unroll=2),
    "of one step": lambda w, x: scanned(w[1:2], x),
    "checkpoint in scan": lambda w, x: jax.lax.scan(jax.checkpoint(lambda x, w: (layer(w, x), None)), x, w)[0],
    "scan in checkpoint": lambda w, x: jax.checkpoint(scanned)(w, x),
    "scan in scan": lambda w, x: jax.lax.scan(lambda x, _: (scanned(w, x)[0], None), x, None, 2)[0],
    "scan of a stack of stacks": lambda w, x: jax.lax.scan(
        lambda x, w: (scanned(w, x)[0], None), x, jnp.broadcast_to(w, (2, 3, 6, 6))
    )[0],
    "cond in scan": lambda w, x: jax.lax.scan(
        lambda x, w: (jax.lax.cond(x.sum() > 0, layer, lambda w, x: x @ w.T, w, x), None), x, w
    )[0],
    "layers by a loop index": lambda w, x: jax.lax.fori_loop(0, 3, lambda i, x: layer(w[i], x), x),
    "layers by name": lambda w, x: layer(w[2], layer(w[0], x)),
    "vmap over layers": lambda w, x: jax.vmap(layer, in_axes=(0, None))(w, x),
    "scan over transposed layers": lambda w, x: scanned(w.swapaxes(1, 2), x),
}


@pytest.mark.parametrize("name", STACKED)
def test_stacks_of_layers(name):
    check(STACKED[name], STACK, X, met=True)


@pytest.mark.parametrize("scheme", [
    jqz.Symmetric(bits=8),  # one scale for all layers
    jqz.Symmetric(bits=4, granularity=jqz.PerAxis(0)),
    jqz.Asymmetric(bits=4, granularity=jqz.PerGroup(2)),
    jqz.Symmetric(bits=3, granularity=jqz.PerGroup(2, axis=0)),  # groups of layers, the last with one
    jqz.Symmetric(bits=4, granularity=jqz.PerBlock((2, 4, 3))),
    jqz.Symmetric(bits=4, granularity=jqz.PerAxis(0)) >> jqz.Ternary(granularity=jqz.PerAxis(-1)),
    jqz.schemes.Codebook(bits=2, granularity=jqz.PerAxis(0)),
], ids=repr)  # fmt: skip
def test_every_layer_has_its_slice_of_the_grid(scheme):
    check(scanned, STACK, X, met=True, scheme=scheme)


def test_scans_of_vectors_and_of_nothing():
    """Packed codes of a vector have no axis left to slice; a scan of length 0 traces its body all the same."""
    scheme = jqz.Symmetric(bits=4)
    check(lambda w, x: jax.lax.scan(lambda x, b: (x + b, None), x, w)[0], W[0], X, met=False, scheme=scheme)
    check(lambda w, x: scanned(w[:0], x), STACK, X, met=True, scheme=scheme)


def test_weights_that_travel_as_carry_are_decoded_on_the_way():
    """Loops may change what they carry."""

    def fn(w, x):
        return jax.lax.fori_loop(0, 2, lambda _, c: (c[0] * 0.5, c[1] @ c[0]), (w, x))

    check(fn, W, X, met=False)


# --- primitives without a rule ----------------------------------------------------------------------------------------

UNKNOWN = {
    "elementwise": lambda w, x: jnp.exp(w) + w * 2 - w**2,
    "several results": lambda w, x: jnp.linalg.qr(w),
    "sorted": lambda w, x: jax.lax.top_k(w, 2),
    "reductions": lambda w, x: (w.sum(), w.max(0), w.argmax(1), jnp.linalg.norm(w)),
    "compared": lambda w, x: jnp.where(w > 0, w, x[0, 0]),
    "concatenated": lambda w, x: x @ jnp.concatenate([w, w], 1),
    "updated": lambda w, x: w.at[1].set(0.0),
    "solved": lambda w, x: jnp.linalg.solve(w + 3 * jnp.eye(6), x.T),
    "an implicit solution": lambda w, x: jax.lax.custom_linear_solve(
        lambda v: v @ (w + 3 * jnp.eye(6)), x, lambda matvec, b: jnp.linalg.solve((w + 3 * jnp.eye(6)).T, b.T).T
    ),
    "called back": lambda w, x: jax.pure_callback(lambda w: np.asarray(w) * 2, W, w),
    "cumulative": lambda w, x: jnp.cumsum(w, 0),
    "to integers": lambda w, x: (w * 10).astype(jnp.int32),
    "the weight itself": lambda w, x: (w, w),
    "nothing of it": lambda w, x: (x, 1.0, None),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_primitives_without_a_rule_get_decoded_operands(name):
    check(UNKNOWN[name], W, X, met=False)


def test_effects_happen_once(capfd):
    def fn(w, x):
        jax.debug.print("mean {}", jnp.round(w.mean(), 3), ordered=True)
        return x @ w

    q = jqz.quantize(W, jqz.Symmetric(bits=8))
    jax.jit(jqz.quantized(fn))(q, X).block_until_ready()
    jax.effects_barrier()
    assert capfd.readouterr().out.count("mean") == 1


# --- derivatives that an author defined -------------------------------------------------------------------------------


@pytest.mark.parametrize(("fn", "factor"), [(with_vjp, 100), (with_jvp, None)])
def test_custom_derivatives_are_kept(fn, factor):
    """These are wrong on purpose, so that no other derivative passes for them."""
    q = jqz.quantize(W, jqz.Symmetric(bits=8))
    w = q.dequantize()
    got = jax.grad(lambda x: jqz.quantized(fn)(q, x).sum())(X)
    np.testing.assert_allclose(got, jax.grad(lambda x: fn(w, x).sum())(X), rtol=1e-5)
    if factor:
        np.testing.assert_array_equal(got, np.full(X.shape, factor))


def test_custom_derivatives_train():
    """The value is that of rounded operands; the gradient is the author's, where loops would have none."""

    @jax.custom_vjp
    def fixed_point(w, x):
        return jax.lax.while_loop(lambda c: c[0] < 5, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w + x)), (0, x))[1]

    fixed_point.defvjp(lambda w, x: (fixed_point(w, x), (w, x)), lambda r, g: (r[0] * 7, g))
    policy = jqz.Policy(jqz.Symmetric(bits=4), inputs=jqz.Symmetric(bits=4))

    def loss(w):
        return jqz.simulated(fixed_point, policy)(w, None, X).sum()

    value, gradient = jax.value_and_grad(loss)(W)
    q = jqz.quantize(W, policy)
    np.testing.assert_allclose(value, jqz.quantized(fixed_point, inputs=policy)(q, X).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, q.dequantize() * 7, rtol=1e-6)


def test_a_weight_keeps_its_name_through_a_custom_derivative():
    @jax.custom_vjp
    def halved(w):
        return w

    halved.defvjp(lambda w: (w, None), lambda _, g: (g * 0.5,))

    def fn(w, x):
        return x @ halved(w)

    check(fn, W, X, met=True)
    policy = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Symmetric(bits=2))
    gradient = jax.grad(lambda w: jqz.simulated(fn, policy)(w, None, X).sum())(W)
    rounded = jqz.Symmetric(bits=2).simulate(X)
    np.testing.assert_allclose(gradient, 0.5 * jax.grad(lambda w: (rounded @ w).sum())(W), rtol=1e-6)


# --- how often a function is traced -----------------------------------------------------------------------------------


def test_a_function_is_traced_once_for_each_shape():
    calls = []

    def fn(w, x):
        calls.append(x.shape)
        return jax.lax.scan(lambda x, _: (layer(w, x), None), x, None, 2)[0]

    q = jqz.quantize(W, jqz.Symmetric(bits=8))
    jitted = jax.jit(jqz.quantized(fn, inputs=jqz.Symmetric(bits=8)))
    for x in (X, X + 1, X[:2], X[:2] * 2, X):
        jitted(q, x)
    jitted(jax.tree.map(lambda leaf: leaf + 0, q), X)
    assert calls == [X.shape, X[:2].shape]
    jitted(jqz.quantize(W, jqz.Symmetric(bits=4)), X)  # another scheme is another program
    assert len(calls) == 3


def test_outer_transformations_see_one_program():
    calls = []

    def fn(w, x):
        calls.append(None)
        return layer(w, x)

    q = jqz.quantize(STACK, jqz.Symmetric(bits=4, granularity=jqz.PerAxis((0, -1))))
    run = jqz.quantized(fn)
    jax.jit(jax.vmap(run, in_axes=(0, None)))(q, X)
    assert len(calls) == 1
    jax.jit(lambda q, x: jax.lax.scan(lambda x, w: (run(w, x), None), x, q)[0])(q, X)
    assert len(calls) == 2
