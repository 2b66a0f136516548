"""Bytes against the standard library on bytes made by NumPy."""

import gzip
import lzma
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jqz
from jqz.analysis import CODERS, sizes

W = jax.random.normal(jax.random.key(0), (96, 64))
TREE = {"kernel": jqz.quantize(W, jqz.Symmetric(bits=4)), "bias": jnp.arange(64, dtype=jnp.float32), "name": "model"}


def test_each_column_is_what_it_says():
    bias, kernel = sizes(TREE).leaves
    assert (bias.path, kernel.path) == ("bias", "kernel")
    assert (bias.weights, kernel.weights) == (64, 96 * 64)
    codes, scale = np.asarray(TREE["kernel"].codes), np.asarray(TREE["kernel"].grid.scale)
    payload = np.asarray(TREE["kernel"].payload).tobytes() + scale.tobytes()
    values = (codes * scale).astype(np.float32).tobytes()
    assert kernel.size_bytes["stored"] == 96 * 64 // 2 + 4
    assert kernel.size_bytes["gzip"] == len(gzip.compress(payload, 9, mtime=0))
    assert kernel.size_bytes["LZMA"] == len(lzma.compress(payload))
    assert kernel.size_bytes["values, gzip"] == len(gzip.compress(values, 9, mtime=0))
    assert kernel.size_bytes["values, LZMA"] == len(lzma.compress(values))
    entropy = stats.entropy(np.unique(codes, return_counts=True)[1], base=2)
    assert kernel.size_bytes["entropy"] == math.ceil(codes.size * entropy / 8) + 4
    assert gzip.decompress(gzip.compress(np.asarray(TREE["bias"]).tobytes(), 9, mtime=0))
    assert bias.size_bytes["stored"] == 256
    assert bias.size_bytes["entropy"] == 64 * 6 // 8  # 64 different numbers
    assert kernel.bits_per_weight("stored") == 8 * (96 * 32 + 4) / (96 * 64)


def test_totals_add_up_and_columns_can_be_added():
    table = sizes(TREE, {**CODERS, "numbers": lambda leaf: leaf.size})
    for coder in table.total.size_bytes:
        assert table.total.size_bytes[coder] == sum(leaf.size_bytes[coder] for leaf in table.leaves)
    assert table.total.size_bytes["numbers"] == table.total.weights == 96 * 64 + 64
    assert table.total.size_bytes["stored"] == jqz.size_bytes(TREE)
    head, *lines = str(table).splitlines()
    assert head.split()[-1] == "numbers"
    assert [line.split()[0] for line in lines] == ["bias", "kernel", "total"]
    assert f"{jqz.size_bytes(TREE):,}" in lines[-1]
    assert str(sizes({})).splitlines()[-1].split() == ["total", "0"]


def test_seven_zip_beats_gzip_by_as_much_as_the_paper_prints():
    """LZMA saves 24 to 37 % over gzip of decoded 6-bit weights (arXiv:1910.04877, table 5)."""
    w = jax.random.normal(jax.random.key(1), (128, 256)) * 0.05
    for scheme in (jqz.Symmetric(bits=6), jqz.PowerOfTwo(bits=None)):
        size = sizes(jqz.quantize(w, scheme), {k: CODERS[k] for k in ("values, gzip", "values, LZMA")}).total.size_bytes
        assert 0.15 < 1 - size["values, LZMA"] / size["values, gzip"] < 0.4


def test_no_coder_of_single_values_beats_the_entropy():
    rng = np.random.default_rng(0)
    for bits in (2, 4, 8):
        q = jqz.quantize(jnp.asarray(rng.standard_normal((128, 64)), jnp.float32), jqz.Symmetric(bits=bits))
        size = sizes({"w": q}).leaves[0].size_bytes
        assert size["entropy"] <= size["stored"]
        assert size["entropy"] < size["gzip"]
    assert sizes({"w": jnp.zeros((0, 3))}).total.bits_per_weight("stored") == pytest.approx(0)


def test_keys_are_counted():
    table = sizes({"key": jax.random.key(0)})
    assert table.total.size_bytes["stored"] == 8
