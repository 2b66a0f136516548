"""How few bits a model can do with."""

import typing
from collections.abc import Mapping

Width = typing.TypeVar("Width", int, float)


def knee(accuracy: Mapping[Width, float], reference: float, drop: float) -> Width | None:
    """The smallest bit width from which up no width loses more than ``drop``; None where the widest does.

    Args:
      accuracy: bit width -> accuracy.
      reference: the accuracy in float.
      drop: what may be lost, in the unit of the accuracies.

    >>> from jqz.analysis import knee
    >>> table = {8: 90.51, 6: 90.48, 5: 90.41, 4: 89.54, 3: 88.93, 2: 77.24}
    >>> knee(table, reference=90.87, drop=1.0), knee(table, reference=90.87, drop=2.0)
    (5, 3)

    References: "knee" of arXiv:1910.04877, table 3.
    """
    found = None
    for bits in sorted(accuracy, reverse=True):
        if reference - accuracy[bits] > drop:
            break
        found = bits
    return found
