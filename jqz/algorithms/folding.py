"""Batch norms folded into the weights before them."""

import dataclasses
import typing
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jqz._channels import Centred, Channels, Handlers, as_args, coded_already, verify, walk_channels
from jqz._rows import output_axes
from jqz._transform import named_leaves
from jqz._values import Value, Valued, Weight, decode
from jqz._walk import Equation, Rule, Walk
from jqz.kernels import structure


def fold_batch_norm(
    fn: Callable[..., typing.Any], params: typing.Any, batch: typing.Any, *, tolerance: float = 1e-4
) -> typing.Any:
    """Moves the scale of every batch norm into the weight before it; what the batch norm does then is add.

    With f = scale / sqrt(variance + epsilon), channel by channel, a dot or convolution and its batch norm compute::

        f (W x + b - mean) + bias == (f W) x + f b - f mean + bias

    so weight, bias and mean are multiplied by f, and variance and scale are set so that f is 1. The function stays
    as it is, and so does what it computes. Pairs are found in its program: a product with a weight, a bias perhaps, and
    a batch norm, whatever library wrote it. A pair is left alone where the result of the product is also used
    elsewhere, where weight or statistics are used twice, or where the scale is no plain product; where outputs change,
    pairs are tried one by one, and those that change them are left alone.

    Use it where a target wants one bias a layer, before ``equalize`` and per-tensor grids, and to see the weights
    that deployment will round. ``quantized`` folds by itself what follows an integer product; per-channel grids do not
    change with f.

    Args:
      fn: a pure function of ``(params, *args)`` that infers, such as a Linen ``model.apply``.
      params: its float parameters.
      batch: arguments of ``fn`` after the parameters, on which the result is verified: an array or a tuple.
      tolerance: of the relative difference of the outputs.

    Returns:
      The same tree with other weights, biases, means, variances and scales.

    Raises:
      ValueError: there is nothing to fold, or each pair changes the outputs by more than ``tolerance``.

    >>> import jax, jax.numpy as jnp, jqz.algorithms
    >>> def model(params, x):
    ...     y = x @ params["kernel"] - params["mean"][None]
    ...     return y * (jax.lax.rsqrt(params["var"] + 1e-5) * params["scale"])[None] + params["bias"][None]
    >>> params = {"kernel": jnp.eye(2), "mean": jnp.ones(2), "var": jnp.array([4.0, 9.0])}
    >>> params |= {"scale": jnp.full(2, 6.0), "bias": jnp.zeros(2)}
    >>> folded = jqz.algorithms.fold_batch_norm(model, params, jnp.ones((1, 2)))
    >>> bool(jnp.allclose(folded["kernel"], jnp.array([[3.0, 0.0], [0.0, 2.0]])))
    True

    References: arXiv:1712.05877, section 3.2; arXiv:1906.04721.
    """
    pairs: list[_Pair] = []
    uses: dict[str, int] = {}

    def found(walk: Walk, centred: Centred, factor: Channels, divides: bool) -> jax.Array:
        del walk
        if isinstance(centred.x, _Product):
            pairs.append(_Pair(centred.x, centred.mean, (*centred.factors, factor), divides))
        return centred.decode() / factor.decode() if divides else centred.decode() * factor.decode()

    args = as_args(batch)
    leaves = dict(named_leaves(params))

    def walked(params: typing.Any) -> list[dict[str, jax.Array]]:
        uses.clear()
        pairs.clear()
        walk_channels(fn, params, args, Handlers(whole=found), _products(uses), structure.RULES)
        changed = []
        for pair in pairs:
            others = [other for other in pairs if other is not pair]
            new = pair.folded(leaves)
            alone = uses.get(pair.product.weight) == 1
            if new is not None and alone and not any(set(new) & set(other.paths) for other in others):
                changed.append(new)
        return changed

    folded = jax.jit(walked)(params)
    if not folded:
        raise ValueError(
            "fold_batch_norm: found no batch norm behind a product whose result it alone uses. Use a function that "
            "infers: lambda params, x: model.apply(params, x, train=False)." + coded_already(params)
        )
    try:
        return verify("fold_batch_norm", fn, args, params, _union(folded), tolerance)
    except ValueError:
        kept = [one for one in folded if _same(fn, args, params, one, tolerance)]
        if not kept:
            raise
        return verify("fold_batch_norm", fn, args, params, _union(kept), tolerance)


