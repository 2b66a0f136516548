"""Embedding look-up: decode the rows that are taken, not the table."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jqz._interpret import Equation, Rule
from jqz._values import Coded, Value


def _gather(eqn: Equation, table: Value, indices: Value) -> Sequence[Value] | None:
    if not isinstance(table, Coded) or not _takes_rows(eqn, table, indices):
        return None
    q, rows = table.tensor, table.shape[0]
    at = indices[..., 0]
    clipped = jnp.clip(at, 0, rows - 1)

    def take(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] == rows:
            return leaf.at[clipped].get(mode="promise_in_bounds")
        return leaf.reshape((1,) * at.ndim + leaf.shape[1:])

    taken = dataclasses.replace(q, payload=take(q.payload), grid=jax.tree.map(take, q.grid)).dequantize()
    if eqn.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP:
        fill = eqn.params["fill_value"]
        inside = ((at >= 0) & (at < rows)).reshape(at.shape + (1,) * (taken.ndim - at.ndim))
        taken = jnp.where(inside, taken, jnp.asarray(jnp.nan if fill is None else fill, taken.dtype))
    return [taken]


def _takes_rows(eqn: Equation, table: Coded, indices: Value) -> bool:
    """Whether whole entries of the leading axis are taken, in the order numpy's ``table[indices]`` gives them."""
    dims, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    batch = indices.ndim - 1
    return (
        table.ndim >= 2
        and tuple(dims.start_index_map) == (0,)
        and tuple(dims.collapsed_slice_dims) == (0,)
        and not getattr(dims, "operand_batching_dims", ())
        and tuple(dims.offset_dims) == tuple(range(batch, batch + table.ndim - 1))
        and tuple(sizes) == (1, *table.shape[1:])
        and all(leaf.shape[0] in (1, table.shape[0]) for leaf in jax.tree.leaves(table.tensor.grid))
    )


RULES: dict[str, Rule] = {"gather": _gather}
