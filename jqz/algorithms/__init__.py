"""Algorithms after training: one a file, plain functions."""

from jqz.algorithms.sensitivity import Sensitivity, sensitivity

__all__ = ["Sensitivity", "sensitivity"]
