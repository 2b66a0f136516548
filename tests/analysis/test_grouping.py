"""Class grouping against scikit-learn, the paper's example, and the properties of its definitions."""

import numpy as np
import pytest
from scipy import stats
from sklearn import cluster, metrics

from jqz.analysis import confusion, group_classes, grouped_accuracy, regroup, similarity

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 7, 2000)


def guesses(labels, classes=7):
    """A model that takes 0 for 1, and 2 for 3 and 4, more than others."""
    p = np.full((classes, classes), 0.02) + 0.7 * np.eye(classes)
    for a, b, more in ((0, 1, 0.3), (2, 3, 0.2), (3, 4, 0.15), (2, 4, 0.1)):
        p[a, b] = p[b, a] = more
    p /= p.sum(1, keepdims=True)
    return np.array([RNG.choice(classes, p=p[label]) for label in labels])


SAID = guesses(LABELS)
COUNTS = confusion(LABELS, SAID, 7)


def of(groups):
    place = {c: i for i, group in enumerate(groups) for c in group}
    return np.vectorize(place.get)


def test_confusion_and_similarity():
    np.testing.assert_array_equal(COUNTS, metrics.confusion_matrix(LABELS, SAID))
    s = similarity(COUNTS)
    assert s[2, 5] == pytest.approx((COUNTS[2, 5] / COUNTS[2].sum() + COUNTS[5, 2] / COUNTS[5].sum()) / 2)
    np.testing.assert_array_equal(s, s.T)
    assert not similarity(COUNTS, COUNTS).any()
    assert (similarity(COUNTS, np.diag(COUNTS.sum(1))) == s).all()
    assert similarity([[0, 0], [1, 3]])[0, 1] == 0.125  # a class without examples
    with pytest.raises(ValueError, match="7 labels and 6"):
        confusion(LABELS[:7], SAID[:6], 7)
    with pytest.raises(ValueError, match="for 3 classes"):
        confusion(LABELS, SAID, 3)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7])
def test_groups_are_those_of_scikit_learn(count):
    s = similarity(COUNTS)
    mine = group_classes(s, count)
    theirs = cluster.AgglomerativeClustering(count, metric="precomputed", linkage="average").fit(1 - s).labels_
    assert len(mine) == count
    assert metrics.adjusted_rand_score(theirs, of(mine)(np.arange(7))) == 1
    assert mine == tuple(sorted(mine))


def test_merging_stops_where_classes_are_told_apart():
    assert group_classes(similarity(COUNTS), least=0.08) == ((0, 1), (2, 3, 4), (5,), (6,))
    assert group_classes(similarity(COUNTS), least=1.0) == tuple((i,) for i in range(7))
    assert group_classes(np.zeros((1, 1))) == ((0,),)
    even = 1 - np.eye(4)  # all alike: as many groups as asked, however ties fall
    assert [len(group_classes(even, n)) for n in (1, 2, 3, 4)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="wanted 1 to 7"):
        group_classes(similarity(COUNTS), 8)


def test_accuracy_information_and_kappa_are_those_of_scikit_learn():
    groups = ((0, 1), (2, 3, 4), (5,), (6,))
    found = grouped_accuracy(COUNTS, groups)
    true, said = of(groups)(LABELS), of(groups)(SAID)
    assert found.hard == pytest.approx(metrics.accuracy_score(true, said))
    assert found.kappa == pytest.approx(metrics.cohen_kappa_score(true, said))
    assert found.information_bits == pytest.approx(metrics.mutual_info_score(true, said) / np.log(2))
    assert found.by_group == pytest.approx(metrics.recall_score(true, said, average=None))


def test_accuracy_never_falls_along_merges_but_information_does():
    """The share of right answers grows to 1 for a single group, which tells nothing."""
    along = [grouped_accuracy(COUNTS, group_classes(similarity(COUNTS), n)) for n in range(7, 0, -1)]
    hard, bits = [a.hard for a in along], [a.information_bits for a in along]
    assert hard == sorted(hard)
    assert hard[0] == pytest.approx((LABELS == SAID).mean())
    assert hard[-1] == 1
    assert bits == sorted(bits, reverse=True)
    assert (bits[-1], along[-1].kappa) == (0, 0)


def test_chance_alone_is_worth_nothing():
    blind = np.outer(np.bincount(LABELS), np.bincount(SAID)) / 2000
    found = grouped_accuracy(blind, ((0, 1, 2, 3, 4), (5,), (6,)))
    assert found.hard > 0.5
    assert found.kappa == pytest.approx(0, abs=1e-12)
    assert found.information_bits == pytest.approx(0, abs=1e-12)


def test_small_pets_as_in_the_paper():
    """Cats and dogs, each taken for the other: what was confused is right in the group, as in table 2."""
    counts = np.diag([90, 80, 80]) + np.array([[0, 5, 5], [2, 0, 18], [2, 18, 0]])
    found = grouped_accuracy(counts, group_classes(similarity(counts), 2))
    assert found.groups == ((0,), (1, 2))
    assert found.hard == pytest.approx((90 + 196) / 300)
    assert found.by_group == pytest.approx((0.9, 0.98))
    with pytest.raises(ValueError, match="exactly one group"):
        grouped_accuracy(counts, ((0,), (1,)))
    with pytest.raises(ValueError, match="no examples"):
        grouped_accuracy(np.zeros((2, 2)), ((0,), (1,)))
    assert np.isnan(grouped_accuracy([[3, 0], [0, 0]], ((0,), (1,))).by_group[1])


def test_chosen_on_one_half_reported_on_the_other():
    p = RNG.dirichlet(np.ones(7), 2000) * 0.2 + 0.8 * np.eye(7)[SAID]
    found = regroup(LABELS, p, count=4)
    said = p.argmax(1)
    assert found.groups == group_classes(similarity(confusion(LABELS[::2], said[::2], 7)), 4)
    true, hard = of(found.groups)(LABELS[1::2]), of(found.groups)(said[1::2])
    assert found.hard == pytest.approx((true == hard).mean())
    sums = np.stack([p[1::2][:, list(group)].sum(1) for group in found.groups], 1)
    assert found.soft == pytest.approx((sums.argmax(1) == true).mean())
    assert stats.entropy(np.bincount(true), base=2) >= found.information_bits
    with pytest.raises(ValueError, match="two examples"):
        regroup(LABELS, p[:, 0])
