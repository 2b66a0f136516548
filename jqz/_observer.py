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

    Its array fields are the state; their defaults are scalars that describe having seen nothing, and broadcast to
    the shapes that the state has once something was seen. Settings are static fields.

    NaN and infinity have no place in a range: extremes that met one are NaN, and ``calibrate`` names the site.
    Empty arrays change nothing. Every dtype is measured in float32.
    """

    #: ``observe`` shows it rows of terms, by ``update_rows(x, contraction)``, wherever it can.
    by_rows: typing.ClassVar[bool] = False

    @abc.abstractmethod
    def update(self, x: jax.Array) -> typing.Self:
        """This statistic after seeing ``x`` as well."""

    @abc.abstractmethod
    def merge(self, other: typing.Any) -> typing.Self:
        """The statistic of what both have seen."""

    @abc.abstractmethod
    def limits(self, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
        """The lowest and highest value that a grid of this scheme should cover; scalars, not finite without data."""

    def empty(self) -> typing.Self:
        """The statistic of nothing, with the same settings: the neutral element of ``merge``."""
        arrays = {
            f.name: f.default_factory()
            for f in dataclasses.fields(typing.cast(typing.Any, self))
            if f.default_factory is not dataclasses.MISSING
        }
        return dataclasses.replace(typing.cast(typing.Any, self), **arrays)

    def init(self, x: jax.typing.ArrayLike | jax.ShapeDtypeStruct) -> typing.Self:
        """``empty()`` in the shapes that it will have after arrays like ``x``: what a scan carries at first."""
        seen = jax.eval_shape(self.update, x)
        return jax.tree.map(lambda e, s: jnp.broadcast_to(e, s.shape), self.empty(), seen)

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


def about_zero(scheme: Scheme) -> jax.Array:
    """Whether a grid of this scheme covers magnitudes: it is the same for 0 to 0.9 as for -0.9 to 0.9."""
    grids = [covering(scheme).calibrate(jnp.array([low, 0.9], jnp.float32)) for low in (0, -0.9)]
    pairs = zip(*map(jax.tree.leaves, grids), strict=True)
    return jnp.all(jnp.stack([jnp.ones((), bool), *(jnp.all(a == b) for a, b in pairs)]))


def extremes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The smallest and largest value in float32: inf and -inf of an empty array, NaN where one is not finite."""
    x = x.astype(jnp.float32)
    sound = jnp.all(jnp.isfinite(x))  # maxima and minima pass over NaN on some backends
    low, high = jnp.min(x, initial=jnp.inf), jnp.max(x, initial=-jnp.inf)
    return jnp.where(sound, low, jnp.nan), jnp.where(sound, high, jnp.nan)


def lower(a: typing.Any, b: typing.Any) -> jax.Array:
    """The smaller of two extremes; NaN if one is."""
    return jnp.where(jnp.isnan(a) | jnp.isnan(b), jnp.nan, jnp.minimum(a, b))


def higher(a: typing.Any, b: typing.Any) -> jax.Array:
    """The larger of two extremes; NaN if one is."""
    return jnp.where(jnp.isnan(a) | jnp.isnan(b), jnp.nan, jnp.maximum(a, b))


def all_merge(statistics: typing.Any, axis_name: typing.Hashable) -> typing.Any:
    """Merges over a mapped axis, as ``jax.lax.psum`` sums: every device gets the statistic of them all.

    Under ``jax.shard_map`` or ``jax.vmap(..., axis_name=...)``, for one observer or any tree of them, such as what
    ``observe`` returns. The statistics are gathered and folded in the order of the axis.

    >>> import jax, jax.numpy as jnp, jqz
    >>> def over_devices(x):
    ...     return jqz.observers.all_merge(jqz.observers.MinMax().update(x), "devices")
    >>> x = jnp.arange(6.0).reshape(3, 2)
    >>> jax.vmap(over_devices, axis_name="devices")(x).high.tolist()
    [5.0, 5.0, 5.0]
    """
    mine = jnp.arange(jax.lax.axis_size(axis_name)) == jax.lax.axis_index(axis_name)

    def gathered(leaf: typing.Any) -> jax.Array:
        # a sum of what each has and zeros: unlike all_gather, its result is known to be the same everywhere
        own = mine.reshape((-1,) + (1,) * jnp.ndim(leaf))
        leaf = jnp.asarray(leaf)[None]
        return jax.lax.psum(jnp.where(own, leaf, jnp.zeros_like(leaf)), axis_name)

    def folded(one: typing.Any) -> typing.Any:
        together = jax.tree.map(gathered, one)
        start, rest = jax.tree.map(lambda t: t[0], together), jax.tree.map(lambda t: t[1:], together)
        return jax.lax.scan(lambda total, next_: (total.merge(next_), None), start, rest)[0]

    return jax.tree.map(folded, statistics, is_leaf=lambda node: hasattr(node, "merge"))
