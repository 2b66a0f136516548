"""Static ranges: observe, merge, calibrate, convert, and the law between training and inference."""

import functools

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

import jqz

POLICY = jqz.Policy(jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1)), inputs=jqz.Asymmetric(bits=8))


@functools.cache
def calibrated(name):
    case = models.MODELS[name]()
    stats = jax.jit(jqz.observe(case.fn, POLICY))(case.variables, case.x)
    return case, stats, jqz.calibrate(stats, POLICY)


@pytest.mark.parametrize("name", models.MODELS)
def test_inference_on_codes_equals_simulated_training(name):
    case, _, sites = calibrated(name)
    on_codes = jax.jit(jqz.quantized(case.fn, sites))(jqz.quantize(case.variables, POLICY), case.x)
    in_training = jax.jit(jqz.simulated(case.fn, POLICY))(case.variables, sites, case.x)
    for a, b in zip(jax.tree.leaves(on_codes), jax.tree.leaves(in_training), strict=True):
        # an ulp before a rounding may move a code by one step; a wrong scale or zero point moves them all
        assert np.median(np.abs(a - b)) <= 1e-5 * np.abs(b).max()
        np.testing.assert_allclose(a, b, atol=0.02 * float(np.abs(b).max()))


EXACT = {
    "mlp": jqz.Gemmlowp(),
    "convolution and batch norm": jqz.requant.Float32Requant(),
    "scanned stack": jqz.requant.XNNPACK(),
    "nnx": jqz.Gemmlowp(),
}


@pytest.mark.parametrize("name", EXACT)
def test_training_on_the_very_integers_of_inference(name):
    case, _, sites = calibrated(name)
    on_codes = jax.jit(jqz.quantized(case.fn, sites, requant=EXACT[name]))
    exact = jqz.simulated(case.fn, POLICY, requant=EXACT[name])
    wanted = on_codes(jqz.quantize(case.variables, POLICY), case.x)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(exact)(case.variables, sites, case.x), wanted)

    def gradients(run):  # of a weighted sum: the values do not matter to them
        out = jax.eval_shape(run, case.variables, sites, case.x)
        weights = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(3), leaf.shape), out)

        def loss(variables):
            return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights, run(variables, sites, case.x))))

        return jax.jit(jax.grad(loss, allow_int=True))(case.variables)

    got, simulated = gradients(exact), gradients(jqz.simulated(case.fn, POLICY))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(simulated), strict=True):
        if a.dtype == jnp.float32:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max()))


def test_training_on_integers_with_ranges_of_each_batch_and_weights_alone():
    case, _, _ = calibrated("mlp")
    coded = jqz.quantize(case.variables, POLICY)
    weights = jqz.Policy(jqz.Symmetric(bits=4))
    for policy, run, tree in (
        (POLICY, jqz.quantized(case.fn, inputs=POLICY), coded),
        (weights, jqz.quantized(case.fn), jqz.quantize(case.variables, weights)),
    ):
        exact = jax.jit(jqz.simulated(case.fn, policy, requant=jqz.Gemmlowp()))
        np.testing.assert_array_equal(exact(case.variables, None, case.x), jax.jit(run)(tree, case.x))
    with pytest.raises(TypeError, match=r"simulated: got requant='ruy', wanted a rule"):
        jqz.simulated(case.fn, POLICY, requant="ruy")


@pytest.mark.parametrize("name", ["mlp", "convolution and batch norm", "attention", "nnx"])
def test_inference_stays_near_the_float_model(name):
    case, _, sites = calibrated(name)
    on_codes = jax.jit(jqz.quantized(case.fn, sites))(jqz.quantize(case.variables, POLICY), case.x)
    exact = jax.jit(case.fn)(case.variables, case.x)
    assert np.linalg.norm(on_codes - exact) < 0.03 * np.linalg.norm(exact)


def test_statistics_are_the_extremes_of_what_meets_each_weight():
    case, stats, _ = calibrated("mlp")
    params, x = case.variables["params"], case.x
    for layer in ("Dense_0", "Dense_1", "Dense_2"):
        seen = stats[f"params/{layer}/kernel"].observer
        np.testing.assert_allclose([seen.low, seen.high], [x.min(), x.max()], rtol=1e-6)
        x = jax.nn.relu(x @ params[layer]["kernel"] + params[layer]["bias"][None])


