"""jqz: functional quantization for JAX.

Three verbs carry everything: ``quantize`` codes a parameter tree, ``fake_quantize`` rounds it for
straight-through training, and ``quantized`` runs an unmodified function on codes.
"""

from jqz import _budgets as budgets
from jqz import _gradients as gradients
from jqz import _measures as measures
from jqz import _ranges as ranges
from jqz import _requant as requant
from jqz import _rounding as rounding
from jqz import _solvers as solvers
from jqz import _ste as ste
from jqz import files, nnabla, observers, schemes
from jqz._allocator import tune_allocator
from jqz._audit import Audit, audit
from jqz._capabilities import capabilities
from jqz._convert import Net, convert
from jqz._granularity import Granularity, PerAxis, PerBlock, PerGroup, PerTensor
from jqz._inference import observe, quantized, simulated
from jqz._input_groups import PerInputGroup
from jqz._lowered import lowered
from jqz._policy import Policy
from jqz._qtensor import QTensor
from jqz._requant import Gemmlowp
from jqz._scheme import Affine, Identity, Scheme, chain
from jqz._search import search
from jqz._sites import calibrate, merge
from jqz._transform import bits_per_weight, dequantize, fake_quantize, learnable, quantize, size_bytes
from jqz.files import load, save
from jqz.schemes import (
    AdditivePowerOfTwo,
    Asymmetric,
    Binary,
    BlockFloat,
    Codebook,
    FixedPoint,
    Float,
    NormalFloat,
    PowerOfTwo,
    Symmetric,
    Ternary,
)

__all__ = [
    "AdditivePowerOfTwo",
    "Affine",
    "Asymmetric",
    "Audit",
    "Binary",
    "BlockFloat",
    "Codebook",
    "FixedPoint",
    "Float",
    "Gemmlowp",
    "Granularity",
    "Identity",
    "Net",
    "NormalFloat",
    "PerAxis",
    "PerBlock",
    "PerGroup",
    "PerInputGroup",
    "PerTensor",
    "Policy",
    "PowerOfTwo",
    "QTensor",
    "Scheme",
    "Symmetric",
    "Ternary",
    "audit",
    "bits_per_weight",
    "budgets",
    "calibrate",
    "capabilities",
    "chain",
    "convert",
    "dequantize",
    "fake_quantize",
    "files",
    "gradients",
    "learnable",
    "load",
    "lowered",
    "measures",
    "merge",
    "nnabla",
    "observe",
    "observers",
    "quantize",
    "quantized",
    "ranges",
    "requant",
    "rounding",
    "save",
    "schemes",
    "search",
    "simulated",
    "size_bytes",
    "solvers",
    "ste",
    "tune_allocator",
]
