"""Mergeable statistics of activations: one a file, one line in the catalogue.

An observer is a frozen pytree that is its own state: ``AbsMax()`` has seen nothing,
``AbsMax().update(x)`` has seen ``x``, and ``a.merge(b)`` has seen what both have. Merging is associative with
``empty()`` as its neutral element, so batches may come in any order and from any device wherever the
statistic allows it; ``all_merge`` merges over the devices of a mesh.

============== ===================================================================================
``AbsMax``     the largest magnitude
``MinMax``     the extremes: nothing clips. The default
``EMA``        extremes averaged over batches; the order of batches counts
``Percentile`` ignores a share of outliers
``MSE``        the clip with the least squared error of the scheme; best below 8 bits
``Entropy``    the clip that loses the least information
``Moments``    mean and variance of channels
``TermMax``    the largest magnitude of each term of a weight's sum
``Gram``       X^T X for second-order rounding; no range
============== ===================================================================================
"""

from jqz._observer import Observer, all_merge
from jqz.observers.entropy import Entropy
from jqz.observers.gram import Gram
from jqz.observers.limits import AbsMax, MinMax
from jqz.observers.moments import Moments
from jqz.observers.moving_average import EMA
from jqz.observers.mse import MSE
from jqz.observers.percentile import Percentile
from jqz.observers.terms import TermMax

CATALOGUE: tuple[Observer, ...] = (
    AbsMax(),
    MinMax(),
    EMA(),
    Percentile(99.0, bins=512),
    MSE(bins=512, candidates=16),
    Entropy(bins=512),
    Moments(),
    TermMax(),
    Gram(),
)

__all__ = [
    "CATALOGUE",
    "EMA",
    "MSE",
    "AbsMax",
    "Entropy",
    "Gram",
    "MinMax",
    "Moments",
    "Observer",
    "Percentile",
    "TermMax",
    "all_merge",
]
