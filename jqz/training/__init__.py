"""Training methods: optax transformations, schedules and projections over explicit state.

Each is pure: its state is a pytree of arrays that jit, scan and checkpoints carry. They compose by ``optax.chain`` or
wrap an optimizer, and take any scheme by a ``jqz.Policy``: leaves to which it gives no scheme are left alone.
``import jqz.training`` imports them; ``import jqz`` alone does not, since they need optax.

========================= ============================================= =================
method                    name                                          arXiv
========================= ============================================= =================
Deep Compression          ``prune``, ``jqz.schemes.SparseKMeans``,      1510.00149
                          ``trainable``, ``rebuild``
FAQ                       ``faq_sites``, ``faq_optimizer``,             1809.04191
                          ``cosine_similarity``
INQ                       ``inq``, ``inq_portions``, ``finalize``       1702.03044
optimizer state, 8, 4 bit ``quantize_state``                            2110.02861,
                                                                        2309.01507
progressive bits          ``progressive``, ``stepwise``
pruning                   ``prune``, ``apply_masks``                    1710.01878,
                                                                        2102.04010
========================= ============================================= =================
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
