"""Which layers suffer how much from which scheme."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jqz import _paths
from jqz._channels import bind, replaced
from jqz._learnable import value_and_grid
from jqz._measures import Measure, OutputKL, Problem, Weights
from jqz._policy import Policy, resolve
from jqz._scheme import Identity, Scheme
from jqz._sensitivity import Sensitivity
from jqz._transform import dequantize, fake_quantize, named_leaves
from jqz.schemes import TRACED_BITS

#: ``(params, policy) -> qparams``, each weight by itself, as ``gptq`` does with statistics.
Rounder = Callable[[typing.Any, Policy], typing.Any]
#: Schemes for every weight, or for those that globs select; None keeps a weight float.
Candidates = Sequence[Scheme | None] | Mapping[str, Sequence[Scheme | None]]


def sensitivity(
    fn: Callable[..., typing.Any],
    params: typing.Any,
    batches: Iterable[typing.Any],
    candidates: Candidates,
    measure: Measure = OutputKL(),
    *,
    rounder: Rounder | None = None,
) -> Sensitivity:
    """Scores every candidate scheme on every weight of a model: what rounding this weight alone does to the output.

    The model is compiled once, whatever the number of layers and candidates, and the rounding once for all candidates
    of a kind that differ in their bits alone (``jqz.schemes.TRACED_BITS``), once for each other one. The output
    measures run the model ``layers * candidates`` times on the batches; a few hundred examples rank layers.

    Args:
      fn: a pure function of ``(params, *batch)``, such as a Linen ``model.apply``; ``jqz.lowered(model.apply)`` is
        faster on CPU.
      params: float parameters.
      batches: what ``fn`` takes: an array, or a tuple of arguments, each. Labels are never needed.
      candidates: schemes to try; or ``{glob: schemes}``, the first glob that matches deciding. Biases and norms stay
        float unless a glob names them.
      measure: what to score, one of ``jqz.measures``.
      rounder: what rounds the weights, such as ``lambda params, policy: gptq(params, policy, stats)``; called once for
        each candidate. Nearest if left out.

    Raises:
      ValueError: there is no candidate, no batch where the measure needs one, a glob matches nothing, or a scheme
        does not fit a weight's shape.

    >>> import jax, jax.numpy as jnp, jqz
    >>> from jqz.algorithms import sensitivity
    >>> def model(params, x):
    ...     return jnp.tanh(x @ params["a"]) @ params["b"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"a": jax.random.normal(keys[0], (8, 16)), "b": 0.01 * jax.random.normal(keys[1], (16, 4))}
    >>> found = sensitivity(model, params, [jax.random.normal(keys[2], (32, 8))], [jqz.Symmetric(2), jqz.Symmetric(4)])
    >>> found.paths, found.scores.shape, bool((found.scores[:, 0] > found.scores[:, 1]).all())
    (('a', 'b'), (2, 2), True)

    References: ZeroQ arXiv:2001.00281; HAWQ arXiv:1905.03696, 1911.03852; BRECQ arXiv:2102.05426.
    """
    fn, inputs = bind("sensitivity", fn, batches)
    if measure.needs_batches and not inputs:
        raise ValueError(
            f"sensitivity: got no batches; {measure!r} needs them. Use [x], or jqz.measures.WeightNoise()."
        )
    weights, offers = offered("sensitivity", params, candidates)
    schemes = tuple(dict.fromkeys(scheme for some in offers.values() for scheme in some))

    def apply(weights: Weights, *batch: typing.Any) -> typing.Any:
        return fn(replaced(params, weights), *batch)

    def rounding(scheme: Scheme) -> Callable[[], Weights]:
        return lambda: rounded_by(scheme, weights, offers, params, rounder)

    rounded = [scheme for scheme in schemes if scheme is not None]
    found = measure.scores(Problem(apply, weights, [rounding(scheme) for scheme in rounded], inputs))
    table = dict(zip(rounded, found, strict=True))
    for scheme, row in table.items():
        for path, score in row.items():
            if np.isnan(score):
                raise ValueError(
                    f"sensitivity: {measure!r} is NaN for {path!r} under {scheme!r}: the weights, or what the float "
                    "model makes of the batches, are not finite. Use batches on which it works."
                )
    scores = np.array(
        [
            [np.nan if s not in offers[path] else 0.0 if s is None else table[s][path] for s in schemes]
            for path in weights
        ],
        np.float64,
    )
    return Sensitivity(tuple(weights), schemes, scores, tuple(w.size for w in weights.values()), measure)


def rounded_by(
    scheme: Scheme,
    weights: Weights,
    offers: Mapping[str, Sequence[Scheme | None]],
    params: typing.Any,
    rounder: Rounder | None,
) -> Weights:
    """All weights that a scheme is offered to, rounded; to nearest, schemes that differ in bits share a program."""
    weights = {path: w for path, w in weights.items() if scheme in offers[path]}
    if rounder is not None:
        leaves = dict(named_leaves(dequantize(rounder(params, Policy(dict.fromkeys(weights, scheme))))))
        return {path: leaves[path] for path in weights}
    if isinstance(scheme, TRACED_BITS):
        frame = dataclasses.replace(typing.cast(typing.Any, scheme), bits=8)
        return _round_traced(weights, frame, jnp.asarray(scheme.bits, jnp.int32))
    return _round_as_is(weights, scheme)


@functools.partial(jax.jit, static_argnums=1)
def _round_traced(weights: Weights, frame: typing.Any, bits: jax.Array) -> Weights:
    return _rounded(weights, dataclasses.replace(frame, bits=bits))


@functools.partial(jax.jit, static_argnums=1)
def _round_as_is(weights: Weights, scheme: Scheme) -> Weights:
    return _rounded(weights, scheme)


def _rounded(weights: Weights, scheme: Scheme) -> Weights:
    return fake_quantize(weights, dict.fromkeys(weights, scheme))  # paths are the keys, so that errors name the leaf


def offered(
    who: str, params: typing.Any, candidates: Candidates
) -> tuple[Weights, dict[str, tuple[Scheme | None, ...]]]:
    """The weights that have candidates, by path, and the candidates of each."""
    rules = candidates if isinstance(candidates, Mapping) else {"**": candidates}
    for some in rules.values():
        if isinstance(some, Scheme) or not isinstance(some, Iterable):
            raise TypeError(f"{who}: got candidates {some!r}, wanted a list. Use [jqz.Symmetric(bits=2), ...].")
    rules = {glob: tuple(schemes) for glob, schemes in rules.items()}
    if not any(rules.values()):
        raise ValueError(f"{who}: got no candidates. Use [jqz.Symmetric(bits=b) for b in (2, 4, 8)].")
    policy = Policy({glob: Identity() if schemes else None for glob, schemes in rules.items()})
    weights, offers = {}, {}
    for d in resolve(who, policy, params)[0]:
        if d.scheme is not None:
            glob = next(glob for glob in rules if _paths.matches(glob, d.path))
            weights[d.path], offers[d.path] = value_and_grid(who, d.path, d.leaf, None)[0], rules[glob]
    if not weights:
        raise ValueError(f"{who}: the candidates select no weight. Use a glob that names one.")
    return weights, offers
