"""How many bits each weight matrix gets, learned by gradient under a budget of bytes."""

import dataclasses
import math
import typing

import jax
import jax.numpy as jnp

from jqz import _ste
from jqz._policy import Policy, PolicyLike
from jqz._ranges import Given, Range
from jqz._scheme import TINY, work_dtype
from jqz._transform import Selected, map_selected, named_leaves
from jqz.schemes import Symmetric


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Width:
    """What is learned of a leaf: a real number of bits, and the largest magnitude that its grid covers; scalars.

    The leaf is rounded to ``round(bits)``, bounded by ``least`` and ``most``.
    """

    bits: jax.Array
    limit: jax.Array
    least: int = dataclasses.field(default=2, metadata={"static": True})
    most: int = dataclasses.field(default=8, metadata={"static": True})

    @property
    def whole_bits(self) -> jax.Array:
        """The bits that the leaf is rounded to, an integer; the gradient goes to ``bits``.

        A gradient that leads beyond the bounds is dropped, so that bits are there when another one leads back.
        """

        def kept(g: jax.Array, bits: jax.Array) -> jax.Array:
            outward = ((bits >= self.most) & (g < 0)) | ((bits <= self.least) & (g > 0))
            return jnp.where(outward, 0, g)

        bits = _ste.on_the_way_back(kept, self.bits, self.bits)
        return _ste.straight_through(bits, jnp.clip(jnp.round(self.bits), self.least, self.most))

    @property
    def reach(self) -> jax.Array:
        """The limit as the grid has it, which is positive; a gradient that leads further below zero is dropped."""

        def kept(g: jax.Array, limit: jax.Array) -> jax.Array:
            return jnp.where((limit <= TINY) & (g > 0), 0, g)

        limit = _ste.on_the_way_back(kept, self.limit, self.limit)
        return _ste.straight_through(limit, jnp.maximum(self.limit, TINY))


#: Paths to widths.
Widths = dict[str, Width]


def learn_widths(params: typing.Any, policy: PolicyLike, least: int = 2, most: int = 8) -> Widths:
    """A width for each selected leaf, to be trained beside the parameters; begins at the bits of its scheme.

    In the loss, ``round_to_widths(params, widths)`` rounds, and ``size_penalty`` pays for bytes beyond a budget; in
    the end, ``widths_to_policy`` says what was learned. Give widths a larger learning rate than weights (some 10 times)
    and begin with wide ones. Use it where layers differ in what they need; for one budget without training, allocate
    by sensitivity instead.

    Args:
      params: weights.
      policy: gives ``Symmetric(bits, range=...)`` per tensor; the range finds the limit at first.
      least: the fewest bits, at least 2.
      most: the most, at most 8.

    Raises:
      ValueError: a scheme is no such Symmetric, or bounds are outside 2 to 8.

    >>> import jax.numpy as jnp, jqz
    >>> from jqz.training import learn_widths
    >>> widths = learn_widths({"kernel": jnp.array([[1.0, -0.4]])}, jqz.Symmetric(bits=6))
    >>> float(widths["kernel"].bits), float(widths["kernel"].limit)
    (6.0, 1.0)

    References: arXiv:1708.04788 (bits as parameters), arXiv:1905.11452 (under a budget).
    """
    if not 2 <= least <= most <= 8:
        raise ValueError(f"learn_widths: got least={least!r}, most={most!r}, wanted 2 <= least <= most <= 8.")
    widths: Widths = {}

    def begin(leaf: Selected) -> jax.Array:
        scheme, x = leaf.scheme, leaf.value
        if not isinstance(scheme, Symmetric) or not _plain(scheme):
            raise ValueError(
                f"learn_widths: {leaf.path!r} has the scheme {scheme!r}, wanted Symmetric with a range alone: one "
                "limit a leaf is learned. Use Symmetric(bits=8, range=jqz.ranges.OCTAV())."
            )
        scale = scheme.calibrate(x).scale.reshape(())
        widths[leaf.path] = Width(
            jnp.asarray(scheme.bits, scale.dtype), scale * (2 ** (scheme.bits - 1) - 1), least, most
        )
        return x

    map_selected("learn_widths", params, policy, begin)
    return widths


def _plain(scheme: Symmetric) -> bool:
    return scheme == Symmetric(scheme.bits, range=scheme.range)