def _union(parts: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    return {path: leaf for part in parts for path, leaf in part.items()}


def _same(
    fn: Callable[..., typing.Any],
    args: Sequence[typing.Any],
    params: typing.Any,
    changed: dict[str, jax.Array],
    tolerance: float,
) -> bool:
    try:
        verify("fold_batch_norm", fn, args, params, changed, tolerance)
    except ValueError:
        return False
    return True


@dataclasses.dataclass(frozen=True, eq=False)
class _Product(Valued):
    """What a dot or convolution with a weight computes, with a bias perhaps; counts who reads it."""

    weight: str
    axes: dict[int, int]  # of the value -> of the weight as stored
    uses: dict[str, int]
    bias: str | None = None

    def decode(self) -> jax.Array:
        self.uses[self.weight] = self.uses.get(self.weight, 0) + 1
        return self.value


class _Pair(typing.NamedTuple):
    """A product and the batch norm behind it."""

    product: _Product
    mean: Channels
    factors: tuple[Channels, ...]
    divides: bool

    @property
    def paths(self) -> set[str]:
        """All parameters that folding may change."""
        bias = {self.product.bias} if self.product.bias else set()
        return {self.product.weight, *bias, *self.mean.leaves, *(path for f in self.factors for path in f.leaves)}

    def _factor(self, leaves: typing.Any) -> jax.Array:
        *others, last = (f.express({**f.leaves, **leaves}) for f in self.factors)
        total = 1 / last if self.divides else last
        for other in others:
            total = total * other
        return total

    def folded(self, leaves: dict[str, typing.Any]) -> dict[str, jax.Array] | None:
        """The parameters that change, or None where that cannot be."""
        product, axis = self.product, self.mean.axis
        if axis not in product.axes:
            return None
        root = typing.cast(str, self.factors[-1].root)
        scales = {path for f in self.factors for path in f.leaves} - {root}
        ones = {path: jnp.ones_like(leaves[path]) for path in (root, *scales)}
        # with f(1) = 1 / sqrt(1 + epsilon), f is 1 at the variance 2 - 1 / f(1)**2
        neutral = {**ones, root: 2 - 1 / self._factor(ones) ** 2}
        factor = self._factor({})
        weight = leaves[product.weight]
        wide = [n if a == product.axes[axis] else 1 for a, n in enumerate(weight.shape)]
        if factor.shape[0] != weight.shape[product.axes[axis]]:
            return None
        changed = {product.weight: weight * factor.reshape(wide), **neutral}
        for path in (self.mean.bare, product.bias):
            if path is not None:
                changed[path] = leaves[path] * factor
        return changed


def _products(uses: dict[str, int]) -> dict[str, Rule]:
    """Rules that keep what a weight computes together with the weight."""

    def product(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        side = 1 if isinstance(y, Weight) else 0
        weight, other = (y, x) if side else (x, y)
        if not isinstance(weight, Weight) or isinstance(other, Weight) or weight.order is None:
            return None
        out = eqn.on(x, y)
        axes = output_axes(eqn, side, weight, other.ndim)
        if eqn.walk.name(weight.path) != weight.path:
            uses[weight.path] = 2  # a second product with the same weight
            return [out]
        return [_Product(out, weight.path, axes, uses)] if axes else [out]

    def add(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        x, y = (y, x) if isinstance(y, _Product) else (x, y)
        if not isinstance(x, _Product) or x.bias is not None or not isinstance(y, Channels) or y.bare is None:
            return None
        return [dataclasses.replace(x, value=x.value + decode(y), bias=y.bare)] if y.axis in x.axes else None

    return {"dot_general": product, "conv_general_dilated": product, "add": add}
