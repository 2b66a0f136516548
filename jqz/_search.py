"""The best scheme for each weight under a budget."""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np

from jqz import _paths
from jqz._budgets import AccuracyDrop, Budget, Item
from jqz._channels import bind, replaced
from jqz._policy import Policy
from jqz._scheme import Identity, Scheme
from jqz._sensitivity import Sensitivity
from jqz._solvers import Exact, Front, Solver
from jqz._transform import quantize, size_bytes

if typing.TYPE_CHECKING:
    from jqz.algorithms.sensitivity import Candidates, Rounder


@typing.final
@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What a search found: a policy, and the front that it is a point of; ``print`` it for a table.

    Attributes:
      policy: the choice: a rule for each weight.
      index: its point of the front.
      front: every combination worth its cost; ``choices`` index ``sensitivity.candidates``.
      sensitivity: the scores that decided.
      budget: what limited it.
      accuracy: what was measured, by point of the front; -1 is the float model. Empty for budgets that measure none.
    """

    policy: Policy
    index: int
    front: Front
    sensitivity: Sensitivity
    budget: Budget
    accuracy: Mapping[int, float]

    @property
    def cost(self) -> int:
        """What the choice costs, in ``budget.unit``."""
        return int(self.front.costs[self.index])

    def policy_at(self, index: int) -> Policy:
        """The policy of another point of the front."""
        return _policy(self.sensitivity, self.front.choices[index])

    def average_bits(self, index: int | None = None) -> float:
        """Bits of a code, on average over the searched weights, at a point of the front or at the choice."""
        choices = self.front.choices[self.index if index is None else index]
        bits = [_bits(self.sensitivity.candidates[c]) for c in choices]
        return float(np.average(bits, weights=self.sensitivity.weights))

    def __str__(self) -> str:
        wide = max(len(path) for path in self.sensitivity.paths)
        lines = [f"{path:{wide}}  {scheme if scheme is not None else 'float'}" for path, scheme in self.policy.rules]
        place = f"point {self.index + 1} of {len(self.front)}"
        head = f"{self.cost:,} {self.budget.unit}, {self.average_bits():.2f} bits a weight, {place}"
        return "\n".join([head, *lines])


def search(
    fn: Callable[..., typing.Any],
    params: typing.Any,
    batches: Iterable[typing.Any],
    candidates: "Candidates",
    budget: Budget,
    *,
    scores: Sensitivity | None = None,
    solver: Solver = Exact(),
    ties: Sequence[Sequence[str]] = (),
    rounder: "Rounder | None" = None,
) -> Found:
    """Chooses a scheme for each weight so that the model loses least within a budget.

    Minimizes the sum of the weights' scores (by default the divergence of the output when that weight alone is
    rounded) under the sum of their costs: a multiple-choice knapsack, solved exactly. The whole front comes with it.
    The sum says nothing of how errors interact; at 2 bits, measure a few points of the front, as ``AccuracyDrop`` does.

    Args:
      fn: a pure function of ``(params, *batch)``, such as a Linen ``model.apply``.
      params: float parameters.
      batches: what ``fn`` takes: an array, or a tuple of arguments, each.
      candidates: schemes to choose from, chains included, None for float; or ``{glob: schemes}``. Weights that get
        none stay float and cost nothing.
      budget: ``Bytes``, ``AverageBits``, ``BitOperations`` or ``AccuracyDrop`` of ``jqz.budgets``.
      scores: what ``jqz.algorithms.sensitivity`` returned for these candidates, with a measure of your choice or for
        several searches; computed if left out.
      solver: ``Exact`` or ``Lagrangian`` of ``jqz.solvers``.
      ties: groups of globs whose weights get the same scheme, such as ``jqz.algorithms.residual_ties`` finds.
      rounder: what rounds the weights for the scores and for ``AccuracyDrop``, such as
        ``lambda params, policy: gptq(params, policy, stats)``; called once for each candidate. Nearest if left out.

    Returns:
      ``Found``, with ``policy`` and ``front``.

    Raises:
      ValueError: the budget is below what the cheapest candidates cost, no point reaches the accuracy, ``scores`` are
        of other weights, or a tie names no weight or weights without a common candidate.

    >>> import jax, jax.numpy as jnp, jqz
    >>> def model(params, x):
    ...     return jnp.tanh(x @ params["a"]) @ params["b"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"a": jax.random.normal(keys[0], (8, 16)), "b": jax.random.normal(keys[1], (16, 4))}
    >>> found = jqz.search(model, params, [jax.random.normal(keys[2], (32, 8))],
    ...     [jqz.Symmetric(bits=2), jqz.Symmetric(bits=4)], jqz.budgets.AverageBits(3.5))
    >>> found.policy
    Policy({'a': Symmetric(bits=2), 'b': Symmetric(bits=4)})
    >>> [round(found.average_bits(i), 2) for i in range(len(found.front))]
    [2.0, 2.67, 4.0]

    References: HAWQ-V3 arXiv:2011.10680; schemes chosen automatically are the outlook of arXiv:1910.04877.
    """
    from jqz.algorithms.sensitivity import offered, rounded_by, sensitivity

    if not isinstance(budget, Budget) or not isinstance(solver, Solver):
        raise TypeError(
            f"search: got budget={budget!r} and solver={solver!r}, wanted some of jqz.budgets and of jqz.solvers. "
            "Use jqz.budgets.AverageBits(4), jqz.solvers.Exact()."
        )
    fn, inputs = bind("search", fn, batches)
    weights, offers = offered("search", params, candidates)
    once = None if rounder is None else _once(rounder)
    if scores is None:
        scores = sensitivity(fn, params, inputs, candidates, rounder=once)
    schemes = tuple(dict.fromkeys(scheme for some in offers.values() for scheme in some))
    if scores.paths != tuple(weights) or set(scores.candidates) != set(schemes):
        raise ValueError(
            f"search: scores are of {scores.paths[:3]}... under {scores.candidates}, wanted {tuple(weights)[:3]}... "
            f"under {schemes}. Use sensitivity(fn, params, batches, candidates) with the same candidates."
        )
    macs = _macs(fn, params, inputs) if budget.needs_macs else {}
    options, groups = _options(weights, offers, scores, budget, macs, ties)
    front = solver.front([(cost, score) for cost, score, _ in options])
    choices = np.empty((len(front), len(weights)), np.int64)
    for column, ((_, _, which), members) in enumerate(zip(options, groups, strict=True)):
        choices[:, members] = which[front.choices[:, column]][:, None]
    front = dataclasses.replace(front, choices=choices)

    def at(index: int) -> typing.Any:
        chosen = dict(zip(weights, (scores.candidates[c] for c in choices[index]), strict=True))
        rounded = {}
        for scheme in set(chosen.values()) - {None}:  # all weights, as the scores were computed: compiled already
            copies = rounded_by(scheme, weights, offers, params, once)
            rounded |= {path: copies[path] for path, own in chosen.items() if own == scheme}
        return replaced(params, rounded)

    if isinstance(budget, AccuracyDrop):
        index, accuracy = _measured(len(front), budget, params, at)
    else:
        index, accuracy = _within(front, budget, sum(scores.weights)), {}
    return Found(_policy(scores, choices[index]), index, front, scores, budget, accuracy)


def _once(rounder: "Rounder") -> "Rounder":
    """The rounder, which keeps what it made for each policy of the same parameters."""
    kept: dict[Policy, typing.Any] = {}

    def rounded(params: typing.Any, policy: Policy) -> typing.Any:
        if policy not in kept:
            kept[policy] = rounder(params, policy)
        return kept[policy]

    return rounded


def _bits(scheme: Scheme | None) -> int:
    return 32 if scheme is None else scheme.bits


def _macs(fn: Callable[..., typing.Any], params: typing.Any, batches: Sequence[typing.Any]) -> dict[str, int]:
    from jqz.analysis.costs import costs

    if not batches:
        raise ValueError("search: bit operations are counted on a batch, and there is none. Use batches=[x].")
    out: dict[str, int] = {}
    for layer in costs(fn)(params, *(batches[0] if isinstance(batches[0], tuple) else (batches[0],))).layers:
        path = layer.name.split("#")[0]
        out[path] = out.get(path, 0) + layer.macs
    return out


def _options(weights, offers, scores, budget, macs, ties):
    """For each group of weights: costs, scores, and which candidates they are; and the groups' columns."""
    sizes: dict[typing.Any, int] = {}

    def item(path: str, scheme: Scheme | None) -> Item:
        leaf = weights[path]
        key = (leaf.shape, str(leaf.dtype), scheme)
        if key not in sizes:
            plain = scheme is None or isinstance(scheme, Identity)
            shape = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            sizes[key] = size_bytes(shape if plain else jax.eval_shape(lambda x: quantize(x, scheme), shape))
        return Item(leaf.size, _bits(scheme), sizes[key], macs.get(path, 0))

    paths, options, groups = list(weights), [], []
    for members in _groups(paths, ties):
        common = [c for c in scores.candidates if all(c in offers[path] for path in members)]
        if not common:
            raise ValueError(f"search: {members} are tied, and no candidate is offered to all of them. Use other ties.")
        which = np.array([scores.candidates.index(c) for c in common])
        rows = [paths.index(path) for path in members]
        cost = np.array([sum(budget.cost(item(path, c)) for path in members) for c in common], np.int64)
        options.append((cost, scores.scores[rows][:, which].sum(0), which))
        groups.append(rows)
    return options, groups


