"""The catalogue: one scheme a file, one line a scheme.

Each scheme is listed with the variants that the shared laws of ``tests/laws.py`` hold to their
word; a new scheme is tested by being listed.
"""

from jqz import _ste
from jqz._granularity import PerAxis, PerBlock, PerGroup
from jqz._ranges import MSE, OCTAV, AbsMax, Percentile
from jqz._rounding import Floor, HalfEven
from jqz._scheme import Scheme
from jqz.schemes.additive_power_of_two import AdditivePowerOfTwo
from jqz.schemes.asymmetric import Asymmetric, FromZero, Minimum, Offset, Paper, Standard, ZeroPoint
from jqz.schemes.binary import Binary, MeanScale, Scaled, ThroughMean, UnitScale
from jqz.schemes.block_float import (
    BlockFloat,
    CeilExponent,
    E4M3Scale,
    E8M0Scale,
    EvenExponent,
    FitExponent,
    FloorExponent,
    Int8,
)
from jqz.schemes.codebook import Codebook, Exact, GivenLevels, KMeans, SparseKMeans
from jqz.schemes.fixed_point import Dynamic, FixedPoint, GivenStep, Signed, Unsigned
from jqz.schemes.float import E2M1, E2M3, E3M2, E4M3, E5M2, BFloat16, Cast, Float, Float16, RangeScale
from jqz.schemes.normal_float import NormalFloat
from jqz.schemes.power_of_two import (
    INQ,
    Arithmetic,
    BothSigns,
    DataTop,
    Dense,
    Geometric,
    GivenTop,
    NNabla,
    NonNegative,
    PowerOfTwo,
    RealScale,
    Unscaled,
    WithoutZero,
    WithZero,
)
from jqz.schemes.symmetric import Full, Narrow, Symmetric
from jqz.schemes.ternary import MaxFraction, MeanBeyond, MeanFraction, MeanOfAll, PerSign, Ternary

