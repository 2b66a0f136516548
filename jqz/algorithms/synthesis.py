"""Inputs made from a trained model alone."""

import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jqz._channels import Handlers, Leaves, walk_channels
from jqz._stacked import Stacked
from jqz._transform import named_leaves
from jqz._walk import Walk
from jqz.observers import Moments


def synthesize_inputs(
    fn: Callable[..., typing.Any],
    params: typing.Any,
    shape: tuple[int, ...],
    key: jax.Array,
    *,
    steps: int = 300,
    learning_rate: float = 0.1,
) -> jax.Array:
    """Inputs for which every batch norm of a model sees the means and variances that it saw in training.

    From normal noise, Adam minimizes the sum over batch norms of
    mean((m - mean)**2 / variance) + mean((sqrt(v) - sqrt(variance))**2 / variance), m and v being the statistics of the
    batch, channel by channel, and the same for the input itself with mean 0 and variance 1.

    Use it to run what needs inputs (``gptq``, ``calibrate``) where there are none. Batch norms are better left alone:
    measured on such inputs, even their change alone (``reestimate_batch_norm`` with a reference) may cost more than it
    gains. Real inputs are better: a few hundred of them suffice.

    Args:
      fn: a pure function of ``(params, x)`` that infers.
      params: its float parameters.
      shape: of the inputs to make, the batch first; 64 or more.
      key: for the noise.
      steps: of Adam.
      learning_rate: of the first step; it falls to zero on a cosine.

    Raises:
      ValueError: ``fn`` has no batch norm outside of loops and branches.

    >>> import jax, jax.numpy as jnp, jqz.algorithms
    >>> def model(params, x):
    ...     return (x - params["mean"][None]) * jax.lax.rsqrt(params["var"] + 1e-5)[None]
    >>> params = {"mean": jnp.array([0.5, -0.5]), "var": jnp.ones(2)}
    >>> x = jqz.algorithms.synthesize_inputs(model, params, (64, 2), jax.random.key(0), steps=100)
    >>> bool((jnp.abs(x.mean(0) - jnp.array([0.25, -0.25])) < 0.05).all())  # half way to the mean 0 of inputs
    True

    References: arXiv:2001.00281.
    """
    leaves = dict(named_leaves(params))

    def measure(walk: Walk, x: jax.Array, mean: str, variance: str, axis: int) -> Leaves:
        walk.records[walk.name(mean)] = Stacked(_distance(x, leaves[mean], leaves[variance], axis))
        return {}

    def loss(x: jax.Array) -> jax.Array:
        records = walk_channels(fn, params, (x,), Handlers(norm=measure))[1].records
        if not records:
            raise ValueError(
                "synthesize_inputs: found no batch norm outside of loops and branches. Use a function that normalizes "
                "by stored statistics: lambda params, x: model.apply(params, x, train=False)."
            )
        own = _distance(x, jnp.zeros(x.shape[-1]), jnp.ones(x.shape[-1]), x.ndim - 1)
        return own + sum((record.tree for record in records.values()), jnp.zeros(()))

    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    @jax.jit
    def step(x: jax.Array, state: optax.OptState) -> tuple[jax.Array, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):  # Adam raises floats to its integer count
            updates, state = optimizer.update(jax.grad(loss)(x), state)
        return typing.cast(jax.Array, optax.apply_updates(x, updates)), state

    x = jax.random.normal(key, shape)
    state = optimizer.init(x)
    for _ in range(steps):
        x, state = step(x, state)
    return x


def _distance(x: jax.Array, mean: jax.Array, variance: jax.Array, axis: int) -> jax.Array:
    seen = Moments(axis=axis).update(x)
    scale = jnp.maximum(variance, 1e-6)
    apart = (seen.mean - mean) ** 2 + (jnp.sqrt(seen.variance + 1e-6) - jnp.sqrt(scale)) ** 2
    return jnp.mean(apart / scale)
