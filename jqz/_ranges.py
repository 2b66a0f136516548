"""From values to the range that a grid must cover: the clip of a quantizer.

Every estimator looks at blocks of values (see ``Granularity.reduce``) and returns limits with
the reduced axes kept. Which one to use:

================= ===============================================================================
``AbsMax``        largest magnitude; nothing clips. Best at 8 bits
``MinMax``        smallest and largest value; the default of ``Asymmetric``
``Percentile``    ignores a share of outliers
``MSE``           searches the clip with the least error on a grid of candidates; best below 8 bits
``OCTAV``         the same optimum by a fixed point, a few passes and no grid; the fastest good clip
``MeanMagnitude`` where learned scales start (LSQ)
``Sigmas``        the mean and three standard deviations about it, where learned scales start (LSQ+)
``Given``         limits you know
================= ===============================================================================
"""

import abc
import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# fake(low, high) -> the blocks as the calling scheme would reproduce them with these limits
Fake = Callable[[jax.Array, jax.Array], jax.Array]
Limits = tuple[jax.Array, jax.Array]


class Range(abc.ABC):
    """Estimates the limits of blocks of values."""

    @abc.abstractmethod
    def limits(self, blocks: jax.Array, axes: tuple[int, ...], fake: Fake, steps: jax.typing.ArrayLike) -> Limits:
        """The lowest and highest value to cover.

        Args:
          blocks: floating values.
          axes: reduced by this call, kept with length 1.
          fake: quantizes and dequantizes ``blocks`` with given limits, as the scheme will.
          steps: how many steps of the grid span the limits.
        """

    def magnitude(
        self,
        blocks: jax.Array,
        axes: tuple[int, ...],
        fake: Callable[[jax.Array], jax.Array],
        steps: jax.typing.ArrayLike,
    ) -> jax.Array:
        """The magnitude to cover for a grid symmetric about zero; ``steps`` span it on each side."""
        low, high = self.limits(blocks, axes, lambda lo, hi: fake(jnp.maximum(-lo, hi)), 2 * steps)
        return jnp.maximum(jnp.abs(low), jnp.abs(high))


