"""High biases moved through relu into the biases behind the next weights."""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jqz._channels import Channels, Handlers, Leaves, bind_all, coded_already, verify, walk_channels
from jqz._rows import met_axis, output_axes
from jqz._transform import named_leaves
from jqz._values import Pending, Value, Valued, Weight
from jqz._walk import Equation, Rule
from jqz.kernels import structure


def absorb_high_bias(
    fn: Callable[..., typing.Any], params: typing.Any, batches: Iterable[typing.Any], *, tolerance: float = 1e-4
) -> typing.Any:
    """Lowers biases before relu whose channels are always on, and raises the biases behind the next weights instead.

    With c the least value that a channel has before relu in all of the batches, or 0 where that is negative::

        relu(y) == relu(y - c) + c   where y >= c,   so   b1 <- b1 - c,   b2 <- b2 + W2 c

    Activations of these channels get smaller ranges. On the batches the function stays as it is, to rounding errors;
    on other inputs a channel is off by no more than it falls below c. The paper takes c from batch norms, as the mean
    less three standard deviations, which is wrong for about one value in a thousand.

    Pairs are found in the program: a product, its bias (of a batch norm, perhaps), relu, and products each of which
    adds a bias, or subtracts the mean of a batch norm, before anything else. Left alone are convolutions that pad, for
    the zeros beyond the border do not move, and what pooling or other readers stand between.

    Use it after ``equalize`` and before 8-bit activations with one grid a tensor: scaling channels up leaves some with
    high biases. With a range that fits each activation without it, it gains nothing.

    Args:
      fn: a pure function of ``(params, *args)`` that infers, such as a Linen ``model.apply``.
      params: its float parameters.
      batches: arguments of ``fn`` after the parameters, to measure on: an array or a tuple each; as many as can be had.
        The result is verified on the first.
      tolerance: of the relative difference of the outputs.

    Returns:
      The same tree with other biases and means; the very same numbers where no channel is always on.

    Raises:
      ValueError: there are no batches, there are no pairs, or the outputs change by more than ``tolerance``.

    >>> import jax, jax.numpy as jnp, jqz.algorithms
    >>> def model(params, x):
    ...     return jax.nn.relu(x @ params["w1"] + params["b1"][None]) @ params["w2"] + params["b2"][None]
    >>> params = {"w1": jnp.ones((1, 2)), "b1": jnp.array([5.0, 0.0]), "w2": jnp.ones((2, 1)), "b2": jnp.zeros(1)}
    >>> lower = jqz.algorithms.absorb_high_bias(model, params, [jnp.array([[-1.0], [1.0]])])
    >>> lower["b1"].tolist(), lower["b2"].tolist()
    ([1.0, 0.0], [4.0])

    References: arXiv:1906.04721, section 4.1.3.
    """
    fn, inputs = bind_all("absorb_high_bias", fn, batches)
    pairs: list[_Pair] = []
    uses: dict[str, int] = {}

    @jax.jit
    def least(params: typing.Any, args: tuple[typing.Any, ...]) -> list[jax.Array]:
        pairs.clear()
        uses.clear()
        walk_channels(fn, params, args, Handlers(), _rules(pairs, uses), structure.RULES)
        return [pair.least for pair in pairs]

    minima = [least(params, args) for args in inputs]
    leaves = dict(named_leaves(params))
    changed: dict[str, jax.Array] = {}
    found = [
        (pair, jnp.maximum(jnp.min(jnp.stack(lows), axis=0), 0))
        for pair, *lows in zip(pairs, *minima, strict=True)
        if pair.whole and all(uses.get(path) == 1 for path in pair.paths)
    ]
    if not found:
        raise ValueError(
            "absorb_high_bias: found no bias before relu and products with biases of their own behind it. Use a "
            "function that infers, with relu between its layers, and convolutions that do not pad."
            + coded_already(params)
        )
    for pair, amount in found:
        for path, by in pair.moves(amount, leaves):
            changed[path] = changed.get(path, leaves[path]) + by.astype(leaves[path].dtype)
    return verify("absorb_high_bias", fn, inputs[0], params, changed, tolerance)


class _Shift(typing.NamedTuple):
    """A parameter that is added (sign 1) or subtracted (sign -1)."""

    path: str
    sign: int


class _Payer(typing.NamedTuple):
    """A weight that reads what relu made, along an axis, for outputs along another; and what is added behind it."""

    weight: str
    axis: int
    out: int
    shift: _Shift


