"""Grids that end short of the largest weights, where what is computed gains by it: the clip search of AWQ."""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from jqz._layers import block_errors, choose, fit_grids
from jqz._policy import PolicyLike
from jqz._scheme import Grid
from jqz._sites import Stats
from jqz.schemes import Asymmetric, Symmetric


def search_clips(
    params: typing.Any, policy: PolicyLike, stats: Stats, *, least: float = 0.5, candidates: int = 20
) -> typing.Any:
    """Finds for each block of weights how far its grid should reach: from all of its range down to ``least`` of it.

    For each block B of the grid, with W_B its weights and X_B what they meet: ::

        r = argmin ||X_B (Q_r(W_B) - W_B)||**2,   r = 1, ..., least,   Q_r on the grid of clip(W_B, r min, r max).

    Finer steps for most weights are bought by larger errors of few. What shares outputs keeps the whole range where
    these gain nothing. ``range=jqz.ranges.MSE()`` clips for the least error of the weights, whatever they meet.

    Use it behind ``awq``, whose second half it is in the paper, or alone; for 2 to 4 bits in groups. What it
    returns goes to ``quantize`` or to ``gptq``, ``adaround`` and ``reconstruct``, which round on the grids found.

    Args:
      params: any pytree of floating arrays.
      policy: as for ``quantize``; schemes are ``Symmetric`` or ``Asymmetric``.
      stats: of ``observe(fn, policy, jqz.observers.Gram())``, merged over batches.
      least: the smallest share of the range, more than 0 and at most 1.
      candidates: shares to try.

    Returns:
      The same tree, in which each selected weight has its grid beside it, as ``jqz.learnable`` puts it there.

    Raises:
      ValueError: a scheme has another kind of grid, ``least`` or ``candidates`` is out of range, or the statistics have
        nothing of a weight.
      TypeError: as ``quantize``.

    >>> import jax, jax.numpy as jnp, jqz, jqz.algorithms
    >>> def model(params, x):
    ...     return x @ params["w"]
    >>> policy = jqz.Policy(jqz.Symmetric(3, jqz.PerGroup(32)), inputs=jqz.Identity())
    >>> keys = jax.random.split(jax.random.key(0))
    >>> x, params = jax.random.normal(keys[0], (99, 64)), {"w": jax.random.normal(keys[1], (64, 16))}
    >>> stats = jqz.observe(model, policy, jqz.observers.Gram())(params, x)
    >>> clipped = jqz.quantize(jqz.algorithms.search_clips(params, policy, stats), policy)
    >>> errors = [
    ...     jnp.linalg.norm(model(jqz.dequantize(q), x) - model(params, x))
    ...     for q in (clipped, jqz.quantize(params, policy))
    ... ]
    >>> bool(errors[0] < 0.8 * errors[1])
    True

    References: arXiv:2306.00978, its published code (auto_clip).
    """
    if not 0 < least <= 1 or candidates < 1:
        raise ValueError(
            f"search_clips: got least={least!r} and candidates={candidates!r}, wanted a share more than 0 and at most "
            "1, and a positive number. Use least=0.5, candidates=20."
        )
    if stats is None:
        raise TypeError(
            "search_clips: got stats=None, wanted what observe returns. Use "
            "stats = observe(fn, policy, jqz.observers.Gram())(params, batch), or range=jqz.ranges.MSE(), which "
            "needs none."
        )
    return fit_grids("search_clips", params, policy, stats, _Clips(float(least), int(candidates)))


@dataclasses.dataclass(frozen=True)
class _Clips:
    """Finds the grid of one weight."""

    least: float
    candidates: int

    def __call__(self, x: jax.Array, grid: Grid, scheme: typing.Any, seen: typing.Any) -> Grid:
        if not isinstance(scheme, Symmetric | Asymmetric):
            raise ValueError(
                f"{scheme!r} has no range to clip, wanted Symmetric or Asymmetric. Use jqz.Symmetric(bits=4), or gptq, "
                "which takes any scheme."
            )
        granularity = scheme.granularity
        ends = (
            granularity.expand(granularity.reduce(reduce, x), x.shape)
            for reduce in (
                lambda blocks, axes: jnp.minimum(jnp.min(blocks, axis=axes, keepdims=True), 0),
                lambda blocks, axes: jnp.maximum(jnp.max(blocks, axis=axes, keepdims=True), 0),
            )
        )
        low, high = ends

        def cost(grid: Grid) -> jax.Array:
            return block_errors(scheme.decode(scheme.encode(x, grid), grid) - x, scheme, seen)

        def step(i: jax.Array, best: tuple[jax.Array, Grid]) -> tuple[jax.Array, Grid]:
            share = 1 - (1 - self.least) * (i + 1).astype(x.dtype) / self.candidates
            tried = scheme.calibrate(jnp.clip(x, share * low, share * high))
            found = cost(tried)
            better = found < best[0]
            return jnp.where(better, found, best[0]), choose(better, tried, best[1])

        return jax.lax.fori_loop(0, self.candidates, step, (cost(grid), grid))[1]
