"""From statistics of activations to the grids of static inference."""

import dataclasses
import functools
import typing
from collections.abc import Mapping

import jax
import numpy as np
from jax.core import Tracer

from jqz import _paths
from jqz._activations import Site
from jqz._observer import Observer, covering
from jqz._policy import Policy
from jqz._scheme import Grid, Scheme
from jqz._stacked import Stacked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seen:
    """What was observed at a site: a statistic of arrays of rank ``ndim``, one for each step of the scans around it."""

    observer: Observer
    ndim: int = dataclasses.field(metadata={"static": True})
    lengths: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

    def merge(self, other: "Seen") -> "Seen":
        merged = Stacked(self.observer, self.lengths).merge(Stacked(other.observer, other.lengths))
        return dataclasses.replace(self, observer=merged.tree)

    def empty(self) -> "Seen":
        return dataclasses.replace(self, observer=self.observer.empty())


Stats = dict[str, Seen]
Sites = dict[str, Site]


def merge(a: Stats, b: Stats) -> Stats:
    """The statistics of two batches as one; associative, and commutative where the observer is.

    A site that only one of them has seen is kept.

    >>> import jax.numpy as jnp, jqz
    >>> def model(params, x):
    ...     return x @ params["kernel"]
    >>> policy, params = jqz.Policy(jqz.Symmetric(), inputs=jqz.Symmetric()), {"kernel": jnp.ones((2, 3))}
    >>> watch = jqz.observe(model, policy)
    >>> both = jqz.merge(watch(params, jnp.ones((1, 2))), watch(params, -3 * jnp.ones((1, 2))))
    >>> float(both["kernel"].observer.low), float(both["kernel"].observer.high)
    (-3.0, 1.0)
    """
    return {
        name: a[name].merge(b[name]) if name in a and name in b else (a.get(name) or b[name]) for name in {**a, **b}
    }


def calibrate(stats: Stats, policy: Policy) -> Sites:
    """The grid of every observed site, by the scheme that the policy's ``inputs`` give its path.

    Args:
      stats: from ``observe``, of one batch or merged over many.
      policy: the Policy that ``observe`` was given.

    Returns:
      A dict from site name to ``Site(grid, scheme)``, a pytree for ``quantized`` and ``simulated``. Sites of a
      scanned stack have one grid for each layer.

    Raises:
      ValueError: the statistics are empty, or a site saw no finite values.
      TypeError: ``policy`` is not a Policy with ``inputs``.

    >>> import jax.numpy as jnp, jqz
    >>> def model(params, x):
    ...     return x @ params["kernel"]
    >>> policy = jqz.Policy(jqz.Symmetric(), inputs=jqz.Symmetric(bits=8))
    >>> stats = jqz.observe(model, policy)({"kernel": jnp.ones((2, 3))}, jnp.array([[1.27, -0.5]]))
    >>> bool(jnp.isclose(jqz.calibrate(stats, policy)["kernel"].grid.scale, 0.01).all())
    True
    """
    if not isinstance(policy, Policy) or not policy.inputs:
        raise TypeError(
            f"calibrate: got {policy!r}, wanted a Policy with inputs. "
            'Use Policy({"**/kernel": Symmetric(bits=8)}, inputs=Asymmetric(bits=8)).'
        )
    if not isinstance(stats, Mapping) or not stats:
        raise ValueError(
            "calibrate: got no statistics. Use stats = observe(fn, policy)(variables, batch), with a policy whose "
            "rules and inputs match the weights that meet activations."
        )
    sites, sound = {}, {}
    for name, seen in stats.items():
        scheme = policy.input_at(name.split("#")[0])
        if scheme is None:
            near = _paths.nearest(name, [glob for glob, _ in policy.inputs])
            raise ValueError(f"calibrate: the policy's inputs give {name!r} no scheme; its rules are {near}.")
        try:
            grid, sound[name] = _grid(seen.observer, scheme, seen.ndim, len(seen.lengths))
        except ValueError as error:
            raise ValueError(f"calibrate: site {name!r}: {error}") from error
        sites[name] = Site(grid, covering(scheme), seen.lengths)
    for name, limits in jax.device_get(
        {} if any(isinstance(s, Tracer) for s in jax.tree.leaves(sound)) else sound
    ).items():
        _check(name, *limits)
    return sites


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _grid(observer: Observer, scheme: Scheme, ndim: int, depth: int) -> tuple[Grid, tuple[jax.Array, jax.Array]]:
    """The grid and the limits that it covers: one program for all sites of a kind."""

    def grid(observer: Observer) -> typing.Any:
        return observer.grid(scheme, ndim), observer.limits(scheme)

    for _ in range(depth):
        grid = jax.vmap(grid)
    return grid(observer)


def _check(name: str, low: np.ndarray, high: np.ndarray) -> None:
    if np.isnan(low).any() or np.isnan(high).any():
        raise ValueError(
            f"calibrate: site {name!r} saw NaN or infinite values. Find out where the float model makes them, "
            f"or leave the site float: inputs={{{name!r}: None, ...}}."
        )
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(
            f"calibrate: site {name!r} saw nothing. Use batches that reach it, "
            f"or leave it float: inputs={{{name!r}: None, ...}}."
        )
