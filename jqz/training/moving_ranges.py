"""Activations rounded on ranges that move with training: quantization-aware training of Jacob et al."""

import functools
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jqz._inference import walk_in_training
from jqz._observer import Observer
from jqz._policy import Policy
from jqz._sites import Sites, Stats, calibrate, merge
from jqz.kernels import simulate, structure, watch
from jqz.observers import EMA


class RangesState(typing.NamedTuple):
    """Steps taken, and the statistics of every site."""

    steps: jax.Array
    stats: Stats


class MovingRanges(typing.NamedTuple):
    """What ``moving_ranges`` returns.

    Attributes:
      init: ``(variables, *args) -> state``, from a first batch; ranges start with what meets the rounded weights.
      apply: ``(variables, state, *args) -> (what fn returns, state)``, a step of training.
      sites: ``state -> sites`` for ``simulated`` and ``quantized``.
    """

    init: Callable[..., RangesState]
    apply: Callable[..., tuple[typing.Any, RangesState]]
    sites: Callable[[RangesState], Sites]


def moving_ranges(
    fn: Callable[..., typing.Any], policy: Policy, observer: Observer = EMA(0.99), delay: int = 0
) -> MovingRanges:
    """Training in which each step measures the activations, rounds them, and moves their ranges.

    Weights are rounded from the first step, activations after ``delay`` steps, when their ranges have settled: until
    then they pass in float and are only measured. A step rounds on the ranges that the steps before it left, so its
    result depends on its input as that of deployment will. Gradients go straight through inside the range. Deploy with
    ``quantized(fn, ranges.sites(state))(quantize(variables, policy), x)``.

    Use it for 8-bit networks trained from scratch or fine-tuned over thousands of steps. To fine-tune for a
    few, calibrate once and keep the sites (``simulated``), or let them learn (LSQ).

    Args:
      fn: a pure function of ``(variables, *args)``, such as a Linen ``model.apply``.
      policy: its rules round weights, its ``inputs`` activations.
      observer: what is measured at every site; the paper has ``EMA`` with a decay close to 1.
      delay: steps without rounded activations; the paper has 50 thousand to 2 million, 10 % of a run is usual.

    Raises:
      TypeError: ``policy`` is not a Policy with ``inputs``, or ``observer`` is none.
      ValueError: a negative delay, or as ``fake_quantize``.

    >>> import jax, jax.numpy as jnp, jqz
    >>> from jqz.training import moving_ranges
    >>> def model(params, x):
    ...     return x @ params["kernel"]
    >>> policy = jqz.Policy({"**/kernel": jqz.Symmetric(bits=8)}, inputs=jqz.Asymmetric(bits=8))
    >>> params, x = {"kernel": jnp.ones((3, 2))}, jnp.array([[0.0, 1.0, 2.0]])
    >>> ranges = moving_ranges(model, policy, jqz.observers.EMA(0.5))
    >>> state = ranges.init(params, x)
    >>> y, state = jax.jit(ranges.apply)(params, state, 2 * x)
    >>> float(state.stats["kernel"].observer.high)
    3.0
    >>> y, state = jax.jit(ranges.apply)(params, state, x)
    >>> bool(jnp.allclose(y, jqz.simulated(model, policy)(params, ranges.sites(state), x), atol=0.05))
    True

    References: arXiv:1712.05877, section 3; arXiv:1806.08342.
    """
    if not isinstance(policy, Policy) or not policy.inputs:
        raise TypeError(
            f"moving_ranges: got {policy!r}, wanted a Policy with inputs. "
            'Use Policy({"**/kernel": Symmetric(bits=8)}, inputs=Asymmetric(bits=8)).'
        )
    if not isinstance(observer, Observer):
        raise TypeError(f"moving_ranges: got observer={observer!r}, wanted an Observer. Use jqz.observers.EMA(0.99).")
    if delay < 0:
        raise ValueError(f"moving_ranges: got delay={delay}, wanted a number of steps. Use delay=0.")

    def start(path: str) -> Observer:
        del path
        return observer

    in_float = {**structure.RULES, **watch.rules(policy.input_at, start)}
    rounded = {**structure.RULES, **simulate.rules(policy.input_at, watch.recorder(start))}

    def init(variables: typing.Any, *args: typing.Any, **kwargs: typing.Any) -> RangesState:
        _, seen = walk_in_training(fn, policy, in_float, variables, None, args, kwargs)
        return RangesState(jnp.zeros((), jnp.int32), seen)

    @functools.wraps(fn, updated=())
    def apply(variables: typing.Any, state: RangesState, *args: typing.Any, **kwargs: typing.Any):
        def early(variables: typing.Any) -> tuple[typing.Any, Stats]:
            out, seen = walk_in_training(fn, policy, in_float, variables, None, args, kwargs)
            return out, merge(state.stats, seen)

        def late(variables: typing.Any) -> tuple[typing.Any, Stats]:
            out, seen = walk_in_training(fn, policy, rounded, variables, sites(state), args, kwargs)
            return out, merge(state.stats, seen)

        out, stats = jax.lax.cond(state.steps < delay, early, late, variables) if delay else late(variables)
        return out, RangesState(state.steps + 1, jax.lax.stop_gradient(stats))

    def sites(state: RangesState) -> Sites:
        return calibrate(state.stats, policy)

    return MovingRanges(init, apply, sites)
