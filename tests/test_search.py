"""The search against enumeration, and against the integer program as HiGHS solves it."""

import itertools

import jax
import models
import numpy as np
import pytest
from scipy import optimize

import jqz
from jqz import budgets, measures, solvers
from jqz.algorithms import residual_ties, sensitivity
from jqz.analysis import costs

RNG = np.random.default_rng(0)


def random_options(layers, count, rng=RNG):
    """Costs and scores that mostly fall as costs rise; ties and dominated options among them."""
    return [
        (rng.integers(1, 40, count), np.round(rng.exponential(size=count), 2) * 2.0 ** rng.integers(0, 5))
        for _ in range(layers)
    ]


def enumerated(options):
    """Every (cost, score, choice), by brute force."""
    for choice in itertools.product(*(range(len(prices)) for prices, _ in options)):
        yield (
            sum(int(prices[c]) for (prices, _), c in zip(options, choice, strict=True)),
            sum(float(scores[c]) for (_, scores), c in zip(options, choice, strict=True)),
            choice,
        )


@pytest.mark.parametrize("seed", range(4))
def test_exact_front_is_that_of_enumeration(seed):
    options = random_options(5, 4, np.random.default_rng(seed))
    front = solvers.Exact().front(options)
    best, wanted = np.inf, []
    for cost, score, _ in sorted(enumerated(options)):
        if score < best - 1e-9:
            best = score
            wanted.append((cost, score))
    assert [(c, pytest.approx(s)) for c, s in wanted] == list(zip(front.costs, front.scores, strict=True))
    for cost, score, choice in zip(front.costs, front.scores, front.choices, strict=True):
        assert cost == sum(prices[c] for (prices, _), c in zip(options, choice, strict=True))
        assert score == pytest.approx(sum(scores[c] for (_, scores), c in zip(options, choice, strict=True)))


def test_exact_agrees_with_an_integer_program():
    options = random_options(30, 7)
    front = solvers.Exact().front(options)
    cost, score = (np.concatenate(parts) for parts in zip(*options, strict=True))
    one_each = np.kron(np.eye(30), np.ones(7))
    for limit in (front.costs[0], 300, 500, front.costs[-1]):
        solved = optimize.milp(
            score,
            integrality=np.ones(210),
            bounds=optimize.Bounds(0, 1),
            constraints=[
                optimize.LinearConstraint(one_each, 1, 1),
                optimize.LinearConstraint(cost[None], -np.inf, limit),
            ],
            options={"mip_rel_gap": 0},
        )
        assert front.scores[front.costs <= limit][-1] == pytest.approx(solved.fun, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_lagrangian_front_is_the_hull_of_the_exact_one(seed):
    options = random_options(5, 4, np.random.default_rng(seed))
    hull = solvers.Lagrangian().front(options)
    assert (np.diff(hull.costs) > 0).all()
    assert (np.diff(hull.scores) < 0).all()
    table = np.array([(cost, score) for cost, score, _ in enumerated(options)])
    for price in np.geomspace(1e-4, 1e2, 60):
        best = (table[:, 1] + price * table[:, 0]).min()
        assert (hull.scores + price * hull.costs).min() == pytest.approx(best)
    for cost, score, choice in zip(hull.costs, hull.scores, hull.choices, strict=True):
        assert (cost, pytest.approx(score)) == next(e[:2] for e in enumerated(options) if e[2] == tuple(choice))


def test_too_many_states_are_refused():
    with pytest.raises(ValueError, match="Lagrangian"):
        solvers.Exact(states=10).front(random_options(10, 7))


# --- on a model ------------------------------------------------------------------------------------------------------

CASE = models.MODELS["mlp"]()
CHAIN = jqz.Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4)
CANDIDATES = (jqz.Symmetric(bits=2), jqz.Symmetric(bits=3), CHAIN, jqz.Symmetric(bits=8), None)
SCORES = sensitivity(CASE.fn, CASE.variables, [CASE.x], CANDIDATES)
PATHS = tuple(f"params/Dense_{i}/kernel" for i in range(3))
SHAPES = ((12, 24), (24, 16), (16, 10))
WEIGHTS = tuple(rows * columns for rows, columns in SHAPES)


def found(budget, **more):
    return jqz.search(CASE.fn, CASE.variables, [CASE.x], CANDIDATES, budget, scores=SCORES, **more)


def all_policies():
    for choice in itertools.product(range(len(CANDIDATES)), repeat=3):
        score = sum(SCORES.scores[i, c] for i, c in enumerate(choice))
        yield score, jqz.Policy(dict(zip(PATHS, (CANDIDATES[c] for c in choice), strict=True)))


def bits_of(policy):
    return sum(n * (32 if s is None else s.bits) for n, (_, s) in zip(WEIGHTS, policy.rules, strict=True))


