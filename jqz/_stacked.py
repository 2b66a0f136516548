"""What belongs to a place in a program that scans may repeat."""

import dataclasses
import typing

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stacked:
    """A pytree that belongs to a place in a program; one for each step of the scans around it, outermost first."""

    tree: typing.Any
    lengths: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

    def merge(self, other: "Stacked") -> "Stacked":
        """Merges step by step."""
        merge = lambda a, b: a.merge(b)  # noqa: E731
        for _ in self.lengths:
            merge = jax.vmap(merge)
        return Stacked(merge(self.tree, other.tree), self.lengths)

    def folded(self, length: int) -> "Stacked":
        """All steps of a scan merged into one, for a place whose weight every step shares."""

        def step(total, one):
            return total.merge(Stacked(one, self.lengths)), None

        start = jax.tree.map(lambda t: t[0], self.tree)
        rest = jax.tree.map(lambda t: t[1:], self.tree)
        return jax.lax.scan(step, Stacked(start, self.lengths), rest, length=length - 1)[0]

    def empty(self) -> "Stacked":
        """The neutral element of every step."""
        return Stacked(
            jax.tree.map(lambda e, t: jnp.broadcast_to(e, t.shape), self.tree.empty(), self.tree), self.lengths
        )