def test_a_stack_has_a_grid_a_layer_and_a_recurrent_weight_has_one():
    _, stats, sites = calibrated("scanned stack")
    (site,) = sites.values()
    assert site.lengths == (3,)
    assert site.grid.scale.shape == (3, 1, 1)
    assert len(np.unique(site.grid.scale)) == 3
    assert next(iter(stats.values())).lengths == (3,)
    _, _, recurrent = calibrated("embedding and GRU")
    assert {site.lengths for site in recurrent.values()} == {()}


def test_recurrent_statistics_cover_every_step():
    def model(params, x):
        def step(h, x):
            h = 2 * h + x
            return h, h @ params["kernel"]

        return jax.lax.scan(step, jnp.zeros((1, 2)), x)[1]

    params, x = {"kernel": jnp.ones((2, 2))}, jnp.ones((4, 1, 2))
    seen = jqz.observe(model, POLICY)(params, x)["kernel"]
    assert (float(seen.observer.low), float(seen.observer.high)) == (1.0, 15.0)


def test_branches_and_loops_are_observed():
    def model(params, x):
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ params["yes"], lambda x: x @ params["no"], x)
        return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 2 * c[1] @ params["loop"]), (0, x))[1]

    params = {name: jnp.eye(2) for name in ("yes", "no", "loop")}
    stats = jax.jit(jqz.observe(model, POLICY))(params, jnp.ones((1, 2)))
    assert float(stats["yes"].observer.high) == 1
    assert float(stats["no"].observer.high) == -np.inf  # never taken: nothing was seen
    assert float(stats["loop"].observer.high) == 8


def test_a_weight_used_twice_has_two_sites():
    def model(params, x):
        return jnp.tanh(x @ params["w"]) @ params["w"]

    params = {"w": 3 * jnp.eye(4)}
    stats = jqz.observe(model, POLICY)(params, jnp.ones((2, 4)))
    assert list(stats) == ["w", "w#2"]
    sites = jqz.calibrate(stats, POLICY)
    x = jax.random.uniform(jax.random.key(0), (2, 4))
    y = jqz.quantized(model, sites)(jqz.quantize(params, POLICY), x)
    np.testing.assert_allclose(y, model(params, x), atol=0.02)


def test_activations_are_coded_once_and_residuals_read_the_codes():
    """Two products and a residual read x: one rounding to int8 in the program."""

    def model(params, x):
        x = jnp.tanh(x)
        return x + x @ params["a"] + x @ params["b"]

    params = {name: jax.random.normal(jax.random.key(i), (8, 8)) for i, name in enumerate("ab")}
    x = jax.random.normal(jax.random.key(2), (4, 8))
    sites = jqz.calibrate(jqz.observe(model, POLICY)(params, x), POLICY)
    jaxpr = jax.make_jaxpr(jqz.quantized(model, sites))(jqz.quantize(params, POLICY), x)
    roundings = [e for e in jaxpr.eqns if e.primitive.name == "round" and e.outvars[0].aval.shape == x.shape]
    assert len(roundings) <= 1


