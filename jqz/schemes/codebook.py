"""Any levels: learned from the values, or given."""

import abc
import dataclasses
import math
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jqz import _clustering, _levels, _scheme
from jqz._granularity import Granularity, PerTensor
from jqz._ranges import Range
from jqz._scheme import Scheme


def _check_count(who: str, name: str, value: typing.Any, low: int, high: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        limit = f"an integer of at least {low}" if high == math.inf else f"an integer from {low} to {high}"
        raise ValueError(f"{who}: got {name}={value!r}, wanted {limit}. Use {who}().")


class Placement(abc.ABC):
    """How the levels of a codebook are chosen."""

    #: The levels come from the values: they span them, and are not finite where a value is not.
    learned: typing.ClassVar[bool] = True

    @abc.abstractmethod
    def place(
        self, blocks: jax.Array, axes: tuple[int, ...], count: int, weights: jax.Array | None = None
    ) -> jax.Array:
        """At most ``count`` rising levels of each block, in one more axis at the end; ``axes`` are kept, length 1.

        ``weights``, in the shape of the blocks, say how much the squared error of each value counts.
        """


@typing.final
@dataclasses.dataclass(frozen=True)
class KMeans(Placement):
    """Lloyd's iteration (Lloyd-Max): levels move to the mean of their values, values to their nearest level.

    It starts from the levels that are optimal when there are many, and ends within 0.02 dB of ``Exact`` on Gaussian
    and Laplacian values up to 4 bits; on values with heavy tails it may stop half a decibel short. It costs
    a sort of the values, or a histogram if they are many, and next to nothing for an iteration.
    """

    iterations: int = 100

    def __post_init__(self) -> None:
        _check_count("KMeans", "iterations", self.iterations, 0)

    def place(
        self, blocks: jax.Array, axes: tuple[int, ...], count: int, weights: jax.Array | None = None
    ) -> jax.Array:
        def solve(samples: _clustering.Samples) -> jax.Array:
            return _clustering.lloyd(samples, _clustering.spread(samples, count), self.iterations)

        return _solve(_of_samples(solve, count), blocks, weights, axes, count, jax.vmap)


@typing.final
@dataclasses.dataclass(frozen=True)
class SparseKMeans(Placement):
    """Zero, and Lloyd's iteration on all other values, from levels evenly spread over their range.

    For pruned weights: zeros stay zeros and pull no level towards them. That start leaves levels for the few large
    values, which matter; ``KMeans`` has the smaller squared error on values that are not sparse.
    """

    iterations: int = 100

    def __post_init__(self) -> None:
        _check_count("SparseKMeans", "iterations", self.iterations, 0)

    def place(
        self, blocks: jax.Array, axes: tuple[int, ...], count: int, weights: jax.Array | None = None
    ) -> jax.Array:
        def levels_of(row: jax.Array, weight: jax.Array | None = None) -> jax.Array:
            some = row != 0
            anything = jnp.any(some)
            # a block of zeros counts its zeros, which are what its levels are then
            counted = (some | ~anything).astype(jnp.int32 if weight is None else row.dtype)
            samples = _clustering.samples(row, counted if weight is None else counted * weight)
            others = count - 1

            def solve() -> jax.Array:
                low, high = samples.points[0], samples.points[-1]
                even = jnp.linspace(0, 1, others, dtype=row.dtype)
                return _clustering.lloyd(samples, low + (high - low) * even, self.iterations)

            levels = _clustering.distinct(samples, others, solve)
            levels = jnp.sort(jnp.append(levels, jnp.zeros(1, row.dtype)))
            return jnp.where(jnp.isfinite(samples.center), levels, jnp.nan)

        return _solve(levels_of, blocks, weights, axes, count, jax.vmap)


@typing.final
@dataclasses.dataclass(frozen=True)
class Exact(Placement):
    """The least squared error of all partitions of a histogram, then Lloyd's iteration on the values.

    Up to ``bins`` values it is the optimum, exactly. The dynamic program takes O(bins**2 2**bits)
    operations and O(bins**2) memory a block, blocks one after the other.

    Args:
      bins: intervals of the histogram, 2 to 4096; they are narrow where the values are dense.
      iterations: Lloyd's, which undo what the histogram blurred.
    """

    bins: int = 512
    iterations: int = 10

    def __post_init__(self) -> None:
        _check_count("Exact", "bins", self.bins, 2, 4096)
        _check_count("Exact", "iterations", self.iterations, 0)

    def place(
        self, blocks: jax.Array, axes: tuple[int, ...], count: int, weights: jax.Array | None = None
    ) -> jax.Array:
        def solve(samples: _clustering.Samples) -> jax.Array:
            return _clustering.lloyd(samples, _clustering.exact(samples, count, self.bins), self.iterations)

        def one_by_one(fn):
            return lambda *rows: jax.lax.map(lambda row: fn(*row), rows)

        return _solve(_of_samples(solve, count), blocks, weights, axes, count, one_by_one)


@typing.final
@dataclasses.dataclass(frozen=True)
class GivenLevels(Placement):
    """Levels that you know, in rising order; at most 2**bits of them.

    With a ``range`` they are in units of what it finds in a block: ``GivenLevels((-1.0, -0.3, 0.3, 1.0),
    range=ranges.AbsMax())``. Every block stores all levels, so for small blocks ``NormalFloat``, which stores
    one scale, is smaller.
    """

    levels: tuple[float, ...]
    range: Range | None = None
    learned = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(float(level) for level in self.levels))
        rising = all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))
        if not self.levels or not rising or not all(map(math.isfinite, self.levels)):
            raise ValueError(
                f"GivenLevels: got {self.levels!r}, wanted finite numbers in rising order. "
                "Use GivenLevels(tuple(sorted(set(levels))))."
            )

    def place(
        self, blocks: jax.Array, axes: tuple[int, ...], count: int, weights: jax.Array | None = None
    ) -> jax.Array:
        levels = jnp.asarray(np.array(self.levels), blocks.dtype)
        shape = tuple(1 if axis in axes else n for axis, n in enumerate(blocks.shape))
        if self.range is None:
            return jnp.broadcast_to(levels, (*shape, levels.size))

        def fake(magnitude: jax.Array) -> jax.Array:
            unit = jnp.where(magnitude < _scheme.TINY, 1, magnitude).astype(magnitude.dtype)
            return _levels.lookup(_levels.nearest(_scheme.quotient(blocks, unit), levels), levels) * unit

        magnitude = self.range.magnitude(blocks, axes, fake, (len(self.levels) - 1) / 2)
        return magnitude[..., None] * levels.reshape([1] * blocks.ndim + [-1])


