"""Codebooks whose levels lie where the weights matter: k-means with the diagonal of the Hessian."""

import dataclasses
import typing

import jax

from jqz._layers import fit_grids, importance
from jqz._policy import PolicyLike
from jqz._scheme import Grid
from jqz._sites import Stats
from jqz._transform import quantize
from jqz.schemes import Codebook, GivenLevels


def k_means(params: typing.Any, policy: PolicyLike, stats: Stats) -> typing.Any:
    """Rounds weights to the nearest of levels with the least sum h (W - Q(W))**2, h the energy that each weight meets.

    h is the diagonal of X^T X: twice that is the second derivative of the squared change of the layer's output. The
    placement of the scheme finds the levels, ``KMeans``, ``Exact`` or ``SparseKMeans``, each squared error counted
    h times. Where levels found so change the outputs more than those without h would, all correlations
    regarded, what shares a codebook keeps the latter.

    Use it for ``Codebook`` at 2 to 4 bits where inputs differ in size, as they do after layers without
    normalization; with inputs of one size it is ``quantize``. ``gptq`` rounds on levels that are found without h.

    Args:
      params: any pytree of floating arrays.
      policy: as for ``quantize``; schemes are ``Codebook`` with levels that are learned.
      stats: of ``observe(fn, policy, jqz.observers.Gram())``, merged over batches.

    Returns:
      The same tree with QTensor leaves.

    Raises:
      ValueError: the statistics have nothing of a weight, or a scheme has no levels to learn.
      TypeError: as ``quantize``.

    >>> import jax, jax.numpy as jnp, jqz, jqz.algorithms
    >>> def model(params, x):
    ...     return x @ params["w"]
    >>> policy = jqz.Policy(jqz.Codebook(2, jqz.PerAxis(-1)), inputs=jqz.Symmetric(bits=8))
    >>> x = jax.random.normal(jax.random.key(0), (64, 32)) * jnp.linspace(0, 1, 32)[None] ** 4
    >>> params = {"w": jax.random.normal(jax.random.key(1), (32, 8))}
    >>> stats = jqz.observe(model, policy, jqz.observers.Gram())(params, x)
    >>> rounded = jqz.algorithms.k_means(params, policy, stats), jqz.quantize(params, policy)
    >>> errors = [jnp.linalg.norm(model(jqz.dequantize(q), x) - model(params, x)) for q in rounded]
    >>> bool(errors[0] < 0.9 * errors[1])
    True

    References: arXiv:1612.01543 (weights of the Hessian's diagonal); SqueezeLLM arXiv:2306.07629.
    """
    if stats is None:
        raise TypeError(
            "k_means: got stats=None, wanted what observe returns. Use "
            "stats = observe(fn, policy, jqz.observers.Gram())(params, batch), or quantize, which needs none."
        )
    return quantize(fit_grids("k_means", params, policy, stats, _Weighted()), policy)


@dataclasses.dataclass(frozen=True)
class _Weighted:
    """Finds the levels of one weight."""

    def __call__(self, x: jax.Array, grid: Grid, scheme: typing.Any, seen: typing.Any) -> Grid:
        del grid
        if not isinstance(scheme, Codebook) or isinstance(scheme.levels, GivenLevels):
            raise ValueError(
                f"{scheme!r} has no levels to learn, wanted a Codebook with KMeans(), Exact() or SparseKMeans(). "
                "Use jqz.Codebook(bits=4), or gptq, which takes any scheme."
            )
        return scheme.calibrate(x, importance(x, seen))
