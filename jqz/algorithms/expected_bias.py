"""Biases corrected from the statistics of batch norms, without data."""

import dataclasses
import math
import typing
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.scipy.stats import norm

from jqz._channels import Centred, Channels, Handlers, as_args, replaced, walk_channels
from jqz._rows import met_axis, output_axes
from jqz._transform import dequantize, named_leaves
from jqz._values import Pending, Value, Valued, Weight, decode
from jqz._walk import Equation, Rule, Walk
from jqz.kernels import structure


def correct_bias_data_free(
    fn: Callable[..., typing.Any], params: typing.Any, qparams: typing.Any, batch: typing.Any
) -> typing.Any:
    """Shifts biases by what rounding does to the mean of each channel, which batch norms foretell.

    Behind a batch norm with bias b and scale g, a channel is taken for normal, N(b, g**2). Clipped to [low, high], as
    relu and relu6 do, with F and f the normal distribution and its density::

        l = (low - b) / |g|,   h = (high - b) / |g|
        E = low F(l) + high (1 - F(h)) + b (F(h) - F(l)) + |g| (f(l) - f(h))

    The next weight then moves the mean of its outputs by (Q(W) - W) E, which its bias, or the mean of the batch norm
    behind it, makes up for. Means of sums and of average pooling follow from those of their parts.

    Use it for rounded weights at 4 bits and below where there are no inputs at all; with some ``correct_bias`` is exact
    and sees rounded activations, and with a batch norm behind every weight ``reestimate_batch_norm`` corrects variances
    too. Weights behind anything else (maximum pooling, a sum that relu clips, layers without batch norm) are left
    alone. It ignores borders of padded convolutions.

    Args:
      fn: a pure function of ``(params, *args)`` that infers, such as a Linen ``model.apply``.
      params: its float parameters as trained: after ``fold_batch_norm`` and ``equalize`` the variances that batch norms
        store are no longer those of what they see.
      qparams: the same tree with rounded weights, as QTensors or dequantized.
      batch: arguments of ``fn`` after the parameters: an array or a tuple. Only the shapes count.

    Returns:
      ``qparams`` with other biases and means.

    Raises:
      ValueError: no weight stands between a batch norm and a bias of its own.

    >>> import jax, jax.numpy as jnp, jqz, jqz.algorithms
    >>> def model(params, x):
    ...     x = (x - params["mean"][None]) * jax.lax.rsqrt(params["var"])[None] + params["b"][None]
    ...     return jax.nn.relu(x) @ params["kernel"] + params["bias"][None]
    >>> params = {"mean": jnp.zeros(1), "var": jnp.ones(1), "b": jnp.zeros(1), "bias": jnp.zeros(2)}
    >>> params |= {"kernel": jnp.array([[1.0, 0.3]])}
    >>> qparams = jqz.quantize(params, jqz.Policy({"kernel": jqz.Symmetric(bits=2)}))
    >>> out = jqz.algorithms.correct_bias_data_free(model, params, qparams, jnp.zeros((1, 1)))
    >>> round(float(out["bias"][1]), 4)  # 0.3 became 0, and relu of a normal has the mean 1 / sqrt(2 pi)
    0.1197

    References: arXiv:1906.04721, section 4.2.1 and appendix C.
    """

    found: list[_Correction] = []

    @jax.jit
    def expected(params: typing.Any) -> list[jax.Array]:
        found.clear()
        walk_channels(fn, params, as_args(batch), Handlers(whole=_normed), _rules(found), structure.RULES)
        return [one.expected for one in found]

    means = expected(params)
    if not found:
        raise ValueError(
            "correct_bias_data_free: found no weight between a batch norm and a bias of its own, outside of loops and "
            "branches. Use correct_bias with some inputs: correct_bias(fn, params, qparams, [x])."
        )
    exact, rounded = (dict(named_leaves(tree)) for tree in (params, dequantize(qparams)))
    changed: dict[str, jax.Array] = {}
    shifts = [one.shift for one in found]
    for one, mean in zip(found, means, strict=True):
        if shifts.count(one.shift) > 1:  # it has no one right value
            continue
        difference = (rounded[one.weight] - exact[one.weight]).astype(jnp.float32)
        wide = [-1 if axis == one.axis else 1 for axis in range(difference.ndim)]
        rest = tuple(axis for axis in range(difference.ndim) if axis != one.out)
        moved = jnp.sum(difference * mean.reshape(wide), axis=rest)
        old = rounded[one.shift]
        changed[one.shift] = old - one.sign * moved.astype(old.dtype)
    return replaced(qparams, changed)


class _Correction(typing.NamedTuple):
    """A weight, its axis that meets channels of known means and that of its outputs, and what is added behind it."""

    weight: str
    axis: int
    out: int
    expected: jax.Array
    shift: str
    sign: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Known(Valued):
    """An activation whose channels have known means: those of a normal distribution clipped to [low, high].

    ``deviation`` is None where nothing is known of the distribution but its mean.
    """

    axis: int
    mean: jax.Array
    deviation: jax.Array | None
    low: float = -float("inf")
    high: float = float("inf")

    @property
    def is_clipped(self) -> bool:
        return self.low > -float("inf") or self.high < float("inf")

    def expected(self) -> jax.Array:
        """The mean of each channel."""
        if self.deviation is None or not self.is_clipped:
            return self.mean
        spread = jnp.maximum(self.deviation, 1e-30)
        low, high = (self.low - self.mean) / spread, (self.high - self.mean) / spread
        total = self.mean * (norm.cdf(high) - norm.cdf(low)) + spread * (norm.pdf(low) - norm.pdf(high))
        if self.low > -float("inf"):
            total = total + self.low * norm.cdf(low)
        return total + self.high * norm.cdf(-high) if self.high < float("inf") else total

    def settled(self, value: jax.Array, axis: int | None = None, factor: float = 1.0) -> "_Known":
        """Another value, whose mean is that of this one times a factor."""
        return _Known(value, self.axis if axis is None else axis, self.expected() * factor, None)