def bytes_of(policy):
    """By the layouts of packed rows: 3 bits are fields of 2 and of 1."""
    fields = {2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}
    total = 0
    for (rows, columns), (_, scheme) in zip(SHAPES, policy.rules, strict=True):
        if scheme is None:
            total += 4 * rows * columns
        else:
            total += rows * sum(-(-columns * field // 8) for field in fields[scheme.bits]) + (
                8 if scheme == CHAIN else 4
            )
    return total


def operations_of(policy):
    """A batch of 4 examples, inputs in 8 bits."""
    return sum(4 * n * 8 * (32 if s is None else s.bits) for n, (_, s) in zip(WEIGHTS, policy.rules, strict=True))


@pytest.mark.parametrize(
    ("budget", "cost", "limit"),
    [
        (budgets.AverageBits(3.2), bits_of, 3.2 * sum(WEIGHTS)),
        (budgets.AverageBits(6), bits_of, 6 * sum(WEIGHTS)),
        (budgets.Bytes(600), bytes_of, 600),
        (budgets.BitOperations(120_000), operations_of, 120_000),
    ],
    ids=["average bits 3.2", "average bits 6", "bytes", "bit operations"],
)
def test_the_choice_is_the_best_within_the_budget(budget, cost, limit):
    choice = found(budget)
    assert choice.cost == cost(choice.policy) <= limit
    within = [score for score, policy in all_policies() if cost(policy) <= limit]
    assert choice.front.scores[choice.index] == pytest.approx(min(within))
    assert choice.average_bits() == bits_of(choice.policy) / sum(WEIGHTS)


def test_costs_are_those_of_what_is_stored_and_run():
    choice = found(budgets.Bytes(600))
    coded = jqz.quantize(CASE.variables, choice.policy)
    kernels = [coded["params"][f"Dense_{i}"]["kernel"] for i in range(3)]
    assert choice.cost == jqz.size_bytes(kernels)
    operations = found(budgets.BitOperations(120_000))
    policy = jqz.Policy(dict(operations.policy.rules), inputs=jqz.Symmetric(bits=8))
    assert operations.cost == costs(CASE.fn, policy)(CASE.variables, CASE.x).bit_operations


def test_the_front_is_whole_and_each_point_is_a_policy():
    choice = found(budgets.AverageBits(4))
    front = choice.front
    assert choice.policy_at(0) == jqz.Policy(dict.fromkeys(PATHS, jqz.Symmetric(bits=2)))
    assert choice.policy_at(len(front) - 1) == jqz.Policy(dict.fromkeys(PATHS))
    assert front.scores[-1] == 0
    for i in range(0, len(front), 7):
        assert bits_of(choice.policy_at(i)) == front.costs[i]
    undercut = [(bits_of(policy), score) for score, policy in all_policies()]
    for cost, score in undercut:
        assert front.scores[front.costs <= cost][-1] <= score + 1e-12
    assert all(path in str(choice) for path in PATHS)
    assert f"point {choice.index + 1} of {len(front)}" in str(choice)


def test_lagrangian_search_and_own_scores():
    exact, hull = found(budgets.AverageBits(4)), found(budgets.AverageBits(4), solver=solvers.Lagrangian())
    assert hull.cost <= 4 * sum(WEIGHTS)
    assert exact.front.scores[exact.index] <= hull.front.scores[hull.index]
    plain = jqz.search(CASE.fn, CASE.variables, [CASE.x], CANDIDATES, budgets.AverageBits(4))
    assert plain.policy == exact.policy
    noise = sensitivity(CASE.fn, CASE.variables, [], CANDIDATES, measures.WeightNoise())
    free = jqz.search(CASE.fn, CASE.variables, [], CANDIDATES, budgets.AverageBits(4), scores=noise)
    assert free.sensitivity.measure == measures.WeightNoise()


def test_tied_weights_get_one_scheme():
    choice = found(budgets.AverageBits(3.5), ties=[("**/Dense_0/kernel", "**/Dense_2/kernel")])
    schemes = dict(choice.policy.rules)
    assert schemes[PATHS[0]] == schemes[PATHS[2]]
    tied = [(s, bits_of(p)) for s, p in all_policies() if p.rules[0][1] == p.rules[2][1]]
    best = min(score for score, bits in tied if bits <= 3.5 * sum(WEIGHTS))
    assert choice.front.scores[choice.index] == pytest.approx(best)
    together = found(budgets.AverageBits(3.5), ties=[PATHS[:2], PATHS[1:]])
    assert len(set(dict(together.policy.rules).values())) == 1
    with pytest.raises(ValueError, match="names no weight"):
        found(budgets.AverageBits(4), ties=[("**/Dense_7/kernel",)])


def test_accuracy_drop_measures_until_it_holds():
    seen = []

    def evaluate(params):
        """1 minus the relative error of the weights: what a finer scheme improves."""
        changes = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).sum(), params, CASE.variables)
        seen.append(1 - float(sum(jax.tree.leaves(changes))) / 100)
        return seen[-1]

    choice = found(budgets.AccuracyDrop(0.1, evaluate), solver=solvers.Lagrangian())
    assert choice.accuracy[-1] == 1
    assert choice.accuracy[choice.index] >= 0.9
    assert choice.accuracy[choice.index - 1] < 0.9
    assert len(seen) == len(choice.accuracy) <= 2 + np.ceil(np.log2(len(choice.front)))
    assert choice.cost == bytes_of(choice.policy)
    with pytest.raises(ValueError, match=r"more than .* is lost"):
        jqz.search(
            CASE.fn, CASE.variables, [CASE.x], CANDIDATES[:2],
            budgets.AccuracyDrop(0.1, lambda params: float(params is CASE.variables)),
        )  # fmt: skip