def _absmax(blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.max(jnp.abs(blocks), axis=axes, keepdims=True)


def _normalizer(top: jax.Array) -> Limits:
    """A power of two that brings ``top`` near 1, and its inverse.

    Multiplying by it is exact. Dividing by ``top`` is not, and where XLA turns that into a product
    with 1 / top, everything above 2**126 flushes to zero.
    """
    most = -int(jnp.finfo(top.dtype).minexp)
    exponent = jnp.clip(jnp.frexp(top)[1], -most, most)
    one = jnp.ones_like(top)
    return jnp.ldexp(one, -exponent), jnp.ldexp(one, exponent)


@typing.final
@dataclasses.dataclass(frozen=True)
class AbsMax(Range):
    """The largest magnitude, on both sides: nothing is clipped."""

    def limits(self, blocks: jax.Array, axes: tuple[int, ...], fake: Fake, steps: jax.typing.ArrayLike) -> Limits:
        high = _absmax(blocks, axes)
        return -high, high


@typing.final
@dataclasses.dataclass(frozen=True)
class MinMax(Range):
    """The smallest and the largest value."""

    def limits(self, blocks: jax.Array, axes: tuple[int, ...], fake: Fake, steps: jax.typing.ArrayLike) -> Limits:
        return jnp.min(blocks, axis=axes, keepdims=True), jnp.max(blocks, axis=axes, keepdims=True)


@typing.final
@dataclasses.dataclass(frozen=True)
class Percentile(Range):
    """Covers this percentage of the values (of the magnitudes, for a symmetric grid).

    Where that leaves nothing but zero, as among sparse weights, it covers every value.
    """

    percent: float = 99.9

    def __post_init__(self) -> None:
        if isinstance(self.percent, int | float) and not 50 < self.percent <= 100:
            raise ValueError(f"Percentile: got percent={self.percent!r}, wanted more than 50 and at most 100.")

    def limits(self, blocks: jax.Array, axes: tuple[int, ...], fake: Fake, steps: jax.typing.ArrayLike) -> Limits:
        if not axes:
            return blocks, blocks
        share = jnp.asarray([100 - self.percent, self.percent], blocks.dtype)
        low, high = jnp.percentile(blocks, share, axis=axes, keepdims=True)
        all_low, all_high = MinMax().limits(blocks, axes, fake, steps)
        nothing = (low == 0) & (high == 0)
        return jnp.where(nothing, all_low, low), jnp.where(nothing, all_high, high)

    def magnitude(
        self,
        blocks: jax.Array,
        axes: tuple[int, ...],
        fake: Callable[[jax.Array], jax.Array],
        steps: jax.typing.ArrayLike,
    ) -> jax.Array:
        if not axes:
            return jnp.abs(blocks)
        share = jnp.percentile(jnp.abs(blocks), self.percent, axis=axes, keepdims=True)
        return jnp.where(share == 0, _absmax(blocks, axes), share)


@typing.final
@dataclasses.dataclass(frozen=True)
class MSE(Range):
    """The clip with the least sum of abs(error)**norm among ``candidates`` shrunken full ranges.

    The shares are 2**(-4 u**2) for u from 0 to 1: close together near the full range, which 8 bits want, and
    down to 1/16, since heavy tails at 2 bits want less than a fifth. 80 of them come within 0.03 dB of an
    exhaustive search. A norm of 2.4 weighs outliers a little more (GPTQ and BRECQ use it).
    """

    candidates: int = 80
    norm: float = 2.0

    def __post_init__(self) -> None:
        if not isinstance(self.candidates, int) or not 1 <= self.candidates <= 2**16:
            raise ValueError(f"MSE: got candidates={self.candidates!r}, wanted 1 to 65536. Use MSE(80).")

    def _search(self, blocks: jax.Array, axes: tuple[int, ...], fake: Fake, low: jax.Array, high: jax.Array) -> Limits:
        # errors near 1, since their squares could overflow or vanish
        shrink, _ = _normalizer(jnp.maximum(jnp.abs(low), jnp.abs(high)))

        def step(best, share):
            error = jnp.abs(fake(low * share, high * share) * shrink - blocks * shrink)
            error = jnp.sum(error**2 if self.norm == 2 else error**self.norm, axis=axes, keepdims=True)
            better = error < best[0]
            return (jnp.where(better, error, best[0]), jnp.where(better, share, best[1])), None

        shares = jnp.asarray(2 ** (-4 * np.linspace(0, 1, self.candidates) ** 2), blocks.dtype)
        start = jnp.full(low.shape, jnp.inf, blocks.dtype), jnp.ones(low.shape, blocks.dtype)
        (_, share), _ = jax.lax.scan(step, start, shares)
        return low * share, high * share

    def limits(self, blocks: jax.Array, axes: tuple[int, ...], fake: Fake, steps: jax.typing.ArrayLike) -> Limits:
        low, high = MinMax().limits(blocks, axes, fake, steps)
        return self._search(blocks, axes, fake, low, high)

    def magnitude(
        self,
        blocks: jax.Array,
        axes: tuple[int, ...],
        fake: Callable[[jax.Array], jax.Array],
        steps: jax.typing.ArrayLike,
    ) -> jax.Array:
        high = _absmax(blocks, axes)
        return self._search(blocks, axes, lambda _, hi: fake(hi), high, high)[1]


@typing.final
@dataclasses.dataclass(frozen=True)
class OCTAV(Range):
    """The MSE-optimal clip of a uniform grid as a fixed point (arXiv:2206.06501).

    s <- sum(|x| [|x| > s]) / (kappa #{|x| <= s} + #{|x| > s}) with kappa = (step / s)**2 / 12, which is
    1 / (12 p**2) for p steps from 0 to s. It starts at the mean magnitude and never exceeds the largest.

    A grid that is not symmetric has two ends, each at the point where the clipping error stops to outweigh
    the rounding error of all values between: with p steps from low to high, both starting at the mean,

    high <- (sum(x [x > high]) + kappa #{kept} low) / (#{x > high} + kappa #{kept}), and low likewise.
    """

    iterations: int = 12

    def magnitude(
        self,
        blocks: jax.Array,
        axes: tuple[int, ...],
        fake: Callable[[jax.Array], jax.Array],
        steps: jax.typing.ArrayLike,
    ) -> jax.Array:
        top = _absmax(blocks, axes)
        shrink, grow = _normalizer(top)
        x = jnp.abs(blocks) * shrink
        kappa = 1 / (12 * jnp.asarray(steps, blocks.dtype) ** 2)

        def step(_, s):
            beyond = x > s
            clipped = jnp.sum(beyond, axis=axes, keepdims=True, dtype=blocks.dtype)
            kept = jnp.sum(~beyond, axis=axes, keepdims=True, dtype=blocks.dtype)
            return jnp.sum(jnp.where(beyond, x, 0), axis=axes, keepdims=True) / (kappa * kept + clipped)

        s = jax.lax.fori_loop(0, self.iterations, step, jnp.mean(x, axis=axes, keepdims=True))
        # every value equal: nothing lies beyond the mean and s falls to 0
        return jnp.where(s > 0, jnp.minimum(s * grow, top), top)

    def limits(self, blocks: jax.Array, axes: tuple[int, ...], fake: Fake, steps: jax.typing.ArrayLike) -> Limits:
        bottom, top = MinMax().limits(blocks, axes, fake, steps)
        shrink, grow = _normalizer(jnp.maximum(jnp.abs(bottom), jnp.abs(top)))
        x = blocks * shrink
        kappa = 1 / (12 * jnp.asarray(steps, blocks.dtype) ** 2)

        def total(values: jax.Array) -> jax.Array:
            return jnp.sum(values, axis=axes, keepdims=True, dtype=x.dtype)

        def end(beyond: jax.Array, rest: jax.Array, near: jax.Array, far: jax.Array) -> jax.Array:
            weight = total(beyond) + rest
            moved = (total(jnp.where(beyond, x, 0)) + rest * far) / jnp.where(weight > 0, weight, 1)
            return jnp.where(weight > 0, moved, near)

        def step(_, ends: Limits) -> Limits:
            low, high = ends
            below, above = x < low, x > high
            rest = kappa * total(~below & ~above)
            return end(below, rest, low, high), end(above, rest, high, low)

        mean = jnp.mean(x, axis=axes, keepdims=True)
        ends = jax.lax.fori_loop(0, self.iterations + 1, step, (mean, mean))
        low, high = (jnp.clip(part * grow, bottom, top) for part in ends)
        return jnp.minimum(low, high), jnp.maximum(low, high)


@typing.final
@dataclasses.dataclass(frozen=True)
class MeanMagnitude(Range):
    """A step of 2 mean(abs(x)) / sqrt(p), with p steps to each side in use: where LSQ starts (arXiv:1902.08153).

    At 2 to 4 bits it clips about as much as the best clip does; at 8 bits it covers more than every value.
    """

    def limits(self, blocks: jax.Array, axes: tuple[int, ...], fake: Fake, steps: jax.typing.ArrayLike) -> Limits:
        low, _ = MinMax().limits(blocks, axes, fake, steps)
        steps = jnp.asarray(steps, blocks.dtype)
        high = jnp.where(low < 0, self._reach(blocks, axes, steps / 2), self._reach(blocks, axes, steps))
        return jnp.where(low < 0, -high, 0), high

    def magnitude(
        self,
        blocks: jax.Array,
        axes: tuple[int, ...],
        fake: Callable[[jax.Array], jax.Array],
        steps: jax.typing.ArrayLike,
    ) -> jax.Array:
        return self._reach(blocks, axes, jnp.asarray(steps, blocks.dtype))

    def _reach(self, blocks: jax.Array, axes: tuple[int, ...], steps: jax.Array) -> jax.Array:
        shrink, grow = _normalizer(_absmax(blocks, axes))
        mean = jnp.mean(jnp.abs(blocks) * shrink, axis=axes, keepdims=True)
        most = float(jnp.finfo(blocks.dtype).max)
        return jnp.minimum(2 * mean * jnp.sqrt(steps), most / grow) * grow


@typing.final
@dataclasses.dataclass(frozen=True)
class Sigmas(Range):
    """``count`` standard deviations about the mean.

    About zero, a step of max(abs(mean - 3 sigma), abs(mean + 3 sigma)) / (p + 1), with p steps to each side: where
    LSQ+ starts for weights, p + 1 being 2**(bits-1) (arXiv:2004.09576).
    """

    count: float = 3.0

    def limits(self, blocks: jax.Array, axes: tuple[int, ...], fake: Fake, steps: jax.typing.ArrayLike) -> Limits:
        shrink, grow = _normalizer(_absmax(blocks, axes))
        x, most = blocks * shrink, float(jnp.finfo(blocks.dtype).max)
        mean = jnp.mean(x, axis=axes, keepdims=True)
        reach = self.count * jnp.sqrt(jnp.mean((x - mean) ** 2, axis=axes, keepdims=True))
        low, high = (jnp.clip(end, -most / grow, most / grow) * grow for end in (mean - reach, mean + reach))
        return low, high

    def magnitude(
        self,
        blocks: jax.Array,
        axes: tuple[int, ...],
        fake: Callable[[jax.Array], jax.Array],
        steps: jax.typing.ArrayLike,
    ) -> jax.Array:
        low, high = self.limits(blocks, axes, lambda lo, hi: fake(hi), steps)
        steps = jnp.asarray(steps, blocks.dtype)
        return jnp.maximum(-low, high) * (steps / (steps + 1))


@typing.final
@dataclasses.dataclass(frozen=True)
class Given(Range):
    """Limits you know, the same for every block; where each block has its own, encode with a grid instead."""

    low: typing.Any
    high: typing.Any

    def __post_init__(self) -> None:
        if jnp.ndim(self.low) or jnp.ndim(self.high):
            raise ValueError(
                f"Given: got arrays of shape {jnp.shape(self.low)} and {jnp.shape(self.high)}, wanted numbers. "
                "Use scheme.encode(x, grid) with a grid of your own."
            )
        if isinstance(self.low, int | float) and isinstance(self.high, int | float) and not self.low < self.high:
            raise ValueError(
                f"Given: got low={self.low!r}, high={self.high!r}, wanted low < high. Use Given(-1.0, 1.0)."
            )

    def limits(self, blocks: jax.Array, axes: tuple[int, ...], fake: Fake, steps: jax.typing.ArrayLike) -> Limits:
        shape = tuple(1 if axis in axes else n for axis, n in enumerate(blocks.shape))
        return (
            jnp.broadcast_to(jnp.asarray(self.low, blocks.dtype), shape),
            jnp.broadcast_to(jnp.asarray(self.high, blocks.dtype), shape),
        )
