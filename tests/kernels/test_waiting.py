"""What follows an integer product waits for the next one: its codes are those of exact integer arithmetic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from runtimes import oracle

import jqz
from jqz._requant import Float32Requant, Gemmlowp, HalfAway, IntegerBias, Ruy

POLICY = jqz.Policy(jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1)), inputs=jqz.Asymmetric(bits=8))
RULES = [Float32Requant(), Float32Requant(IntegerBias()), HalfAway(), Gemmlowp(), Ruy()]


class Net(nn.Module):
    """Everything that may follow a product and stay in integers."""

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(8, (3, 3), use_bias=False)(x)))
        y = norm()(nn.Conv(8, (3, 3))(nn.relu6(nn.Conv(8, (3, 3), feature_group_count=8)(x))))
        x = nn.relu(x + y)  # codes and a sum that waits
        x = nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
        y = nn.Conv(4, (1, 1))(x)
        z = nn.Conv(8, (1, 1))(nn.relu(y))
        x = nn.relu(jnp.concatenate([-y, jnp.clip(z, -1, 1)], axis=-1) * 1.5)
        x = jnp.pad(x, [(0, 0), (1, 0), (0, 1), (0, 0)])[:, :, ::-1]
        x = nn.Conv(8, (2, 2))(x)
        x = nn.Conv(8, (1, 1))(nn.pooling.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4.0)
        x = x - nn.Conv(8, (1, 1))(x).mean((1, 2), keepdims=True)
        return nn.Dense(5)(x.reshape(len(x), -1)) / 3


@functools.cache
def net():
    x = jax.random.normal(jax.random.key(0), (3, 9, 9, 3))
    model = Net()
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    rng = np.random.default_rng(5)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        values = rng.standard_normal(leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 4))
        if "scale" in name or "var" in name:  # some channels are turned round
            values = rng.uniform(0.5, 1.5, leaf.shape) * (rng.choice([-1, 1, 1], leaf.shape) if "scale" in name else 1)
        return jnp.asarray(values, jnp.float32)

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    sites = jqz.calibrate(jax.jit(jqz.observe(model.apply, POLICY))(variables, x), POLICY)
    return model.apply, variables, sites, x


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_inference_equals_simulation_by_every_rule(rule):
    fn, variables, sites, x = net()
    got = jax.jit(jqz.quantized(fn, sites, requant=rule))(jqz.quantize(variables, POLICY), x)
    wanted = jax.jit(jqz.simulated(fn, POLICY))(variables, sites, x)
    # integer rules move one code in a hundred by a step; a wrong scale, bound or zero point moves all of them by many
    error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert error < (1e-5 if rule == Float32Requant() else 0.01)
    assert np.linalg.norm(got - fn(variables, x)) < 0.05 * np.linalg.norm(wanted)


def dependent(jaxpr, known):
    """The equations of a program, inner ones included, that depend on the marked inputs."""
    marked = {v for v, mark in zip(jaxpr.invars, known, strict=True) if mark}
    found = []
    for eqn in jaxpr.eqns:
        marks = [not hasattr(v, "val") and v in marked for v in eqn.invars]
        if not any(marks):
            continue
        marked.update(eqn.outvars)
        inner = next((eqn.params[k] for k in ("jaxpr", "call_jaxpr") if k in eqn.params), None)
        if inner is None:
            found.append(eqn)
        else:
            found += dependent(getattr(inner, "jaxpr", inner), marks)
    return found


@pytest.mark.parametrize("rule", [Gemmlowp(), Ruy()], ids=repr)
def test_no_floating_point_between_the_first_code_and_the_last(rule):
    """Of all that depends on the input, floats are only read to code it, and only made to decode the result."""
    fn, variables, sites, x = net()
    q = jqz.quantize(variables, POLICY)
    program = jax.make_jaxpr(lambda x: jqz.quantized(fn, sites, requant=rule)(q, x))(x)
    equations = dependent(program.jaxpr, [True])

    def is_float(v):
        return jnp.issubdtype(v.aval.dtype, jnp.floating) and v.aval.shape != ()

    floating = [i for i, e in enumerate(equations) if any(is_float(v) for v in (*e.invars, *e.outvars))]
    first = next(i for i, e in enumerate(equations) if e.outvars[0].aval.dtype == jnp.int8)
    products = [i for i, e in enumerate(equations) if e.primitive.name in ("dot_general", "conv_general_dilated")]
    between = [equations[i].primitive.name for i in floating if first < i < products[-1]]
    assert between == []
    assert max(floating) > products[-1]


@pytest.mark.parametrize("rule", RULES[1:], ids=repr)
def test_a_layer_is_bit_exact_with_integer_runtimes(rule):
    """Convolution, bias, relu6, in codes: requantize(acc + bias, s_x s_w / s_y) + zero point, clipped."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((8, 40, 40, 8)), jnp.float32)
    params = {name: jnp.asarray(rng.standard_normal((1, 1, 8, 8)), jnp.float32) for name in "ab"}
    params["bias"] = jnp.asarray(rng.standard_normal(8), jnp.float32)

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def model(params, x):
        hidden = jax.nn.relu6(convolve(x, params["a"]) + params["bias"].reshape(1, 1, 1, 8))
        return convolve(hidden, params["b"])

    policy = jqz.Policy({"a": W, "b": W}, inputs=jqz.Asymmetric(bits=8))
    sites = jqz.calibrate(jqz.observe(model, policy)(params, x), policy)
    q = jqz.quantize(params, policy)

    def grid(name):
        site = sites[name].grid
        return np.float32(site.scale.item()), int(site.zero_point.item())

    (s_x, z_x), (s_y, z_y) = grid("a"), grid("b")
    codes_x = np.clip(np.rint(np.asarray(x) / s_x) + z_x, -128, 127).astype(np.int64)
    w, s_w = np.asarray(q["a"].codes, np.int64)[0, 0], np.asarray(q["a"].grid.scale, np.float32).reshape(-1)
    bias = np.rint(np.asarray(params["bias"]) / (s_x * s_w)).astype(np.int64)
    acc = (codes_x - z_x) @ w + bias
    top = min(127, int(np.rint(6 / s_y)) + z_y)
    hidden = oracle(rule, acc, (s_x, s_w), s_y, z_y, z_y, top).astype(np.int64)
    v, s_v = np.asarray(q["b"].codes, np.int64)[0, 0], np.asarray(q["b"].grid.scale, np.float32).reshape(-1)
    wanted = ((hidden - z_y) @ v).astype(np.float32) * (s_y * s_v)
    got = jax.jit(jqz.quantized(model, sites, requant=rule))(q, x)
    np.testing.assert_array_equal(got, wanted)


W = jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1))


def test_normalization_folds_into_one_multiplication():
    """Whatever is between two products becomes one conversion, one multiply-add and one clip a value."""

    def model(params, x):
        x = x @ params["a"]
        x = (x - params["mean"]) * jax.lax.rsqrt(params["variance"] + 1e-3) * params["scale"] + params["shift"]
        return jax.nn.relu(x) @ params["b"]

    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.uniform(0.5, 1, (16, 16)), jnp.float32) for name in "ab"}
    params |= {
        name: jnp.asarray(rng.uniform(0.5, 1, (1, 16)), jnp.float32) for name in ("mean", "variance", "scale", "shift")
    }
    x = jnp.asarray(rng.standard_normal((8, 16)), jnp.float32)
    policy = jqz.Policy({"a": W, "b": W}, inputs=jqz.Symmetric(bits=8))
    sites = jqz.calibrate(jqz.observe(model, policy)(params, x), policy)
    q = jqz.quantize(params, policy)
    program = jax.make_jaxpr(lambda x: jqz.quantized(model, sites)(q, x))(x)
    equations = dependent(program.jaxpr, [True])
    dots = [i for i, e in enumerate(equations) if e.primitive.name == "dot_general"]
    between = [e.primitive.name for e in equations[dots[0] + 1 : dots[-1]]]
    assert between.count("mul") == 1
    assert between.count("add") <= 3  # the offset, the rounding constant, a zero point


