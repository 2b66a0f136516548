"""What quantization does to a model: one question a file, arrays in, frozen dataclasses out.

``import jqz.analysis`` imports it; ``import jqz`` alone does not.

========================================================= ==========================================
question                                                  name
========================================================= ==========================================
what does each bit keep of range and density?             ``bit_efficiency``, ``mean_efficiency``
how many levels are used, how evenly?                     ``levels``, ``average_levels``
is the noise what the scheme promises?                    ``sqnr``, ``sqnr_db``
what does the model compute and read?                     ``costs``
how large is it, in memory and compressed?                ``sizes``
how few bits can it do with?                              ``knee``
which classes does it take for each other?                ``confusion``, ``similarity``,
                                                          ``group_classes``, ``grouped_accuracy``,
                                                          ``regroup``
what does it look like?                                   ``figures``
all of it on one page                                     ``report``
========================================================= ==========================================
"""

from jqz.analysis import figures
from jqz.analysis.bit_efficiency import BitEfficiency, bit_efficiency, mean_efficiency
from jqz.analysis.costs import Cost, Costs, costs
from jqz.analysis.grouping import (
    GroupedAccuracy,
    confusion,
    group_classes,
    grouped_accuracy,
    regroup,
    similarity,
)
from jqz.analysis.knee import knee
from jqz.analysis.levels import AverageLevels, Levels, average_levels, levels
from jqz.analysis.report import report
from jqz.analysis.sizes import CODERS, Size, Sizes, sizes
from jqz.analysis.sqnr import SQNR, sqnr, sqnr_db

__all__ = [
    "CODERS",
    "SQNR",
    "AverageLevels",
    "BitEfficiency",
    "Cost",
    "Costs",
    "GroupedAccuracy",
    "Levels",
    "Size",
    "Sizes",
    "average_levels",
    "bit_efficiency",
    "confusion",
    "costs",
    "figures",
    "group_classes",
    "grouped_accuracy",
    "knee",
    "levels",
    "mean_efficiency",
    "regroup",
    "report",
    "similarity",
    "sizes",
    "sqnr",
    "sqnr_db",
]
