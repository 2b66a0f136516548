"""Pruning against NumPy written from its definition, and with every scheme."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jqz
from jqz import training
from jqz.schemes import Minimum, WithoutZero


def run(optimizer, params, grads):
    """Parameters and the masks after each update."""

    def step(carry, grad):
        updates, state = optimizer.update(grad, carry[1], carry[0])
        carry = optax.apply_updates(carry[0], updates), state
        return carry, (carry[0], carry[1][-1].kept)

    return jax.jit(lambda p, g: jax.lax.scan(step, (p, optimizer.init(p)), g)[1])(params, grads)


def paddle(step, final, end, interval):
    return final * math.log(2 + min(step, end) / interval) / math.log(2 + end / interval)


def zhu(step, final, end, begin, initial):
    if step < begin:
        return 0.0
    return final + (initial - final) * (1 - min(1, (step - begin) / (end - begin))) ** 3


@pytest.mark.parametrize("step", [0, 3, 7, 30, 59, 60, 61, 1000])
def test_schedules_equal_their_formulas(step):
    assert float(training.Logarithmic(0.75, 60, 3)(step)) == pytest.approx(paddle(step, 0.75, 60, 3), rel=1e-6)
    polynomial = training.Polynomial(0.9, end=60, begin=5, initial=0.2)
    assert float(polynomial(step)) == pytest.approx(zhu(step, 0.9, 60, 5, 0.2), rel=1e-5)
    ours = training.Polynomial(0.9, end=60)
    assert float(ours(step)) == pytest.approx(float(optax.polynomial_schedule(0.0, 0.9, 3, 60)(step)), rel=1e-5)
    assert float(training.OneShot(0.5, 7)(jnp.asarray(step))) == (0.5 if step >= 7 else 0)


def test_schedules_begin_where_paddles_does():
    assert float(training.Logarithmic(0.75, 60, 3)(0)) == pytest.approx(0.75 * math.log(2) / math.log(22))


def test_masks_are_those_of_the_sorted_magnitudes():
    rng, size, every = np.random.default_rng(0), 60, 3
    w = rng.normal(size=size).astype(np.float32)
    w[[4, 9, 31]] = 0.01, -0.01, 0.01
    grads = rng.normal(size=(13, size)).astype(np.float32)
    schedule = training.Logarithmic(0.8, end=9, interval=3)
    optimizer = optax.chain(optax.sgd(0.25), training.prune(jqz.Identity(), schedule, every=every))
    params, kept = run(optimizer, jnp.asarray(w), jnp.asarray(grads))
    alive = np.ones(size, bool)
    for t in range(13):
        if t % every == 0:
            pruned = round(paddle(t, 0.8, 9, 3) * size)
            order = sorted(range(size), key=lambda i: (not alive[i], -abs(float(w[i])), i))
            alive = np.zeros(size, bool)
            alive[order[: size - pruned]] = True
        w = np.where(alive, w - grads[t] * np.float32(0.25), 0).astype(np.float32)
        assert np.asarray(kept[""][t]).tolist() == alive.tolist()
        assert np.asarray(params[t]).tobytes() == w.tobytes()  # +0, not -0
    assert alive.sum() == size - 48


def test_equal_weights_are_counted_not_compared():
    optimizer = optax.chain(optax.sgd(0.0), training.prune(jqz.Identity(), training.OneShot(0.3)))
    params, _ = run(optimizer, jnp.full((4, 5), -0.5), jnp.ones((1, 4, 5)))
    assert params[0].reshape(-1).tolist() == [-0.5] * 14 + [0.0] * 6


def test_one_threshold_for_all_leaves():
    params = {"small": jnp.asarray([[0.1, -0.2, 0.3]]), "large": jnp.asarray([[1.0, -2.0, 0.2]]), "bias": jnp.zeros(2)}
    optimizer = optax.chain(
        optax.sgd(0.0), training.prune(jqz.Identity(), training.OneShot(1 / 3), threshold=training.GlobalThreshold())
    )
    updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    # 0.2 stands in 'large' and in 'small', of which the one that comes first stays
    assert state[-1].kept["large"].tolist() == [[True, True, True]]
    assert state[-1].kept["small"].tolist() == [[False, False, True]]
    assert "bias" not in state[-1].kept
    assert after["large"].tolist() == params["large"].tolist()


@pytest.mark.parametrize(("size", "axis", "share"), [(4, -2, 0.5), (4, 0, 0.75), (3, -1, 1 / 3)])
def test_groups_keep_their_largest(size, axis, share):
    w = np.random.default_rng(2).integers(-3, 4, size=(8, 6)).astype(np.float32)  # with ties
    threshold = training.GroupThreshold(size, axis)
    optimizer = optax.chain(
        optax.sgd(0.0), training.prune(jqz.Identity(), training.OneShot(share), threshold=threshold)
    )
    params, _ = run(optimizer, jnp.asarray(w), jnp.zeros((1, 8, 6)))
    left = size - round(share * size)
    for got, lane in zip(np.moveaxis(params[0], axis, -1), np.moveaxis(w, axis, -1), strict=True):
        for start in range(0, len(lane), size):
            group = lane[start : start + size]
            order = sorted(range(size), key=lambda i: (-abs(group[i]), i))[:left]
            assert got[start : start + size].tolist() == [group[i] if i in order else 0 for i in range(size)]


KEEP = (
    *(some[0] for c, some in jqz.schemes.CATALOGUE.items() if c not in (jqz.Binary, jqz.Codebook)),
    jqz.PowerOfTwo(bits=4, codebook=jqz.schemes.INQ()),
    jqz.Asymmetric(bits=3, anchor=jqz.schemes.Offset()),
    jqz.Codebook(bits=3, levels=jqz.schemes.SparseKMeans()),
)
LOSE = (
    jqz.Binary(),
    jqz.Asymmetric(bits=3, anchor=Minimum()),
    jqz.PowerOfTwo(bits=4, codebook=jqz.schemes.NNabla(zero=WithoutZero())),
)


def test_schemes_that_keep_zeros():
    """Those that ``prune`` names do, on sparse weights of both signs; the others do not, and masks mend that."""
    schemes = {repr(scheme): scheme for scheme in (*KEEP, *LOSE)}
    w = jnp.asarray(np.random.default_rng(3).normal(size=(12, 9)) + 0.4, jnp.float32)
    prune = training.prune(lambda path, leaf: schemes[path], training.OneShot(0.6))
    params = dict.fromkeys(schemes, w)

    @jax.jit
    def rounded(params):
        updates, state = prune.update(jax.tree.map(jnp.zeros_like, params), prune.init(params), params)
        params = optax.apply_updates(params, updates)
        values = jqz.fake_quantize(params, lambda path, leaf: schemes[path])
        return params, values, training.apply_masks(values, state)

    params, values, mended = rounded(params)
    zeros = params[repr(jqz.Binary())] == 0
    assert int(zeros.sum()) == 65
    for name, scheme in schemes.items():
        assert bool((values[name][zeros] == 0).all()) == (scheme in KEEP), name
        assert (mended[name][zeros] == 0).all()
        assert (mended[name][~zeros] == values[name][~zeros]).all()


def test_composes_with_inq():
    w = jnp.asarray([1.0, -0.3, 0.22, 0.02])
    scheme = jqz.PowerOfTwo(bits=4, codebook=jqz.schemes.INQ())
    optimizer = optax.chain(
        training.inq(optax.sgd(0.1), scheme, {0: 0.25, 1: 1.0}), training.prune(scheme, training.OneShot(0.25))
    )
    params, _ = run(optimizer, w, jnp.ones((2, 4)))
    assert params[1].tolist() == [1.0, -0.5, 0.125, 0.0]


def test_training_makes_up_for_what_is_pruned():
    """A student that starts at its teacher, 75 % zeros in 8 bits: pruned gradually, and at once without training."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w": jax.random.normal(keys[0], (16, 24)) / 4, "v": jax.random.normal(keys[1], (24, 4)) / 5}
    x = jax.random.normal(keys[2], (128, 16))
    scheme = jqz.Symmetric(bits=8)

    def model(p):
        return jax.nn.relu(x @ p["w"]) @ p["v"]

    def loss(p):
        return jnp.mean((model(jqz.fake_quantize(p, scheme)) - target) ** 2)

    target = model(params)

    @jax.jit
    def train(p):
        def step(carry, _):
            updates, state = optimizer.update(jax.grad(loss)(carry[0]), carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (p, optimizer.init(p)), None, length=300)[0][0]

    prune = training.prune(scheme, training.Polynomial(0.75, end=200), every=10)
    optimizer = optax.chain(optax.sgd(0.2, momentum=0.9), prune)
    trained = train(params)
    at_once = training.prune(scheme, training.OneShot(0.75))
    updates, _ = jax.jit(at_once.update)(jax.tree.map(jnp.zeros_like, params), at_once.init(params), params)
    coded = jqz.quantize(trained, scheme)
    assert [int((q.codes == 0).sum()) >= 0.75 * q.size for q in coded.values()] == [True, True]
    assert float(loss(trained)) < 0.5 * float(loss(optax.apply_updates(params, updates)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: training.OneShot(1.5), "OneShot: got final=1.5"),
        (lambda: training.Polynomial(0.5, end=0), "Polynomial: got begin=0 and end=0"),
        (lambda: training.Logarithmic(0.5, end=9, interval=0), "Logarithmic: got interval=0"),
        (lambda: training.GroupThreshold(1), "GroupThreshold: got size=1"),
        (lambda: training.prune(jqz.Identity(), training.OneShot(0.5), every=0), "prune: got every=0"),
        (lambda: training.apply_masks({}, training.PruneState(jnp.int32(0), {"w": jnp.ones(2, bool)})), r"no \['w'\]"),
        (lambda: training.apply_masks(jnp.ones(2), ()), "apply_masks: the state holds 0 PruneState"),
    ],
)
def test_refuses(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_groups_must_fit():
    w = jnp.ones((6, 2))
    prune = training.prune(jqz.Identity(), training.OneShot(0.5), threshold=training.GroupThreshold(4))
    with pytest.raises(ValueError, match=r"GroupThreshold\(size=4, axis=-2\) got weights of shape \(6, 2\)"):
        prune.update(w, prune.init(w), w)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_zeros_are_exact_behind_narrow_gradients(dtype):
    optimizer = optax.chain(optax.sgd(0.1), training.prune(jqz.Identity(), training.OneShot(0.5)))
    w = jnp.array([0.3, -2.0, 0.1, 1.0])
    updates, _ = jax.jit(optimizer.update)(jnp.ones(4, dtype), optimizer.init(w), w)
    moved = optax.apply_updates(w, updates)
    assert moved.dtype == jnp.float32
    assert moved[jnp.array([0, 2])].tolist() == [0, 0]


@pytest.mark.parametrize("sparsity", [optax.constant_schedule(75.0), optax.linear_schedule(0.0, 2.0, 100)])
def test_shares_are_no_percentages(sparsity):
    with pytest.raises(ValueError, match="wanted a share of zeros from 0 to 1"):
        training.prune(jqz.Identity(), sparsity)


def test_a_share_is_no_schedule():
    with pytest.raises(TypeError, match=r"prune: got sparsity=0.5, wanted a schedule. Use OneShot"):
        training.prune(jqz.Identity(), 0.5)


def test_a_shape_that_does_not_fit_is_named():
    optimizer = training.prune(jqz.Identity(), training.OneShot(0.5), threshold=training.GroupThreshold(4))
    with pytest.raises(ValueError, match=r"prune: 'dense/kernel' has shape \(6, 5\); GroupThreshold"):
        optimizer.init({"dense": {"kernel": jnp.ones((6, 5))}})