@dataclasses.dataclass(eq=False)
class _Pair:
    """The last shift before a relu, the least values there, and those who make up for what is taken from it.

    ``between`` are values that change, each of which must have one reader.
    """

    shift: _Shift
    least: jax.Array
    between: list["_Carried"]
    readers: int = 0
    payers: list[_Payer] = dataclasses.field(default_factory=list)
    spoilt: bool = False

    @property
    def whole(self) -> bool:
        alone = all(len(value.takes) == 1 for value in self.between)
        return not self.spoilt and alone and self.readers == len(self.payers) > 0

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.shift.path, *(p for payer in self.payers for p in (payer.weight, payer.shift.path)))

    def moves(self, amount: jax.Array, leaves: Leaves) -> list[tuple[str, jax.Array]]:
        """What to add to which parameters."""
        moves = [(self.shift.path, -self.shift.sign * amount)]
        for weight, axis, out, shift in self.payers:
            wide = [-1 if i == axis else 1 for i in range(leaves[weight].ndim)]
            rest = tuple(i for i in range(leaves[weight].ndim) if i != out)
            moves.append((shift.path, shift.sign * jnp.sum(leaves[weight] * amount.reshape(wide), axis=rest)))
        return moves


@dataclasses.dataclass(frozen=True, eq=False)
class _Carried(Valued):
    """What products and shifts make, its channels along ``axis``, and the pairs that whoever else reads it spoils."""

    axis: int
    last: _Shift | None = None  # with nothing but additions since
    owed: tuple[_Pair, str, int, int] | None = None  # what the next shift may make up for, and through which weight
    pair: _Pair | None = None  # that this value is behind the relu of
    takes: list[None] = dataclasses.field(default_factory=list)  # one for each reader

    def take(self) -> jax.Array:
        """The array, for a rule that knows what it does to it."""
        self.takes.append(None)
        return self.value

    def decode(self) -> jax.Array:
        if self.pair is not None:
            self.pair.spoilt = True
        return self.take()


def _rules(pairs: list[_Pair], uses: dict[str, int]) -> dict[str, Rule]:
    """Rules that find a shift, relu, products, and shifts."""

    def used(path: str) -> None:
        uses[path] = uses.get(path, 0) + 1

    def product(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        side = 1 if isinstance(y, Weight) else 0
        weight, other = (y, x) if side else (x, y)
        if not isinstance(weight, Weight) or isinstance(other, Weight):
            return None
        used(weight.path)
        order = weight.order
        if order is None or len(order) != weight.ndim:
            return None
        made = output_axes(eqn, side, weight, other.ndim)
        met = _met(eqn, side, weight, other) if isinstance(other, _Carried) and len(made) == 1 else None
        owed = None
        if met is not None and other.pair is not None:
            owed = other.pair, weight.path, order[met], next(iter(made.values()))
            other.pair.readers += 1
            other = other.take()
        out = eqn.on(*((other, weight) if side else (weight, other)))
        if len(made) != 1:
            return [out]
        carried = _Carried(out, next(iter(made)), owed=owed)
        if owed is not None:
            owed[0].between.append(carried)
        return [carried]

    def shifted(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        x, y = (y, x) if eqn.primitive == "add" and not isinstance(x, _Carried) else (x, y)
        if not isinstance(x, _Carried) or x.pair is not None or not isinstance(y, Channels) or y.bare is None:
            return None
        if y.axis != x.axis or eqn.avals[0].shape != x.shape:
            return None
        used(y.bare)
        shift = _Shift(y.bare, 1 if eqn.primitive == "add" else -1)
        if x.owed is not None:
            pair, weight, axis, out = x.owed
            pair.payers.append(_Payer(weight, axis, out, shift))
        return [_Carried(eqn.on(x.take(), y), x.axis, last=shift)]

    def scaled(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        x, y = (y, x) if eqn.primitive == "mul" and not isinstance(x, _Carried) else (x, y)
        fits = isinstance(x, _Carried) and x.pair is None and isinstance(y, Channels)
        return [_Carried(eqn.on(x.take(), y), x.axis)] if fits and eqn.avals[0].shape == x.shape else None

    def clipped(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        x, y = (x, y) if isinstance(x, _Carried) else (y, x)
        zero = not isinstance(y, Pending | Tracer) and jnp.ndim(y) == 0 and y == 0
        if not zero or not isinstance(x, _Carried) or x.last is None or x.pair is not None:
            return None
        least = jnp.min(x.value, axis=[axis for axis in range(x.ndim) if axis != x.axis])
        pairs.append(_Pair(x.last, least.astype(jnp.float32), [x]))
        return [_Carried(eqn.on(x.take(), y), x.axis, pair=pairs[-1])]

    return {
        **dict.fromkeys(("dot_general", "conv_general_dilated"), product),
        **dict.fromkeys(("add", "sub"), shifted),
        **dict.fromkeys(("mul", "div"), scaled),
        "max": clipped,
    }


def _met(eqn: Equation, side: int, weight: Weight, carried: _Carried) -> int | None:
    """The axis of the moved weight that meets the channels, if constant channels make a constant result."""
    p = eqn.params
    if eqn.primitive != "dot_general" and (any(map(any, p["padding"])) or any(n != 1 for n in p["lhs_dilation"])):
        return None
    return met_axis(eqn, side, weight, carried.axis, carried.shape[carried.axis])
