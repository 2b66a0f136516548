"""One choice for each layer: which combinations are worth their cost."""

import abc
import dataclasses
import itertools
import typing
from collections.abc import Sequence

import numpy as np


@typing.final
@dataclasses.dataclass(frozen=True, eq=False)
class Front:
    """Combinations that no other undercuts in both cost and score: cost rises along it, score falls.

    Attributes:
      costs: (points,) int64.
      scores: (points,) float64, sums over layers.
      choices: (points, layers) int64: the option of each layer.
    """

    costs: np.ndarray
    scores: np.ndarray
    choices: np.ndarray

    def __len__(self) -> int:
        return len(self.costs)


#: For each layer the costs (integers) and the scores of its options.
Options = Sequence[tuple[np.ndarray, np.ndarray]]


class Solver(abc.ABC):
    """How to find the front of all combinations."""

    @abc.abstractmethod
    def front(self, options: Options) -> Front:
        """The combinations worth their cost, by rising cost."""


@typing.final
@dataclasses.dataclass(frozen=True)
class Exact(Solver):
    """Every combination that nothing dominates, by dynamic programming: the exact optimum for each budget.

    Layer by layer it keeps the partial sums that no other undercuts. Their number is at most that of different costs,
    and grows with the sizes of the layers; up to about a hundred layers of a few million weights it takes seconds.

    Args:
      states: refuse to keep more than this.

    >>> import numpy as np, jqz
    >>> one, other = (np.array([1, 3]), np.array([9.0, 1.0])), (np.array([2, 3]), np.array([4.0, 3.0]))
    >>> front = jqz.solvers.Exact().front([one, other])
    >>> front.costs.tolist(), front.scores.tolist()
    ([3, 4, 5, 6], [13.0, 12.0, 5.0, 4.0])
    """

    states: int = 2_000_000

    def front(self, options: Options) -> Front:
        cost, score, steps = np.zeros(1, np.int64), np.zeros(1), []
        for costs, scores in options:
            more, worse = (cost[:, None] + costs).ravel(), (score[:, None] + scores).ravel()
            order = np.lexsort((worse, more))
            best = np.minimum.accumulate(worse[order])
            kept = order[np.concatenate([[True], worse[order][1:] < best[:-1]])]
            if len(kept) > self.states:
                raise ValueError(
                    f"{self!r}: {len(kept)} partial combinations after {len(steps) + 1} of {len(options)} layers. "
                    "Use solver=jqz.solvers.Lagrangian(), or fewer candidates."
                )
            steps.append((kept // len(costs), kept % len(costs)))
            cost, score = more[kept], worse[kept]
        at, choices = np.arange(len(cost)), []
        for before, chosen in reversed(steps):
            choices.append(chosen[at])
            at = before[at]
        return Front(cost, score, np.stack(choices[::-1], axis=1))


@typing.final
@dataclasses.dataclass(frozen=True)
class Lagrangian(Solver):
    """The combinations that minimize score + price * cost for some price: the convex hull of the exact front.

    From the cheapest combination it takes the step that lowers the score most for its cost, again and again. It takes
    no time at any size. A budget between two points of the hull is not used up: what is lost is at most one step of
    one layer.

    >>> import numpy as np, jqz
    >>> one, other = (np.array([1, 3]), np.array([9.0, 1.0])), (np.array([2, 3]), np.array([4.0, 3.0]))
    >>> jqz.solvers.Lagrangian().front([one, other]).costs.tolist()
    [3, 5, 6]
    """

    def front(self, options: Options) -> Front:
        start, steps = [], []
        for layer, (costs, scores) in enumerate(options):
            hull = _hull(costs, scores)
            start.append(hull[0])
            for a, b in itertools.pairwise(hull):
                steps.append(((scores[a] - scores[b]) / (costs[b] - costs[a]), layer, b))
        # stable: the steps of a layer stay in order, since its gains fall along the hull
        steps.sort(key=lambda step: -step[0])
        choice = np.array(start)
        choices = [choice]
        for _, layer, option in steps:
            choice = choice.copy()
            choice[layer] = option
            choices.append(choice)
        table = np.stack(choices)
        sums = [sum(part[table[:, i]] for i, part in enumerate(parts)) for parts in zip(*options, strict=True)]
        return Front(np.asarray(sums[0], np.int64), np.asarray(sums[1], np.float64), table)


def _hull(costs: np.ndarray, scores: np.ndarray) -> list[int]:
    """Options on the lower convex hull, by rising cost and falling score."""
    hull: list[int] = []
    for i in np.lexsort((scores, costs)):
        if hull and scores[i] >= scores[hull[-1]]:
            continue
        while len(hull) > 1:
            a, b = hull[-2:]
            if (scores[a] - scores[b]) * (costs[i] - costs[b]) > (scores[b] - scores[i]) * (costs[b] - costs[a]):
                break
            hull.pop()
        hull.append(int(i))
    return hull
