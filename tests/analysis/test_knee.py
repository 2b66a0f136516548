"""The knee of the paper's own tables."""

import pytest

from jqz.analysis import knee

#: Tables 1 and 3 of arXiv:1910.04877: accuracy in float, and by bits.
SYMMETRIC = (90.87, {8: 90.51, 7: 90.46, 6: 90.48, 5: 90.41, 4: 89.54, 3: 88.93, 2: 77.24})
ASYMMETRIC = (90.87, {8: 90.83, 7: 90.80, 6: 90.90, 5: 90.61, 4: 90.04, 3: 85.93, 2: 22.46})
RESNET_50 = (74.08, {8: 73.54, 7: 73.31, 6: 72.58, 5: 67.82, 4: 24.9})


@pytest.mark.parametrize(
    ("table", "drop", "bits"),
    [(SYMMETRIC, 1, 5), (ASYMMETRIC, 1, 4), (SYMMETRIC, 4, 3), (RESNET_50, 4, 6), (RESNET_50, 0.1, None)],
)
def test_of_the_papers_tables(table, drop, bits):
    reference, accuracy = table
    assert knee(accuracy, reference, drop) == bits


def test_a_lucky_narrow_width_does_not_count():
    assert knee({8: 0.9, 4: 0.7, 2: 0.9}, reference=0.9, drop=0.01) == 8