def test_merging_is_a_monoid():
    case, _, _ = calibrated("scanned stack")
    watch = jax.jit(jqz.observe(case.fn, POLICY))
    a, b, c = (watch(case.variables, scale * case.x) for scale in (0.5, 1.0, 2.0))
    left, right = jqz.merge(jqz.merge(a, b), c), jqz.merge(a, jqz.merge(b, c))
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(jax.tree.leaves(jqz.merge(a, b)), jax.tree.leaves(jqz.merge(b, a)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert jqz.merge(a, {}) == a


def test_gradients_stop_outside_the_grid():
    def model(params, x):
        return (x @ params["w"]).sum()

    policy = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Symmetric(bits=8))
    params = {"w": jnp.ones((2, 1))}
    sites = jqz.calibrate(jqz.observe(model, policy)(params, jnp.array([[1.0, -1.0]])), policy)
    dx = jax.grad(lambda x: jqz.simulated(model, policy)(params, sites, x))(jnp.array([[3.0, 0.5]]))
    assert dx.tolist() == [[0, 1]]


def test_convert_does_it_in_one_call_and_is_a_pytree():
    case, _, _ = calibrated("convolution and batch norm")
    shown = []

    def progress(batches):
        for batch in batches:
            shown.append(batch.shape)
            yield batch

    net = jqz.convert(case.fn, case.variables, [case.x, 0.5 * case.x], POLICY, progress=progress)
    assert shown == [case.x.shape] * 2
    exact = case.fn(case.variables, case.x)
    assert np.linalg.norm(net(case.x) - exact) < 0.03 * np.linalg.norm(exact)
    leaves, treedef = jax.tree.flatten(net)
    np.testing.assert_array_equal(treedef.unflatten(leaves)(case.x), net(case.x))
    integers = jqz.convert(case.fn, case.variables, [case.x], POLICY, requant=jqz.Gemmlowp())
    assert 0 < np.linalg.norm(integers(case.x) - net(case.x)) < 0.03 * np.linalg.norm(exact)


def test_errors_tell_what_to_do():
    with pytest.raises(TypeError, match=r"observe: got .* wanted a Policy with inputs"):
        jqz.observe(jnp.dot, jqz.Policy(jqz.Symmetric()))
    with pytest.raises(ValueError, match="calibrate: got no statistics"):
        jqz.calibrate({}, POLICY)
    with pytest.raises(TypeError, match=r"calibrate: got .* wanted a Policy"):
        jqz.calibrate({}, jqz.Symmetric())
    with pytest.raises(ValueError, match="convert: got no batches"):
        jqz.convert(jnp.dot, {"w": jnp.ones((2, 2))}, [], POLICY)
    with pytest.raises(TypeError, match="quantized: got sites=list, wanted what calibrate returns"):
        jqz.quantized(jnp.dot, [1])


WIDE = jqz.Policy(jqz.Symmetric(bits=4), inputs={"**/(residual)": jqz.Asymmetric(bits=8), "**": jqz.Asymmetric(bits=4)})


def double(x):
    return np.asarray(x, np.float64)


def test_a_residual_may_have_codes_of_its_own():
    def model(params, x):
        x = x @ params["a"]
        return x + x @ params["b"]

    params = {name: jax.random.normal(jax.random.key(i), (8, 8)) for i, name in enumerate("ab")}
    x = jax.random.normal(jax.random.key(2), (4, 8))
    stats = jqz.observe(model, WIDE)(params, x)
    assert sorted(stats) == ["a", "a/(residual)", "b", "b/(residual)"]
    sites = jqz.calibrate(stats, WIDE)
    weights = jax.tree.map(double, jqz.fake_quantize(params, WIDE))
    exact = double(x) @ double(params["a"])  # what both grids of the second layer's input were measured on
    for name, bits in {"b": 4, "b/(residual)": 8}.items():
        np.testing.assert_allclose(sites[name].grid.scale.item(), np.ptp(exact) / (2**bits - 1), rtol=1e-5)
    grids = {name: (float(s.grid.scale.item()), float(np.ravel(s.grid.zero_point)[0])) for name, s in sites.items()}

    def on(name, values, bits):  # in NumPy
        step, zero = grids[name]
        least = -(2 ** (bits - 1))
        return (np.clip(np.round(values / step) + zero, least, least + 2**bits - 1) - zero) * step

    between = on("a", double(x), 4) @ weights["a"]
    wanted = on("b/(residual)", between, 8) + on("b", between, 4) @ weights["b"]
    got = jax.jit(jqz.quantized(model, sites))(jqz.quantize(params, WIDE), x)
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    in_training = jax.jit(jqz.simulated(model, WIDE))(params, sites, x)
    np.testing.assert_allclose(in_training, wanted, atol=1e-4)
    narrow = {name: site for name, site in sites.items() if "(residual)" not in name}
    assert np.abs(jqz.quantized(model, narrow)(jqz.quantize(params, WIDE), x) - wanted).max() > 0.01


@pytest.mark.parametrize("name", ["scanned stack", "attention", "embedding and GRU"])
def test_inference_equals_training_with_wide_residuals(name):
    case = models.MODELS[name]()
    sites = jqz.calibrate(jax.jit(jqz.observe(case.fn, WIDE))(case.variables, case.x), WIDE)
    assert any("(residual)" in site for site in sites)
    on_codes = jax.jit(jqz.quantized(case.fn, sites))(jqz.quantize(case.variables, WIDE), case.x)
    for rule in (None, jqz.requant.Float32Requant()):
        in_training = jax.jit(jqz.simulated(case.fn, WIDE, requant=rule))(case.variables, sites, case.x)
        for a, b in zip(jax.tree.leaves(on_codes), jax.tree.leaves(in_training), strict=True):
            assert np.median(np.abs(a - b)) <= 1e-5 * np.abs(b).max()
