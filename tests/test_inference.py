"""The laws of meaning on models of every kind, and what may be passed to a quantized function."""

import functools
import typing

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jqz
from jqz._qtensor import is_qtensor

Symmetric, Asymmetric, PerAxis, PerGroup = jqz.Symmetric, jqz.Asymmetric, jqz.PerAxis, jqz.PerGroup

model = functools.cache(lambda name: models.MODELS[name]())


def close(got, wanted, tolerance, err_msg=""):
    """Within a share of the largest number of each result."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        scale = np.abs(np.asarray(b)).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=err_msg)


# --- quantized(fn)(q, x) == fn(dequantize(q), x) ----------------------------------------------------------------------

SCHEMES = {
    "8 bits": Symmetric(bits=8),
    "per channel": Symmetric(bits=4, granularity=PerAxis(-1)),
    "per layer and channel": Symmetric(bits=3, granularity=PerAxis((0, -1))),
    "groups": Asymmetric(bits=4, granularity=PerGroup(4)),
    "groups of the leading axis": Symmetric(bits=5, granularity=PerGroup(2, axis=0)),
    "blocks, uneven": Asymmetric(bits=2, granularity=jqz.PerBlock((5, 3))),
    "a chain": Symmetric(bits=8, granularity=PerAxis(-1)) >> jqz.PowerOfTwo(bits=4),
    "a codebook": jqz.schemes.Codebook(bits=2, granularity=PerAxis(-1)),
}


@pytest.mark.parametrize("name", models.MODELS)
def test_the_law_of_weights(name):
    """All schemes in one program; both sides of the law start from the same codes."""
    fn, variables, x = model(name)
    coded = encoded(variables, models.some(name, SCHEMES, "groups"))

    @jax.jit
    def both(coded, x):
        return {s: (jqz.quantized(fn)(q, x), fn(jqz.dequantize(q), x)) for s, q in coded.items()}

    for s, (got, wanted) in both(coded, x).items():
        assert any(map(is_qtensor, jax.tree.leaves(coded[s], is_leaf=is_qtensor)))
        close(got, wanted, 1e-6, s)


def encoded(variables, policies):
    """A tree by each of several policies, from one program."""
    return jax.jit(lambda v: {name: jqz.quantize(v, policy) for name, policy in policies.items()})(variables)


def test_the_law_without_jit():
    for name in ("scanned stack", "control flow"):
        fn, variables, x = model(name)
        q = jqz.quantize(variables, SCHEMES["groups"])
        close(jqz.quantized(fn)(q, x), fn(jqz.dequantize(q), x), 1e-5, name)


def test_a_stack_of_models_under_vmap():
    """One grid a member, by PerAxis((0, -1)): vmap slices codes and grids alike."""
    fn, variables, x = model("mlp")
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * 3, leaf - 1]), variables)
    q = jqz.quantize(stack, jqz.Policy({"**/kernel": Symmetric(bits=4, granularity=PerAxis((0, -1)))}))
    got = jax.jit(jax.vmap(jqz.quantized(fn), in_axes=(0, None)))(q, x)
    close(got, jax.jit(jax.vmap(fn, in_axes=(0, None)))(jqz.dequantize(q), x), 1e-6)

    run = jqz.quantized(fn, inputs=Symmetric(bits=8))
    together, alone = jax.jit(jax.vmap(run, in_axes=(0, None))), jax.jit(run)
    for i, member in enumerate(together(q, x)):
        params = jax.tree.map(lambda leaf, i=i: leaf[i], stack)
        single = jqz.quantize(params, jqz.Policy({"**/kernel": Symmetric(bits=4, granularity=PerAxis(-1))}))
        close(member, alone(single, x), 1e-5)


def test_a_quantized_function_in_a_scan_over_its_parameters():
    _, variables, x = model("scanned stack")
    layer = models.Layer()
    params = variables["params"]["layers"]
    q = jqz.quantize(params, Symmetric(bits=4, granularity=PerAxis((0, -1))))

    def forward(run, params):
        return jax.lax.scan(lambda x, p: run({"params": p}, x, None), x, params)[0]

    close(forward(jqz.quantized(layer.apply), q), forward(layer.apply, jqz.dequantize(q)), 1e-6)


# --- simulated(fn, policy)(p, None, x) == quantized(fn, inputs=policy)(quantize(p, policy), x) ------------------------

ROWS = PerAxis(0)
POLICIES = {
    "zero points of rows": (Symmetric(bits=4, granularity=PerAxis(-1)), Asymmetric(bits=4, granularity=ROWS)),
    "zero points on both sides": (Asymmetric(bits=4, granularity=PerGroup(4)), Asymmetric(bits=4)),
    "groups of the leading axis": (Symmetric(bits=4, granularity=PerGroup(2, axis=0)), Symmetric(bits=4)),
    "a chain": (Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4), jqz.FixedPoint(bits=4, granularity=ROWS)),
    "no integer levels": (jqz.schemes.Codebook(bits=2), Symmetric(bits=4)),
}
POLICIES = {name: jqz.Policy(weights, inputs=inputs) for name, (weights, inputs) in POLICIES.items()}


def agree(got, wanted, step, err_msg):
    """Two ways to compute one rounded model.

    They differ by rounding errors of float32, which may carry an activation over the middle between two codes;
    what follows then differs by a step of some site. This is rare, so the median tells a right computation
    from one with a wrong scale, zero point or grid, which moves every value by a fraction of a step.
    """
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        error = np.abs(np.asarray(a) - np.asarray(b)) / np.abs(np.asarray(b)).max()
        assert np.median(error) < 1e-5, (err_msg, np.median(error))
        assert error.max() < step, (err_msg, error.max())


@pytest.mark.parametrize("name", models.MODELS)
def test_the_law_of_training(name):
    fn, variables, x = model(name)
    policies = models.some(name, POLICIES, "zero points on both sides")

    @jax.jit
    def simulated(variables, x):
        return {p: jqz.simulated(fn, policy)(variables, None, x) for p, policy in policies.items()}

    @jax.jit
    def quantized(coded, x):
        return {p: jqz.quantized(fn, inputs=policy)(coded[p], x) for p, policy in policies.items()}

    wanted, got = simulated(variables, x), quantized(encoded(variables, policies), x)
    exact = jax.jit(fn)(variables, x)
    for p in policies:
        agree(got[p], wanted[p], 0.5, p)
        with pytest.raises(AssertionError):  # the rounding of the model is far beyond the tolerance
            agree(got[p], exact, 0.5, p)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_law_of_training_in_narrow_models(dtype):
    """float32 parameters, narrow computation: the weights are rounded twice in training, once in integers."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(16, dtype=dtype)(x))
            return nn.Dense(8, dtype=dtype)(x)

    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 12)), jnp.float32)
    net = Net()
    variables = net.init(jax.random.key(0), x)
    policy = jqz.Policy(Symmetric(bits=8), inputs=Symmetric(bits=8))
    wanted = jqz.simulated(net.apply, policy)(variables, None, x)
    run = jqz.quantized(net.apply, inputs=policy)
    got = run(jqz.quantize(variables, policy), x)
    assert got.dtype == wanted.dtype == dtype
    close(
        got.astype(jnp.float32), wanted.astype(jnp.float32), max(0.02, 8 * float(jnp.finfo(dtype).eps))
    )  # a rounding may move a code
    assert str(jax.make_jaxpr(run)(jqz.quantize(variables, policy), x)).count("preferred_element_type=int32") == 2