@dataclasses.dataclass(frozen=True, eq=False)
class _Product(Valued):
    """What a weight makes of channels with known means, before anything is added."""

    feature: int
    weight: str
    axis: int
    out: int
    expected: jax.Array


def _normed(walk: Walk, centred: Centred, factor: Channels, divides: bool) -> typing.Any:
    """What a batch norm makes: mean 0, and the deviation that the variance it stores will have."""
    del walk
    scale = factor.express(factor.leaves)
    scale = 1 / scale if divides else scale
    for other in centred.factors:
        scale = scale * other.express(other.leaves)
    variance = factor.leaves[typing.cast(str, factor.root)]
    value = centred.decode() / factor.decode() if divides else centred.decode() * factor.decode()
    deviation = jnp.abs(scale) * jnp.sqrt(jnp.maximum(variance, 0))
    return _Known(value, centred.mean.axis, jnp.zeros_like(deviation), deviation)


def _scalar(value: Value) -> float | None:
    if isinstance(value, Pending | Tracer) or jnp.ndim(value):
        return None
    return float(value)


def _rules(found: list[_Correction]) -> dict[str, Rule]:
    """Rules that follow means of channels from batch norms to weights, and what these make to what is added to it."""

    def product(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        side = 1 if isinstance(y, Weight) else 0
        weight, other = (y, x) if side else (x, y)
        if not isinstance(weight, Weight) or not isinstance(other, _Known) or weight.order is None:
            return None
        made = output_axes(eqn, side, weight, other.ndim)
        met = met_axis(eqn, side, weight, other.axis, other.shape[other.axis])
        if len(made) != 1 or met is None or len(weight.order) != weight.ndim:
            return None
        ((feature, out),) = made.items()
        return [_Product(eqn.on(x, y), feature, weight.path, weight.order[met], out, other.expected())]

    def shifted(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        sign = 1 if eqn.primitive == "add" else -1
        if sign == 1 and not isinstance(x, _Known | _Product):
            x, y = y, x
        if isinstance(x, _Known) and isinstance(y, _Known) and x.axis == y.axis and x.shape == y.shape:
            return [_Known(eqn.on(x, y), x.axis, x.expected() + sign * y.expected(), None)]
        if not isinstance(x, _Known | _Product) or not isinstance(y, Channels) or y.bare is None:
            return None
        if isinstance(x, _Known):
            if y.axis != x.axis or sign == -1:  # the next batch norm says more
                return None
            x = x.settled(x.value) if x.is_clipped else x
            return [dataclasses.replace(x, value=eqn.on(x, y), mean=x.mean + y.express(y.leaves))]
        if y.axis == x.feature:
            found.append(_Correction(x.weight, x.axis, x.out, x.expected, y.bare, sign))
        return [Centred(x.value, y)] if sign == -1 else [eqn.on(x, y)]

    def scaled(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        x, y = (y, x) if eqn.primitive == "mul" and not isinstance(x, _Known) else (x, y)
        if not isinstance(x, _Known):
            return None
        number = _scalar(y)
        if number is not None:
            return [x.settled(eqn.on(*eqn.operands), factor=number if eqn.primitive == "mul" else 1 / number)]
        fits = eqn.primitive == "mul" and isinstance(y, Channels) and y.axis == x.axis
        if not fits or x.deviation is None or x.is_clipped:
            return None
        by = typing.cast(Channels, y).express(y.leaves)
        return [_Known(eqn.on(*eqn.operands), x.axis, x.mean * by, x.deviation * jnp.abs(by))]

    def clipped(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        x, y = (x, y) if isinstance(x, _Known) else (y, x)
        number = _scalar(y)
        if not isinstance(x, _Known) or number is None or x.deviation is None:
            return None
        ends = (max(x.low, number), x.high) if eqn.primitive == "max" else (x.low, min(x.high, number))
        if ends[0] > ends[1]:
            return None
        return [dataclasses.replace(x, value=eqn.on(x, y), low=ends[0], high=ends[1])]

    def reduced(eqn: Equation, x: Value) -> Sequence[Value] | None:
        gone = eqn.params["axes"]
        if not isinstance(x, _Known) or x.axis in gone:
            return None
        count = decode(x).size / max(1, eqn.avals[0].size)
        return [x.settled(eqn.on(x), x.axis - sum(axis < x.axis for axis in gone), count)]

    def windowed(eqn: Equation, x: Value, *rest: Value) -> Sequence[Value] | None:
        if not isinstance(x, _Known) or rest or eqn.params["window_dimensions"][x.axis] != 1:
            return None
        return [x.settled(eqn.on(x), factor=math.prod(eqn.params["window_dimensions"]))]

    return {
        **dict.fromkeys(("dot_general", "conv_general_dilated"), product),
        **dict.fromkeys(("add", "sub"), shifted),
        **dict.fromkeys(("mul", "div"), scaled),
        **dict.fromkeys(("max", "min"), clipped),
        "reduce_sum": reduced,
        "reduce_window_sum": windowed,
    }
