"""Coordinate descent on the codes of a weight: each moves to the best level that all others leave it."""

import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp

State = tuple[jax.Array, jax.Array]  # codes and values, (groups, terms, outputs)


class Problem(typing.NamedTuple):
    """Products of inputs and a weight as matrices, terms in order, in whole blocks.

    What is added to fill a block meets nothing and changes nothing. ``order`` has the place of each term in the weight.
    """

    gram: jax.Array
    weight: jax.Array
    order: jax.Array
    block: int

    @classmethod
    def of(cls, gram: jax.Array, weight: jax.Array, order: jax.Array, block: int) -> "Problem":
        terms = weight.shape[1]
        block = min(block, terms)
        more = -terms % block
        order = jnp.pad(order, (0, more), constant_values=0)
        real = jnp.arange(terms + more) < terms
        gram = jnp.where((real[:, None] & real[None, :])[None], gram[:, order][:, :, order], 0)
        return cls(gram, jnp.where(real[None, :, None], weight[:, order], 0), order, block)

    def back(self, codes: jax.Array, terms: int) -> jax.Array:
        """Codes of the terms in the order that the weight has."""
        real = jnp.arange(self.order.shape[0]) < terms
        return codes[:, jnp.argsort(jnp.where(real, self.order, terms))[:terms]]

    def nearest(self, rounded: Callable[[jax.Array, jax.Array], State]) -> State:
        """Every term rounded by itself; ``rounded`` takes values of one term and the term's place."""
        rows = jnp.moveaxis(self.weight, 1, 0), jnp.arange(self.weight.shape[1])
        codes, values = jax.lax.map(lambda at: rounded(*at), rows)
        return jnp.moveaxis(codes, 0, 1), jnp.moveaxis(values, 0, 1)


class Pick(typing.NamedTuple):
    """A level for each output: its code, its value, and what is saved beside the error by moving there."""

    code: jax.Array
    value: jax.Array
    saved: jax.Array


#: ``(best, curve, code, place) -> Pick``: what replaces ``code`` where ``best`` is the optimum of the error, whose
#: growth away from it is ``curve`` times the square.
Picker = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Pick]


def descend(problem: Problem, pick: Picker, state: State) -> State:
    """One sweep over all terms: no step makes the error of an output, less what is saved, larger."""
    gram, weight, _, block = problem

    def of_block(number: jax.Array, state: State) -> State:
        first = number * block
        rows = rows_of(gram, first, block)
        inner = jax.lax.dynamic_slice_in_dim(rows, first, block, axis=2)
        slope = jnp.matmul(rows, state[1] - weight, precision=jax.lax.Precision.HIGHEST)

        def of_term(i: jax.Array, carry: typing.Any) -> typing.Any:
            slope, (codes, values) = carry
            place = first + i
            curve, old, code = inner[:, i, i, None], values[:, place], codes[:, place]
            best = old - slope[:, i] / jnp.where(curve > 0, curve, 1)
            new = pick(best, curve, code, place)
            step = new.value - old
            gains = step * (curve * step + 2 * slope[:, i]) < new.saved
            step = jnp.where(gains, step, 0)
            state = (
                put(codes, jnp.where(gains, new.code, code)[:, None], place),
                put(values, jnp.where(gains, new.value, old)[:, None], place),
            )
            return slope + inner[:, :, i, None] * step[:, None], state

        return jax.lax.fori_loop(0, block, of_term, (slope, state))[1]

    return jax.lax.fori_loop(0, weight.shape[1] // block, of_block, state)


def rows_of(array: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """Terms from ``start`` on."""
    return jax.lax.dynamic_slice_in_dim(array, start, size, axis=1)


def put(array: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    """The array with other terms from ``start`` on."""
    return jax.lax.dynamic_update_slice_in_dim(array, rows.astype(array.dtype), start, axis=1)