class LevelsGrid(typing.NamedTuple):
    """The sorted levels of each block, in the last axis."""

    levels: jax.Array


@_scheme.scheme
class Codebook(Scheme):
    """One of 2**bits levels, wherever they are best: x ~ levels[code].

    code = argmin |x - levels|, halfway between two the lower. No other scalar code of as many bits has a
    smaller mean squared error: 20.2 dB at 4 bits, 14.6 at 3 and 9.3 at 2 on Gaussian values (``Symmetric`` with
    the best clip: 18.8, 13.2 and 7.2). Values that take no more than 2**bits different numbers are kept exactly.

    Use it for weights at 2 to 4 bits that are decoded before they are used, or for small files. Not for
    integer kernels, which levels without a common step cannot run on, and not for small blocks: each
    stores 2**bits levels of 32 bits.

    Args:
      bits: 1 to 8; codes are uint8 indices.
      granularity: which values share a codebook.
      levels: ``KMeans`` (the default), ``Exact``, ``SparseKMeans`` for pruned weights, or ``GivenLevels``. A level that
        no value needs repeats another or lies unused between two.

    Raises:
      ValueError: bits outside 1 to 8, or more than 2**bits given levels.

    >>> import jax.numpy as jnp, jqz
    >>> x = jnp.array([-3.0, -2.0, 0.5, 0.0, 1.0, 2.0])
    >>> q = jqz.quantize(x, jqz.Codebook(bits=2, levels=jqz.schemes.Exact()))
    >>> q.codes.tolist(), [round(level, 3) for level in q.grid.levels[0].tolist()]
    ([0, 1, 2, 2, 2, 3], [-3.0, -2.0, 0.5, 2.0])

    References: Lloyd 1982 (doi:10.1109/TIT.1982.1056489); exact partitions Fisher 1958
    (doi:10.1080/01621459.1958.10501479); weight sharing arXiv:1510.00149.
    """

    bits: int = 4
    granularity: Granularity = PerTensor()
    levels: Placement = KMeans()

    def __post_init__(self) -> None:
        _scheme.check_bits("Codebook", self.bits, 1, 8)
        if isinstance(self.levels, GivenLevels) and len(self.levels.levels) > 2**self.bits:
            count = len(self.levels.levels)
            raise ValueError(
                f"Codebook: got {count} levels, wanted at most {2**self.bits} for bits={self.bits}. "
                f"Use Codebook(bits={(count - 1).bit_length()}, ...)."
            )

    @property
    def propagates(self) -> bool:  # type: ignore[override]
        return self.levels.learned

    @property
    def clips(self) -> bool:  # type: ignore[override]
        return not self.levels.learned

    @property
    def code_dtype(self) -> typing.Any:
        return jnp.uint8

    def calibrate(self, x: jax.Array, weights: jax.Array | None = None) -> LevelsGrid:
        """Chooses the levels of each block; ``weights``, in the shape of x, say how much each squared error counts."""
        x = x.astype(_scheme.work_dtype(x))

        def place(blocks: jax.Array, axes: tuple[int, ...], *weights: jax.Array) -> jax.Array:
            return self.levels.place(blocks, axes, 2**self.bits, *weights)

        return LevelsGrid(self.granularity.reduce(place, x, *([] if weights is None else [weights.astype(x.dtype)])))

    def encode(self, x: jax.Array, grid: LevelsGrid) -> jax.Array:
        return _levels.nearest(x.astype(grid.levels.dtype), grid.levels, self.granularity)

    def decode(self, codes: jax.Array, grid: LevelsGrid) -> jax.Array:
        return _levels.lookup(codes, grid.levels, self.granularity)

    def slope(self, x: jax.Array, grid: LevelsGrid) -> jax.Array | None:
        low, high = (self.granularity.expand(grid.levels[..., end], x.shape) for end in (0, -1))
        return ((x >= low) & (x <= high)).astype(x.dtype)


