"""Signal to quantization noise of every scheme on Gaussian and Laplace samples, in dB.

The figures were derived apart from this code, by scalar programs on samples of the same size; see
each scheme's references for the methods. A scheme joins by a row.
"""

import typing

import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz import ranges

_RNG = np.random.default_rng(1)
SAMPLES = {
    "gauss": _RNG.standard_normal(32_768).astype(np.float32).reshape(-1, 64),
    "laplace": _RNG.laplace(size=32_768).astype(np.float32).reshape(-1, 64),
}


class Row(typing.NamedTuple):
    name: str
    scheme: typing.Callable[[int], jqz.Scheme]
    gauss: dict[int, float]
    laplace: dict[int, float]


ROWS = [
    Row(
        "absmax",
        lambda bits: jqz.Symmetric(bits=bits),
        {8: 39.9, 6: 27.7, 4: 14.7, 3: 7.4, 2: 0.4},
        {8: 35.2, 6: 22.9, 4: 10.3, 3: 4.1, 2: 0.2},
    ),
    Row(
        "MSE clip",
        lambda bits: jqz.Symmetric(bits=bits, range=ranges.MSE()),
        {8: 40.6, 6: 29.6, 4: 18.8, 3: 13.2, 2: 7.2},
        {8: 35.8, 6: 25.5, 4: 15.8, 3: 10.8, 2: 5.8},
    ),
    Row(
        "OCTAV clip",
        lambda bits: jqz.Symmetric(bits=bits, range=ranges.OCTAV()),
        {8: 40.6, 6: 29.6, 4: 18.8, 3: 13.2, 2: 7.2},
        {8: 35.8, 6: 25.5, 4: 15.8, 3: 10.8, 2: 5.8},
    ),
    Row(
        "full codes, MSE clip",
        lambda bits: jqz.Symmetric(bits=bits, codes=jqz.schemes.Full(), range=ranges.MSE()),
        {4: 19.1, 3: 13.8, 2: 8.2},
        {4: 16.2, 3: 11.5, 2: 6.9},
    ),
    Row(
        "blocks of 32",
        lambda bits: jqz.Symmetric(bits=bits, granularity=jqz.PerGroup(32, axis=-1)),
        {4: 20.2},
        {4: 18.3},
    ),
    Row(
        "asymmetric, min and max",
        lambda bits: jqz.Asymmetric(bits=bits),
        {8: 40.3, 6: 28.2, 4: 15.7, 3: 9.1, 2: 2.2},
        {8: 35.7, 6: 23.5, 4: 11.2, 3: 5.4, 2: 1.1},
    ),
]


def sqnr_db(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return 10 * np.log10((x**2).sum() / ((x - y) ** 2).sum())


CASES = [
    pytest.param(row, bits, sample, wanted, id=f"{row.name}-{sample}-{bits}")
    for row in ROWS
    for sample in SAMPLES
    for bits, wanted in getattr(row, sample).items()
]


@pytest.mark.parametrize(("row", "bits", "sample", "wanted"), CASES)
def test_sqnr_meets_the_table(row, bits, sample, wanted):
    x = SAMPLES[sample]
    scheme = row.scheme(bits)
    assert sqnr_db(x, jqz.dequantize(jqz.quantize(jnp.asarray(x), scheme))) == pytest.approx(wanted, abs=0.2)
