"""Sensitivity: every measure against NumPy in float64 on models that can be worked out, and the laws of all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import jqz
from jqz import measures
from jqz._measures import CATALOGUE
from jqz.algorithms import sensitivity

RNG = np.random.default_rng(0)
W = {
    "a/kernel": RNG.standard_normal((6, 12)).astype(np.float32),
    "b/kernel": RNG.standard_normal((12, 5)).astype(np.float32),
    "b/bias": RNG.standard_normal(5).astype(np.float32),
}
X = [RNG.standard_normal((n, 6)).astype(np.float32) for n in (24, 16)]
#: Widths share a program; a chain, an exact candidate and float stand beside them.
WIDTHS = tuple(jqz.Symmetric(bits=bits, granularity=jqz.PerAxis(-1)) for bits in (8, 5, 3))
CHAIN = jqz.Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4)
CANDIDATES = (*WIDTHS, CHAIN, jqz.Identity(), None)


def model(params, x):
    return jnp.tanh(x @ params["a/kernel"]) @ params["b/kernel"] + params["b/bias"][None]


def in_numpy(params, x):
    wide = {path: np.asarray(w, np.float64) for path, w in params.items()}
    return np.tanh(x.astype(np.float64) @ wide["a/kernel"]) @ wide["b/kernel"] + wide["b/bias"]


@functools.cache
def rounded(path, scheme):
    return {**W, path: np.asarray(jqz.dequantize(jqz.quantize(W[path], scheme)))}


def kl(p, q):
    p, q = (special.log_softmax(y, axis=-1) for y in (p, q))
    return np.mean(np.sum(np.exp(p) * (p - q), -1))


def noise(exact, found):
    return np.sum((found - exact) ** 2) / np.sum(exact**2)


@pytest.mark.parametrize(("measure", "oracle"), [(measures.OutputKL(), kl), (measures.OutputNoise(), noise)])
def test_output_measures_are_those_of_numpy(measure, oracle):
    found = sensitivity(model, W, X, CANDIDATES, measure)
    assert found.paths == ("a/kernel", "b/kernel")
    assert found.weights == (72, 60)
    x = np.concatenate(X)
    for i, path in enumerate(found.paths):
        for scheme, score in zip(found.candidates[:4], found.scores[i], strict=False):
            assert score == pytest.approx(
                oracle(in_numpy(W, x), in_numpy(rounded(path, scheme), x)), rel=2e-3, abs=1e-7
            )


def test_weight_noise_is_that_of_numpy():
    found = sensitivity(model, W, [], CANDIDATES, measures.WeightNoise())
    for path, scores in zip(found.paths, found.scores, strict=True):
        for scheme, score in zip(found.candidates[:4], scores, strict=False):
            assert score == pytest.approx(noise(W[path].astype(float), rounded(path, scheme)[path]), rel=1e-4)


def softmax_regression():
    """Inputs, weights, and the Fisher diagonal of a linear model: E[x_i**2 p_j (1 - p_j)]."""
    x, w = RNG.standard_normal((64, 7)).astype(np.float32), RNG.standard_normal((7, 4)).astype(np.float32)
    p = special.softmax(x.astype(np.float64) @ w, axis=-1)
    return x, w, np.einsum("ni,nj->ij", x.astype(np.float64) ** 2, p * (1 - p)) / len(x)


def linear(params, x):
    return x @ params["w"]


def test_fisher_diagonal_of_a_linear_model():
    x, w, fisher = softmax_regression()
    found = sensitivity(linear, {"w": w}, [x], [CHAIN], measures.FisherDiagonal(samples=60))
    change = np.asarray(jqz.fake_quantize(w, CHAIN)) - w
    assert found.scores[0, 0] == pytest.approx(np.sum(fisher * change**2) / 2, rel=0.1)


def test_hessian_trace_of_a_linear_model():
    x, w, fisher = softmax_regression()
    found = sensitivity(linear, {"w": w}, [x[:32], x[32:]], [CHAIN], measures.HessianTrace(probes=60))
    change = np.asarray(jqz.fake_quantize(w, CHAIN)) - w
    assert found.scores[0, 0] == pytest.approx(fisher.mean() * np.sum(change**2) / 2, rel=0.1)


def test_small_errors_cost_what_the_hessian_says():
    """Where all that changes is one weight, the divergence is half its curvature times the square of the change."""
    x, w, fisher = softmax_regression()

    def nudged(params, x):
        return x @ (jnp.asarray(w) + params["w"])

    step = 2.0**-5
    change = np.zeros((7, 4), np.float32)
    change[2, 1] = step * 1.25  # FixedPoint rounds it to step
    scheme = jqz.FixedPoint(bits=8, step=jqz.schemes.GivenStep(step))
    exact = sensitivity(nudged, {"w": change}, [x], [scheme], measures.OutputKL()).scores[0, 0]
    assert exact == pytest.approx(fisher[2, 1] * (0.25 * step) ** 2 / 2, rel=0.1)
    estimate = sensitivity(nudged, {"w": change}, [x], [scheme], measures.FisherDiagonal(samples=40)).scores[0, 0]
    assert estimate == pytest.approx(exact, rel=0.25)


@pytest.mark.parametrize("measure", CATALOGUE, ids=repr)
def test_laws_of_measures(measure):
    found = sensitivity(model, W, X, {"a/*": CANDIDATES, "b/kernel": WIDTHS[:2]}, measure)
    assert found.candidates == CANDIDATES
    a, b = found.scores
    assert (a[0] < a[1]) and (a[1] < a[2])  # fewer bits cost more  # noqa: PT018
    assert a[4] == a[5] == 0  # nothing changes
    assert np.isnan(b[2:]).all()
    assert (found.scores[~np.isnan(found.scores)] >= 0).all()
    assert measure.unit in str(found)
    with pytest.raises(AttributeError):
        measure.seed = 3


def test_ranking():
    found = sensitivity(model, W | {"b/kernel": W["b/kernel"] / 1000}, X, WIDTHS)
    assert found.ranking() == found.ranking(WIDTHS[1]) == ("a/kernel", "b/kernel")
    with pytest.raises(ValueError, match="not in tuple"):
        found.ranking(CHAIN)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="no batches"):
        sensitivity(model, W, [], WIDTHS)
    with pytest.raises(ValueError, match="no candidates"):
        sensitivity(model, W, X, [])
    with pytest.raises(ValueError, match="sensitivity: rule 'c/kernel' matches none"):
        sensitivity(model, W, X, {"c/kernel": WIDTHS})
    with pytest.raises(ValueError, match=r"'a/kernel' has shape \(6, 12\)"):
        sensitivity(model, W, X, [jqz.Symmetric(bits=4, granularity=jqz.PerAxis(2))])
    with pytest.raises(TypeError, match="wanted one array of logits"):
        sensitivity(lambda p, x: (model(p, x), x), W, X, WIDTHS)
    both = sensitivity(lambda p, x: (model(p, x), x), W, X, WIDTHS, measures.OutputNoise())
    assert (both.scores > 0).all()


def test_several_arguments_and_other_leaves():
    def masked(params, x, mask):
        return model(params["layers"], x) * mask * params["steps"].astype(jnp.float32)

    params = {"layers": W, "steps": np.array(2)}
    found = sensitivity(masked, params, [(x, jnp.ones((len(x), 1))) for x in X], WIDTHS, measures.OutputNoise())
    assert found.paths == ("layers/a/kernel", "layers/b/kernel")
    plain = sensitivity(model, W, X, WIDTHS, measures.OutputNoise())
    np.testing.assert_allclose(found.scores, plain.scores, rtol=1e-3, atol=1e-9)
    jax.tree.map(np.testing.assert_array_equal, params["layers"], W)


@pytest.mark.parametrize("measure", [measures.OutputKL(), measures.OutputNoise()], ids=repr)
def test_what_rounding_breaks_costs_most(measure):
    """A divisor that rounds to zero makes NaN: no search may call that free."""
    rng = np.random.default_rng(0)
    params = {
        "a": rng.normal(size=(8, 16)).astype(np.float32),
        "s": rng.uniform(0.05, 1, (1, 16)).astype(np.float32),
        "b": rng.normal(size=(16, 4)).astype(np.float32),
    }
    x = rng.normal(size=(32, 8)).astype(np.float32)

    def model(p, x):
        return jnp.tanh(x @ p["a"]) / p["s"] @ p["b"]

    two, eight = jqz.Symmetric(2), jqz.Symmetric(8)
    scores = sensitivity(model, params, [x], [two, eight], measure)
    assert scores.scores[scores.paths.index("s"), 0] == np.inf
    for solver in (jqz.solvers.Exact(), jqz.solvers.Lagrangian()):
        found = jqz.search(model, params, [x], [two, eight], jqz.budgets.AverageBits(7.9), scores=scores, solver=solver)
        assert found.policy.scheme_at("s") == eight


@pytest.mark.parametrize("measure", [measures.OutputKL(), measures.OutputNoise()], ids=repr)
def test_masked_classes_count_as_what_they_are(measure):
    mask = np.float32([0, 0, 0, -np.inf])

    def model(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(8, 16)).astype(np.float32), "b": rng.normal(size=(16, 4)).astype(np.float32)}
    x = rng.normal(size=(32, 8)).astype(np.float32)
    got = sensitivity(lambda p, x: model(p, x) + mask[None], params, [x], [jqz.Symmetric(2)], measure)
    wanted = sensitivity(lambda p, x: model(p, x)[:, :3], params, [x], [jqz.Symmetric(2)], measure)
    np.testing.assert_allclose(got.scores, wanted.scores, rtol=1e-4)
    with pytest.raises(ValueError, match="the float model's output has NaN"):
        sensitivity(model, params, [x * np.nan], [jqz.Symmetric(2)], measure)


def test_candidates_are_a_list():
    with pytest.raises(TypeError, match=r"sensitivity: got candidates .*, wanted a list"):
        sensitivity(lambda p, x: x @ p["a"], {"a": jnp.ones((4, 4))}, [jnp.ones((2, 4))], jqz.Symmetric(4))
