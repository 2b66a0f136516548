"""Biases that give each channel the mean that it has in the float model."""

import functools
import typing
from collections.abc import Callable, Iterable

import jax

from jqz._channels import Handlers, Leaves, bind_all, replaced, walk_channels
from jqz._scheme import work_dtype
from jqz._stacked import Stacked
from jqz._transform import named_leaves
from jqz._walk import Walk
from jqz.observers import Moments


def correct_bias(
    fn: Callable[..., typing.Any], params: typing.Any, qparams: typing.Any, batches: Iterable[typing.Any]
) -> typing.Any:
    """Shifts every bias so that what it is added to has the mean, channel by channel, that it has in the float model.

    bias <- bias - (mean(y_rounded) - mean(y_float)), y being the sum with it, in the order of the program: each behind
    those that were corrected before it. Biases are found in the program: parameters of one number a channel that are
    added to activations, those of batch norms among them.

    Rounding a weight moves the mean of what it computes, since inputs after relu have a mean; later layers add this up.
    Use it at 4 bits and below where there is no batch norm; where there is, ``reestimate_batch_norm`` corrects the
    variance too.

    Args:
      fn: a pure function of ``(params, *args)``, such as a Linen ``model.apply``.
      params: its float parameters.
      qparams: the same tree with rounded weights, as QTensors or dequantized.
      batches: arguments of ``fn`` after the parameters: an array or a tuple each.

    Returns:
      ``qparams`` with other biases, in float where they were QTensors.

    Raises:
      TypeError: ``batches`` is one array.
      ValueError: there are no batches, or ``fn`` adds no bias outside of loops and branches.

    >>> import jax.numpy as jnp, jqz, jqz.algorithms
    >>> def model(params, x):
    ...     return x @ params["kernel"] + params["bias"][None]
    >>> params = {"kernel": jnp.array([[0.3], [1.0]]), "bias": jnp.zeros(1)}
    >>> qparams = jqz.quantize(params, jqz.Policy({"kernel": jqz.Symmetric(bits=2)}))
    >>> x = jnp.array([[1.0, 0.0], [2.0, 1.0]])
    >>> round(float(jqz.algorithms.correct_bias(model, params, qparams, [x])["bias"][0]), 3)
    0.45

    References: arXiv:1906.04721, section 4.2; arXiv:1810.05723.
    """

    def measure(walk: Walk, x: jax.Array, bias: str, axis: int) -> Moments:
        seen = Moments(axis=axis).update(x)
        name = walk.name(bias)
        walk.records[name] = Stacked(seen)
        return seen

    def watch(walk: Walk, x: jax.Array, bias: str, axis: int) -> Leaves:
        measure(walk, x, bias, axis)
        return {}

    model, inputs = bind_all("correct_bias", fn, batches)

    @jax.jit
    def run(params: typing.Any, args: tuple[typing.Any, ...]) -> dict[str, Stacked]:
        return walk_channels(model, params, args, Handlers(bias=watch))[1].records

    @jax.jit
    def corrected(params: typing.Any, wanted: Leaves, args: tuple[typing.Any, ...]) -> dict[str, Stacked]:
        def correct(walk: Walk, x: jax.Array, bias: str, axis: int) -> Leaves:
            seen = measure(walk, x, bias, axis)
            return {bias: wanted[bias] - seen.mean} if bias in wanted else {}

        return walk_channels(model, params, args, Handlers(bias=correct))[1].records

    exact = [run(params, batch) for batch in inputs]
    float_means = _means(exact)
    # a bias that is used twice has no one right value
    twice = {name.split("#")[0] for name in float_means if "#" in name}
    biases = _leaves(params, [name for name in float_means if "#" not in name and name not in twice])
    if not biases:
        raise ValueError(
            "correct_bias: found no bias outside of loops and branches. Use a model whose layers add one, "
            "such as nn.Dense(features, use_bias=True)."
        )

    def shifted(means: Leaves) -> Leaves:
        return {name: means[name] + bias.astype(work_dtype(bias)) for name, bias in biases.items()}

    # within a batch its own means are restored, not those of all: what comes later sees that batch as it is
    means = _means(
        [corrected(qparams, shifted(_means([one])), batch) for one, batch in zip(exact, inputs, strict=True)]
    )
    return replaced(qparams, {name: wanted - means[name] for name, wanted in shifted(float_means).items()})


def _means(records: list[dict[str, Stacked]]) -> dict[str, jax.Array]:
    def merged(name: str) -> typing.Any:
        return functools.reduce(Stacked.merge, [one[name] for one in records]).tree

    return {name: merged(name).mean for name in records[0]}


def _leaves(params: typing.Any, paths: list[str]) -> dict[str, jax.Array]:
    return {name: leaf for name, leaf in named_leaves(params) if name in paths}
