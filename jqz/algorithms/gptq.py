"""Rounding in order, each error made up for by the weights that are still float: GPTQ, then coordinate descent."""

import abc
import dataclasses
import typing

import jax
import jax.numpy as jnp

from jqz._descent import Pick, Problem, State, descend, put, rows_of
from jqz._layers import Layer, output_error, round_layers, row_encoder
from jqz._policy import PolicyLike
from jqz._rows import Contraction
from jqz._scheme import Scheme
from jqz._sites import Stats


class Order(abc.ABC):
    """In which order the terms of a sum are rounded."""

    @abc.abstractmethod
    def of(self, energy: jax.Array) -> jax.Array:
        """The terms in order, given the sum of squares of what each meets."""


@typing.final
@dataclasses.dataclass(frozen=True)
class AsStored(Order):
    """The order that the weight has."""

    def of(self, energy: jax.Array) -> jax.Array:
        return jnp.arange(energy.shape[0], dtype=jnp.int32)


@typing.final
@dataclasses.dataclass(frozen=True)
class LargestFirst(Order):
    """Terms that meet large inputs first, while many others can make up for their errors ("act-order")."""

    def of(self, energy: jax.Array) -> jax.Array:
        return jnp.argsort(-energy).astype(jnp.int32)


def gptq(
    params: typing.Any,
    policy: PolicyLike,
    stats: Stats,
    *,
    damping: float = 0.01,
    order: Order = LargestFirst(),
    sweeps: int = 4,
    block: int = 128,
) -> typing.Any:
    """Rounds weights so that what they compute changes least: min ||X W - X Q||**2 with X as observed.

    With G = X^T X + damping mean(diag G) I and U the upper Cholesky factor of its inverse, U^T U = G^-1, the terms
    of the sum are rounded in ``order``: ::

        e = (W[i] - Q(W[i])) / U[i, i],   W[j] <- W[j] - U[i, j] e   for all j that come later.

    Then come ``sweeps`` of coordinate descent on the same objective, without damping: each weight moves to the level
    nearest to the optimum that all others leave it, Q[i] <- Q(Q[i] - (G (Q - W))[i] / G[i, i]). An output for which
    nearest rounding is better starts there, so the error of no output is larger than that of nearest rounding.

    It takes any scheme, on the grid that the scheme chooses for the float weight: a uniform one, powers of two, a
    codebook, groups, a chain; for weights of dots and of convolutions, grouped or not, and for stacks of scanned
    layers. A term that meets nothing but zeros is rounded to nearest.

    Use it at 2 to 4 bits with a few hundred inputs, at least as many rows as terms. At 8 bits nearest rounding is as
    good.

    Args:
      params: any pytree of floating arrays.
      policy: as for ``quantize``; the weights that it selects need statistics.
      stats: of ``observe(fn, policy, jqz.observers.Gram())``, merged over batches.
      damping: share of the mean of the diagonal that is added to it; ten times as much where the factorization fails.
      order: ``LargestFirst()`` or ``AsStored()``.
      sweeps: of coordinate descent; 0 for GPTQ as published.
      block: terms that are rounded before the others are told; affects speed alone.

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
    >>> rounded = jqz.algorithms.gptq(params, policy, stats), jqz.quantize(params, policy)
    >>> errors = [jnp.linalg.norm(model(jqz.dequantize(q), x) - model(params, x)) for q in rounded]
    >>> bool(errors[0] < 0.6 * errors[1])
    True

    References: arXiv:2210.17323; coordinate descent arXiv:2309.01885.
    """
    if not damping > 0:
        raise ValueError(f"gptq: got damping={damping!r}, wanted a positive share. Use damping=0.01.")
    if block < 1 or sweeps < 0:
        raise ValueError(
            f"gptq: got block={block!r} and sweeps={sweeps!r}, wanted 1 or more and 0 or more. Use 128, 4."
        )
    if not isinstance(order, Order):
        raise TypeError(f"gptq: got order={order!r}, wanted an Order. Use jqz.algorithms.LargestFirst().")
    rounder = _Gptq(float(damping), order, int(sweeps), int(block))
    return round_layers("gptq", params, policy, stats, rounder)


