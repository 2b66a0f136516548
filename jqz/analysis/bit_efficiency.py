"""How much of a tensor's range and density each stored bit keeps."""

import dataclasses
import typing
from collections.abc import Sequence

import numpy as np

from jqz._samples import float64

#: Fewer values than this have no density worth the name.
LEAST = 32


@typing.final
@dataclasses.dataclass(frozen=True)
class BitEfficiency:
    """What a rounded tensor keeps of the float one; 1 for the float tensor itself.

    Attributes:
      coverage: of the range, linear and in octaves, 0 to 1 ("R").
      density: of the distribution of values, 0 to 1 ("D").
      efficiency: coverage * density ("eta"); means over tensors keep it apart, since it is averaged by itself.
      bits: what a value costs. ``dataclasses.replace(e, bits=...)`` tells what another price would mean.
      weights: how many values.
    """

    coverage: float
    density: float
    efficiency: float
    bits: float
    weights: int

    @property
    def score(self) -> float:
        """32 * efficiency / bits: 1 for float32."""
        return 32 * self.efficiency / self.bits

    @property
    def range_per_bit(self) -> float:
        """coverage / bits."""
        return self.coverage / self.bits

    @property
    def density_per_bit(self) -> float:
        """density / bits."""
        return self.density / self.bits

    def dominates(self, other: "BitEfficiency") -> bool:
        """Whether each bit covers at least as much range and the density is kept at least as well: a partial order."""
        return self.range_per_bit >= other.range_per_bit and self.density >= other.density


def bit_efficiency(values: typing.Any, rounded: typing.Any, bits: float) -> BitEfficiency:
    """Measures how much of the range and the density of ``values`` their rounded copy keeps for its bits.

    With w the values, c the levels in use, Q the 1 % quantile of abs(w) other than 0, all of one tensor::

        linear   = min(1, (max c - min c) / (max w - min w))
        octaves  = min(1, (1 + log2(max abs(c) / smallest gap of c)) / (1 + log2(max abs(w) / Q)))
        coverage = sqrt(linear * octaves)
        density  = 1 - JS(p, q),  score = 32 * coverage * density / bits

    p is a histogram of w over 512 bins, q that of what the levels say: the share of each level, spread evenly over
    the values nearest to it; JS the Jensen-Shannon divergence in bits. A constant tensor has coverage and density 1.

    It compares schemes on one tensor without a model or data. It does not predict accuracy; ``sensitivity`` does.
    Range and density per bit are the paper's words, these formulas are one reading of them. Grids of one scale a
    channel mix the levels of all channels: measure channels by themselves.

    Args:
      values: the float values, at least 32.
      rounded: the same values, rounded, in the same shape.
      bits: stored bits a value.

    Raises:
      ValueError: shapes differ, values are too few or not finite, or ``bits`` is not positive.

    >>> import jax, jqz
    >>> from jqz.analysis import bit_efficiency
    >>> w = jax.random.normal(jax.random.key(0), (64, 64))
    >>> powers, uniform = (bit_efficiency(w, jqz.fake_quantize(w, s), 4) for s in (jqz.PowerOfTwo(4), jqz.Symmetric(4)))
    >>> powers.range_per_bit > uniform.range_per_bit, uniform.density > 0.95
    (True, True)

    References: arXiv:1910.04877, section 3.
    """
    w, r = float64("bit_efficiency", values).ravel(), float64("bit_efficiency", rounded).ravel()
    if w.shape != r.shape:
        raise ValueError(
            f"bit_efficiency: got {w.size} values and {r.size} rounded ones. Use rounded=fake_quantize(values, scheme)."
        )
    if w.size < LEAST:
        raise ValueError(f"bit_efficiency: got {w.size} values, wanted at least {LEAST}. Leave small tensors out.")
    if not bits > 0:
        raise ValueError(f"bit_efficiency: got bits={bits!r}, wanted a positive number. Use scheme.bits.")
    if w.min() == w.max():
        return BitEfficiency(1.0, 1.0, 1.0, float(bits), w.size)
    levels, counts = np.unique(r, return_counts=True)
    coverage = float(np.sqrt(_linear(w, levels) * _octaves(w, levels)))
    density = 1 - _divergence(w, levels, counts / r.size)
    return BitEfficiency(coverage, density, coverage * density, float(bits), w.size)


def mean_efficiency(parts: Sequence[BitEfficiency]) -> BitEfficiency:
    """That of a model: means over its tensors, by their numbers of weights.

    >>> from jqz.analysis import BitEfficiency, mean_efficiency
    >>> mean_efficiency([BitEfficiency(1, 1, 1, 8, 100), BitEfficiency(0.5, 1, 0.5, 4, 300)]).score
    4.0

    Raises:
      ValueError: there are none.
    """
    total = sum(part.weights for part in parts)
    if not total:
        raise ValueError("mean_efficiency: got no tensors, wanted at least one. Use bit_efficiency on each.")

    def mean(name: str) -> float:
        return sum(getattr(part, name) * part.weights for part in parts) / total

    return BitEfficiency(mean("coverage"), mean("density"), mean("efficiency"), mean("bits"), total)


def _linear(w: np.ndarray, levels: np.ndarray) -> float:
    return min(1.0, (levels[-1] - levels[0]) / (w.max() - w.min()))


def _octaves(w: np.ndarray, levels: np.ndarray) -> float:
    if len(levels) == 1:
        return 0.0
    magnitudes = np.abs(w[w != 0])
    wanted = 1 + np.log2(magnitudes.max() / np.quantile(magnitudes, 0.01))
    return min(1.0, (1 + np.log2(np.abs(levels).max() / np.diff(levels).min())) / wanted)


def _divergence(w: np.ndarray, levels: np.ndarray, shares: np.ndarray, bins: int = 512) -> float:
    """Jensen-Shannon divergence in bits of the values and of what the levels say about them."""
    counts, edges = np.histogram(w, bins=bins)
    p, q = counts / w.size, np.zeros(bins)
    low, high = edges[0], edges[-1]
    ends = np.clip(np.concatenate([[low], (levels[1:] + levels[:-1]) / 2, [high]]), low, high)
    wide = ends[1:] > ends[:-1]
    # levels that no value is nearest to (rounding was in the logarithm, say) have no width: all of it in one bin
    np.add.at(q, np.clip(np.searchsorted(edges, levels[~wide], "right") - 1, 0, bins - 1), shares[~wide])
    steps = np.concatenate([[0.0], np.cumsum(np.where(wide, shares, 0))])
    q += np.diff(np.interp(edges, ends, steps))

    def against_mean(a: np.ndarray) -> float:
        some = a > 0
        return float(np.sum(a[some] * np.log2(a[some] / ((p + q) / 2)[some])))

    return (against_mean(p) + against_mean(q)) / 2
