"""The laws of ``laws.py``, for every scheme of the catalogue and some chains."""

import hypothesis
import hypothesis.strategies as st
import laws
import numpy as np
import pytest
import specimens

import jqz

CHAINS = (
    jqz.Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4),
    jqz.Codebook(bits=4) >> jqz.PowerOfTwo(bits=3),
    jqz.Symmetric(bits=8) >> jqz.Symmetric(bits=4),
    jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1)) >> jqz.Symmetric(bits=6),
    jqz.Symmetric(bits=8, granularity=jqz.PerGroup(4)) >> jqz.Symmetric(bits=3, range=jqz.ranges.OCTAV()),
)
#: Eager code compiles every operation by itself, so one variant of each scheme stands for the others.
FIRST = (*(variants[0] for variants in jqz.schemes.CATALOGUE.values()), CHAINS[0])
SCHEMES = (*(scheme for variants in jqz.schemes.CATALOGUE.values() for scheme in variants), *CHAINS)


def _cases(kind):
    """Scheme by scheme, so that one worker compiles what its laws share."""
    return [
        pytest.param(scheme, law, id=f"{scheme}-{law.__name__}")
        for scheme in SCHEMES
        for law in kind
        if not laws.exempt(law, scheme) and (law is not laws.jit_agrees or scheme in FIRST)
    ]


@pytest.mark.parametrize(("scheme", "law"), _cases(laws.LAWS))
def test_law(scheme, law):
    for name, x in laws.inputs_for(scheme).items():
        try:
            law(scheme, x)
        except AssertionError as error:
            error.add_note(f"input: {name}")
            raise


@pytest.mark.parametrize(("scheme", "law"), _cases(laws.COMPILED_LAWS))
def test_compiled_law(scheme, law):
    law(scheme, specimens.inputs()["normal"])


@pytest.mark.parametrize(("scheme", "law"), _cases(laws.TREE_LAWS))
def test_tree_law(scheme, law):
    law(scheme, specimens.zoo())


@st.composite
def _arrays(draw):
    """Normal values, each channel at a scale of its own, with any floats strewn in."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    exponents = draw(st.lists(st.integers(-60, 60), min_size=specimens.SHAPE[1], max_size=specimens.SHAPE[1]))
    x = np.ldexp(rng.standard_normal(specimens.SHAPE), exponents).astype(np.float32)
    odd = st.floats(width=32, allow_nan=False, allow_infinity=False)
    for place, value in draw(st.lists(st.tuples(st.integers(0, x.size - 1), odd), max_size=12)):
        x.flat[place] = value
    return x


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@hypothesis.settings(deadline=None, max_examples=12, derandomize=True, database=None)
@hypothesis.given(x=_arrays())
def test_drawn(scheme, x):
    for law in laws.LAWS:
        if law is not laws.scale_equivariant and not laws.exempt(law, scheme):
            law(scheme, x)