@dataclasses.dataclass(frozen=True)
class _Gptq:
    """The rounder of one layer."""

    damping: float
    order: Order
    sweeps: int
    block: int

    def __call__(self, layer: Layer, scheme: Scheme, contraction: Contraction) -> jax.Array:
        order = self.order.of(jnp.sum(jnp.diagonal(layer.products, axis1=1, axis2=2), axis=0))
        problem = Problem.of(layer.products, contraction.matrix(layer.weight), order, self.block)
        gram, weight, order, block = problem
        encode = row_encoder(layer, scheme, contraction)

        def rounded(row: jax.Array, place: jax.Array) -> State:
            return encode(row, order[place])

        start = problem.nearest(rounded)
        feedback = _in_order(gram, weight, rounded, start, self.damping, block)
        errors = [output_error(gram, values - weight) for _, values in (feedback, start)]
        better = (errors[0] < errors[1])[:, None]
        state = tuple(jnp.where(better, a, b) for a, b in zip(feedback, start, strict=True))

        def pick(best: jax.Array, curve: jax.Array, code: jax.Array, place: jax.Array) -> Pick:
            return Pick(*rounded(best, place), jnp.zeros_like(best))

        if self.sweeps:
            state = jax.lax.fori_loop(0, self.sweeps, lambda _, state: descend(problem, pick, state), state)
        terms = contraction.terms(layer.weight.shape)
        return contraction.weight(problem.back(state[0], terms), layer.weight.shape)


def _inverse_factor(gram: jax.Array, damping: float) -> jax.Array:
    """U, upper triangular, with U^T U the inverse of the damped Gram matrix; damped more wherever that fails."""
    diagonal = jnp.diagonal(gram, axis1=1, axis2=2)
    mean = jnp.mean(diagonal, axis=1, keepdims=True)
    dead = diagonal == 0
    eye = jnp.eye(gram.shape[-1], dtype=gram.dtype)

    def factor(share: jax.Array) -> jax.Array:
        added = jnp.where(dead, jnp.where(mean > 0, mean, 1), share * mean)
        lower = jnp.linalg.cholesky(gram + added[:, :, None] * eye[None])
        half = jax.lax.linalg.triangular_solve(lower, jnp.broadcast_to(eye, gram.shape), left_side=True, lower=True)
        inverse = jnp.matmul(jnp.swapaxes(half, 1, 2), half, precision=jax.lax.Precision.HIGHEST)
        return jnp.swapaxes(jnp.linalg.cholesky(inverse), 1, 2)

    def failed(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        share, found = state
        return ~jnp.all(jnp.isfinite(found)) & (share < 1e6)

    def again(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        share = 10 * state[0]
        return share, factor(share)

    first = jnp.asarray(damping, gram.dtype)
    return jax.lax.while_loop(failed, again, (first, factor(first)))[1]


def _in_order(
    gram: jax.Array, weight: jax.Array, rounded: typing.Any, start: State, damping: float, block: int
) -> State:
    """One pass in which every error is fed forward."""
    upper = _inverse_factor(gram, damping)
    later = jnp.arange(weight.shape[1])

    def of_block(number: jax.Array, carry: typing.Any) -> typing.Any:
        weight, state = carry
        first = number * block
        factors = rows_of(upper, first, block)  # (groups, block, terms)
        inner = jax.lax.dynamic_slice_in_dim(factors, first, block, axis=2)

        def of_term(i: jax.Array, carry: typing.Any) -> typing.Any:
            rows, errors, (codes, values) = carry
            row = rows[:, i]
            code, value = rounded(row, first + i)
            error = (row - value) / inner[:, i, i, None]
            rows = rows - inner[:, i, :, None] * error[:, None]  # those before i have a factor of 0
            errors = put(errors, error[:, None], i)
            return rows, errors, (put(codes, code[:, None], first + i), put(values, value[:, None], first + i))

        rows = rows_of(weight, first, block)
        rows, errors, state = jax.lax.fori_loop(0, block, of_term, (rows, jnp.zeros_like(rows), state))
        ahead = jnp.where((later >= first + block)[None, None], factors, 0)
        moved = jnp.einsum("gbt,gbo->gto", ahead, errors, precision=jax.lax.Precision.HIGHEST)
        return weight - moved, state

    return jax.lax.fori_loop(0, weight.shape[1] // block, of_block, (weight, start))[1]