def test_a_value_that_many_read_is_computed_once():
    """A residual stream of floats does not grow into the sum of all layers before."""

    def model(params, x):
        for name in sorted(params):
            x = x + jnp.tanh(x) @ params[name]
        return x

    params = {f"w{i}": jnp.eye(8) * 0.1 for i in range(6)}
    x = jnp.ones((4, 8))
    policy = jqz.Policy(W, inputs=jqz.Symmetric(bits=8))
    sites = jqz.calibrate(jqz.observe(model, policy)(params, x), policy)
    program = jax.make_jaxpr(jqz.quantized(model, sites))(jqz.quantize(params, policy), x)
    multiplications = [
        e for e in program.jaxpr.eqns if e.primitive.name == "mul" and e.outvars[0].aval.shape == x.shape
    ]
    assert len(multiplications) <= 6


def test_loops_and_branches_take_numbers():
    def model(params, x):
        x = x @ params["a"] + 1

        def step(carry, _):
            return jnp.tanh(carry @ params["b"]) + x, None

        y = jax.lax.scan(step, x, None, length=2)[0]
        y = jax.lax.cond(y.sum() > 0, lambda y: y + x, lambda y: y - x, y)
        y = jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] + x), (0, y))[1]
        return jax.checkpoint(lambda y: jax.nn.relu(y + x) @ params["b"])(y)

    params = {name: jax.random.normal(jax.random.key(i), (6, 6)) / 3 for i, name in enumerate("ab")}
    x = jax.random.normal(jax.random.key(9), (4, 6))
    policy = jqz.Policy(W, inputs=jqz.Asymmetric(bits=8))
    sites = jqz.calibrate(jqz.observe(model, policy)(params, x), policy)
    for rule in (Float32Requant(), Gemmlowp()):
        got = jax.jit(jqz.quantized(model, sites, requant=rule))(jqz.quantize(params, policy), x)
        wanted = jqz.simulated(model, policy)(params, sites, x)
        np.testing.assert_allclose(got, wanted, atol=0.02 * np.abs(wanted).max())


@pytest.mark.parametrize("rule", [Float32Requant(), Gemmlowp()], ids=repr)
def test_bounds_may_be_wider_than_what_they_bound(rule):
    """A column that waits against a row of numbers makes a matrix."""

    def model(params, x):
        return jnp.minimum(jnp.maximum(x @ params["a"], params["row"]), 2.0) @ params["b"]

    params = {"a": jnp.ones((3, 1)), "row": jnp.array([[-1.0, 0.5]]), "b": jnp.array([[1.0, 0.5], [0.25, -1.0]])}
    x = jax.random.normal(jax.random.key(0), (4, 3))
    policy = jqz.Policy({"a": W, "b": W}, inputs=jqz.Asymmetric(bits=8))
    sites = jqz.calibrate(jqz.observe(model, policy)(params, x), policy)
    got = jqz.quantized(model, sites, requant=rule)(jqz.quantize(params, policy), x)
    np.testing.assert_allclose(got, jqz.simulated(model, policy)(params, sites, x), atol=0.03)


def test_overlapping_windows_of_outliers_saturate():
    """Values far beyond the calibrated range, summed in windows that overlap, do not wrap round."""

    def model(params, x):
        sums = jax.lax.reduce_window(x @ params["a"], 0.0, jax.lax.add, (1, 16), (1, 1), "SAME")
        return sums @ params["b"]

    params = {"a": jnp.eye(32) * 1e4, "b": jnp.eye(32)}
    policy = jqz.Policy({"a": W, "b": W}, inputs=jqz.Symmetric(bits=8))
    x = jnp.ones((2, 32))
    sites = jqz.calibrate(jqz.observe(model, policy)(params, x * 1e-4), policy)
    sites["a"] = jqz.calibrate(jqz.observe(model, policy)(params, x), policy)["a"]
    run = jqz.quantized(model, sites, requant=Gemmlowp())
    got = run(jqz.quantize(params, policy), x)
    np.testing.assert_allclose(got, jqz.simulated(model, policy)(params, sites, x), rtol=0.02)
