"""What an observer is."""

import abc
import dataclasses
import typing

import jax
import jax.numpy as jnp

from jqz._granularity import PerTensor
from jqz._ranges import MinMax
from jqz._scheme import Chain, Grid, Scheme


class Observer(abc.ABC):
    """A statistic of float arrays that can be updated and merged: a frozen dataclass and a pytree.

    Its array fields are the state; their defaults are scalars that describe having seen nothing.
    """

    @abc.abstractmethod
    def update(self, x: jax.Array) -> typing.Self:
        """This statistic after seeing ``x`` as well."""

    @abc.abstractmethod
    def merge(self, other: typing.Any) -> typing.Self:
        """The statistic of what both have seen."""

    @abc.abstractmethod
    def limits(self, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
        """The lowest and highest value that a grid of this scheme should cover; scalars."""

    def empty(self) -> typing.Self:
        """The statistic of nothing, with the same settings: the neutral element of ``merge``."""
        arrays = {
            f.name: f.default_factory()
            for f in dataclasses.fields(typing.cast(typing.Any, self))
            if f.default_factory is not dataclasses.MISSING
        }
        return dataclasses.replace(typing.cast(typing.Any, self), **arrays)

    init = empty

    def grid(self, scheme: Scheme, ndim: int) -> Grid:
        """The per-tensor grid of a scheme for what was seen, for arrays of rank ``ndim``."""
        low, high = self.limits(scheme)
        seen = jnp.stack([low, high]).reshape((2,) + (1,) * (ndim - 1)) if ndim else jnp.maximum(-low, high)
        return covering(scheme).calibrate(seen)


def covering(scheme: Scheme) -> Scheme:
    """The scheme with one grid that covers all it is shown: the range has been estimated already."""
    if isinstance(scheme, Chain):
        return Chain((covering(scheme.stages[0]), *scheme.stages[1:]))
    fields = {f.name for f in dataclasses.fields(typing.cast(typing.Any, scheme))}
    changes: dict[str, typing.Any] = {"granularity": PerTensor()} if "granularity" in fields else {}
    if "range" in fields:
        changes["range"] = MinMax()
    return dataclasses.replace(typing.cast(typing.Any, scheme), **changes) if changes else scheme
