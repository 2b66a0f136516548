"""Policies that quantize a part of a model."""

import typing
from collections.abc import Callable, Collection, Sequence

from jqz._flow import flow
from jqz._policy import Policy
from jqz._scheme import Scheme
from jqz._sensitivity import Sensitivity


def layers(fn: Callable[..., typing.Any], params: typing.Any, *args: typing.Any) -> tuple[str, ...]:
    """The paths of a model's weights in the order in which they meet their inputs in dots and convolutions.

    Calls are entered, loops and branches are not: the weights of a scanned stack are not among them. Nothing is
    executed.

    Args:
      fn: a pure function of ``(params, *args)``.
      params: parameters, or ShapeDtypeStructs.
      args: as for ``fn``.

    >>> import jax.numpy as jnp
    >>> from jqz.algorithms import layers
    >>> params = {"a": jnp.ones((3, 2)), "z": jnp.ones((4, 3))}
    >>> layers(lambda p, x: jnp.tanh(x @ p["z"]) @ p["a"], params, jnp.ones((1, 4)))
    ('z', 'a')
    """
    return tuple(flow(fn, params, *args).order)


def heads(fn: Callable[..., typing.Any], params: typing.Any, *args: typing.Any) -> tuple[str, ...]:
    """The paths of those weights behind whose products no other weight follows: a classifier, the boxes of a detector.

    Args are those of ``layers``.

    >>> import jax.numpy as jnp
    >>> from jqz.algorithms import heads
    >>> def detector(p, x):
    ...     x = jnp.tanh(x @ p["backbone"])
    ...     return {"boxes": x @ p["boxes"], "classes": jnp.exp(x @ p["classes"])}
    >>> params = {"backbone": jnp.ones((4, 3)), "boxes": jnp.ones((3, 4)), "classes": jnp.ones((3, 2))}
    >>> heads(detector, params, jnp.ones((1, 4)))
    ('boxes', 'classes')
    """
    found = flow(fn, params, *args)
    return tuple(path for path in found.order if path in found.ends)


def skip_first(layers: Sequence[str], scheme: Scheme, count: int = 1, instead: Scheme | None = None) -> Policy:
    """A policy that gives all layers but the first ``count`` a scheme, and those ``instead``.

    The first layers of a network see its input and have few weights: keeping them costs little.

    Args:
      layers: paths of weights in the order in which they run, as ``layers`` lists them.
      scheme: for the others.
      count: how many to skip.
      instead: what they get; None leaves them float.

    Raises:
      ValueError: ``count`` is negative or more than there are layers.

    >>> import jqz
    >>> from jqz.algorithms import skip_first
    >>> skip_first(["stem", "body", "head"], jqz.Symmetric(bits=4))
    Policy({'stem': None, 'body': Symmetric(bits=4), 'head': Symmetric(bits=4)})

    References: arXiv:1910.04877, table 4: early layers are the sensitive ones.
    """
    return _split("skip_first", layers, layers[: _count("skip_first", layers, count)], scheme, instead)


def skip_last(layers: Sequence[str], scheme: Scheme, count: int = 1, instead: Scheme | None = None) -> Policy:
    """A policy that gives all layers but the last ``count`` a scheme, and those ``instead``.

    Args and errors are those of ``skip_first``.

    >>> import jqz
    >>> from jqz.algorithms import skip_last
    >>> skip_last(["stem", "body", "head"], jqz.Symmetric(bits=4), instead=jqz.Symmetric(bits=8))
    Policy({'stem': Symmetric(bits=4), 'body': Symmetric(bits=4), 'head': Symmetric(bits=8)})
    """
    skipped = layers[len(layers) - _count("skip_last", layers, count) :]
    return _split("skip_last", layers, skipped, scheme, instead)


def most_sensitive(scores: Sensitivity, scheme: Scheme, count: int = 1, instead: Scheme | None = None) -> Policy:
    """A policy that gives all layers but the ``count`` most sensitive ones a scheme, and those ``instead``.

    Args:
      scores: what ``sensitivity`` returned; where ``scheme`` was among its candidates, layers rank by what it costs
        them, else by the most harmful candidate.
      scheme: for the others.
      count: how many to spare.
      instead: what they get; None leaves them float.

    Raises:
      ValueError: ``count`` is negative or more than there are layers.

    >>> import jax, jax.numpy as jnp, jqz
    >>> from jqz.algorithms import most_sensitive, sensitivity
    >>> params = {"a": jnp.eye(4), "b": jax.random.normal(jax.random.key(0), (4, 4))}
    >>> two = jqz.Symmetric(bits=2)
    >>> scores = sensitivity(lambda p, x: x @ p["a"] @ p["b"], params, [jnp.ones((1, 4))], [two])
    >>> most_sensitive(scores, two, instead=jqz.Symmetric(bits=8))
    Policy({'a': Symmetric(bits=2), 'b': Symmetric(bits=8)})
    """
    ranking = scores.ranking(scheme if scheme in scores.candidates else None)
    spared = ranking[: _count("most_sensitive", ranking, count)]
    return _split("most_sensitive", scores.paths, spared, scheme, instead)


def only(layers: Sequence[str], chosen: Collection[str], scheme: Scheme, instead: Scheme | None = None) -> Policy:
    """A policy that gives the ``chosen`` layers a scheme, and the others ``instead``.

    With ``heads`` it quantizes the backbone alone, or gives the heads of a detector more bits:
    ``only(layers, set(layers) - set(heads), scheme, instead=Symmetric(bits=16))``.

    Raises:
      ValueError: a chosen layer is not among them.

    >>> import jqz
    >>> from jqz.algorithms import only
    >>> only(["stem", "body", "head"], ["body"], jqz.Symmetric(bits=4))
    Policy({'stem': None, 'body': Symmetric(bits=4), 'head': None})
    """
    unknown = [path for path in chosen if path not in layers]
    if unknown:
        raise ValueError(f"only: {unknown[0]!r} is not among the {len(layers)} layers. Use some of {list(layers)[:3]}.")
    return _split("only", layers, [path for path in layers if path not in set(chosen)], scheme, instead)


def _count(who: str, layers: Sequence[str], count: int) -> int:
    if not 0 <= count <= len(layers):
        raise ValueError(f"{who}: got count={count}, wanted 0 to {len(layers)}, the number of layers.")
    return count


def _split(who: str, layers: Sequence[str], apart: Sequence[str], scheme: Scheme, instead: Scheme | None) -> Policy:
    if isinstance(layers, str):
        raise TypeError(f"{who}: got {layers!r}, wanted paths of weights. Use layers(fn, params, x).")
    return Policy({path: instead if path in apart else scheme for path in layers})
