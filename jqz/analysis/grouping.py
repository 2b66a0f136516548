"""Which classes a quantized model can still tell apart, and how well it does on groups of the others."""

import dataclasses
import importlib
import typing
from collections.abc import Sequence

import numpy as np

#: Groups of classes: every class in one of them.
Groups = tuple[tuple[int, ...], ...]


def confusion(labels: typing.Any, predictions: typing.Any, classes: int) -> np.ndarray:
    """Counts of examples by true class (row) and predicted class (column), int64.

    Raises:
      ValueError: shapes differ, or a class is not below ``classes``.

    >>> from jqz.analysis import confusion
    >>> confusion([0, 0, 1, 1], [0, 1, 1, 1], classes=2).tolist()
    [[1, 1], [0, 2]]
    """
    true, said = (np.asarray(a).ravel() for a in (labels, predictions))
    if true.shape != said.shape or (
        true.size and not 0 <= min(true.min(), said.min()) <= max(true.max(), said.max()) < classes
    ):
        raise ValueError(
            f"confusion: got {true.size} labels and {said.size} predictions for {classes} classes; wanted as many of "
            "each, from 0 to classes - 1. Use predictions=logits.argmax(-1)."
        )
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (true, said), 1)
    return counts


def similarity(counts: typing.Any, baseline: typing.Any = None) -> np.ndarray:
    """How often two classes are taken for each other: S_ij = (C_ij / N_i + C_ji / N_j) / 2, 0 on the diagonal.

    Args:
      counts: a confusion matrix C; N are its row sums.
      baseline: that of the float model: what exceeds its similarity is the confusion that quantization caused.

    >>> from jqz.analysis import similarity
    >>> similarity([[6, 2], [4, 4]]).tolist()
    [[0.0, 0.375], [0.375, 0.0]]
    """
    c = np.asarray(counts, np.float64)
    rates = np.divide(c, c.sum(1, keepdims=True), out=np.zeros_like(c), where=c.sum(1, keepdims=True) > 0)
    s = (rates + rates.T) / 2
    np.fill_diagonal(s, 0)
    return s if baseline is None else np.maximum(s - similarity(baseline), 0)


def group_classes(similarities: typing.Any, count: int | None = None, least: float = 0.02) -> Groups:
    """Groups classes that are taken for each other, by average linkage.

    Args:
      similarities: symmetric, as ``similarity`` gives.
      count: how many groups to stop at; if left out, merging stops where the mean similarity is below ``least``.
      least: see ``count``.

    Returns:
      Groups of classes, each sorted, in the order of their first classes.

    Raises:
      ImportError: scipy is not installed.
      ValueError: ``count`` is not between 1 and the number of classes.

    >>> from jqz.analysis import group_classes
    >>> group_classes([[0, 0.3, 0], [0.3, 0, 0.01], [0, 0.01, 0]])
    ((0, 1), (2,))

    References: class clustering of arXiv:1910.04877, table 2.
    """
    s = np.asarray(similarities, np.float64)
    if count is not None and not 1 <= count <= len(s):
        raise ValueError(f"group_classes: got count={count}, wanted 1 to {len(s)}, the number of classes.")
    if len(s) < 2:
        return tuple((i,) for i in range(len(s)))
    hierarchy = _scipy()
    joined = hierarchy.linkage((1 - s)[np.triu_indices(len(s), 1)], method="average")
    # ties in distance must not merge more than asked: count merges, not distances
    merges = len(s) - count if count is not None else int(np.searchsorted(joined[:, 2], 1 - least, side="right"))
    members: dict[int, tuple[int, ...]] = {i: (i,) for i in range(len(s))}
    for step, (a, b) in enumerate(joined[:merges, :2].astype(int)):
        members[len(s) + step] = tuple(sorted(members.pop(a) + members.pop(b)))
    return tuple(sorted(members.values()))


def _scipy() -> typing.Any:
    try:
        return importlib.import_module("scipy.cluster.hierarchy")
    except ImportError as error:
        raise ImportError("group_classes needs scipy: pip install 'jqz[analysis]'") from error


