"""Least-squares levels of one-dimensional samples: Lloyd's iteration and the exact optimum.

In one dimension clusters are intervals. On sorted points with running sums, a cluster's mean is a
difference of two sums and its bounds are a binary search, so that an iteration costs k log n
instead of n k, and putting the samples in order is all that grows with the data.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np

from jqz._levels import midpoints

#: So many samples are sorted; more are counted in a histogram of so many bins, which takes one pass.
SORTED = 2**16


class Samples(typing.NamedTuple):
    """Points in rising order, (m,), and what runs along them.

    ``mass`` and ``moment`` (m + 1,) are the sums of the weights and of weight times distance to ``center``. A point
    without weight repeats the one before. ``rank`` (m,) counts the different points before each. ``spacing`` (m,)
    is the integral of the cube root of the density: between neighbours of weight w a distance d apart the
    density is about w / d, and the integral grows by w**(1/3) d**(2/3). Levels spread evenly over it are
    optimal for many levels (Panter and Dite 1951); equal samples take no more than one, and an outlier its share.
    """

    points: jax.Array
    mass: jax.Array
    moment: jax.Array
    center: jax.Array
    rank: jax.Array
    spacing: jax.Array


def samples(values: jax.Array, weights: jax.Array | None = None) -> Samples:
    """Prepares values (n,), which may have weights (n,), such as the diagonal of a Hessian.

    Up to 2**16 values are sorted and are a point each. More are counted in 2**16 bins a thousandth of their
    magnitude wide, whose means are the points; values should then lie within (-8, 8), near its ends at best.
    """
    count = values.shape[0]
    if weights is None and count <= SORTED:
        points = jnp.sort(values)
        # the sums of ones are known; XLA would find that out too, at leisure, while it compiles
        mass = jnp.arange(count + 1, dtype=jnp.int32)
        return _samples(points, mass, jnp.mean(points), 1, 1)
    if count > SORTED:
        points, weight = _histogram(values, jnp.ones_like(values, jnp.int32) if weights is None else weights)
    else:
        points, weight = jax.lax.sort((values, typing.cast(jax.Array, weights)), num_keys=1)
    # points without weight stand where the last one with weight stands, so that they change nothing
    some = weight > 0
    index = jnp.where(some, jnp.arange(weight.shape[0], dtype=jnp.int32), -1)
    index = jnp.maximum(jax.lax.cummax(index), jnp.argmax(some).astype(jnp.int32))
    points, filled = points[index], weight[index].astype(values.dtype)
    share = weight.astype(values.dtype)
    mass = jnp.pad(jnp.cumsum(weight), (1, 0))
    # the smaller of two neighbours: many equal values are no sign of density beside them
    beside = jnp.minimum(filled[1:], filled[:-1])
    return _samples(points, mass, jnp.sum(share / jnp.sum(share) * points), share, beside)


def _samples(points: jax.Array, mass: jax.Array, center: jax.Array, weight: typing.Any, beside: typing.Any) -> Samples:
    gap = jnp.diff(points)
    # about the mean the running sums stay small, and their differences exact
    away = weight * (points - center)
    spacing = jnp.cbrt(beside * gap**2)
    rows = away, jnp.pad((gap > 0).astype(points.dtype), (1, 0)), jnp.pad(spacing, (1, 0))
    moment, rank, spacing = jnp.cumsum(jnp.stack(rows), axis=1)  # one scan compiles faster than three
    return Samples(points, mass, jnp.pad(moment, (1, 0)), center, rank, spacing)


def _histogram(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean and the weight of the values in each of 2**16 bins: 2**10 for each of 32 exponents and a sign."""
    fine, lowest, half = 10, 127 - 28, SORTED // 2

    def total(x: jax.Array) -> jax.Array:
        return jnp.zeros(SORTED, x.dtype).at[bin_].add(x, mode="promise_in_bounds")

    pattern = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)
    key = jnp.clip(((pattern & 0x7FFFFFFF) >> (23 - fine)) - (lowest << fine), 0, half - 1)
    bin_ = jnp.where(pattern < 0, half - 1 - key, half + key)
    # the end of each bin that is nearer to zero
    magnitude = np.arange(half, dtype=np.int32) + (lowest << fine) << (23 - fine)
    magnitude = np.where(np.arange(half) == 0, 0, magnitude).astype(np.int32).view(np.float32)
    edges = jnp.asarray(np.concatenate([-magnitude[::-1], magnitude]), values.dtype)
    mass = total(weights)
    # what a long sum of distances to an edge loses is small beside the bin
    away = total((values - edges[bin_]) * weights.astype(values.dtype))
    mean = edges + away / jnp.where(mass > 0, mass, 1).astype(values.dtype)
    low = jnp.full(SORTED, jnp.inf, values.dtype).at[bin_].min(values, mode="promise_in_bounds")
    high = jnp.full(SORTED, -jnp.inf, values.dtype).at[bin_].max(values, mode="promise_in_bounds")
    return jnp.clip(mean, low, high), mass


