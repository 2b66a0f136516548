"""Scales and zero points fitted so that most weights are rounded well: half-quadratic quantization."""

import abc
import dataclasses
import typing

import jax
import jax.numpy as jnp

from jqz._layers import fit_grids
from jqz._policy import PolicyLike
from jqz._scheme import TINY, Grid, Scheme, quotient
from jqz._sites import Seen, Stats
from jqz._transform import quantize
from jqz.schemes.asymmetric import Asymmetric, FromZero, Minimum, MinimumGrid, ZeroPoint
from jqz.schemes.symmetric import Symmetric


class Fit(abc.ABC):
    """Which parts of a grid are fitted."""

    @abc.abstractmethod
    def line(self, levels: jax.Array, target: jax.Array, mean: typing.Callable) -> tuple[jax.Array, jax.Array]:
        """The slope and the offset, block by block, of target ~ slope * levels + offset; ``mean`` is that of blocks."""


@typing.final
@dataclasses.dataclass(frozen=True)
class ScaleAndZero(Fit):
    """Both, by linear regression."""

    def line(self, levels: jax.Array, target: jax.Array, mean: typing.Callable) -> tuple[jax.Array, jax.Array]:
        middle, to = mean(levels), mean(target)
        slope = _slope(mean(levels * target) - middle * to, mean(levels**2) - middle**2)
        return slope, to - slope * middle


@typing.final
@dataclasses.dataclass(frozen=True)
class Zero(Fit):
    """The zero point, as published; for ``Asymmetric(anchor=jqz.schemes.Minimum())``, where it is a real number."""

    def line(self, levels: jax.Array, target: jax.Array, mean: typing.Callable) -> tuple[jax.Array, jax.Array]:
        offset = mean(target - levels)
        return jnp.ones_like(offset), offset


@typing.final
@dataclasses.dataclass(frozen=True)
class _Scale(Fit):
    """The scale of a grid that holds zero exactly."""

    def line(self, levels: jax.Array, target: jax.Array, mean: typing.Callable) -> tuple[jax.Array, jax.Array]:
        slope = _slope(mean(levels * target), mean(levels**2))
        return slope, jnp.zeros_like(slope)


def _slope(product: jax.Array, square: jax.Array) -> jax.Array:
    slope = product / jnp.where(square > 0, square, 1)
    return jnp.where((slope > 0) & (square > 0), slope, 1)  # a block of one level has no slope


def hqq(
    params: typing.Any,
    policy: PolicyLike,
    stats: Stats | None = None,
    *,
    fit: Fit = ScaleAndZero(),
    norm: float = 0.7,
    beta: float = 10.0,
    growth: float = 1.01,
    iterations: int = 20,
) -> typing.Any:
    """Rounds weights to nearest on grids of the least sum abs(W - Q(W))**norm; needs no inputs.

    A norm below 1 forgives a few large errors: outliers are clipped, and most weights get finer steps. With errors in
    steps of the grid, it alternates between the errors to forgive and the grid that fits the rest in least squares: ::

        R = W - Q(W),   E = sign(R) max(abs(R) - abs(R)**(norm - 1) / beta, 0),   beta <- growth beta,
        grid <- argmin sum((W - E - levels(codes))**2),   codes <- round W on the grid.

    Each block of weights takes the best of its grids, the one that it started from among them. ``Asymmetric`` with
    ``anchor=jqz.schemes.Minimum()`` gets a scale and a real zero point, or under ``fit=Zero()`` the zero point
    alone, as published; ``Symmetric`` and ``Asymmetric`` with an exact zero get a scale.

    Use it at 2 to 4 bits where there are no inputs, in groups of 64 or so, and with ``Minimum()`` where no
    integer kernel is to run. ``range=jqz.ranges.MSE()`` searches for the least squared error instead, and keeps zero.

    Args:
      params: any pytree of floating arrays.
      policy: as for ``quantize``; schemes are ``Symmetric`` or ``Asymmetric``.
      stats: of ``observe(fn, policy, jqz.observers.Gram())``: outputs that the fitted grids change more than the
        grids that they started from keep those. None for no such choice.
      fit: ``ScaleAndZero()`` or ``Zero()``.
      norm: more than 0 and at most 1.
      beta: the first weight of the quadratic; lower ones forgive less.
      growth: what beta is multiplied by after each iteration.
      iterations: of both steps.

    Returns:
      The same tree with QTensor leaves.

    Raises:
      ValueError: the grid of a scheme cannot be fitted so, or the norm is out of range; with statistics, as ``gptq``.
      TypeError: as ``quantize``.

    >>> import jax, jax.numpy as jnp, jqz, jqz.algorithms
    >>> scheme = jqz.Asymmetric(bits=3, granularity=jqz.PerGroup(64), anchor=jqz.schemes.Minimum())
    >>> w = jax.random.laplace(jax.random.key(0), (256, 8))
    >>> rounded = jqz.algorithms.hqq(w, scheme), jqz.quantize(w, scheme)
    >>> errors = [jnp.linalg.norm(jqz.dequantize(q) - w) for q in rounded]
    >>> bool(errors[0] < 0.95 * errors[1])
    True

    References: Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog/.
    """
    if not 0 < norm <= 1:
        raise ValueError(f"hqq: got norm={norm!r}, wanted more than 0 and at most 1. Use norm=0.7.")
    solver = _HalfQuadratic(fit, float(norm), float(beta), float(growth), int(iterations))
    return quantize(fit_grids("hqq", params, policy, stats, solver), policy)