@typing.final
@dataclasses.dataclass(frozen=True)
class GroupedAccuracy:
    """How well a model tells groups of classes apart.

    Fewer groups are easier to tell apart, so accuracy alone says nothing: kappa and information allow for chance.

    Attributes:
      groups: the groups.
      hard: the share of examples whose most probable class is in the right group.
      soft: the share whose most probable group is right, its probability the sum over its classes; None where only
        predictions are known.
      kappa: Cohen's: (hard - chance) / (1 - chance), chance from the frequencies of groups; 0 for a single group.
      information_bits: mutual information of true and predicted groups.
      by_group: the share of each group's examples that stay in it; NaN for a group without examples.
    """

    groups: Groups
    hard: float
    soft: float | None
    kappa: float
    information_bits: float
    by_group: tuple[float, ...]


def grouped_accuracy(counts: typing.Any, groups: Sequence[Sequence[int]]) -> GroupedAccuracy:
    """The accuracy on groups of classes, from a confusion matrix.

    Raises:
      ValueError: there are no examples, or a class is not in exactly one group.

    >>> from jqz.analysis import grouped_accuracy
    >>> found = grouped_accuracy([[3, 1, 0], [1, 3, 0], [0, 1, 3]], [(0, 1), (2,)])
    >>> round(found.hard, 4), found.by_group, round(found.kappa, 4)
    (0.9167, (1.0, 0.75), 0.8)
    """
    c = np.asarray(counts, np.float64)
    groups = tuple(tuple(int(i) for i in group) for group in groups)
    if sorted(i for group in groups for i in group) != list(range(len(c))):
        raise ValueError(f"grouped_accuracy: got {groups}, wanted each of {len(c)} classes in exactly one group.")
    if not c.sum():
        raise ValueError("grouped_accuracy: got no examples. Use confusion(labels, predictions, classes).")
    member = np.zeros((len(groups), len(c)))
    for row, group in enumerate(groups):
        member[row, list(group)] = 1
    joint = member @ c @ member.T
    share = joint / joint.sum()
    rows, columns = share.sum(1), share.sum(0)
    hard, chance = float(np.trace(share)), float(rows @ columns)
    expected = np.outer(rows, columns)
    seen = share > 0
    with np.errstate(invalid="ignore"):
        by_group = tuple(float(x) for x in np.diag(joint) / joint.sum(1))
    return GroupedAccuracy(
        groups,
        hard,
        None,
        (hard - chance) / (1 - chance) if chance < 1 else 0.0,
        float(np.sum(share[seen] * np.log2(share[seen] / expected[seen]))),
        by_group,
    )


def regroup(
    labels: typing.Any, probabilities: typing.Any, count: int | None = None, least: float = 0.02
) -> GroupedAccuracy:
    """Groups the classes by the confusion on every second example, and reports the accuracy on the others.

    A grouping that is chosen on the examples that it is judged on flatters itself; this one is not.

    Args:
      labels: (examples,) true classes, in random order.
      probabilities: (examples, classes) of the quantized model.
      count: as for ``group_classes``.
      least: as for ``group_classes``.

    Raises:
      ImportError: scipy is not installed.
      ValueError: shapes do not fit, or there are fewer than two examples.

    >>> import numpy as np
    >>> from jqz.analysis import regroup
    >>> labels = np.arange(300) % 3
    >>> unsure = np.array([[0.45, 0.55, 0.0], [0.55, 0.45, 0.0], [0.1, 0.1, 0.8]])
    >>> found = regroup(labels, unsure[labels], count=2)
    >>> found.groups, found.hard, found.soft
    (((0, 1), (2,)), 1.0, 1.0)
    """
    true, p = np.asarray(labels), np.asarray(probabilities, np.float64)
    if p.ndim != 2 or true.shape != p.shape[:1] or len(p) < 2:
        raise ValueError(
            f"regroup: got labels of shape {true.shape} and probabilities of shape {p.shape}, wanted (examples,) and "
            "(examples, classes), two examples or more. Use jax.nn.softmax(logits)."
        )
    classes = p.shape[1]
    said = p.argmax(1)
    chosen = group_classes(similarity(confusion(true[::2], said[::2], classes)), count, least)
    found = grouped_accuracy(confusion(true[1::2], said[1::2], classes), chosen)
    of = np.empty(classes, int)
    for row, group in enumerate(chosen):
        of[list(group)] = row
    sums = np.stack([p[1::2, list(group)].sum(1) for group in chosen], axis=1)
    return dataclasses.replace(found, soft=float((sums.argmax(1) == of[true[1::2]]).mean()))
