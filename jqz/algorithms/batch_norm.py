"""The statistics of batch norms, measured again behind rounded weights."""

import functools
import typing
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from jqz._channels import Handlers, Leaves, bind_all, replaced, walk_channels
from jqz._stacked import Stacked
from jqz._transform import dequantize, named_leaves
from jqz._walk import Walk
from jqz.observers import Moments


def reestimate_batch_norm(
    fn: Callable[..., typing.Any], params: typing.Any, batches: Iterable[typing.Any], *, reference: typing.Any = None
) -> typing.Any:
    """Sets mean and variance of every batch norm to those of its input, each behind the ones before it.

    ``fn`` is the model as it infers; its batch norms are found in its program, whatever library wrote them: a
    parameter is subtracted, and what is left is multiplied or divided by what a root of another went into. Each
    normalizes the batch with its own statistics already, as in training; those of several batches are merged. So mean
    and variance of every channel are what they were in training, whatever rounding did to the weights.

    With the float parameters as ``reference`` the stored statistics are changed as those of the batches have changed,
    mean <- mean + m_rounded - m_float and variance <- variance v_rounded / v_float, which few inputs, or inputs
    unlike those of training, disturb less. From some hundred inputs on the two are alike; use it below that.

    Use it after rounding the weights of a network with batch norm to 4 bits or fewer: a few hundred inputs, no labels.
    It is the cheapest large gain at 2 and 3 bits. At 8 bits nothing has moved.

    Args:
      fn: a pure function of ``(params, *args)``, such as a Linen ``model.apply``.
      params: its parameters; QTensors among them run as what they stand for, and means and variances become floats.
      batches: arguments of ``fn`` after the parameters: an array or a tuple each; large ones, of 100 inputs or more.
      reference: the float parameters, or None to take the statistics of the batches as they are.

    Returns:
      The same tree with other means and variances.

    Raises:
      TypeError: ``batches`` is one array.
      ValueError: there are no batches, a channel has seen one value in all of them, or ``fn`` has no batch norm outside
        of loops and branches.

    >>> import jax, jax.numpy as jnp, jqz.algorithms
    >>> def model(params, x):
    ...     y = x @ params["kernel"]
    ...     return (y - params["mean"][None]) * jax.lax.rsqrt(params["var"] + 1e-5)[None]
    >>> params = {"kernel": jnp.eye(2), "mean": jnp.zeros(2), "var": jnp.ones(2)}
    >>> x = jnp.array([[1.0, 2.0], [3.0, 6.0]])
    >>> out = jqz.algorithms.reestimate_batch_norm(model, params, [x])
    >>> out["mean"].tolist(), out["var"].tolist()
    ([2.0, 4.0], [1.0, 4.0])

    References: arXiv:1806.08342, section 3.2.2; arXiv:2203.11086, section 4.1.
    """

    fn, inputs = bind_all("reestimate_batch_norm", fn, batches)
    wanted: Seen = {} if reference is None else _merged(fn, reference, inputs, None)
    seen = _merged(fn, params, inputs, wanted)
    if not seen:
        raise ValueError(
            "reestimate_batch_norm: found no batch norm outside of loops and branches. Use a function that normalizes "
            "by stored statistics: lambda params, x: model.apply(params, x, train=False)."
        )
    leaves = dict(named_leaves(dequantize(params)))
    changed: dict[str, jax.Array] = {}
    for name, moments in seen.items():
        if int(jnp.min(moments.count)) < 2:
            raise ValueError(
                f"reestimate_batch_norm: {name.split(chr(10))[1]!r} has seen one value of a channel, which has no "
                "variance. Use batches of 100 inputs or more."
            )
        changed.update(_statistics(name, moments, wanted.get(name), leaves))
    return replaced(params, changed)


Seen = dict[str, Moments]  # by the paths of mean and variance, a line each


def _merged(
    fn: Callable[..., typing.Any], params: typing.Any, batches: list[tuple[typing.Any, ...]], wanted: Seen | None
) -> Seen:
    """What batch norms see: with their statistics as stored, or (``wanted``) each corrected by what it sees."""
    leaves = dict(named_leaves(dequantize(params)))

    def measure(walk: Walk, x: jax.Array, mean: str, variance: str, axis: int) -> Leaves:
        name = f"{mean}\n{variance}"
        seen = Moments(axis=axis).update(x)
        walk.records[name] = walk.records[name].merge(Stacked(seen)) if name in walk.records else Stacked(seen)
        return {} if wanted is None else _statistics(name, seen, wanted.get(name), leaves)

    @jax.jit
    def run(params: typing.Any, args: tuple[typing.Any, ...]) -> Seen:
        records = walk_channels(fn, params, args, Handlers(norm=measure))[1].records
        return {name: record.tree for name, record in records.items()}

    seen = [run(params, batch) for batch in batches]
    return {name: functools.reduce(Moments.merge, [one[name] for one in seen]) for name in seen[0]}


def _statistics(name: str, seen: Moments, wanted: Moments | None, leaves: Leaves) -> Leaves:
    """The mean and the variance to store, by path."""
    mean, variance = name.split("\n")
    if wanted is None:
        return {mean: seen.mean, variance: seen.variance}
    ratio = seen.variance / jnp.where(wanted.variance > 0, wanted.variance, 1)
    return {
        mean: leaves[mean] + (seen.mean - wanted.mean),
        variance: leaves[variance] * jnp.where(wanted.variance > 0, ratio, 1),
    }