MOVED = {
    "transposed": lambda p, x: x @ p["w"].T,
    "reshaped": lambda p, x: x @ p["w"].reshape(2, 6, 12).reshape(12, 12),
    "sliced": lambda p, x: x[:, 2:9] @ p["w"][2:9, ::2],
    "reversed": lambda p, x: x @ p["w"][::-1],
    "broadcast": lambda p, x: jnp.matmul(x[:, None], jnp.broadcast_to(p["w"], (4, 12, 12))),
    "converted": lambda p, x: (x.astype(jnp.float16) @ p["w"].astype(jnp.float16)).astype(jnp.float32),
    "by a loop index": lambda p, x: jax.lax.fori_loop(0, 2, lambda i, y: y + x[:, :6] @ p["w"].reshape(2, 6, 12)[i], x),
    "scanned": lambda p, x: jax.lax.scan(lambda y, w: (y + x[:, :6] @ w, None), x, p["w"].reshape(2, 6, 12))[0],
}


@pytest.mark.parametrize("name", MOVED)
def test_what_meets_a_moved_weight_is_rounded_whatever_its_scheme(name):
    """A weight whose codes cannot follow a move is decoded, and is the weight of that path all the same."""
    fn = MOVED[name]
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((12, 12)), jnp.float32)}
    x = jnp.asarray(rng.standard_normal((4, 12)), jnp.float32)
    schemes = [
        Symmetric(bits=8), Symmetric(bits=4, granularity=PerGroup(4)), Symmetric(bits=4, granularity=PerGroup(5)),
        Symmetric(bits=12), Asymmetric(bits=3, granularity=jqz.PerBlock((4, 3))),
    ]  # fmt: skip
    policies = {repr(scheme): jqz.Policy(scheme, inputs=Symmetric(bits=3)) for scheme in schemes}

    @jax.jit
    def both(params, coded, x):
        return {
            p: (jqz.quantized(fn, inputs=policy)(coded[p], x), jqz.simulated(fn, policy)(params, None, x))
            for p, policy in policies.items()
        }

    for p, (got, wanted) in both(params, encoded(params, policies), x).items():
        close(got, wanted, 2e-3 if name == "converted" else 1e-5, p)
        with pytest.raises(AssertionError):
            close(fn(params, x), wanted, 2e-2)


