"""Training methods: functions between parameter trees, transformations for optax, losses.

All state is explicit: pytrees of arrays that go through jit and scan and into checkpoints.

========================= ============================================= =================
method                    name                                          arXiv
========================= ============================================= =================
Apprentice, distillation  ``apprentice_loss``, ``distillation_loss``    1711.05852
APoT                      ``jqz.AdditivePowerOfTwo(gradient=RCF())``,   1909.13144
                          ``standardize_weights``
batch norm, folded        ``fold_batch_norm``, ``folded_batch_norm``    1806.08342
BinaryConnect             ``jqz.Binary(scale=UnitScale())``             1511.00363
BitNet b1.58              ``bit_net_weights``, ``bit_net_activations``  2402.17764
DeepShift-PS              ``deep_shift_split``, ``deep_shift_join``,    1905.13298
                          ``deep_shift_clip``
DeepShift-Q               ``jqz.PowerOfTwo(top=GivenTop(0))``           1905.13298
DoReFa-Net                ``dore_fa_weights``, ``dore_fa_squash``,      1606.06160
                          ``dore_fa_activations``,
                          ``dore_fa_gradient``
learned bit widths        ``learn_widths``, ``round_to_widths``,        1708.04788,
                          ``size_penalty``, ``widths_to_policy``        1905.11452
LSQ, LSQ+, PACT           ``jqz.gradients``, ``jqz.learnable``          1902.08153,
                                                                        2004.09576,
                                                                        1805.06085
moving ranges             ``moving_ranges``                             1712.05877
oscillations              ``freeze_oscillations``,                      2203.11086
                          ``dampen_oscillations``
Quant-Noise               ``quant_noise``                               2004.07320
TTQ                       ``jqz.Ternary(scale=PerSign())``              1612.01064
TWN                       ``jqz.Ternary``                               1605.04711
XNOR-Net                  ``jqz.Binary``, ``xnor_input_scale``          1603.05279
========================= ============================================= =================
"""

from jqz.training.batch_norm import BatchNorm, fold_batch_norm, folded_batch_norm
from jqz.training.bit_net import bit_net_activations, bit_net_weights
from jqz.training.dampening import DampenOscillationsState, dampen_oscillations
from jqz.training.deep_shift import ShiftAndSign, deep_shift_clip, deep_shift_join, deep_shift_split
from jqz.training.distillation import ApprenticeWeights, apprentice_loss, distillation_loss
from jqz.training.dore_fa import dore_fa_activations, dore_fa_gradient, dore_fa_squash, dore_fa_weights
from jqz.training.learned_widths import Width, learn_widths, round_to_widths, size_penalty, widths_to_policy
from jqz.training.moving_ranges import MovingRanges, RangesState, moving_ranges
from jqz.training.oscillation import FreezeOscillationsState, Oscillation, freeze_oscillations
from jqz.training.quant_noise import quant_noise
from jqz.training.standardize import standardize_weights
from jqz.training.xnor import xnor_input_scale

__all__ = [
    "ApprenticeWeights",
    "BatchNorm",
    "DampenOscillationsState",
    "FreezeOscillationsState",
    "MovingRanges",
    "Oscillation",
    "RangesState",
    "ShiftAndSign",
    "Width",
    "apprentice_loss",
    "bit_net_activations",
    "bit_net_weights",
    "dampen_oscillations",
    "deep_shift_clip",
    "deep_shift_join",
    "deep_shift_split",
    "distillation_loss",
    "dore_fa_activations",
    "dore_fa_gradient",
    "dore_fa_squash",
    "dore_fa_weights",
    "fold_batch_norm",
    "folded_batch_norm",
    "freeze_oscillations",
    "learn_widths",
    "moving_ranges",
    "quant_noise",
    "round_to_widths",
    "size_penalty",
    "standardize_weights",
    "widths_to_policy",
    "xnor_input_scale",
]
