"""Mergeable statistics of activations: one a file, one line in the catalogue.

An observer is a frozen pytree that is its own state: ``AbsMax()`` has seen nothing,
``AbsMax().update(x)`` has seen ``x``, and ``a.merge(b)`` has seen what both have. Merging is associative with
``empty()`` as its neutral element, so batches may come in any order and from any device wherever the
statistic allows it.
"""

from jqz.observers.limits import AbsMax, MinMax

CATALOGUE = (AbsMax(), MinMax())

__all__ = ["CATALOGUE", "AbsMax", "MinMax"]
