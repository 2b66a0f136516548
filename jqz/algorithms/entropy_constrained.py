"""Codes that take few bits in a file: rounding that weighs errors against the entropy of the codes."""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from jqz._descent import Pick, Problem, State, descend
from jqz._layers import Layer, level_table, output_error, round_layers, row_encoder
from jqz._policy import PolicyLike
from jqz._rows import Contraction
from jqz._scheme import Scheme
from jqz._sites import Stats


def entropy_constrained(
    params: typing.Any,
    policy: PolicyLike,
    stats: Stats,
    *,
    error: float = 1.0,
    sweeps: int = 4,
    trials: int = 10,
    damping: float = 0.01,
    block: int = 128,
) -> typing.Any:
    """Rounds weights to codes of the least entropy that change what a layer computes no more than nearest rounding.

    ``jqz.save(..., compress=jqz.files.Entropy())`` stores n codes, n_c of which are c, in about sum n_c log2(n / n_c)
    bits. With D = Q - W and G = X^T X as observed, coordinate descent lowers ::

        sum(D (G D)) + price * bits(codes),   bits of a code c = log2((n + levels) / (n_c + 1)), counted in each sweep:

    each weight moves to the level that is best while all others stay. What is gained by letting errors make up for
    each other pays for frequent codes. ``trials`` of bisection find the highest price at which the error is within
    its limit, layer by layer; of all that are within it, the codes with the least entropy are taken. Where none are,
    those of the least error are.

    Use it for files, at 3 to 8 bits: a fine grid of few frequent codes is better than a coarse one of even codes. Where
    the size in memory counts, use ``gptq``. Layers of equal error do not make nets of equal loss: measure, and
    lower ``error`` where much is lost; 0.5 is a careful choice.

    Args:
      params: any pytree of floating arrays.
      policy: as for ``quantize``; the weights that it selects need statistics. Schemes have at most 8 bits.
      stats: of ``observe(fn, policy, jqz.observers.Gram())``, merged over batches.
      error: how large the squared change of a layer's output may be, in units of that of nearest rounding.
      sweeps: of coordinate descent for each price.
      trials: prices.
      damping: share of the mean of the diagonal of G that is added to it, which keeps weights that meet little near
        to what they were.
      block: terms that are rounded before the others are told; affects speed alone.

    Returns:
      The same tree with QTensor leaves.

    Raises:
      ValueError: a scheme has more than 8 bits, or the limit is negative; as ``gptq``.
      TypeError: as ``quantize``.

    >>> import jax, jax.numpy as jnp, jqz, jqz.algorithms
    >>> def model(params, x):
    ...     return x @ params["w"]
    >>> policy = jqz.Policy(jqz.Symmetric(bits=4), inputs=jqz.Symmetric(bits=8))
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> x = jax.random.normal(keys[0], (64, 16)) @ jax.random.normal(keys[1], (16, 16))
    >>> params = {"w": jax.random.normal(keys[2], (16, 32))}
    >>> stats = jqz.observe(model, policy, jqz.observers.Gram())(params, x)
    >>> rounded = jqz.algorithms.entropy_constrained(params, policy, stats), jqz.quantize(params, policy)
    >>> errors = [jnp.linalg.norm(model(jqz.dequantize(q), x) - model(params, x)) for q in rounded]
    >>> counts = [jnp.unique_counts(q["w"].codes).counts / 512 for q in rounded]
    >>> bits = [-jnp.sum(p * jnp.log2(p)) for p in counts]
    >>> bool(errors[0] <= errors[1]), bool(bits[0] < 0.95 * bits[1])
    (True, True)

    References: entropy-constrained quantization, Chou, Lookabaugh and Gray 1989 (doi:10.1109/29.17498); for weights
    arXiv:1612.01543; errors that make up for each other as in arXiv:2309.01885.
    """
    if not (error >= 0 and damping > 0):
        raise ValueError(
            f"entropy_constrained: got error={error!r} and damping={damping!r}, wanted a limit of 0 or more and a "
            "positive share. Use error=1.0, damping=0.01."
        )
    if block < 1:
        raise ValueError(f"entropy_constrained: got block={block!r}, wanted 1 term or more. Use block=128.")
    rounder = _Priced(float(error), int(sweeps), int(trials), float(damping), int(block))
    return round_layers("entropy_constrained", params, policy, stats, rounder)


