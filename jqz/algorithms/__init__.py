"""Algorithms after training: one a file, plain functions."""

from jqz._sensitivity import Sensitivity
from jqz.algorithms.partial import heads, layers, most_sensitive, only, skip_first, skip_last
from jqz.algorithms.sensitivity import sensitivity
from jqz.algorithms.ties import residual_ties

__all__ = [
    "Sensitivity",
    "heads",
    "layers",
    "most_sensitive",
    "only",
    "residual_ties",
    "sensitivity",
    "skip_first",
    "skip_last",
]