def round_to_widths(params: typing.Any, widths: Widths) -> typing.Any:
    """Rounds each leaf to the bits of its width; gradients reach weights, bits and limits.

    x is rounded to value = step * clip(round(x / step), -p, p), p = 2**(bits-1) - 1, step = limit / p ::

        d value / d x      1 inside, 0 beyond the limit
        d value / d limit  (value - x) / limit inside, sign(x) beyond
        d value / d bits   -(value - x) log(2) 2**(bits-1) / p inside, 0 beyond

    Args:
      params: weights, of the paths that ``learn_widths`` saw.
      widths: from ``learn_widths``, trained.

    Raises:
      ValueError: a width has no leaf.

    >>> import jax, jax.numpy as jnp, jqz
    >>> from jqz.training import learn_widths, round_to_widths
    >>> params = {"kernel": jnp.array([[1.0, -0.4]])}
    >>> widths = learn_widths(params, jqz.Symmetric(bits=2))
    >>> round_to_widths(params, widths)["kernel"].tolist()
    [[1.0, 0.0]]
    >>> grads = jax.grad(lambda widths: round_to_widths(params, widths)["kernel"].sum())(widths)
    >>> round(float(grads["kernel"].bits), 3)  # -0.4 * 2 log(2)
    -0.555

    References: arXiv:1708.04788; arXiv:1905.11452; the gradient of a step is LSQ's, arXiv:1902.08153.
    """
    _check("round_to_widths", params, widths)

    def rounded(leaf: Selected) -> jax.Array:
        return _round(leaf.value, widths[leaf.path])

    return map_selected("round_to_widths", params, lambda path, leaf: _MARK if path in widths else None, rounded)


def _check(who: str, params: typing.Any, widths: Widths) -> None:
    missing = set(widths) - {path for path, _ in named_leaves(params)}
    if missing:
        raise ValueError(
            f"{who}: there are widths for {sorted(missing)}, which the tree lacks. "
            "Use the tree that learn_widths was given, or one of its structure."
        )


#: Marks what has a width in a policy.
_MARK = Symmetric(bits=8)


def _round(x: jax.Array, width: Width) -> jax.Array:
    wide = jax.lax.stop_gradient(x).astype(work_dtype(x))
    bits, limit = (jax.lax.stop_gradient(part).astype(wide.dtype) for part in (width.whole_bits, width.reach))
    scheme = Symmetric(bits.astype(jnp.int32), range=_between(limit))
    value = scheme.simulate(wide)
    inside = jnp.abs(wide) <= limit
    off = jnp.where(inside, value - wide, 0)
    half = 2 ** (bits - 1)
    slopes = (
        inside.astype(x.dtype),
        -off * math.log(2) * half / (half - 1),
        jnp.where(inside, off / limit, jnp.sign(wide)),
    )
    parts = [jnp.broadcast_to(part.astype(wide.dtype), x.shape) for part in (width.whole_bits, width.reach)]
    return _ste.with_partials(value.astype(x.dtype), (x, *parts), slopes)


def _between(limit: jax.Array) -> Range:
    return Given(-limit, limit)


def size_penalty(params: typing.Any, widths: Widths, budget_bytes: float) -> jax.Array:
    """max(0, bytes / budget - 1)**2 for the codes of all leaves that have a width, at their whole bits.

    Its gradient reaches bits in proportion to the number of weights, and stops where the budget is kept. Weigh it
    so that it outweighs the loss: some 10 to 100 times the loss at its beginning.

    Raises:
      ValueError: a width has no leaf.

    >>> import jax.numpy as jnp, jqz
    >>> from jqz.training import learn_widths, size_penalty
    >>> params = {"kernel": jnp.ones((10, 8))}
    >>> float(size_penalty(params, learn_widths(params, jqz.Symmetric(bits=8)), budget_bytes=40))
    1.0

    References: arXiv:1905.11452, equation 8.
    """
    _check("size_penalty", params, widths)
    sizes = dict(named_leaves(params))
    total = sum((sizes[path].size * width.whole_bits / 8 for path, width in widths.items()), jnp.zeros(()))
    return jnp.maximum(total / budget_bytes - 1, 0) ** 2


def widths_to_policy(widths: Widths) -> PolicyLike:
    """The policy that learned widths amount to, for ``quantize``: a Symmetric of whole bits and known limits a leaf.

    Law: ``dequantize(quantize(params, widths_to_policy(widths))) == round_to_widths(params, widths)``. Widths must be
    known numbers: call it outside jit. ``quantize`` refuses a tree that lacks one of the paths.

    >>> import jax.numpy as jnp, jqz
    >>> from jqz.training import learn_widths, widths_to_policy
    >>> params = {"kernel": jnp.array([[1.0, -0.4]])}
    >>> jqz.quantize(params, widths_to_policy(learn_widths(params, jqz.Symmetric(bits=6))))["kernel"].scheme
    Symmetric(bits=6, range=Given(low=-1.0, high=1.0))
    """
    schemes = {
        path: Symmetric(int(width.whole_bits), range=Given(-float(width.reach), float(width.reach)))
        for path, width in widths.items()
    }
    return schemes[""] if list(schemes) == [""] else Policy(schemes)  # one array has no path
