"""Rounding up or down as a continuous choice: the rectified sigmoid of AdaRound, and what drives it to 0 or 1."""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from jqz._scheme import Grid, Scheme, narrow

#: The rectified sigmoid reaches from LOW to HIGH before it is clipped to 0 and 1, so that it gets there.
_LOW, _HIGH = -0.1, 1.1


def soft(v: jax.Array) -> jax.Array:
    """h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)."""
    return jnp.clip((_HIGH - _LOW) * jax.nn.sigmoid(v) + _LOW, 0, 1)


def inverse(share: jax.Array) -> jax.Array:
    """V with h(V) = share, which is from 0 to 1."""
    start = (share - _LOW) / (_HIGH - _LOW)
    return jnp.log(start) - jnp.log1p(-start)


@dataclasses.dataclass(frozen=True)
class Annealing:
    """strength sum(1 - abs(2 h - 1)**beta), after a warm-up; beta falls from ``first`` to ``last`` on a cosine."""

    steps: int
    strength: float
    first: float
    last: float
    warm_up: float

    def slope(self, h: jax.Array, step: jax.Array) -> jax.Array:
        """Its derivative by h."""
        done = (step.astype(h.dtype) / self.steps - self.warm_up) / (1 - self.warm_up)
        beta = self.last + (self.first - self.last) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        regular = jax.grad(lambda h: jnp.sum(1 - jnp.abs(2 * h - 1) ** beta))
        return jnp.where(done > 0, self.strength, 0) * regular(h)


def annealing(who: str, steps: int, strength: float, beta: tuple[float, float], warm_up: float) -> Annealing:
    """Checked.

    Raises:
      ValueError: there is no step, or nothing but warm-up.
    """
    if not (steps >= 1 and 0 <= warm_up < 1):
        raise ValueError(
            f"{who}: got steps={steps!r} and warm_up={warm_up!r}, wanted at least one step and a share below 1. "
            f"Use steps=1000, warm_up=0.2."
        )
    first, last = map(float, beta)
    return Annealing(int(steps), float(strength), first, last, float(warm_up))


def neighbours(
    weight: jax.Array, grid: Grid, scheme: Scheme, dtype: typing.Any, given: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Codes of a weight, those of the next levels on the weight's side of them, and the values of both.

    The codes are the nearest unless ``given``; values are those of a tensor of a dtype. Where there is no level on that
    side the two are the same.
    """
    codes = scheme.encode(weight, grid) if given is None else given
    values = narrow(scheme.decode(codes, grid), dtype).astype(weight.dtype)
    other, beyond = codes, values
    for by in (1, -1):
        beside = codes + jnp.asarray(by).astype(codes.dtype)
        level = narrow(scheme.decode(beside, grid), dtype).astype(values.dtype)
        towards = (level - values) * (weight - values) > 0
        # the scheme uses it, and the integers have not wrapped around
        real = (scheme.encode(level, grid) == beside) & ((beside > codes) == (by > 0))
        other, beyond = jnp.where(towards & real, beside, other), jnp.where(towards & real, level, beyond)
    return codes, other, values, beyond