CATALOGUE: dict[type[Scheme], tuple[Scheme, ...]] = {
    Symmetric: (
        Symmetric(bits=8),
        Symmetric(bits=5, granularity=PerBlock((4, 3))),
        Symmetric(bits=4, granularity=PerGroup(4, axis=0), range=MSE(candidates=16)),
        Symmetric(bits=3, granularity=PerAxis(-1), range=OCTAV()),
        Symmetric(bits=2, codes=Full(), range=Percentile(99.0)),
        Symmetric(bits=12),
    ),
    Asymmetric: (
        Asymmetric(bits=8),
        Asymmetric(bits=4, granularity=PerGroup(4, axis=0), range=MSE(candidates=16)),
        Asymmetric(bits=3, granularity=PerAxis(-1), anchor=Minimum(), levels=Paper()),
        Asymmetric(bits=2, granularity=PerBlock((4, 3)), anchor=Minimum()),
        Asymmetric(bits=1),
        Asymmetric(bits=4, anchor=Offset(), range=OCTAV()),
        Asymmetric(bits=4, granularity=PerAxis(-1), anchor=FromZero()),
        Asymmetric(bits=16, rounding=Floor()),
    ),
    FixedPoint: (
        FixedPoint(bits=8),
        FixedPoint(bits=8, step=GivenStep(2.0**-4)),
        FixedPoint(bits=4, granularity=PerGroup(4, axis=0), rounding=HalfEven()),
        FixedPoint(bits=8, sign=Unsigned()),
        FixedPoint(bits=3, granularity=PerAxis(-1), sign=Unsigned()),
        FixedPoint(bits=2, granularity=PerBlock((4, 3))),
        FixedPoint(bits=12),
    ),
    Binary: (
        Binary(),
        Binary(granularity=PerAxis(-1), estimator=ThroughMean()),
        Binary(granularity=PerBlock((4, 3)), estimator=_ste.SwishSign()),
        Binary(scale=UnitScale()),
    ),
    Ternary: (
        Ternary(),
        Ternary(granularity=PerAxis(-1), threshold=MaxFraction(0.05)),
        Ternary(granularity=PerGroup(4, axis=0)),
        Ternary(threshold=MeanFraction(0.5), scale=MeanOfAll()),
        Ternary(granularity=PerAxis(-1), threshold=MaxFraction(0.05), scale=PerSign()),
    ),
    PowerOfTwo: (
        PowerOfTwo(bits=4),
        PowerOfTwo(bits=None),
        PowerOfTwo(bits=8, rounding=Geometric()),
        PowerOfTwo(bits=5, granularity=PerGroup(4, axis=0), codebook=INQ()),
        PowerOfTwo(bits=3, granularity=PerAxis(-1), scale=RealScale(MSE(candidates=16))),
        PowerOfTwo(bits=4, codebook=NNabla(NonNegative()), rounding=Geometric(), top=GivenTop(1)),
        PowerOfTwo(bits=3, granularity=PerBlock((4, 3)), codebook=NNabla(zero=WithoutZero())),
    ),
    AdditivePowerOfTwo: (
        AdditivePowerOfTwo(bits=4),
        AdditivePowerOfTwo(bits=3, granularity=PerAxis(-1), range=MSE(candidates=16)),
        AdditivePowerOfTwo(bits=4, granularity=PerGroup(4, axis=0), signs=NonNegative()),
        AdditivePowerOfTwo(bits=6),
    ),
    Codebook: (
        Codebook(bits=4),
        Codebook(bits=3, granularity=PerAxis(-1)),
        Codebook(bits=2, granularity=PerGroup(8, axis=0), levels=Exact(bins=16)),
        Codebook(bits=3, granularity=PerBlock((6, 3)), levels=SparseKMeans()),
        Codebook(bits=2, granularity=PerBlock((4, 3)), levels=GivenLevels((-1.0, 0.0, 0.5), range=AbsMax())),
    ),
    NormalFloat: (
        NormalFloat(bits=4),
        NormalFloat(bits=3, granularity=PerAxis(-1), range=MSE(candidates=16)),
    ),
    Float: (
        Float(),
        Float(format=E5M2(), granularity=PerAxis(-1)),
        Float(format=E2M3(), granularity=PerGroup(4, axis=0), scale=RangeScale(MSE(candidates=16))),
        Float(format=BFloat16()),
        Float(format=Float16(), scale=RangeScale()),
    ),
    BlockFloat: (
        BlockFloat(),
        BlockFloat(scale=E4M3Scale()),
        BlockFloat(element=E3M2(), granularity=PerBlock((4, 3))),
        BlockFloat(element=Int8()),
    ),
}

#: Schemes whose bit width may be traced under ``fake_quantize``, so that one compiled program serves all widths.
TRACED_BITS: tuple[type[Scheme], ...] = (Symmetric, Asymmetric, FixedPoint, PowerOfTwo)

__all__ = [
    "CATALOGUE",
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E5M2",
    "INQ",
    "TRACED_BITS",
    "AdditivePowerOfTwo",
    "Arithmetic",
    "Asymmetric",
    "BFloat16",
    "Binary",
    "BlockFloat",
    "BothSigns",
    "Cast",
    "CeilExponent",
    "Codebook",
    "DataTop",
    "Dense",
    "Dynamic",
    "E4M3Scale",
    "E8M0Scale",
    "EvenExponent",
    "Exact",
    "FitExponent",
    "FixedPoint",
    "Float",
    "Float16",
    "FloorExponent",
    "FromZero",
    "Full",
    "Geometric",
    "GivenLevels",
    "GivenStep",
    "GivenTop",
    "Int8",
    "KMeans",
    "MaxFraction",
    "MeanBeyond",
    "MeanFraction",
    "MeanOfAll",
    "MeanScale",
    "Minimum",
    "NNabla",
    "Narrow",
    "NonNegative",
    "NormalFloat",
    "Offset",
    "Paper",
    "PerSign",
    "PowerOfTwo",
    "RangeScale",
    "RealScale",
    "Scaled",
    "Signed",
    "SparseKMeans",
    "Standard",
    "Symmetric",
    "Ternary",
    "ThroughMean",
    "UnitScale",
    "Unscaled",
    "Unsigned",
    "WithZero",
    "WithoutZero",
    "ZeroPoint",
]