# --- gradients --------------------------------------------------------------------------------------------------------


def test_training_gradients_are_those_of_rounded_operands():
    """Straight through both roundings: the gradient of a layer is that of its rounded weight and input."""
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.standard_normal((6, 6)), jnp.float32) for name in "ab"}
    x = jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)
    policy = jqz.Policy(Symmetric(bits=4, granularity=PerAxis(-1)), inputs=Asymmetric(bits=3))

    def net(p, x, at=lambda x: x):
        return jnp.tanh(at(jnp.tanh(at(x) @ p["a"])) @ p["b"])

    def loss(p, x):
        return (jqz.simulated(net, policy)(p, None, x) ** 2).sum()

    def wanted(p, x):
        return (net(jqz.fake_quantize(p, policy), x, Asymmetric(bits=3).simulate) ** 2).sum()

    got = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)
    close(got, jax.jit(jax.value_and_grad(wanted, argnums=(0, 1)))(params, x), 1e-5)


@pytest.mark.parametrize("name", ["convolution and batch norm", "embedding and GRU", "scanned stack", "nnx"])
def test_models_train(name):
    """Every float leaf gets a finite gradient, and hardly any of them is zero throughout."""
    fn, variables, x = model(name)

    def loss(variables):
        return (jqz.simulated(fn, POLICIES["zero points of rows"])(variables, None, x) ** 2).sum()

    gradients = [np.asarray(g) for g in jax.tree.leaves(jax.jit(jax.grad(loss))(variables))]
    assert all(np.isfinite(g).all() for g in gradients)
    assert sum(g.any() for g in gradients) >= 0.9 * len(gradients)


def test_gradients_by_float_arguments_of_a_quantized_function():
    fn, variables, x = model("scanned stack")
    q = jqz.quantize(variables, Symmetric(bits=4))
    got = jax.jit(jax.grad(lambda x: (jqz.quantized(fn)(q, x) ** 2).sum()))(x)
    wanted = jax.jit(jax.grad(lambda x: (fn(jqz.dequantize(q), x) ** 2).sum()))(x)
    close(got, wanted, 1e-5)


# --- arguments --------------------------------------------------------------------------------------------------------

X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6)), jnp.float32)
Q = jqz.quantize(jnp.asarray(np.random.default_rng(1).standard_normal((6, 6)), jnp.float32), Symmetric(bits=8))
W = Q.dequantize()

