"""INQ against NumPy written from its definition, NNabla's published vectors, and on every scheme."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jqz
from jqz import training

GOLDEN = json.loads((pathlib.Path(__file__).parent.parent / "data" / "golden.json").read_text())["inq"]
F32 = np.float32
HALVES = {1: 0.5, 3: 0.75, 5: 0.875, 6: 0.9375, 8: 1.0}


def powers(bits):
    return jqz.PowerOfTwo(bits=bits, codebook=jqz.schemes.INQ())


def run(optimizer, params, grads):
    """Parameters and states after each update; gradients are given, (steps, ...) a leaf."""

    def step(carry, grad):
        updates, state = optimizer.update(grad, carry[1], carry[0])
        carry = optax.apply_updates(carry[0], updates), state
        return carry, carry

    return jax.jit(lambda p, g: jax.lax.scan(step, (p, optimizer.init(p)), g)[1])(params, grads)


def bits_of(x):
    return np.asarray(x, F32).view(np.int32)


def rounded(w, n1, n2):
    """The level of INQ's codebook for one weight, from the paper's inequality, in float64."""
    levels = [0.0, *(2.0**n for n in range(n2, n1 + 1))]
    for low, level in itertools.pairwise(levels):
        if (low + level) / 2 <= abs(w) < 3 * level / 2:
            return np.copysign(level, w)
    return 0.0


def largest_first(w, frozen, count):
    """Which weights are frozen: those that are already, then by (-abs(w), flat index)."""
    order = sorted(range(w.size), key=lambda i: (not frozen[i], -abs(float(w[i])), i))
    out = np.zeros(w.size, bool)
    out[order[:count]] = True
    return out


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_golden_exponents(bits):
    cases = {key: n for key, n in GOLDEN["n1n2"].items() if key.endswith(f"b={bits}")}
    assert cases
    tree, expected = {}, {}
    for key, (n1, n2) in cases.items():
        maximum = float(key.split(",")[0].split("=")[1])
        tree[key] = jnp.asarray([maximum, 2.0 ** (n2 - 1), np.nextafter(F32(2.0 ** (n2 - 1)), F32(0))], jnp.float32)
        expected[key] = [2.0**n1, 2.0**n2, 0.0]
    optimizer = training.inq(optax.sgd(1.0), lambda path, leaf: powers(bits), {0: 1.0})
    updates, _ = jax.jit(optimizer.update)(tree, optimizer.init(tree), tree)
    assert {key: w.tolist() for key, w in optax.apply_updates(tree, updates).items()} == expected


def test_golden_values():
    golden = GOLDEN["q_b4_max1"]
    w = jnp.asarray(golden["x"], jnp.float32)
    optimizer = training.inq(optax.sgd(1.0), powers(4), {0: 1.0})
    updates, state = jax.jit(optimizer.update)(w, optimizer.init(w), w)
    w = optax.apply_updates(w, updates)
    assert jnp.asarray(w).tolist() == golden["y"]
    assert jqz.dequantize(training.inq_finalize(w, state, powers(4))).tolist() == golden["y"]


def test_steps_are_nnablas():
    """Its five halvings, written out: restore what is fixed, fix half of the rest, measure n1 and n2, round, step."""
    rng, size, steps = np.random.default_rng(0), 64, 10
    w = rng.normal(size=size).astype(F32)
    w[5], w[9], w[20] = -0.5, 0.5, 0.5  # ties
    grads = rng.normal(size=(steps, size)).astype(F32)
    params, states = run(training.inq(optax.sgd(2.0**-6), powers(4), HALVES), jnp.asarray(w), jnp.asarray(grads))

    fixed, old = np.zeros(size, bool), w.copy()
    for t in range(steps):
        w[fixed] = old[fixed]
        if t == max(HALVES):
            fixed[:] = True
        elif t in HALVES:
            fixed = largest_first(w, fixed, fixed.sum() + max(1, (size - fixed.sum()) // 2))
        n1 = int(np.floor(np.log2(4 * np.abs(w).max() / 3)))
        w = np.where(fixed, [rounded(x, n1, n1 - 3) for x in w], w).astype(F32)
        old = w.copy()
        w = w - grads[t] * F32(2.0**-6)
        assert bits_of(params[t]).tolist() == bits_of(np.where(fixed, old, w)).tolist()
        assert states.frozen[""][t].tolist() == fixed.tolist()


def test_counts_are_exact_where_weights_tie():
    w = jnp.full((7, 11), 0.3)
    optimizer = training.inq(optax.sgd(0.0), powers(3), {0: 0.31, 1: 0.5, 2: 1.0})
    _, states = run(optimizer, w, jnp.zeros((3, 7, 11)))
    assert [int(held.sum()) for held in states.frozen[""]] == [24, 38, 77]
    assert states.frozen[""][0].reshape(-1)[:24].all()  # in the order of the flat index


def test_frozen_weights_keep_their_bits_under_every_scheme():
    schemes = {c.__name__: some[0] for c, some in jqz.schemes.CATALOGUE.items()}
    rng = np.random.default_rng(1)
    params = {name: jnp.asarray(rng.normal(size=(8, 6)), jnp.float32) for name in schemes}
    grads = {name: jnp.asarray(rng.normal(size=(6, 8, 6)), jnp.float32) for name in schemes}
    optimizer = training.inq(optax.adamw(0.05), lambda path, leaf: schemes[path], {0: 0.4, 2: 1.0})
    with jax.numpy_dtype_promotion("standard"):
        history, states = run(optimizer, params, grads)
    final = jax.tree.map(lambda leaf: leaf[-1], (history, states))
    coded = jax.jit(lambda p, s: training.inq_finalize(p, s, lambda path, leaf: schemes[path]))(*final)
    for name, w in history.items():
        w, frozen = bits_of(w), np.asarray(states.frozen[name])
        assert frozen.reshape(6, -1).sum(axis=1).tolist() == [19, 19, 48, 48, 48, 48]
        # at most a rounding error is left for the second update
        assert np.allclose(w[0][frozen[0]].view(F32), w[1][frozen[0]].view(F32), rtol=1e-5, atol=1e-6), name
        assert (w[1:, frozen[0]] == w[1][frozen[0]]).all(), name
        assert not (w[0, ~frozen[0]] == w[1, ~frozen[0]]).all(), name
        assert (w[3:] == w[3]).all(), name
        assert (bits_of(jqz.dequantize(coded[name])) == w[5]).all(), name


def test_the_grid_is_that_of_the_first_portion():
    w = jnp.asarray([0.9, 0.4, 0.1, 0.05])
    grads = -jnp.asarray([[1.0, 0, 0, 0], [0, 0, 0, 9.0], [0, 0, 0, 9.0], [0, 0, 0, 0]])
    params, states = run(training.inq(optax.sgd(1.0), powers(3), {1: 0.5, 3: 1.0}), w, grads)
    assert params[0].tolist() == pytest.approx([1.9, 0.4, 0.1, 0.05])  # n1 = 1, n2 = 0
    assert params[2].tolist() == pytest.approx([2.0, 0.0, 0.1, 18.05])
    assert params[3].tolist() == [2.0, 0.0, 0.0, 2.0]  # 18.05 saturates and moves nothing
    assert [float(scale) for scale in states.grids[""].scale.reshape(-1)[1:]] == [1.0] * 3


def test_random_order_is_drawn_once():
    w = jnp.arange(1.0, 41.0)
    masks = []
    for seed in (0, 1):
        optimizer = training.inq(
            optax.sgd(0.1), powers(4), {0: 0.25, 1: 0.5, 3: 1.0}, partition=training.RandomOrder(jax.random.key(seed))
        )
        _, states = run(optimizer, w, jnp.ones((4, 40)))
        held = np.asarray(states.frozen[""])
        assert held.sum(axis=1).tolist() == [10, 20, 20, 40]
        assert (held[1] >= held[0]).all()
        masks.append(held)
    assert not (masks[0] == masks[1]).all()
    assert not (masks[0][0] == np.asarray(w > 30)).all()


@pytest.mark.parametrize(("gradients", "kept"), [(training.FreeGradients(), 0.0), (training.AllGradients(), 1.75)])
def test_what_the_optimizer_sees(gradients, kept):
    inner = optax.chain(optax.trace(0.5), optax.add_decayed_weights(0.1), optax.scale(-0.1))
    optimizer = training.inq(inner, powers(4), {0: 0.5, 9: 1.0}, gradients=gradients)
    params, states = run(optimizer, jnp.asarray([1.0, 0.25]), jnp.ones((3, 2)))
    assert params[:, 0].tolist() == [1.0] * 3
    assert states.inner[0].trace[-1].tolist() == [kept, 1.75]
    free = 0.25
    for momentum in (1.0, 1.5, 1.75):
        free -= 0.1 * (momentum + 0.1 * free)
    assert float(params[-1, 1]) == pytest.approx(free)


def test_beats_rounding():
    """A student that starts at its teacher: INQ at 3 bits ends nearer to it than plain rounding."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w": jax.random.normal(keys[0], (16, 24)) / 4, "v": jax.random.normal(keys[1], (24, 4)) / 5}
    x = jax.random.normal(keys[2], (128, 16))

    def model(p):
        return jax.nn.relu(x @ p["w"]) @ p["v"]

    def loss(p):
        return jnp.mean((model(p) - target) ** 2)

    target = model(params)
    optimizer = training.inq(optax.sgd(0.2, momentum=0.9), powers(3), training.inq_portions(3, every=40))

    @jax.jit
    def train(p):
        def step(carry, _):
            updates, state = optimizer.update(jax.grad(loss)(carry[0]), carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (p, optimizer.init(p)), None, length=300)[0]

    trained = jqz.dequantize(training.inq_finalize(*train(params), powers(3)))
    assert len(np.unique(np.abs(trained["w"]))) <= 3
    assert float(loss(trained)) < 0.6 * float(loss(jqz.dequantize(jqz.quantize(params, powers(3)))))