@dataclasses.dataclass(frozen=True)
class _HalfQuadratic:
    """Finds the grid of one weight."""

    fit: Fit
    norm: float
    beta: float
    growth: float
    iterations: int

    def __call__(self, x: jax.Array, grid: Grid, scheme: Scheme, seen: Seen | None) -> Grid:
        del seen
        fit, expand = self._of(scheme), scheme.granularity.expand

        def mean(x: jax.Array) -> jax.Array:
            return scheme.granularity.reduce(lambda block, axes: jnp.mean(block, axis=axes, keepdims=True), x)

        def residual(grid: Grid) -> jax.Array:
            return x - scheme.decode(scheme.encode(x, grid), grid)

        def cost(rest: jax.Array) -> jax.Array:
            # in steps of the first grid, which all that follow are measured by
            return mean(jnp.abs(quotient(rest, expand(first.scale, x.shape))) ** self.norm)

        def step(i: jax.Array, state: typing.Any) -> typing.Any:
            grid, rest, best = state
            scale = expand(grid.scale, x.shape)
            error = quotient(rest, scale)
            size = jnp.abs(error)
            beta = self.beta * self.growth ** i.astype(x.dtype)
            shrunk = size - jnp.where(size > 0, size, 1) ** (self.norm - 1) / beta
            forgiven = jnp.where(size > 0, jnp.sign(error) * jnp.maximum(shrunk, 0), 0)
            # levels count from the minimum, where that is not zero: large numbers would hide their differences
            shifted = x - rest - expand(grid.minimum, x.shape) if isinstance(grid, MinimumGrid) else x - rest
            levels = quotient(shifted, scale)
            slope, offset = fit.line(levels, levels + error - forgiven, mean)
            new = grid._replace(scale=jnp.maximum(slope * grid.scale, TINY))
            if isinstance(grid, MinimumGrid):
                new = new._replace(minimum=grid.minimum + offset * grid.scale)
            rest = residual(new)
            found = cost(rest)
            better = found < best[0]
            kept = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best[1])
            return new, rest, (jnp.where(better, found, best[0]), kept)

        first: typing.Any = grid
        rest = residual(first)
        return jax.lax.fori_loop(0, self.iterations, step, (first, rest, (cost(rest), first)))[2][1]

    def _of(self, scheme: typing.Any) -> Fit:
        """What is fitted of this scheme's grid."""
        if isinstance(scheme, Asymmetric) and isinstance(scheme.anchor, Minimum):
            return self.fit
        scaled = isinstance(scheme, Asymmetric) and isinstance(scheme.anchor, ZeroPoint | FromZero)
        if isinstance(self.fit, ScaleAndZero) and (scaled or isinstance(scheme, Symmetric)):
            return _Scale()
        wanted = (
            "Symmetric, or Asymmetric with anchor Minimum(), ZeroPoint() or FromZero()"
            if isinstance(self.fit, ScaleAndZero)
            else "Asymmetric with anchor Minimum(), whose zero point is a real number"
        )
        raise ValueError(
            f"{self.fit!r} has nothing to fit in a grid of {scheme!r}, wanted {wanted}. "
            "Use jqz.Asymmetric(bits=4, anchor=jqz.schemes.Minimum()), or gptq, which takes any scheme."
        )
