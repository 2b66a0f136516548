"""The catalogue: one scheme a file, one line a scheme.

Each scheme is listed with the variants that the shared laws of ``tests/laws.py`` hold to their
word; a new scheme is tested by being listed.
"""

from jqz._granularity import PerAxis, PerBlock, PerGroup
from jqz._ranges import MSE, OCTAV, Percentile
from jqz._scheme import Scheme
from jqz.schemes.symmetric import Full, Narrow, Symmetric

CATALOGUE: dict[type[Scheme], tuple[Scheme, ...]] = {
    Symmetric: (
        Symmetric(bits=8),
        Symmetric(bits=5, granularity=PerBlock((4, 3))),
        Symmetric(bits=4, granularity=PerGroup(4, axis=0), range=MSE(candidates=16)),
        Symmetric(bits=3, granularity=PerAxis(-1), range=OCTAV()),
        Symmetric(bits=2, codes=Full(), range=Percentile(99.0)),
        Symmetric(bits=12),
    ),
}

__all__ = ["CATALOGUE", "Full", "Narrow", "Symmetric"]
