"""Grids for the places where integer runtimes round and jqz need not."""

import dataclasses
import typing

import jax

from jqz import _sites
from jqz._inference import walked
from jqz._policy import Policy
from jqz._requant import Int16x8
from jqz._scheme import Scheme
from jqz.kernels import places
from jqz.observers import MinMax
from jqz.schemes import Asymmetric


def complete(net: typing.Any, batch: typing.Any, scheme: Scheme | None = None) -> typing.Any:
    """The net with grids at sums, means, softmax and results as well, as integer runtimes need them.

    Between two products jqz rescales once, whatever stands there: a bias, a residual, a mean. A runtime has codes
    between any two operators. This measures what comes by at those places and returns the same net
    with these grids among its sites, named by where they stand (``Block_0/(add lhs)``, ``(result)``): it rounds
    where an exported file does. What has no operator on codes (functions such as gelu, normalization over the last
    axis, products of two activations) is computed in float32 from there to the next product, and a result that
    follows from it is not rounded. A net that has all grids is returned as it is.

    A net of 16-bit activations, ``inputs=Symmetric(bits=16)``, is returned with the one rule for these,
    ``requant=Int16x8()``.

    Args:
      net: from ``convert``.
      batch: typical inputs: an array, or a tuple of arguments.
      scheme: of the codes at these places; ``Asymmetric(bits=8)`` unless you say otherwise, and, in a net of more
        bits, that of its inputs.

    Raises:
      ValueError: a place saw no finite values.

    >>> import jax.numpy as jnp, jqz, jqz.export
    >>> policy = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Asymmetric(bits=8))
    >>> net = jqz.convert(lambda params, x: x @ params["w"], {"w": jnp.eye(4)}, [jnp.ones((2, 4))], policy)
    >>> sorted(jqz.export.complete(net, jnp.ones((2, 4))).sites)
    ['(result)', 'w']
    """
    args = batch if isinstance(batch, tuple) else (batch,)
    wide = [site.scheme for site in net.sites.values() if site.scheme.bits > 8]
    if wide and not net.requant.long:
        net = dataclasses.replace(net, requant=Int16x8())
    chosen = scheme or (wide[0] if wide else Asymmetric(bits=8))

    @jax.jit
    def record(qparams: typing.Any, sites: typing.Any, args: typing.Any) -> typing.Any:
        return walked(net.fn, sites, None, net.requant, places.watched(MinMax(), chosen, net.requant))(
            None, qparams, *args
        )[1]

    stats = record(net.qparams, net.sites, args)
    if not stats:
        return net
    more = _sites.calibrate(stats, Policy({}, inputs={"**/(*": chosen}))
    return dataclasses.replace(net, sites={**net.sites, **more})