def _of_samples(solve: Callable[[_clustering.Samples], jax.Array], count: int) -> Callable[..., jax.Array]:
    """The levels of a row from its samples, or its values themselves where they are few."""

    def levels_of(row: jax.Array, weight: jax.Array | None = None) -> jax.Array:
        samples = _clustering.samples(row, weight)
        levels = _clustering.distinct(samples, count, lambda: solve(samples))
        # a sum shows NaN and infinity, which sorting may hide
        return jnp.where(jnp.isfinite(samples.center), levels, jnp.nan)

    return levels_of


def _solve(
    levels_of: Callable[..., jax.Array],
    blocks: jax.Array,
    weights: jax.Array | None,
    axes: tuple[int, ...],
    count: int,
    batched: Callable,
) -> jax.Array:
    """Levels of each block, from a row of values of moderate size and of weights whose mean is 1."""
    kept = [n for axis, n in enumerate(blocks.shape) if axis not in axes]
    size = math.prod(blocks.shape[axis] for axis in axes)

    def as_rows(array: jax.Array) -> jax.Array:
        return jnp.moveaxis(array, axes, range(-len(axes), 0)).reshape(math.prod(kept), size)

    rows, more = as_rows(blocks), []
    if weights is not None:
        counted = as_rows(weights)
        mean = jnp.mean(counted, axis=1, keepdims=True)
        more.append(jnp.where(mean > 0, counted / jnp.where(mean > 0, mean, 1), 1))  # all count where none does
    unit = _unit(jnp.max(jnp.abs(rows), axis=1, keepdims=True))

    # a power of two moves no bit, and squares neither overflow nor vanish
    levels = batched(levels_of)(rows / unit, *more) * unit
    return jnp.expand_dims(levels.reshape(*kept, count), axes)


def _unit(magnitude: jax.Array) -> jax.Array:
    """A power of two near each magnitude, whose reciprocal is a normal number; infinite where that is not finite."""
    wide = magnitude.dtype == jnp.float64
    integer, exponent = (jnp.int64, 0x7FF << 52) if wide else (jnp.int32, 0xFF << 23)
    power = jax.lax.bitcast_convert_type(magnitude, integer) & exponent  # drops the mantissa
    power = jax.lax.bitcast_convert_type(power, magnitude.dtype)
    power = jnp.where(power < _scheme.TINY, power, power / 4)
    return jnp.where(power == 0, 1, power).astype(magnitude.dtype)
