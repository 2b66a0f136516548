"""Algorithms after training: one a file, plain functions."""

from jqz.algorithms.sensitivity import Sensitivity, sensitivity
from jqz.algorithms.ties import residual_ties

__all__ = ["Sensitivity", "residual_ties", "sensitivity"]
