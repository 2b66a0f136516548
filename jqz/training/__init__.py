"""Training methods: optax transformations, schedules and projections over explicit state.

Each is pure: its state is a pytree of arrays that jit, scan and checkpoints carry. They compose by ``optax.chain`` or
wrap an optimizer, and take any scheme by a ``jqz.Policy``: leaves to which it gives no scheme are left alone.
``import jqz.training`` imports them; ``import jqz`` alone does not, since they need optax.

One line a method, in alphabetical order of the files:

===================== =================================================================================
``deep_compression``  trains the grids of coded weights, such as the centroids of a codebook, under fixed codes
``faq``               fine-tuning after quantization: fixed clips, small steps, ever smaller
``inq``               incremental network quantization: freezes more and more weights on their levels
``optimizer_state``   any optimizer's state in 8 or 4 bits
``progressive``       fewer and fewer bits as training goes on
``pruning``           magnitude pruning with masks, schedules, and thresholds by leaf, by group, over all
===================== =================================================================================
"""

from jqz.training.deep_compression import rebuild, trainable
from jqz.training.faq import cosine_similarity, faq_optimizer, faq_sites
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
from jqz.training.progressive import progressive, stepwise
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
    "cosine_similarity",
    "faq_optimizer",
    "faq_sites",
    "finalize",
    "inq",
    "inq_portions",
    "progressive",
    "prune",
    "quantize_state",
    "rebuild",
    "stepwise",
    "trainable",
]