def test_a_rounder_of_ones_own_scores_and_is_measured():
    """One that keeps the first half of each weight: scores and measured parameters are its own, rounded once each."""
    schemes, asked, measured = (jqz.Symmetric(bits=2), jqz.Symmetric(bits=4)), [], []

    def rounder(params, policy):
        asked.append(policy)
        half = lambda w, q: np.where(np.arange(len(w))[:, None] < len(w) // 2, w, q)  # noqa: E731
        coded = jqz.dequantize(jqz.quantize(params, policy))
        return jax.tree.map(lambda w, q: half(w, q) if np.ndim(w) == 2 else w, params, coded)

    def evaluate(params):
        measured.append(params)
        return float(np.array_equal(np.asarray(CASE.fn(params, CASE.x)).argmax(-1), ANSWERS))

    plain = sensitivity(CASE.fn, CASE.variables, [CASE.x], schemes)
    budget = budgets.AccuracyDrop(1.0, evaluate)
    choice = jqz.search(CASE.fn, CASE.variables, [CASE.x], schemes, budget, rounder=rounder)
    assert len(asked) == 2
    for i, path in enumerate(PATHS):
        for j, scheme in enumerate(schemes):
            alone = rounder(CASE.variables, jqz.Policy({path: scheme}))
            p, q = (
                np.asarray(jax.nn.log_softmax(CASE.fn(tree, CASE.x)), np.float64) for tree in (CASE.variables, alone)
            )
            wanted = np.mean(np.sum(np.exp(p) * (p - q), -1))
            assert choice.sensitivity.scores[i, j] == pytest.approx(wanted, rel=1e-2, abs=1e-6)
    assert not np.allclose(choice.sensitivity.scores, plain.scores, rtol=0.05)
    for tree in measured[1:]:
        for path, w in zip(PATHS, _kernels(CASE.variables), strict=True):
            np.testing.assert_array_equal(_kernels(tree)[PATHS.index(path)][: len(w) // 2], w[: len(w) // 2])


ANSWERS = np.asarray(CASE.fn(CASE.variables, CASE.x)).argmax(-1)


def _kernels(tree):
    return [np.asarray(tree["params"][f"Dense_{i}"]["kernel"]) for i in range(3)]


def test_what_it_refuses():
    with pytest.raises(ValueError, match="cheapest candidates cost"):
        found(budgets.AverageBits(1.5))
    with pytest.raises(ValueError, match="with the same candidates"):
        jqz.search(CASE.fn, CASE.variables, [CASE.x], CANDIDATES[:2], budgets.AverageBits(4), scores=SCORES)
    with pytest.raises(ValueError, match="batches="):
        jqz.search(CASE.fn, CASE.variables, [], CANDIDATES, budgets.BitOperations(100), scores=SCORES)
    apart = {"**/Dense_0/kernel": CANDIDATES[:1], "**/kernel": CANDIDATES[1:2]}
    with pytest.raises(ValueError, match="no candidate is offered to all"):
        jqz.search(CASE.fn, CASE.variables, [CASE.x], apart, budgets.AverageBits(4), ties=[("**",)])
    for cls in (budgets.AverageBits, budgets.Bytes, budgets.BitOperations):
        with pytest.raises(ValueError, match=f"{cls.__name__}: got limit=0"):
            cls(0)


def test_residuals_are_found():
    case = models.MODELS["ResNet-20"]()
    ties = residual_ties(case.fn, case.variables, case.x)
    stem = "params/Conv_0/kernel"
    assert any(stem in group and "params/ResidualBlock_0/Conv_1/kernel" in group for group in ties)
    assert not any("ResidualBlock_0/Conv_0" in path for group in ties for path in group)
    assert residual_ties(CASE.fn, CASE.variables, CASE.x) == ()


def test_arguments_are_looked_at_before_anything_runs():
    def fails(params, x):
        raise AssertionError("the model ran")

    params, x = {"a": np.ones((4, 4), np.float32)}, np.ones((2, 4), np.float32)
    four = jqz.budgets.AverageBits(4)
    for arguments in ({"budget": 3.0}, {"budget": four, "solver": "exact"}):
        with pytest.raises(TypeError, match=r"wanted some of jqz.budgets and of jqz.solvers"):
            jqz.search(fails, params, [x], [jqz.Symmetric(2)], **arguments)
    for tie in ((), "**/a"):
        with pytest.raises(ValueError, match=r"search: got the tie .*, wanted globs"):
            jqz.search(lambda p, x: x @ p["a"], params, [x], [jqz.Symmetric(2)], four, ties=[tie])
