"""Training methods: optax transformations, schedules and projections over explicit state.

Each is pure: its state is a pytree of arrays that jit, scan and checkpoints carry. They compose by ``optax.chain`` or
wrap an optimizer, and take any scheme by a ``jqz.Policy``: leaves to which it gives no scheme are left alone.
``import jqz.training`` imports them; ``import jqz`` alone does not, since they need optax.

========================= ============================================= =================
method                    name                                          arXiv
========================= ============================================= =================
APoT                      ``jqz.AdditivePowerOfTwo(gradient=RCF())``,   1909.13144
                          ``standardize_weights``
Apprentice, distillation  ``apprentice_loss``, ``distillation_loss``    1711.05852
batch norm, folded        ``fold_batch_norm``, ``folded_batch_norm``    1806.08342
BinaryConnect             ``jqz.Binary(scale=UnitScale())``             1511.00363
BitNet b1.58              ``bit_net_weights``, ``bit_net_activations``  2402.17764
Deep Compression          ``prune``, ``jqz.schemes.SparseKMeans``,      1510.00149
                          ``trainable``, ``rebuild``
DeepShift-PS              ``deep_shift_split``, ``deep_shift_join``,    1905.13298
                          ``deep_shift_clip``
DeepShift-Q               ``jqz.PowerOfTwo(top=GivenTop(0))``           1905.13298
DoReFa-Net                ``dore_fa_weights``, ``dore_fa_squash``,      1606.06160
                          ``dore_fa_activations``,
                          ``dore_fa_gradient``
FAQ                       ``faq_sites``, ``faq_optimizer``,             1809.04191
                          ``cosine_similarity``
INQ                       ``inq``, ``inq_portions``, ``inq_finalize``   1702.03044
learned bit widths        ``learn_widths``, ``round_to_widths``,        1708.04788,
                          ``size_penalty``, ``widths_to_policy``        1905.11452
LSQ, LSQ+, PACT           ``jqz.gradients``, ``jqz.learnable``          1902.08153,
                                                                        2004.09576,
                                                                        1805.06085
moving ranges             ``moving_ranges``                             1712.05877
optimizer state, 8, 4 bit ``quantize_state``                            2110.02861,
                                                                        2309.01507
oscillations              ``freeze_oscillations``,                      2203.11086
                          ``dampen_oscillations``
progressive bits          ``progressive``, ``stepwise``
pruning                   ``prune``, ``apply_masks``                    1710.01878,
                                                                        2102.04010
Quant-Noise               ``quant_noise``                               2004.07320
TTQ                       ``jqz.Ternary(scale=PerSign())``              1612.01064
TWN                       ``jqz.Ternary``                               1605.04711
XNOR-Net                  ``jqz.Binary``, ``xnor_input_scale``          1603.05279
========================= ============================================= =================
"""

from jqz.training.batch_norm import BatchNorm, fold_batch_norm, folded_batch_norm
from jqz.training.bit_net import bit_net_activations, bit_net_weights
from jqz.training.dampening import DampenOscillationsState, dampen_oscillations
from jqz.training.deep_compression import rebuild, trainable
from jqz.training.deep_shift import ShiftAndSign, deep_shift_clip, deep_shift_join, deep_shift_split
from jqz.training.distillation import ApprenticeWeights, apprentice_loss, distillation_loss
from jqz.training.dore_fa import dore_fa_activations, dore_fa_gradient, dore_fa_squash, dore_fa_weights
from jqz.training.faq import cosine_similarity, faq_optimizer, faq_sites
from jqz.training.inq import (
    AllGradients,
    FreeGradients,
    INQState,
    LargestFirst,
    Partition,
    RandomOrder,
    SeenGradients,
    inq,
    inq_finalize,
    inq_portions,
)
from jqz.training.learned_widths import Width, learn_widths, round_to_widths, size_penalty, widths_to_policy
from jqz.training.moving_ranges import MovingRanges, RangesState, moving_ranges
from jqz.training.optimizer_state import QuantizedState, quantize_state
from jqz.training.oscillation import FreezeOscillationsState, Oscillation, freeze_oscillations
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
from jqz.training.quant_noise import quant_noise
from jqz.training.standardize import standardize_weights
from jqz.training.xnor import xnor_input_scale

__all__ = [
    "AllGradients",
    "ApprenticeWeights",
    "BatchNorm",
    "DampenOscillationsState",
    "FreeGradients",
    "FreezeOscillationsState",
    "GlobalThreshold",
    "GroupThreshold",
    "INQState",
    "LargestFirst",
    "LeafThreshold",
    "Logarithmic",
    "MovingRanges",
    "OneShot",
    "Oscillation",
    "Partition",
    "Polynomial",
    "PruneState",
    "QuantizedState",
    "RandomOrder",
    "RangesState",
    "SeenGradients",
    "ShiftAndSign",
    "Threshold",
    "Width",
    "apply_masks",
    "apprentice_loss",
    "bit_net_activations",
    "bit_net_weights",
    "cosine_similarity",
    "dampen_oscillations",
    "deep_shift_clip",
    "deep_shift_join",
    "deep_shift_split",
    "distillation_loss",
    "dore_fa_activations",
    "dore_fa_gradient",
    "dore_fa_squash",
    "dore_fa_weights",
    "faq_optimizer",
    "faq_sites",
    "fold_batch_norm",
    "folded_batch_norm",
    "freeze_oscillations",
    "inq",
    "inq_finalize",
    "inq_portions",
    "learn_widths",
    "moving_ranges",
    "progressive",
    "prune",
    "quant_noise",
    "quantize_state",
    "rebuild",
    "round_to_widths",
    "size_penalty",
    "standardize_weights",
    "stepwise",
    "trainable",
    "widths_to_policy",
    "xnor_input_scale",
]