@pytest.mark.parametrize("portions", [{}, {0: 0.5}, {0: 0.5, 1: 0.4, 2: 1.0}, {3: 0.5, 1: 1.0}, {-1: 1.0}, {0.5: 1.0}])
def test_refuses_portions(portions):
    with pytest.raises(ValueError, match=r"inq: got portions=.* Use \{0: 0.5"):
        training.inq(optax.sgd(1.0), powers(3), portions)


def test_errors_name_the_place():
    w = {"kernel": jnp.ones((2, 2))}
    optimizer = training.inq(optax.sgd(1.0), powers(3), {0: 1.0})
    with pytest.raises(ValueError, match="inq: got no params"):
        optimizer.update(w, optimizer.init(w))
    with pytest.raises(ValueError, match="inq_finalize: the state holds 0 INQState, wanted one"):
        training.inq_finalize(w, optax.sgd(1.0).init(w), powers(3))
    with pytest.raises(TypeError, match=r"wanted .step: share"):
        training.inq(optax.sgd(1.0), powers(3), (0.5, 1.0))
    with pytest.raises(
        ValueError, match=r"inq_finalize: the state has nothing for 'other/kernel'; it knows \['kernel'\]"
    ):
        training.inq_finalize({"other": w}, optimizer.init(w), powers(3))
    learns = jqz.Symmetric(bits=3, gradient=jqz.gradients.LSQ())
    with pytest.raises(TypeError, match="inq: 'kernel' learns its grid"):
        training.inq(optax.sgd(1.0), learns, {0: 1.0}).init(jqz.learnable(w, learns))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_levels_are_exact_behind_narrow_gradients(dtype):
    optimizer = training.inq(optax.sgd(0.1), jqz.Symmetric(3), {0: 1.0})
    w = jnp.array([3.0, 0.9, -2.2])
    updates, _ = jax.jit(optimizer.update)(jnp.ones(3, dtype), optimizer.init(w), w)
    assert optax.apply_updates(w, updates).tolist() == [3.0, 1.0, -2.0]


