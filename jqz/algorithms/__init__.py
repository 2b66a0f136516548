"""Post-training algorithms: a trained model in fewer bits, from a few inputs without labels or from none.

Rounders are functions ``f(params, policy, stats, ...) -> qparams``: they choose codes. ``stats`` come from
``jqz.observe(fn, policy, jqz.observers.Gram())``; with them, none changes what a layer computes more than nearest
rounding does.

============================= ========================================================= =========
rounder                       method                                                    arXiv
============================= ========================================================= =========
``nearest``                   each weight to its nearest level
``gptq``                      errors made up for by weights that come later, then       2210.17323
                              coordinate descent                                        2309.01885
``adaround``                  up or down, learned by gradients                          2004.10568
``entropy_constrained``       fewest bits in a file for the error of nearest rounding
``hqq``                       scales and zero points that leave most errors small,
                              without inputs
``k_means``                   codebooks learned where inputs are large                  2306.07629
============================= ========================================================= =========

``search_clips(params, policy, stats) -> params`` finds grids for ``quantize``, ``gptq`` and ``adaround`` to round on,
short of the largest weights where outputs gain by it (2306.00978).

``reconstruct`` goes on from codes: ``f(fn, params, qparams, batches) -> qparams`` learns rounding for what whole
blocks of the model compute (2102.05426), and no block gets worse.

Corrections are functions ``f(fn, ..., batches) -> params`` that put right what rounding did to the rest of a model.
They find its parts in its program, not by names.

============================= ========================================================= =========
correction                    method                                                    arXiv
============================= ========================================================= =========
``reestimate_batch_norm``     mean and variance measured again behind rounded weights   1806.08342
``correct_bias``              biases that restore the mean of each channel              1906.04721
``correct_bias_data_free``    the same from statistics of batch norms, without inputs   1906.04721
``synthesize_inputs``         inputs that batch norms recognize, where there are none   2001.00281
============================= ========================================================= =========

Rewriters are functions ``f(fn, params, ...) -> params`` that leave what the float function computes as it is, to
rounding errors, and make its weights easier to round.

============================= ========================================================= =========
rewriter                      method                                                    arXiv
============================= ========================================================= =========
``equalize``                  channels scaled between two weights                       1906.04721
``fold_batch_norm``           scales of batch norms moved into the weights before them  1712.05877
``absorb_high_bias``          high biases moved through relu, behind the next weights   1906.04721
``smooth_quant``              outliers moved from activations into weights              2211.10438
``awq``                       weights scaled by the activations that they meet          2306.00978
``hadamard``                  channels rotated between weights, and in residual streams 2404.00456
============================= ========================================================= =========

For a choice of schemes, ``jqz.search`` asks what rounding each layer costs.

============================= ========================================================= =========
choosing                      question                                                  arXiv
============================= ========================================================= =========
``sensitivity``               what rounding one layer alone costs, for many schemes     1911.03852
``residual_ties``             which layers are summed, and so share a scheme            2011.10680
``layers``                    in which order weights are used
``skip_first``, ``only``      policies for a part of a model
============================= ========================================================= =========

``import jqz.algorithms`` imports them; ``import jqz`` alone does not.
"""

from jqz._scheme import Scheme
from jqz._sensitivity import Sensitivity
from jqz.algorithms.absorption import absorb_high_bias
from jqz.algorithms.activation_aware import awq
from jqz.algorithms.adaround import adaround
from jqz.algorithms.batch_norm import reestimate_batch_norm
from jqz.algorithms.bias_correction import correct_bias
from jqz.algorithms.clipping import search_clips
from jqz.algorithms.entropy_constrained import entropy_constrained
from jqz.algorithms.equalization import equalize
from jqz.algorithms.expected_bias import correct_bias_data_free
from jqz.algorithms.folding import fold_batch_norm
from jqz.algorithms.gptq import gptq
from jqz.algorithms.hqq import hqq
from jqz.algorithms.k_means import k_means
from jqz.algorithms.nearest import nearest
from jqz.algorithms.partial import heads, layers, most_sensitive, only, skip_first, skip_last
from jqz.algorithms.reconstruction import reconstruct
from jqz.algorithms.rotation import hadamard
from jqz.algorithms.sensitivity import sensitivity
from jqz.algorithms.smoothing import smooth_quant
from jqz.algorithms.synthesis import synthesize_inputs
from jqz.algorithms.ties import residual_ties
from jqz.schemes import Asymmetric, Codebook, Symmetric

#: What the laws of rounders are tested on, and the schemes that each takes.
ROUNDERS = {
    nearest: Scheme,
    gptq: Scheme,
    adaround: Scheme,
    entropy_constrained: Scheme,
    hqq: Symmetric | Asymmetric,
    k_means: Codebook,
}

#: What the laws of rewriters are tested on.
REWRITERS = (equalize, fold_batch_norm, absorb_high_bias, smooth_quant, awq, hadamard)

__all__ = [
    "REWRITERS",
    "ROUNDERS",
    "Sensitivity",
    "absorb_high_bias",
    "adaround",
    "awq",
    "correct_bias",
    "correct_bias_data_free",
    "entropy_constrained",
    "equalize",
    "fold_batch_norm",
    "gptq",
    "hadamard",
    "heads",
    "hqq",
    "k_means",
    "layers",
    "most_sensitive",
    "nearest",
    "only",
    "reconstruct",
    "reestimate_batch_norm",
    "residual_ties",
    "search_clips",
    "sensitivity",
    "skip_first",
    "skip_last",
    "smooth_quant",
    "synthesize_inputs",
]
