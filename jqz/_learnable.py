"""A weight with the grid that is trained beside it."""

import dataclasses
import typing

import jax

from jqz._qtensor import QTensor
from jqz._scheme import Grid, Scheme


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Learnable:
    """A float weight and its grid: two parameters in the place of one; made by ``learnable``.

    ``fake_quantize``, ``simulated`` and ``quantize`` round the value on the grid instead of calibrating one.
    """

    value: jax.Array
    grid: Grid
    scheme: Scheme = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def size(self) -> int:
        return self.value.size

    @property
    def dtype(self) -> typing.Any:
        return self.value.dtype

    def __jax_array__(self) -> jax.Array:
        raise TypeError(
            "a weight with a learned grid met a JAX function; wrap the model: simulated(model.apply, policy), "
            "or round it: fake_quantize(variables, policy)."
        )


def is_whole(x: typing.Any) -> bool:
    """Whether x stands for one weight; an ``is_leaf`` for ``jax.tree.map``."""
    return isinstance(x, QTensor | Learnable)


def value_and_grid(who: str, path: str, leaf: typing.Any, scheme: Scheme | None) -> tuple[typing.Any, Grid]:
    """The float value of a leaf, and its own grid if it has one for this scheme."""
    if not isinstance(leaf, Learnable):
        return leaf, None
    if scheme is not None and scheme != leaf.scheme:
        raise ValueError(
            f"{who}: {path!r} has learned a grid of {leaf.scheme!r}, and the policy gives it {scheme!r}. "
            "Use the policy that learnable was given."
        )
    return leaf.value, None if scheme is None else leaf.grid