def test_another_policy_would_move_what_is_frozen():
    optimizer, w = training.inq(optax.sgd(0.1), jqz.Symmetric(4), {0: 1.0}), {"a": jnp.array([[7.0, 1.0, -4.0]])}
    updates, state = optimizer.update(w, optimizer.init(w), w)
    w = optax.apply_updates(w, updates)
    assert training.inq_finalize(w, state, jqz.Symmetric(4))["a"].codes.tolist() == [[7, 1, -4]]
    with pytest.raises(
        ValueError, match=r"inq_finalize: Symmetric\(bits=3\) would move frozen weights of 'a' by up to 4"
    ):
        training.inq_finalize(w, state, jqz.Symmetric(3))


def test_what_cannot_be_rounded_is_named_at_once():
    for scheme, why in [
        (jqz.Symmetric(4, jqz.PerAxis(2)), "PerAxis"),
        (jqz.Symmetric(4, rounding=jqz.rounding.Stochastic()), "Stochastic: got no key"),
    ]:
        with pytest.raises(ValueError, match=rf"inq: 'a' has shape \(4, 4\); {why}"):
            training.inq(optax.sgd(0.1), scheme, {0: 1.0}).init({"a": jnp.ones((4, 4))})


def test_portions_are_of_integers():
    training.inq(optax.sgd(0.1), powers(4), {np.int64(0): 0.5, np.int64(10): 1.0})
    for arguments in [(4, 0), (0, 10), (4, 10, -1), (2.5, 10)]:
        with pytest.raises(ValueError, match="inq_portions: got bits="):
            training.inq_portions(*arguments)
