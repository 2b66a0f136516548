"""How a grid learns: the gradients that reach its scale and its offset.

A grid that is given to ``simulate`` is a parameter: that of a site, or one beside a weight in what ``learnable``
makes. With v = (x - origin) / scale and R rounding:

========= ================================== ==================================== =====================
          d value / d scale, inside          outside: below, above                d value / d offset
========= ================================== ==================================== =====================
``Fixed`` 0                                  0                                    0
``LSQ``   R(v) - v                           the level number of that end         1 outside, 0 inside
``PACT``  0                                  the same                             1 outside, 0 inside
``RCF``   R(v) - v                           the same                             1 outside, 0 inside
========= ================================== ==================================== =====================

References: LSQ arXiv:1902.08153, LSQ+ arXiv:2004.09576, PACT arXiv:1805.06085, RCF arXiv:1909.13144.
"""

import abc
import dataclasses
import math
import typing

import jax
import jax.numpy as jnp

Partials = tuple[jax.Array, jax.Array, jax.Array]


class Line(typing.NamedTuple):
    """Levels that stretch with a scale, in the shape of what is rounded to them; ``value = origin + scale * level``."""

    scale: jax.Array
    low: jax.Array
    high: jax.Array
    origin: jax.Array
    top: typing.Any


class GridGradient(abc.ABC):
    """Says how a grid's arrays move with the loss."""

    @abc.abstractmethod
    def partials(self, x: jax.Array, value: jax.Array, line: Line, entries: int) -> Partials:
        """The derivatives of ``value`` by x, by the scale and by the origin, elementwise.

        Args:
          x: what was rounded.
          value: what it was rounded to.
          line: the levels.
          entries: how many scales the grid has.
        """


@typing.final
@dataclasses.dataclass(frozen=True)
class Fixed(GridGradient):
    """The grid gets no gradient: it was calibrated, and stays."""

    def partials(self, x: jax.Array, value: jax.Array, line: Line, entries: int) -> Partials:
        return jnp.ones_like(x), jnp.zeros_like(x), jnp.zeros_like(x)


@typing.final
@dataclasses.dataclass(frozen=True)
class LSQ(GridGradient):
    """Learned step size: the rounding error itself is the gradient of the scale (with an offset: LSQ+).

    d value / d scale = R(v) - v inside, the level number of the end outside; d value / d offset = 1 outside; both
    times 1 / sqrt(N top), with N the number of values that share a scale and top the highest level number, so that a
    scale moves in proportion to itself as a weight does. Use it to train at 2 to 4 bits, from
    ``range=jqz.ranges.MeanMagnitude()`` (LSQ+: ``Sigmas()``) for weights and ``observer=jqz.observers.MSE()`` for
    activations.

    Args:
      batch_axes: axes that do not count in N; (0,) for activations, so that a larger batch changes nothing.

    >>> import jax, jax.numpy as jnp, jqz
    >>> scheme = jqz.Symmetric(bits=3, gradient=jqz.gradients.LSQ())
    >>> x, grid = jnp.array([0.7, 1.0, 9.0]), scheme.calibrate(jnp.array([3.0]))
    >>> grad = jax.grad(lambda grid: scheme.simulate(x, grid).sum())(grid)
    >>> round(float(grad.scale[0] * (3 * 3) ** 0.5), 3)  # (1 - 0.7) + 0 + 3
    3.3

    References: arXiv:1902.08153; arXiv:2004.09576.
    """

    batch_axes: tuple[int, ...] = ()

    def partials(self, x: jax.Array, value: jax.Array, line: Line, entries: int) -> Partials:
        inside = (x > line.low) & (x < line.high)
        if not all(-x.ndim <= axis < x.ndim for axis in self.batch_axes):
            raise ValueError(
                f"LSQ: got batch_axes={self.batch_axes!r} for values of shape {x.shape}, wanted axes that they have. "
                "Use batch_axes=(0,)."
            )
        shared = x.size / entries / max(1, math.prod(x.shape[axis] for axis in self.batch_axes))
        factor = (max(shared, 1) * line.top) ** -0.5
        of_scale = jnp.where(inside, value - x, value - line.origin) / line.scale
        return inside.astype(x.dtype), of_scale * factor, (~inside).astype(x.dtype) * factor


@typing.final
@dataclasses.dataclass(frozen=True)
class PACT(GridGradient):
    """Learned clipping: only values beyond the ends move them.

    With clip = top * scale: d value / d clip = 1 where x >= clip, 0 elsewhere; the scale, which the grid holds, gets
    top times that. PACT regularises the clip like a weight; add scale**2 to the loss. Rounding errors do not count, so
    below 4 bits ``LSQ`` does better.

    >>> import jax, jax.numpy as jnp, jqz
    >>> scheme = jqz.Asymmetric(bits=2, anchor=jqz.schemes.FromZero(), gradient=jqz.gradients.PACT())
    >>> x, grid = jnp.array([0.7, 4.0, 9.0]), scheme.calibrate(jnp.array([3.0]))
    >>> jax.grad(lambda grid: scheme.simulate(x, grid).sum())(grid).scale.tolist()
    [6.0]

    References: arXiv:1805.06085.
    """

    def partials(self, x: jax.Array, value: jax.Array, line: Line, entries: int) -> Partials:
        inside = (x >= line.low) & (x < line.high)
        of_scale = jnp.where(inside, 0, (value - line.origin) / line.scale)
        return inside.astype(x.dtype), of_scale, (~inside).astype(x.dtype)


@typing.final
@dataclasses.dataclass(frozen=True)
class RCF(GridGradient):
    """The reparameterized clipping function of APoT: the clip learns from rounding errors, and no weight stops.

    With clip = top * scale and x rounded to clip * L(x / clip): d value / d clip = sign(x) outside and
    (value - x) / clip inside; the scale, which the grid holds, gets top times that. The gradient of x passes everywhere
    where levels have both signs, and inside the range where they do not. ``LSQ`` differs by its factor, and stops
    weights that were clipped. Its clip wants a larger learning rate than the weights, and a weight decay.

    >>> import jax, jax.numpy as jnp, jqz
    >>> scheme = jqz.AdditivePowerOfTwo(bits=3, gradient=jqz.gradients.RCF())
    >>> x, grid = jnp.array([0.7, 1.0, 9.0]), scheme.calibrate(jnp.array([4.0]))
    >>> grad = jax.grad(lambda grid: scheme.simulate(x, grid).sum())(grid)
    >>> round(float(grad.scale[0]), 3)  # (1 - 0.7) + 0 + 4
    4.3

    References: arXiv:1909.13144, equation 6.
    """

    def partials(self, x: jax.Array, value: jax.Array, line: Line, entries: int) -> Partials:
        inside = (x > line.low) & (x < line.high)
        of_scale = jnp.where(inside, value - x, value - line.origin) / line.scale
        return (inside | ((line.low < 0) & (line.high > 0))).astype(x.dtype), of_scale, (~inside).astype(x.dtype)