class _Found(typing.NamedTuple):
    """Codes that are within the limit, and their entropy in bits."""

    codes: jax.Array
    bits: jax.Array


@dataclasses.dataclass(frozen=True)
class _Priced:
    """The rounder of one layer."""

    error: float
    sweeps: int
    trials: int
    damping: float
    block: int

    def __call__(self, layer: Layer, scheme: Scheme, contraction: Contraction) -> jax.Array:
        if scheme.bits > 8:
            raise ValueError(f"{scheme!r} has {scheme.bits} bits, wanted at most 8. Use gptq, or fewer bits.")
        gram, weight = layer.products, contraction.matrix(layer.weight)
        terms = weight.shape[1]
        mean = jnp.mean(jnp.diagonal(gram, axis1=1, axis2=2), axis=1)
        damped = gram + (self.damping * mean)[:, None, None] * jnp.eye(terms, dtype=gram.dtype)[None]
        problem = Problem.of(damped, weight, jnp.arange(terms, dtype=jnp.int32), self.block)
        encode, table = row_encoder(layer, scheme, contraction), level_table(layer, scheme, contraction)
        start = problem.nearest(lambda row, place: encode(row, problem.order[place]))
        first = table(jnp.zeros((), jnp.int32))[0][0].astype(jnp.int32)

        def lengths(codes: jax.Array) -> tuple[jax.Array, jax.Array]:
            """The bits of each code, and of all together."""
            counts = jnp.zeros(2**scheme.bits, weight.dtype)
            counts = counts.at[codes[:, :terms].astype(jnp.int32).reshape(-1) - first].add(1)
            size = codes[:, :terms].size
            entropy = -jnp.sum(counts * jnp.log2(jnp.maximum(counts, 1) / size))
            return jnp.log2((size + 2**scheme.bits) / (counts + 1)), entropy

        def total(values: jax.Array) -> jax.Array:
            return jnp.sum(output_error(gram, values[:, :terms] - weight))

        def sweep(price: jax.Array, state: State) -> State:
            costs = price * lengths(state[0])[0]

            def pick(best: jax.Array, curve: jax.Array, code: jax.Array, place: jax.Array) -> Pick:
                codes, values, used = table(problem.order[place])
                cost = curve[None] * (values - best[None]) ** 2 + costs[:, None, None]
                chosen = jnp.argmin(jnp.where(used, cost, jnp.inf), axis=0)
                value = jnp.take_along_axis(values, chosen[None], axis=0)[0]
                return Pick(codes[chosen], value, costs[code.astype(jnp.int32) - first] - costs[chosen])

            return descend(problem, pick, state)

        nearest = total(start[1])
        # the error of one weight, on average: what a bit is worth is of this size
        unit = nearest / weight.size

        def trial(i: jax.Array, carry: typing.Any) -> typing.Any:
            low, high, base, found = carry
            power, free = (low + high) / 2, i == 0
            price = jnp.where(free, 0, unit * jnp.exp2(power))
            state = jax.lax.fori_loop(0, self.sweeps, lambda _, state: sweep(price, state), base)
            bits, within = lengths(state[0])[1], total(state[1]) <= self.error * nearest
            better = within & (bits < found.bits)
            # where the limit is out of reach, the codes of the least error
            better |= free & jnp.isinf(found.bits) & (total(state[1]) <= nearest)
            bits = jnp.where(within, bits, jnp.inf)
            found = _Found(*(jnp.where(better, a, b) for a, b in zip((state[0], bits), found, strict=True)))
            low, high = jnp.where(within & ~free, power, low), jnp.where(within | free, high, power)
            # the codes of the least error, at price 0, are where all prices start
            return low, high, tuple(jnp.where(free, a, b) for a, b in zip(state, base, strict=True)), found

        ends = (jnp.asarray(end, weight.dtype) for end in (-8, 8))
        found = _Found(start[0], lengths(start[0])[1] if self.error >= 1 else jnp.asarray(jnp.inf, weight.dtype))
        found = jax.lax.fori_loop(0, self.trials + 1, trial, (*ends, start, found))[3]
        return contraction.weight(problem.back(found.codes, terms), layer.weight.shape)