def _groups(paths: Sequence[str], ties: Sequence[Sequence[str]]) -> list[list[str]]:
    """The paths, those that ties name together; groups with a path in common are one."""
    leader = {path: path for path in paths}
    for globs in ties:
        if isinstance(globs, str) or not globs:
            raise ValueError(f"search: got the tie {globs!r}, wanted globs. Use ties=[('**/a', '**/b')].")
        tied = [path for path in paths if any(_paths.matches(glob, path) for glob in globs)]
        if not tied:
            raise ValueError(
                f"search: the tie {tuple(globs)} names no weight. "
                f"Nearest paths: {', '.join(map(repr, _paths.nearest(globs[0], paths)))}."
            )
        first, merged = leader[tied[0]], {leader[path] for path in tied}
        leader = {path: first if lead in merged else lead for path, lead in leader.items()}
    out: dict[str, list[str]] = {}
    for path, lead in leader.items():
        out.setdefault(lead, []).append(path)
    return list(out.values())


def _policy(scores: Sensitivity, choices: np.ndarray) -> Policy:
    return Policy({path: scores.candidates[c] for path, c in zip(scores.paths, choices, strict=True)})


def _within(front: Front, budget: Budget, weights: int) -> int:
    """The last point that a budget allows."""
    limit = budget.limit_for(weights)
    assert limit is not None
    within = int(np.searchsorted(front.costs, limit, side="right"))
    if not within:
        raise ValueError(
            f"search: {budget!r} allows {limit:,.0f} {budget.unit}, and the cheapest candidates cost "
            f"{front.costs[0]:,}. Raise the limit, or offer candidates of fewer bits."
        )
    return within - 1


def _measured(
    points: int, budget: AccuracyDrop, params: typing.Any, at: Callable[[int], typing.Any]
) -> tuple[int, dict[int, float]]:
    """The first point that is accurate enough, by bisection; ``at`` gives its rounded parameters."""
    accuracy = {-1: float(budget.evaluate(params))}

    def enough(index: int) -> bool:
        accuracy[index] = float(budget.evaluate(at(index)))
        return accuracy[index] >= accuracy[-1] - budget.limit

    low, high = -1, points - 1
    if not enough(high):
        raise ValueError(
            f"search: the float model reaches {accuracy[-1]:.4g}, the most expensive candidates {accuracy[high]:.4g}: "
            f"more than {budget.limit} is lost. Offer candidates of more bits, or None."
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high, accuracy
