"""Scores of layers under schemes: what ``jqz.algorithms.sensitivity`` makes and others read."""

import dataclasses
import typing

import numpy as np

from jqz._measures import Measure
from jqz._scheme import Scheme


@typing.final
@dataclasses.dataclass(frozen=True, eq=False)
class Sensitivity:
    """Scores of layers and candidates; ``print`` it for a table.

    Attributes:
      paths: the weights, in the order of the tree.
      candidates: the schemes; None is float, with score 0.
      scores: (weights, candidates), float64: what rounding this weight alone costs; NaN where it was not offered.
      weights: how many numbers each of them has.
      measure: what the scores are.
    """

    paths: tuple[str, ...]
    candidates: tuple[Scheme | None, ...]
    scores: np.ndarray
    weights: tuple[int, ...]
    measure: Measure

    def ranking(self, candidate: Scheme | None = None) -> tuple[str, ...]:
        """Paths, the most sensitive first: by the score under a candidate, the most harmful one if left out."""
        worst = int(np.argmax(np.nansum(self.scores, axis=0)))
        rank = self.scores[:, worst if candidate is None else self.candidates.index(candidate)]
        return tuple(self.paths[i] for i in np.argsort(-np.nan_to_num(rank, nan=-np.inf), kind="stable"))

    def __str__(self) -> str:
        wide = max(len(path) for path in self.paths)
        names = [str(c) for c in self.candidates]
        head = [f"{self.measure.unit}; columns:", *(f"  {i}: {name}" for i, name in enumerate(names))]
        columns = "".join(f"  {i:>9}" for i in range(len(names)))
        rows = [
            f"{p:{wide}}" + "".join(f"  {s:>9.3g}" for s in row) for p, row in zip(self.paths, self.scores, strict=True)
        ]
        return "\n".join([*head, " " * wide + columns, *rows])
