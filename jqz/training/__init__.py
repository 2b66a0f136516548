"""Training methods: functions between parameter trees, transformations for optax, losses.

All state is explicit: pytrees of arrays that go through jit and scan and into checkpoints.

========================= ============================================ =================
method                    name                                         arXiv
========================= ============================================ =================
DoReFa-Net                ``dore_fa_weights``, ``dore_fa_squash``,     1606.06160
                          ``dore_fa_activations``,
                          ``dore_fa_gradient``
========================= ============================================ =================
"""

from jqz.training.dore_fa import dore_fa_activations, dore_fa_gradient, dore_fa_squash, dore_fa_weights

__all__ = [
    "dore_fa_activations",
    "dore_fa_gradient",
    "dore_fa_squash",
    "dore_fa_weights",
]
