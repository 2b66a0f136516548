"""Weights that are shifts and signs, both trained: DeepShift-PS."""

import dataclasses
import math
import typing

import jax
import jax.numpy as jnp

from jqz import _ste
from jqz._policy import PolicyLike
from jqz._scheme import work_dtype
from jqz._transform import Selected, map_selected
from jqz.schemes import Dense, GivenTop, PowerOfTwo, Unscaled


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ShiftAndSign:
    """Two real parameters for each weight, which stand for sign(round(sign)) * 2**round(shift)."""

    shift: jax.Array
    sign: jax.Array
    scheme: PowerOfTwo = dataclasses.field(metadata={"static": True})

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest and the highest shift of the scheme."""
        top = typing.cast(GivenTop, self.scheme.top).exponent
        return top - min(self.scheme.codebook.count(self.scheme.bits), self.scheme.top.room) + 1, top


def deep_shift_split(params: typing.Any, policy: PolicyLike) -> typing.Any:
    """Puts a shift and a sign in the place of each selected weight: DeepShift-PS begins here.

    ``deep_shift_join`` makes weights of them in the loss; the optimizer trains shifts and signs. PS learns which
    weights are zero, and wants a small learning rate, or RAdam, since a shift by one doubles a weight. DeepShift-Q
    trains the weights themselves and needs no function of its own: ``fake_quantize`` with ``PowerOfTwo(bits,
    rounding=Geometric(), top=GivenTop(0))``, where weights beyond the top get no gradient.

    Args:
      params: weights to begin with, trained or random.
      policy: gives ``PowerOfTwo(bits, top=GivenTop(0))`` to what becomes shifts: from 0 down to -(2**(bits-1) - 2).

    Returns:
      The same tree with ``ShiftAndSign(shift, sign)`` nodes: log2(abs(w)), within the range, and sign(w).

    Raises:
      ValueError: a scheme is no such PowerOfTwo.

    >>> import jax.numpy as jnp, jqz
    >>> from jqz.training import deep_shift_join, deep_shift_split
    >>> scheme = jqz.PowerOfTwo(bits=4, top=jqz.schemes.GivenTop(0))
    >>> pair = deep_shift_split(jnp.array([0.5, -0.3, 0.0]), scheme)
    >>> pair.shift.round(2).tolist(), pair.sign.tolist()
    ([-1.0, -1.7400000095367432, -6.0], [1.0, -1.0, 0.0])
    >>> deep_shift_join(pair).tolist()
    [0.5, -0.25, 0.0]

    References: arXiv:1905.13298.
    """

    def split(leaf: Selected) -> ShiftAndSign:
        scheme, x = leaf.scheme, leaf.value
        if not isinstance(scheme, PowerOfTwo) or not _has_known_ends(scheme):
            raise ValueError(
                f"deep_shift_split: {leaf.path!r} has the scheme {scheme!r}, wanted signed powers of two with known "
                "ends. Use PowerOfTwo(bits=4, top=jqz.schemes.GivenTop(0))."
            )
        pair = ShiftAndSign(x, x, scheme)
        wide = jnp.abs(x.astype(work_dtype(x)))
        shift = jnp.where(wide > 0, jnp.log2(jnp.where(wide > 0, wide, 1)), pair.ends[0])
        return ShiftAndSign(jnp.clip(shift, *pair.ends).astype(x.dtype), jnp.sign(x), scheme)

    return map_selected("deep_shift_split", params, policy, split)


def _has_known_ends(scheme: PowerOfTwo) -> bool:
    plain = scheme.codebook == Dense() and scheme.scale == Unscaled()
    return plain and isinstance(scheme.top, GivenTop) and not isinstance(scheme.bits, jax.Array)


def _is_pair(node: typing.Any) -> bool:
    return isinstance(node, ShiftAndSign)


def deep_shift_join(tree: typing.Any) -> typing.Any:
    """The weights that shifts and signs stand for: v = sign(round(sign)) * 2**round(shift), 0 where round(sign) is 0.

    With g the cotangent of v, the gradient of the shift is g v log(2), that of the sign g. What comes out lies on
    the grid of its scheme, so ``quantize(deep_shift_join(tree), policy)`` changes no weight.

    >>> import jax, jax.numpy as jnp, jqz
    >>> from jqz.training import deep_shift_join, deep_shift_split
    >>> pair = deep_shift_split(jnp.array([0.5, -0.25]), jqz.PowerOfTwo(bits=4, top=jqz.schemes.GivenTop(0)))
    >>> grads = jax.grad(lambda pair: deep_shift_join(pair).sum())(pair)
    >>> [round(g, 3) for g in grads.shift.tolist()], grads.sign.tolist()
    ([0.347, -0.173], [1.0, 1.0])

    References: arXiv:1905.13298.
    """

    def join(pair: ShiftAndSign) -> jax.Array:
        shift, sign = jax.lax.stop_gradient((pair.shift, pair.sign))
        power = jnp.round(jnp.clip(shift, *pair.ends)).astype(jnp.int32)
        value = jnp.ldexp(jnp.sign(jnp.round(sign)), power).astype(sign.dtype)
        value = jnp.where(jnp.isnan(shift), jnp.nan, value)  # which an integer cannot show
        slopes = value * math.log(2), jnp.ones_like(sign)
        return _ste.with_partials(value, (pair.shift, pair.sign), slopes)

    return jax.tree.map(lambda node: join(node) if _is_pair(node) else node, tree, is_leaf=_is_pair)


def deep_shift_clip(tree: typing.Any) -> typing.Any:
    """Moves shifts back into the range of their scheme and signs into [-1, 1]; use it after each step.

    A parameter that strays changes nothing and takes as long to come back.

    >>> import jax, jax.numpy as jnp, jqz
    >>> from jqz.training import deep_shift_clip, deep_shift_split
    >>> pair = deep_shift_split(jnp.array([0.5, -0.25]), jqz.PowerOfTwo(bits=4, top=jqz.schemes.GivenTop(0)))
    >>> deep_shift_clip(jax.tree.map(lambda p: 9 * p, pair)).shift.tolist()
    [-6.0, -6.0]
    """

    def clip(pair: ShiftAndSign) -> ShiftAndSign:
        return ShiftAndSign(jnp.clip(pair.shift, *pair.ends), jnp.clip(pair.sign, -1, 1), pair.scheme)

    return jax.tree.map(lambda node: clip(node) if _is_pair(node) else node, tree, is_leaf=_is_pair)
