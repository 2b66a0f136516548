"""Embedding look-up: decode the rows that are taken, not the table."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jqz._values import Coded, Value, group_length
from jqz._walk import Equation, Rule


def _gather(eqn: Equation, table: Value, indices: Value) -> Sequence[Value] | None:
    if not isinstance(table, Coded) or not _takes_rows(eqn, table, indices):
        return None
    rows, shared, at = table.shape[0], _shared(table), indices[..., 0]
    last = min(rows - 1, int(jnp.iinfo(at.dtype).max))  # an int8 index cannot be compared with 299
    row = jnp.clip(at, 0, last).astype(jnp.int32)

    def take(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] != rows and leaf.shape[0] == 1:
            return leaf.reshape((1,) * at.ndim + leaf.shape[1:])
        place = row if leaf.shape[0] == rows else row // shared
        return jnp.asarray(leaf).at[place].get(mode="promise_in_bounds")

    q = dataclasses.replace(
        table.tensor, payload=take(table.tensor.payload), grid=jax.tree.map(take, table.tensor.grid)
    )
    taken = dataclasses.replace(table, tensor=q).decode()
    if eqn.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP:
        fill = eqn.params["fill_value"]
        inside = ((at >= 0) & (at <= last)).reshape(at.shape + (1,) * (taken.ndim - at.ndim))
        taken = jnp.where(inside, taken, jnp.asarray(jnp.nan if fill is None else fill, taken.dtype))
    return [taken]


def _shared(table: Coded) -> int:
    """How many rows share an entry of a grid that has neither one entry nor one a row."""
    return group_length(table.tensor.scheme, 0, table.ndim) or 1


def _takes_rows(eqn: Equation, table: Coded, indices: Value) -> bool:
    """Whether whole entries of the leading axis are taken, in the order numpy's ``table[indices]`` gives them."""
    dims, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    batch, rows, shared = indices.ndim - 1, table.shape[0], _shared(table)
    return (
        table.ndim >= 2
        and tuple(dims.start_index_map) == (0,)
        and tuple(dims.collapsed_slice_dims) == (0,)
        and not getattr(dims, "operand_batching_dims", ())
        and tuple(dims.offset_dims) == tuple(range(batch, batch + table.ndim - 1))
        and tuple(sizes) == (1, *table.shape[1:])
        and all(leaf.shape[0] in (1, rows, -(-rows // shared)) for leaf in jax.tree.leaves(table.tensor.grid))
    )


RULES: dict[str, Rule] = {"gather": _gather}
