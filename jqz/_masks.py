"""What training methods that hold some weights fixed share: which leaves, which weights first, whose state."""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from jqz._learnable import Learnable
from jqz._policy import Decision, PolicyLike, resolve
from jqz._scheme import work_dtype

State = typing.TypeVar("State")
Value = typing.TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The leaves of a tree that a policy gives a scheme, and how to come back from them to the tree."""

    decisions: list[Decision]
    treedef: typing.Any

    def of(self, tree: typing.Any) -> list[typing.Any]:
        """What stands at the chosen leaves in a tree of this structure."""
        leaves = self.treedef.flatten_up_to(tree)
        return [leaf for leaf, d in zip(leaves, self.decisions, strict=True) if d.scheme is not None]

    def tree(self, chosen: typing.Iterable[typing.Any], others: typing.Any) -> typing.Any:
        """A tree with these at the chosen leaves, and at the other leaves what another tree has there."""
        at, rest = iter(chosen), self.treedef.flatten_up_to(others)
        return self.treedef.unflatten(
            [o if d.scheme is None else next(at) for o, d in zip(rest, self.decisions, strict=True)]
        )

    def named(self, values: typing.Iterable[Value]) -> dict[str, Value]:
        """What belongs to each chosen leaf under its path.

        A state holds it so, and not as a tree like the parameters: in NNX a leaf of those is a variable, which has
        no place for a grid or a QTensor.
        """
        return {d.path: value for d, value in zip(self, values, strict=True)}

    def at(self, who: str, named: dict[str, Value]) -> list[Value]:
        """What a state holds for each chosen leaf."""
        for d in self:
            if d.path not in named:
                raise ValueError(
                    f"{who}: the state has nothing for {d.path!r}; it knows {list(named)}. "
                    "Use the policy and the parameters that it was made with."
                )
        return [named[d.path] for d in self]

    def __iter__(self) -> typing.Iterator[Decision]:
        return (d for d in self.decisions if d.scheme is not None)


def choose(who: str, policy: PolicyLike, params: typing.Any) -> Chosen:
    """The leaves of params that a policy gives a scheme: floating arrays."""
    if params is None:
        raise ValueError(f"{who}: got no params. Use optimizer.update(grads, state, params).")
    chosen = Chosen(*resolve(who, policy, params))
    for d in chosen:
        if isinstance(d.leaf, Learnable):
            raise TypeError(
                f"{who}: {d.path!r} learns its grid, which {who} holds fixed. "
                "Use params without jqz.learnable, or map this path to None."
            )
        if not hasattr(d.leaf, "dtype") or not jnp.issubdtype(d.leaf.dtype, jnp.floating):
            raise TypeError(f"{who}: {d.path!r} is no floating array. Map this path to None.")
    paths = [d.path for d in chosen]
    if len(set(paths)) < len(paths):
        raise ValueError(f"{who}: two leaves have the same path, of {sorted(paths)}. Rename one of them.")
    return chosen


def replaced(update: jax.Array, way: jax.Array, where: jax.Array) -> jax.Array:
    """An update with another one in some places, in a dtype that holds both exactly.

    A narrow way would miss where it leads to; ``optax.apply_updates`` comes back to the dtype of the weights.
    """
    wide = way.dtype if way.dtype == update.dtype else jnp.promote_types(work_dtype(way), work_dtype(update))
    return jnp.where(where, way.astype(wide), update.astype(wide))


def rank(score: jax.Array) -> jax.Array:
    """The place of each value in falling order, int32 in its shape; equal values in the order of their flat index.

    A threshold would take all of several equal values or none; a rank takes as many as asked for.

    >>> rank(jnp.array([[1.0, 3.0], [3.0, 2.0]])).tolist()
    [[3, 0], [1, 2]]
    """
    order = jnp.argsort(score.reshape(-1), descending=True, stable=True)
    places = jnp.arange(score.size, dtype=jnp.int32)
    return jnp.zeros(score.size, jnp.int32).at[order].set(places, unique_indices=True).reshape(score.shape)


def find(who: str, state: typing.Any, kind: type[State]) -> State:
    """The one state of a kind inside the state of an optimizer."""
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    found = [leaf for leaf in leaves if isinstance(leaf, kind)]
    if len(found) != 1:
        raise ValueError(
            f"{who}: the state holds {len(found)} {kind.__name__}, wanted one. "
            f"Use the state of the optimizer that {who} is part of, or its {kind.__name__}."
        )
    return found[0]
