"""Rounding up or down, learned for what a layer computes: AdaRound."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import optax

from jqz._layers import Layer, output_error, round_layers
from jqz._policy import PolicyLike
from jqz._rows import Contraction
from jqz._scheme import Scheme
from jqz._sites import Stats
from jqz._soft_rounding import Annealing, annealing, inverse, neighbours, soft


def adaround(
    params: typing.Any,
    policy: PolicyLike,
    stats: Stats,
    *,
    steps: int = 1000,
    learning_rate: float = 0.03,
    strength: float = 5.0,
    beta: tuple[float, float] = (20.0, 2.0),
    warm_up: float = 0.2,
) -> typing.Any:
    """Rounds each weight up or down, whichever is learned to change what the layer computes least.

    Between the two levels next to a weight, low <= W <= high, it moves continuously, ::

        Q = low + h(V) (high - low),   h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1),

    from h = (W - low) / (high - low), where Q = W. Adam minimizes, with D = Q - W and G = X^T X as observed, ::

        sum(D (G D)) / mean(diag(G) (high - low)**2 / 12) + strength sum(1 - abs(2 h - 1)**beta),

    each output by itself. The second sum drives h to 0 or 1. It is left out for the ``warm_up``; then beta falls on a
    cosine. Outputs for which nearest rounding is better keep it. The unit of the first sum is what one weight loses
    where errors are independent, so that one strength serves all layers; from 3 to 30 it matters little.

    It takes any scheme whose neighbouring codes are neighbouring levels, as those of all schemes but ``Float`` and
    ``BlockFloat`` are; among theirs, and where a weight lies beyond the outermost level, fewer weights can move.

    Use it at 2 to 4 bits with a few hundred inputs. It is often better than ``gptq``, which is faster and may move
    weights further than to the next level.

    Args:
      params: any pytree of floating arrays.
      policy: as for ``quantize``; the weights that it selects need statistics.
      stats: of ``observe(fn, policy, jqz.observers.Gram())``, merged over batches.
      steps: of Adam, each a product with G; 3000 gain some per cent for weights of 500 terms or more.
      learning_rate: of Adam.
      strength: of the second sum.
      beta: its exponent at first and in the end.
      warm_up: share of the steps without it.

    Returns:
      The same tree with QTensor leaves.

    Raises:
      ValueError: the statistics have nothing of a weight, or do not tell how it is multiplied.
      TypeError: as ``quantize``.

    >>> import jax, jax.numpy as jnp, jqz, jqz.algorithms
    >>> def model(params, x):
    ...     return x @ params["w"]
    >>> policy = jqz.Policy(jqz.Symmetric(bits=3), inputs=jqz.Symmetric(bits=8))
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> x = jax.random.normal(keys[0], (64, 16)) @ jax.random.normal(keys[1], (16, 16))
    >>> params = {"w": jax.random.normal(keys[2], (16, 8))}
    >>> stats = jqz.observe(model, policy, jqz.observers.Gram())(params, x)
    >>> rounded = jqz.algorithms.adaround(params, policy, stats), jqz.quantize(params, policy)
    >>> errors = [jnp.linalg.norm(model(jqz.dequantize(q), x) - model(params, x)) for q in rounded]
    >>> bool(errors[0] < 0.7 * errors[1])
    True

    References: arXiv:2004.10568.
    """
    rounder = _AdaRound(annealing("adaround", steps, strength, beta, warm_up), float(learning_rate))
    return round_layers("adaround", params, policy, stats, rounder)


@dataclasses.dataclass(frozen=True)
class _AdaRound:
    """The rounder of one layer."""

    annealing: Annealing
    learning_rate: float

    def __call__(self, layer: Layer, scheme: Scheme, contraction: Contraction) -> jax.Array:
        codes, other, values, beyond = neighbours(layer.weight, layer.grid, scheme, layer.dtype)
        gram, weight, near, far = layer.products, *map(contraction.matrix, (layer.weight, values, beyond))
        gap = jnp.abs(far - near)
        low, moves = jnp.minimum(near, far), gap > 0
        share = jnp.where(moves, (weight - low) / jnp.where(moves, gap, 1), 0)
        diagonal = jnp.diagonal(gram, axis1=1, axis2=2)
        # what an output would lose if its errors were independent and even
        usual = jnp.mean(diagonal[:, :, None] * gap**2, axis=1, keepdims=True) / 12
        unit = jnp.where(usual > 0, usual, 1)

        optimizer = optax.adam(self.learning_rate)

        def step(i: jax.Array, carry: typing.Any) -> typing.Any:
            v, state = carry
            h, back = jax.vjp(soft, v)
            change = low + h * gap - weight
            slope = 2 * gap * jnp.matmul(gram, change, precision=jax.lax.Precision.HIGHEST) / unit
            slope = slope + self.annealing.slope(h, i)
            with jax.numpy_dtype_promotion("standard"):  # Adam raises floats to its integer count
                updates, state = optimizer.update(back(slope)[0], state)
            return v + typing.cast(jax.Array, updates), state

        start = inverse(share)
        v, _ = jax.lax.fori_loop(0, self.annealing.steps, step, (start, optimizer.init(start)))
        up = (soft(v) >= 0.5) == (far > near)
        found = jnp.where(moves & up, far, near)
        errors = [output_error(gram, values - weight) for values in (found, near)]
        chosen = moves & up & (errors[0] < errors[1])[:, None]
        return jnp.where(contraction.weight(chosen, codes.shape), other, codes)
