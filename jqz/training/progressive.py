"""Fewer and fewer bits while training goes on."""

import itertools
import typing
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jqz._policy import PolicyLike
from jqz._transform import fake_quantize


def progressive(stages: Mapping[int, PolicyLike | None]) -> Callable[..., typing.Any]:
    """``fake_quantize`` under a policy that changes with the step: float, then 8, 4, 2 bits.

    Every stage starts where the one before ended, near a solution of its own; at 2 bits that ends better than
    rounding to 2 bits from the start. One program holds all stages and runs one of them a step. Bit widths alone may
    change without that: ``Symmetric(bits=stepwise({...})(step))`` is compiled once for all of them.

    Args:
      stages: ``{step: policy}``, steps rising from 0; None leaves the parameters as they are. A policy is anything
        that ``fake_quantize`` takes.

    Returns:
      A function of ``(params, step)``.

    Raises:
      ValueError: the steps do not rise from 0.

    >>> import jax.numpy as jnp, jqz.training
    >>> rounded = jqz.training.progressive({0: None, 100: jqz.Symmetric(bits=3), 200: jqz.Symmetric(bits=2)})
    >>> w = jnp.array([0.9, 0.42, -3.0])
    >>> [[round(x, 2) for x in rounded(w, step).tolist()] for step in (99, 100, 200)]
    [[0.9, 0.42, -3.0], [1.0, 0.0, -3.0], [0.0, 0.0, -3.0]]
    """
    index = _stepwise("progressive", {step: i for i, step in enumerate(stages)})

    def stage(policy: PolicyLike | None) -> Callable[[typing.Any], typing.Any]:
        # weights without grids, those of learnable too, as all stages give
        return lambda params: fake_quantize(params, (lambda path, leaf: None) if policy is None else policy)

    branches = [stage(policy) for policy in stages.values()]

    def rounded(params: typing.Any, step: jax.typing.ArrayLike) -> typing.Any:
        return jax.lax.switch(index(step), branches, params)

    return rounded


def stepwise(values: Mapping[int, int]) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """A schedule of integers, such as bit widths: at each step the last value that has begun.

    Args:
      values: ``{step: value}``, steps rising from 0.

    Raises:
      TypeError: steps or values are no integers.
      ValueError: the steps do not rise from 0.

    >>> import jax.numpy as jnp, jqz.training
    >>> bits = jqz.training.stepwise({0: 8, 100: 4, 200: 2})
    >>> [int(bits(step)) for step in (0, 99, 100, 1000)]
    [8, 8, 4, 2]
    >>> jqz.fake_quantize(jnp.array([0.4, -1.0]), jqz.Symmetric(bits=bits(200))).tolist()
    [0.0, -1.0]
    """
    return _stepwise("stepwise", values)


def _stepwise(who: str, values: Mapping[int, int]) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    steps = list(values)
    if not all(hasattr(number, "__index__") for number in (*steps, *values.values())):
        raise TypeError(f"{who}: got {dict(values)}, wanted steps and values that are integers. Use {{0: 8, 1000: 4}}.")
    if not steps or steps[0] != 0 or not all(a < b for a, b in itertools.pairwise(steps)):
        raise ValueError(f"{who}: got steps {steps}, wanted some that rise from 0. Use {{0: 8, 1000: 4}}.")
    begins, of = np.array(steps, np.int32), np.array(list(values.values()), np.int32)

    def at(step: jax.typing.ArrayLike) -> jax.Array:
        stage = jnp.sum(jnp.asarray(step, jnp.int32) >= begins, dtype=jnp.int32) - 1
        return jnp.asarray(of)[jnp.maximum(stage, 0)]

    return at