CALLS: dict[str, tuple[typing.Callable, tuple, dict]] = {
    "by keyword": (lambda x, *, w: x @ w, (X,), {"w": Q}),
    "in containers": (lambda p, x: x @ p["a"][0]["b"] @ p["c"][1], ({"a": [{"b": Q}], "c": (None, Q)}, X), {}),
    "twice": (lambda a, b: a @ b, (Q, Q), {}),
    "none": (lambda w, x: x @ w, (W, X), {}),
    "flags and names": (
        lambda w, x, train, mode, extra=None: {"sum": x @ w if train and mode == "dense" else x, "extra": extra},
        (Q, X, True, "dense"),
        {"extra": None},
    ),
    "numbers": (lambda w, x, n, scale: x @ w * scale + sum(range(n)), (Q, X, 3, 0.5), {}),
    "functions": (lambda w, x, act: act(x @ w), (Q, X, jnp.tanh), {}),
    "scalars of numpy and jax": (lambda w, x, a, b: x @ w * a + b, (Q, X, np.float32(2), jnp.float32(3)), {}),
    "a key": (lambda w, x, key: x @ w * jax.random.normal(key, (6,))[None], (Q, X, jax.random.key(0)), {}),
    "an old key": (lambda w, x, key: x @ w * jax.random.normal(key, (6,))[None], (Q, X, jax.random.PRNGKey(0)), {}),
    "nothing": (lambda: jnp.arange(3), (), {}),
    "results in containers": (lambda w, x: {"a": (x @ w, None), "b": [x, 1.0], "c": w}, (Q, X), {}),
    "numpy's default dtype": (lambda w, x: x @ w, (Q, np.asarray(X, np.float64)), {}),
    "a default": (lambda w, x=X: x @ w, (Q,), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_arguments(name):
    fn, args, kwargs = CALLS[name]
    got = jqz.quantized(fn)(*args, **kwargs)
    plain_args, plain_kwargs = jqz.dequantize((args, kwargs))
    close(got, jax.tree.map(jnp.asarray, fn(*plain_args, **plain_kwargs)), 1e-6)


def test_static_arguments_under_jit():
    fn = jax.jit(jqz.quantized(lambda w, x, *, flip: x @ (w.T if flip else w)), static_argnames="flip")
    for flip, w in ((False, W), (True, W.T)):
        close(fn(Q, X, flip=flip), X @ w, 1e-6)


def test_mutable_collections_and_dropout():
    """Linen's ``mutable`` returns state beside the result; its ``rngs`` are keys in a dict."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
            return nn.Dropout(0.5, deterministic=not train)(x)

    net = Net()
    variables = net.init(jax.random.key(0), X, train=False)
    q = jqz.quantize(variables, Symmetric(bits=4))
    for train in (True, False):

        def run(fn, variables, train=train):
            return fn(variables, X, train=train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})

        got, wanted = run(jqz.quantized(net.apply), q), run(net.apply, jqz.dequantize(q))
        close(got, wanted, 1e-5)
        assert set(got[1]) == {"batch_stats"}


def test_an_nnx_module_as_an_argument():
    module = models.NNXNet(nnx.Rngs(0))
    x = model("nnx").x
    q = jqz.quantize(module, Symmetric(bits=4))
    assert sum(map(is_qtensor, jax.tree.leaves(q, is_leaf=is_qtensor))) == 3
    close(jqz.quantized(lambda module, x: module(x))(q, x), jqz.dequantize(q)(x), 1e-5)


def test_methods_of_modules():
    class Coder(nn.Module):
        def setup(self):
            self.dense = nn.Dense(6)

        def __call__(self, x):
            return self.decode(self.dense(x))

        def decode(self, x):
            return x @ self.dense.variables["params"]["kernel"].T

    coder = Coder()
    q = jqz.quantize(coder.init(jax.random.key(0), X), Symmetric(bits=4))
    got = jqz.quantized(coder.apply)(q, X, method=coder.decode)
    close(got, coder.apply(jqz.dequantize(q), X, method=coder.decode), 1e-6)


def test_wrapping_twice_changes_nothing():
    close(jqz.quantized(jqz.quantized(lambda w, x: x @ w))(Q, X), X @ W, 1e-6)


def test_closed_over_tensors_and_their_gradient():
    """What a function closes over is its own business, tracers included."""
    bias = jnp.ones(6)
    got = jax.grad(lambda b: jqz.quantized(lambda w, x: x @ w + b[None])(Q, X).sum())(bias)
    np.testing.assert_array_equal(got, np.full(6, 4))


def test_the_name_and_signature_of_the_function_stay():
    def forward(w, x):
        """Multiplies."""
        return x @ w

    assert jqz.quantized(forward).__name__ == "forward"
    assert jqz.quantized(forward).__doc__ == "Multiplies."
    assert callable(jqz.quantized(functools.partial(forward, x=X)))


# --- errors -----------------------------------------------------------------------------------------------------------

DENSE = nn.Dense(6, use_bias=False)
ERRORS = {
    "an array for a function": (
        lambda: jqz.quantized(X),
        r"quantized: got .*wanted a function.*Use quantized",
    ),
    "a number for a function": (lambda: jqz.simulated(3, Symmetric()), r"simulated: got int, wanted a function"),
    "a number for inputs": (lambda: jqz.quantized(jnp.dot, inputs=8), r"inputs=8, wanted a Scheme.*Use inputs=Symm"),
    "a class for inputs": (lambda: jqz.quantized(jnp.dot, inputs=Symmetric), r"wanted a Scheme"),
    "a class in a rule": (lambda: jqz.quantized(jnp.dot, inputs={"**": Symmetric}), r"a Scheme or None.*parentheses"),
    "an unwrapped function": (lambda: jnp.dot(X, Q), r"a QTensor met a JAX function; wrap .*quantized\(model.apply\)"),
    "an unwrapped model": (
        lambda: nn.Dense(6, use_bias=False).apply({"params": {"kernel": Q}}, X),
        r"quantized\(model.apply\)",
    ),
    "numpy": (lambda: np.asarray(Q), r"a QTensor met a NumPy function; decode it first"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_to_do(name):
    call, text = ERRORS[name]
    with pytest.raises(TypeError, match=text):
        call()


def test_an_error_in_the_function_is_the_functions_own():
    def fn(w):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        jqz.quantized(fn)(Q)
