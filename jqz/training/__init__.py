"""Training methods: optax transformations, schedules and projections over explicit state.

Each is pure: its state is a pytree of arrays that jit, scan and checkpoints carry. They compose by ``optax.chain`` or
wrap an optimizer, and take any scheme by a ``jqz.Policy``: leaves to which it gives no scheme are left alone.
``import jqz.training`` imports them; ``import jqz`` alone does not, since they need optax.

One line a method, in alphabetical order of the files:

===================== =================================================================================
``deep_compression``  trains the grids of coded weights, such as the centroids of a codebook, under fixed codes
``inq``               incremental network quantization: freezes more and more weights on their levels
``optimizer_state``   any optimizer's state in 8 or 4 bits
``pruning``           magnitude pruning with masks, schedules, and thresholds by leaf, by group, over all
===================== =================================================================================
"""

from jqz.training.deep_compression import rebuild, trainable
from jqz.training.inq import (
    AllGradients,
    FreeGradients,
    INQState,
    LargestFirst,
    Partition,
    RandomOrder,
    SeenGradients,
    finalize,
    inq,
    inq_portions,
)
from jqz.training.optimizer_state import QuantizedState, quantize_state
from jqz.training.pruning import (
    GlobalThreshold,
    GroupThreshold,
    LeafThreshold,
    Logarithmic,
    OneShot,
    Polynomial,
    PruneState,
    Threshold,
    apply_masks,
    prune,
)

__all__ = [
    "AllGradients",
    "FreeGradients",
    "GlobalThreshold",
    "GroupThreshold",
    "INQState",
    "LargestFirst",
    "LeafThreshold",
    "Logarithmic",
    "OneShot",
    "Partition",
    "Polynomial",
    "PruneState",
    "QuantizedState",
    "RandomOrder",
    "SeenGradients",
    "Threshold",
    "apply_masks",
    "finalize",
    "inq",
    "inq_portions",
    "prune",
    "quantize_state",
    "rebuild",
    "trainable",
]
