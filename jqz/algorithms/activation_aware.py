"""Weights scaled by how large the activations are that they meet, so that those that matter are rounded finely."""

import functools
import typing
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from jqz._channels import bind_all, coded_already, verify
from jqz._layers import batched, output_error
from jqz._links import Link, find, met, observed
from jqz._policy import PolicyLike, resolve
from jqz._rows import Contraction, Place
from jqz._scheme import Scheme, work_dtype
from jqz._steps import parts, steps_in, whole_path
from jqz._transform import named_leaves
from jqz.observers import Gram


def awq(
    fn: Callable[..., typing.Any],
    params: typing.Any,
    policy: PolicyLike,
    batches: Iterable[typing.Any],
    *,
    candidates: int = 20,
    tolerance: float = 1e-4,
) -> typing.Any:
    """Lets weights that meet large activations grow before they are rounded, and shrinks the activations.

    With m the root mean square of a channel in the batches, and for alpha = 0, 1/n, ..., (n - 1)/n::

        s = m**alpha / sqrt(max(m**alpha) min(m**alpha)),   error(s) = ||X Q(W s) / s - X W||**2

    over all weights W that sum over the channels, each rounded by its scheme in ``policy``; the s of least error is
    taken, which is never worse than rounding W as it is, for alpha = 0 is among them. As in ``smooth_quant``, s goes
    into the scale and bias of a norm, or into a weight and its bias, which are found in the program. The paper has the
    mean of magnitudes for m.

    Use it before ``nearest`` or ``gptq`` for 3- and 4-bit weights in groups, with float activations. It keeps all
    weights in one kind of grid, and so needs no special kernels. It is no help where grids have a scale for each term
    of the sum.

    Args:
      fn: a pure function of ``(params, *args)`` that infers, such as a Linen ``model.apply``.
      params: its float parameters.
      policy: as for ``quantize``: how the weights will be rounded.
      batches: arguments of ``fn`` after the parameters, to measure on: an array or a tuple each. The result is
        verified on the first.
      candidates: values of alpha to try.
      tolerance: of the relative difference of the outputs.

    Returns:
      The same tree with other weights, biases, means and scales of norms, in float: round it with ``policy``.

    Raises:
      ValueError: there are no batches, ``policy`` rounds no weight that could be scaled, or the outputs change by more
        than ``tolerance``.

    >>> import jax, jax.numpy as jnp, jqz, jqz.algorithms
    >>> def model(params, x):
    ...     return (x * params["scale"][None]) @ params["kernel"]
    >>> keys, policy = jax.random.split(jax.random.key(0)), jqz.Policy({"kernel": jqz.Symmetric(bits=4)})
    >>> x = jax.random.normal(keys[0], (64, 64)).at[:, 0].mul(30)
    >>> params = {"scale": jnp.ones(64), "kernel": jax.random.normal(keys[1], (64, 4))}
    >>> aware = jqz.algorithms.awq(model, params, policy, [x])
    >>> rounded = [jqz.dequantize(jqz.quantize(tree, policy)) for tree in (aware, params)]
    >>> errors = [jnp.linalg.norm(model(tree, x) - model(params, x)) for tree in rounded]
    >>> bool(errors[0] < 0.7 * errors[1])
    True

    References: arXiv:2306.00978.
    """
    if candidates < 1:
        raise ValueError(f"awq: got candidates={candidates!r}, wanted at least 1. Use candidates=20.")
    fn, inputs = bind_all("awq", fn, batches)
    schemes = {d.path: d.scheme for d in resolve("awq", policy, params)[0] if d.scheme is not None}
    links = [link for link in find(fn, params, inputs[0]) if any(whole_path(at.path) in schemes for at in link.seconds)]
    if not links:
        raise ValueError(
            "awq: the policy rounds no weight that sums over channels that a norm's scale or another weight makes for "
            'products alone. Use Policy({"**/kernel": Symmetric(bits=4)}) and a function that infers.'
            + coded_already(params)
        )
    seen = observed(fn, params, links, inputs, Gram())
    leaves = parts(dict(named_leaves(params)), (path for link in links for path in link.paths))
    for link in links:
        leaves = link.scaled(leaves, _best(link, leaves, schemes, seen, candidates))
    return verify("awq", fn, inputs[0], params, leaves, tolerance)


def _best(
    link: Link, leaves: dict[str, jax.Array], schemes: dict[str, Scheme], seen: dict[str, Gram], candidates: int
) -> jax.Array:
    """The scales for which rounding the weights that sum over a link costs least."""
    energies = [
        jnp.mean(met(at, _energy(seen[at.path]), _contraction(seen[at.path]), leaves[at.path].shape), axis=1)
        for at in link.seconds
    ]
    mean = functools.reduce(jnp.add, energies) / len(energies)
    magnitude = jnp.sqrt(jnp.where(mean > 0, mean, jnp.max(mean)))
    alphas = jnp.arange(candidates, dtype=jnp.float32) / candidates
    scales = jnp.where(jnp.max(magnitude) > 0, magnitude, 1)[None] ** alphas[:, None]
    scales = scales / jnp.sqrt(jnp.max(scales, axis=1, keepdims=True) * jnp.min(scales, axis=1, keepdims=True))
    costs = jnp.zeros(candidates, jnp.float32)
    for at in link.seconds:
        if (path := whole_path(at.path)) in schemes:
            gram, depth = seen[at.path], len(steps_in(at.path))
            alike = Place("", at.axes)  # one compilation for layers that differ by their names
            costs += _costs(leaves[at.path], gram.products, scales, schemes[path], _contraction(gram), alike, depth)
    return scales[jnp.argmin(costs)]


def _energy(gram: Gram) -> jax.Array:
    return jnp.diagonal(gram.products, axis1=-2, axis2=-1) / gram.rows.astype(jnp.float32)


def _contraction(gram: Gram) -> Contraction:
    return typing.cast(Contraction, gram.contraction)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _costs(
    weight: jax.Array,
    products: jax.Array,
    scales: jax.Array,
    scheme: Scheme,
    contraction: Contraction,
    at: Place,
    depth: int,
) -> jax.Array:
    """What rounding a weight costs for each candidate; ``depth`` scans stack it, and its scheme is for the stack."""
    wide = weight.astype(work_dtype(weight))
    stacked = (1,) * depth + weight.shape

    def cost(s: jax.Array) -> jax.Array:
        along = at.along(s.astype(wide.dtype), weight.shape)
        difference = scheme.simulate((wide * along).reshape(stacked)).reshape(wide.shape) / along - wide
        return jnp.sum(output_error(batched(products, contraction), contraction.matrix(difference)))

    return jax.lax.map(cost, scales)