def _means(samples: Samples, edges: jax.Array, otherwise: jax.Array) -> jax.Array:
    """The mean of each interval between two edges (k + 1,), clipped to it; ``otherwise`` (k,) where it is empty."""
    start, stop = edges[:-1], edges[1:]
    mass = (samples.mass[stop] - samples.mass[start]).astype(samples.points.dtype)
    moment = samples.moment[stop] - samples.moment[start]
    last = samples.points.shape[0] - 1
    low, high = samples.points[jnp.minimum(start, last)], samples.points[jnp.maximum(stop - 1, 0)]
    mean = samples.center + moment / jnp.where(mass > 0, mass, 1)
    return jnp.where((stop > start) & (mass > 0), jnp.clip(mean, low, high), otherwise)


def _edges(samples: Samples, levels: jax.Array) -> jax.Array:
    cuts = jnp.searchsorted(samples.points, midpoints(levels), side="right").astype(jnp.int32)
    return jnp.pad(cuts, (1, 1), constant_values=(0, samples.points.shape[0]))


def lloyd(samples: Samples, levels: jax.Array, iterations: int) -> jax.Array:
    """Moves each of the sorted levels (k,) to the mean of the samples nearest to it, repeatedly.

    The squared error never grows. A level without samples stays where it is.
    """
    return jax.lax.fori_loop(0, iterations, lambda _, c: _means(samples, _edges(samples, c), c), levels)


def spread(samples: Samples, count: int) -> jax.Array:
    """Where to start Lloyd's iteration: quantiles of the cube root of the density, (count,)."""
    share = (jnp.arange(count, dtype=samples.points.dtype) + 0.5) / count
    return jnp.interp(share * samples.spacing[-1], samples.spacing, samples.points)


def exact(samples: Samples, count: int, bins: int) -> jax.Array:
    """The levels (count,) of the least squared error over all partitions of a histogram, by dynamic programming.

    With D(k, j) the least error of the first j bins under k levels,
    D(k, j) = min_i D(k - 1, i) + error of the bins i + 1 to j under one level. It takes
    O(bins**2 (count + 1)) time and O(bins**2) memory. The bins have equal shares of ``spacing``, so they are
    narrow where levels will be dense; up to ``bins`` samples are a bin each, and the result is the optimum.
    """
    length, dtype = samples.points.shape[0], samples.points.dtype
    if length <= bins:
        bins, edges = length, jnp.arange(length + 1, dtype=jnp.int32)
    else:
        share = jnp.arange(1, bins, dtype=dtype) / bins
        cuts = jnp.searchsorted(samples.spacing, share * samples.spacing[-1]).astype(jnp.int32)
        edges = jnp.pad(cuts, (1, 1), constant_values=(0, length))
    mass = jnp.diff(samples.mass[edges]).astype(dtype)
    mean = jnp.diff(samples.moment[edges]) / jnp.where(mass > 0, mass, 1)
    first = jnp.arange(bins, dtype=jnp.int32)

    def widen(state, bin_):
        # Welford's update of all intervals that end here: a sum of positive terms, where a difference
        # of running sums of squares would cancel
        held, center, error = state
        index, add, at = bin_
        add = jnp.where(first <= index, add, 0)
        total = jnp.where(held + add > 0, held + add, 1)
        away = at - center
        error = error + add * held / total * away**2
        return (held + add, center + away * add / total, error), jnp.where(first <= index, error, jnp.inf)

    zero = jnp.zeros(bins, dtype)
    _, error = jax.lax.scan(widen, (zero, zero, zero), (first, mass, mean))  # (last bin, first bin)

    def another_level(least, _):
        before = jnp.pad(least[:-1], (1, 0))
        total = before[None, :] + error
        return jnp.min(total, axis=1), jnp.argmin(total, axis=1).astype(jnp.int32)

    _, begins = jax.lax.scan(another_level, error[:, 0], None, length=count - 1)

    def back(last, begin):
        here = jnp.where(last < 0, 0, begin[jnp.maximum(last, 0)])
        return here - 1, here

    _, cuts = jax.lax.scan(back, jnp.asarray(bins - 1, jnp.int32), begins, reverse=True)
    cuts = jnp.pad(edges[cuts], (1, 1), constant_values=(0, length))
    return _means(samples, cuts, samples.points[jnp.minimum(cuts[:-1], length - 1)])


def distinct(samples: Samples, count: int, otherwise: typing.Callable[[], jax.Array]) -> jax.Array:
    """The points themselves (count,), the last repeated, where no more than ``count`` differ; else ``otherwise()``."""
    size = samples.points.shape[0]
    found = jnp.searchsorted(samples.rank, jnp.arange(count, dtype=samples.rank.dtype))
    different = samples.points[jnp.minimum(found, size - 1)]
    return different if size <= count else jnp.where(samples.rank[-1] < count, different, otherwise())
