"""Post-training algorithms: better codes for a trained model, from a few inputs or from none.

Rounders are functions ``f(params, policy, stats, ...) -> qparams``: they choose codes. ``stats`` come from
``jqz.observe(fn, policy, jqz.observers.Gram())``. None is worse than nearest rounding on what it minimizes, the change
of what each layer computes.

================= ========================================================== =========
name              method                                                     arXiv
================= ========================================================== =========
``nearest``       each weight to its nearest level
``gptq``          errors made up for by weights that come later, then        2210.17323
                  coordinate descent                                         2309.01885
``sensitivity``   what rounding each layer alone costs, for many schemes
``residual_ties`` layers whose outputs are summed, to share a scheme
================= ========================================================== =========

``jqz.search`` chooses schemes by ``sensitivity``. ``import jqz.algorithms`` imports them; ``import jqz`` alone does not.
"""

from jqz.algorithms.gptq import gptq
from jqz.algorithms.nearest import nearest
from jqz.algorithms.sensitivity import Sensitivity, sensitivity
from jqz.algorithms.ties import residual_ties

#: What the laws of rounders are tested on.
ROUNDERS = (nearest, gptq)

__all__ = ["ROUNDERS", "Sensitivity", "gptq", "nearest", "residual_ties", "sensitivity"]
