"""Channels that one parameter makes and others sum over, with nothing between that their scale could disturb.

A walk with these rules finds such links from the program alone. What makes the channels is a weight, or the scale of
a norm; what sums over them are weights of later products, one or several. Dividing the first (and what is added on
the way) by any s > 0, channel by channel, and multiplying the others by it leaves the function as it is. Where nothing
on the way treats channels one by one, they may also be rotated.
"""

import functools
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from jqz._carriers import Source, rules
from jqz._channels import Handlers, walk_channels
from jqz._inference import observe
from jqz._observer import Observer
from jqz._policy import Policy
from jqz._rows import Contraction, Place
from jqz._scheme import Identity, Scheme
from jqz._sites import merge
from jqz._steps import steps_in, whole_path
from jqz.kernels import structure


class Link(typing.NamedTuple):
    """What makes channels, what is added to them on the way, and the weights that sum over them.

    ``by_weight`` says that they are made by weights, and not by the scale of a norm. Channels may be rotated in runs
    of ``block`` neighbours, and scaled unless they are ``normed``; those of several ``firsts`` are a sum.
    """

    firsts: tuple[Place, ...]
    shifts: tuple[Place, ...]
    seconds: tuple[Place, ...]
    by_weight: bool
    block: int
    normed: bool = False

    @property
    def first(self) -> Place:
        return self.firsts[0]

    @property
    def places(self) -> tuple[Place, ...]:
        return (*self.firsts, *self.shifts, *self.seconds)

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(place.path for place in self.places)

    def largest(self, leaves: Mapping[str, jax.Array]) -> jax.Array:
        """The largest magnitude that any of the weights that sum over a channel has for it."""
        found = [place.largest(leaves[place.path]) for place in self.seconds]
        return jnp.max(jnp.stack(found), axis=0)

    def scaled(self, leaves: Mapping[str, jax.Array], s: jax.Array) -> dict[str, jax.Array]:
        """All of ``leaves``, the channels of this link divided by s on one side and multiplied on the other."""
        out = dict(leaves)
        for place in (*self.firsts, *self.shifts):
            out[place.path] = out[place.path] / place.along(s, out[place.path].shape).astype(out[place.path].dtype)
        for place in self.seconds:
            out[place.path] = out[place.path] * place.along(s, out[place.path].shape).astype(out[place.path].dtype)
        return out


def find(fn: Callable[..., typing.Any], params: typing.Any, args: Sequence[typing.Any]) -> list[Link]:
    """The links in a function of ``(params, *args)`` whose channels may be scaled, in the order of the program.

    A link is left out where what it carries is also used otherwise, or a parameter of it is used twice; and within
    branches, and loops but for scans over parameters: each layer there has links of its own, under paths of its own.
    """
    links, uses = _walked(fn, params, args, frozenset())
    single = [link for link in links if len(link.firsts) == 1 and not link.normed]
    return [link for link in single if all(uses.get(path) == 1 for path in link.paths)]


def find_rotatable(
    fn: Callable[..., typing.Any], params: typing.Any, args: Sequence[typing.Any], ones: frozenset[str]
) -> list[Link]:
    """The links whose channels may be rotated: residual streams among them, if scales of their norms are ``ones``."""
    links, uses = _walked(fn, params, args, ones)

    def sound(link: Link, path: str) -> bool:
        mine = [place for place in link.places if place.path == path]
        return uses.get(path) == 1 or (uses.get(path) == len(mine) and len(set(mine)) == 1)  # tied, but to itself

    by_weight = [link for link in links if link.by_weight and link.block > 1]
    return [link for link in by_weight if all(sound(link, path) for path in link.paths)]


def _walked(
    fn: Callable[..., typing.Any], params: typing.Any, args: Sequence[typing.Any], ones: frozenset[str]
) -> tuple[list[Link], dict[str, int]]:
    """All links, and how often each parameter is used."""
    sources: list[Source] = []
    uses: dict[str, int] = {}

    def look(params: typing.Any) -> typing.Any:
        sources.clear()
        uses.clear()
        tables = rules(sources, uses, ones), structure.RULES
        return walk_channels(fn, params, args, Handlers(), *tables, always=frozenset({"broadcast_in_dim"}))[0]

    jax.eval_shape(look, params)
    whole = [s for s in sources if s.root() is s and s.seconds and not s.spoilt]
    parts = [(tuple(s.firsts), tuple(s.shifts), tuple(s.seconds), s.by_weight, s.block, s.normed) for s in whole]
    for path in list(uses):  # a stack that is also used as a whole
        if steps_in(path):
            uses[path] += uses.get(whole_path(path), 0)
    return [Link(*part) for part in parts], uses


def observed(
    fn: Callable[..., typing.Any],
    params: typing.Any,
    links: Iterable[Link],
    batches: Sequence[tuple[typing.Any, ...]],
    observer: Observer,
) -> dict[str, typing.Any]:
    """What an observer by rows has seen, over all batches, of what meets the weights that sum, by their paths."""
    paths = [place.path for link in links for place in link.seconds]
    rules: dict[str, Scheme | None] = {whole_path(path): Identity() for path in paths}
    watch = jax.jit(observe(fn, Policy(rules, inputs=Identity()), observer))
    stats = functools.reduce(merge, [watch(params, *batch) for batch in batches])
    seen = {path: stats[whole_path(path)].observer for path in paths}
    return {path: jax.tree.map(lambda leaf, at=steps_in(path): leaf[at], one) for path, one in seen.items()}


def met(place: Place, numbers: jax.Array, contraction: Contraction, shape: tuple[int, ...]) -> jax.Array:
    """Numbers (groups, terms) of what meets a weight of this shape, as (channels, all else that a channel meets)."""
    matrix = numbers.reshape(contraction.groups, contraction.terms(shape), 1)
    outputs = math.prod(shape) // matrix.size
    return place.channels_first(contraction.weight(jnp.broadcast_to(matrix, (*matrix.shape[:2], outputs)), shape))
