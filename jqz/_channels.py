"""Parameters of one number a channel on their way to the activations that they shift and scale.

A walk with these rules finds, from the program alone, where a bias is added and where a batch norm stands, however the
layer was written: x - mean, times or divided by what the root of a variance went into.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from jqz._evaluate import walk_through
from jqz._learnable import is_whole
from jqz._paths import name as path_name
from jqz._qtensor import is_qtensor
from jqz._scheme import work_dtype
from jqz._steps import joined
from jqz._transform import named_leaves
from jqz._values import Pending, Value, Weight, decode
from jqz._walk import Equation, Rule, Rules, Walk, either

Leaves = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Channels(Pending):
    """Numbers along one axis of an array of ``shape``, computed from parameters alone.

    Attributes:
      express: the numbers (channels,) from the parameters that they come from.
      leaves: these parameters, by path.
      axis: of the array, along which they lie.
      root: the parameter whose root was taken, if one was.
      bare: the path of the parameter, if this is one as it stands.
    """

    express: Callable[[Leaves], jax.Array]
    leaves: Leaves
    axis: int
    size: tuple[int, ...]
    dtype: typing.Any
    root: str | None = None
    bare: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    def decode(self) -> jax.Array:
        return self.given({})

    def given(self, changed: Leaves) -> jax.Array:
        """The array, with other values for some of the parameters."""
        wide = tuple(n if axis == self.axis else 1 for axis, n in enumerate(self.size))
        changed = {path: leaf.astype(self.leaves[path].dtype) for path, leaf in changed.items() if path in self.leaves}
        vector = self.express({**self.leaves, **changed}).astype(self.dtype)
        return jnp.broadcast_to(vector.reshape(wide), self.size)


@dataclasses.dataclass(frozen=True, eq=False)
class Centred(Pending):
    """x - mean, and what it was multiplied with since, none of which had a root in it."""

    x: Value
    mean: Channels
    factors: tuple[Channels, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    @property
    def dtype(self) -> typing.Any:
        return self.x.dtype

    def decode(self) -> jax.Array:
        return self.given({})

    def given(self, changed: Leaves) -> jax.Array:
        """The array, with other values for some of the parameters."""
        y = decode(self.x) - self.mean.given(changed)
        for factor in self.factors:
            y = y * factor.given(changed)
        return y


class Handlers(typing.NamedTuple):
    """What to do at a batch norm and at a bias.

    ``norm(walk, x, mean, variance, axis)`` and ``bias(walk, x, bias, axis)`` get the paths of parameters, and return
    other values for them, by path, which hold for this use. ``whole(walk, centred, factor, divides)`` may return the
    result of a batch norm instead.
    """

    norm: Callable[..., Leaves] = lambda *_: {}
    bias: Callable[..., Leaves] = lambda *_: {}
    whole: Callable[..., jax.Array | None] = lambda *_: None


def rules(handlers: Handlers) -> dict[str, Rule]:
    """The rule table."""

    def scaled(eqn: Equation, x: Value, y: Value, divides: bool) -> Sequence[Value] | None:
        if isinstance(y, Centred) and not divides:
            x, y = y, x
        if not isinstance(x, Centred) or not isinstance(y, Channels) or y.axis != x.mean.axis:
            return None
        if y.root is None:
            return None if divides else [dataclasses.replace(x, factors=(*x.factors, y))]
        if (whole := handlers.whole(eqn.walk, x, y, divides)) is not None:
            return [whole]
        changed = handlers.norm(eqn.walk, decode(x.x), x.mean.bare, y.root, y.axis)
        return [x.given(changed) / y.given(changed) if divides else x.given(changed) * y.given(changed)]

    def multiply(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        return _elementwise(eqn, x, y) or scaled(eqn, x, y, divides=False)

    def divide(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        return _elementwise(eqn, x, y) or scaled(eqn, x, y, divides=True)

    def subtract(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        if isinstance(y, Channels) and y.bare is not None and _is_data(x):
            return [Centred(x, y)]
        return _elementwise(eqn, x, y)

    def add(eqn: Equation, x: Value, y: Value) -> Sequence[Value] | None:
        if isinstance(x, Channels) and _is_data(y):
            x, y = y, x
        if isinstance(y, Channels) and y.bare is not None and _is_data(x):
            x = decode(x)
            return [x + y.given(handlers.bias(eqn.walk, x, y.bare, y.axis))]
        return _elementwise(eqn, x, y)

    return {
        "add": add,
        "sub": subtract,
        "mul": multiply,
        "div": divide,
        **dict.fromkeys(("rsqrt", "sqrt"), _root),
        **dict.fromkeys(("neg", "exp", "max", "integer_pow", "square"), _elementwise),
        "broadcast_in_dim": _broadcast,
        "reshape": _reshape,
        "convert_element_type": _convert,
        "copy": lambda eqn, x: [x],
        "stop_gradient": lambda eqn, x: [x],
    }


def _is_data(value: Value) -> bool:
    return not isinstance(value, Channels) and value.ndim > 0


def _elementwise(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
    """The same equation on the numbers alone, where all operands are such numbers or scalars."""
    found = [v for v in operands if isinstance(v, Channels)]
    if not found or not all(isinstance(v, Channels) or v.ndim == 0 for v in operands):
        return None
    roots = {v.root for v in found} - {None}
    size = eqn.avals[0].shape
    if len({v.axis for v in found}) > 1 or len(roots) > 1 or len(size) != len(found[0].size):
        return None

    def express(leaves: Leaves) -> jax.Array:
        vectors = [v.express(leaves) if isinstance(v, Channels) else v for v in operands]
        return eqn.bind(*(jnp.asarray(v) for v in vectors))[0]

    leaves = {path: leaf for v in found for path, leaf in v.leaves.items()}
    root = roots.pop() if roots else None
    return [Channels(express, leaves, found[0].axis, size, eqn.avals[0].dtype, root)]


def _root(eqn: Equation, x: Value) -> Sequence[Value] | None:
    out = _elementwise(eqn, x)
    if out is None or len(x.leaves) != 1:
        return out
    return [dataclasses.replace(out[0], root=next(iter(x.leaves)))]


def _broadcast(eqn: Equation, x: Value, *_: Value) -> Sequence[Value] | None:
    size = eqn.params["shape"]
    if not isinstance(x, Channels):
        return None
    axis = eqn.params["broadcast_dimensions"][x.axis]
    return [dataclasses.replace(x, axis=axis, size=size)] if size[axis] == x.size[x.axis] else None


def _reshape(eqn: Equation, x: Value, *_: Value) -> Sequence[Value] | None:
    size = tuple(eqn.params["new_sizes"])
    if not isinstance(x, Channels) or eqn.params.get("dimensions") is not None:
        return None
    n = x.size[x.axis]
    axis = max((i for i, m in enumerate(size) if m == n), default=None)
    single = all(m == 1 for m in x.size[: x.axis] + x.size[x.axis + 1 :])
    if axis is None or not single or any(m != 1 for i, m in enumerate(size) if i != axis):
        return None
    return [dataclasses.replace(x, axis=axis, size=size)]


def _convert(eqn: Equation, x: Value) -> Sequence[Value] | None:
    dtype = eqn.params["new_dtype"]
    if not isinstance(x, Channels) or not jnp.issubdtype(dtype, jnp.floating):
        return None
    return [dataclasses.replace(x, dtype=dtype, express=lambda leaves: x.express(leaves).astype(dtype))]


def named(leaf: jax.Array, name: str) -> Channels | Weight:
    """A parameter as a walk knows it."""
    if leaf.ndim > 1:
        return Weight(leaf, name, tuple(range(leaf.ndim)))
    own = {name: jnp.asarray(leaf)}
    return Channels(lambda leaves: leaves[name], own, 0, leaf.shape, leaf.dtype, bare=name)


def walk_channels(
    fn: Callable[..., typing.Any],
    params: typing.Any,
    args: Sequence[typing.Any],
    handlers: Handlers,
    *tables: Rules,
    always: frozenset[str] = frozenset(),
) -> tuple[typing.Any, Walk]:
    """Runs a function on parameters, QTensors among them, with handlers at its batch norms and biases.

    What stands in loops and branches is computed, and not looked at, unless a rule does. With more ``tables`` of rules,
    which come first, leaves of higher rank are weights that these rules follow; they are offered primitives in
    ``always`` on arrays too.
    """
    walk = Walk(either(*tables, rules(handlers)), derivatives=False, always=always)
    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_qtensor)

    def tagged(path: typing.Any, leaf: typing.Any) -> typing.Any:
        if is_qtensor(leaf) and leaf.ndim == 1:
            leaf = leaf.dequantize()  # a bias or a statistic
        if is_qtensor(leaf) or not getattr(leaf, "ndim", 0) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return named(leaf, path_name(path)) if tables or leaf.ndim == 1 else leaf

    tree = treedef.unflatten([tagged(path, leaf) for path, leaf in flat])
    return walk_through(fn, (tree, *args), {}, walk), walk


def replaced(params: typing.Any, changed: Leaves) -> typing.Any:
    """The tree with other values for the leaves of some paths, in the dtypes that they had."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_whole)
    named = [(path_name(path), leaf) for path, leaf in flat]
    return treedef.unflatten([changed[name].astype(leaf.dtype) if name in changed else leaf for name, leaf in named])


def as_args(batch: typing.Any) -> tuple[typing.Any, ...]:
    """The arguments of a function after its parameters: a batch is one of them, or a tuple."""
    return batch if isinstance(batch, tuple) else (batch,)


#: Arguments that choose what a function does, which a compiled one takes beforehand.
_FLAGS = (bool, str, type(None))


def bind(
    who: str, fn: Callable[..., typing.Any], batches: Iterable[typing.Any]
) -> tuple[Callable[..., typing.Any], list[tuple[typing.Any, ...]]]:
    """A function with the flags among its arguments, such as ``train``, and what else each batch gives it.

    Raises:
      TypeError: the batches are one array, whose rows would be taken for them.
      ValueError: they differ in their flags.
    """
    if hasattr(batches, "shape") or isinstance(batches, Mapping | str):
        raise TypeError(
            f"{who}: got {type(batches).__name__} as batches, wanted a list of them. Use batches=[x], with x as the "
            "model takes it."
        )
    inputs = [as_args(batch) for batch in batches]
    flags = [{i: arg for i, arg in enumerate(args) if isinstance(arg, _FLAGS)} for args in inputs]
    if not any(flags):
        return fn, inputs
    first, count = flags[0], len(inputs[0])
    if any(one != first or len(args) != count for one, args in zip(flags, inputs, strict=True)):
        raise ValueError(f"{who}: batches differ in {flags}, wanted the same flags. Use functools.partial(fn, ...).")

    def bound(params: typing.Any, *arrays: typing.Any) -> typing.Any:
        rest = iter(arrays)
        return fn(params, *(first[i] if i in first else next(rest) for i in range(count)))

    return bound, [tuple(arg for i, arg in enumerate(args) if i not in first) for args in inputs]


def bind_all(
    who: str, fn: Callable[..., typing.Any], batches: Iterable[typing.Any]
) -> tuple[Callable[..., typing.Any], list[tuple[typing.Any, ...]]]:
    """As ``bind``; a ValueError where there are no batches."""
    fn, inputs = bind(who, fn, batches)
    if not inputs:
        raise ValueError(f"{who}: got no batches. Use batches=[x], with x as the model takes it.")
    return fn, inputs


def coded_already(params: typing.Any) -> str:
    """What to add to an error of a rewriter that found nothing: that it looks at float weights alone."""
    coded = [name for name, leaf in named_leaves(params) if is_qtensor(leaf)]
    return f" {coded[0]!r} is quantized already: rewrite first, then quantize." if coded else ""


def verify(
    who: str,
    fn: Callable[..., typing.Any],
    args: Sequence[typing.Any],
    params: typing.Any,
    changed: Leaves,
    tolerance: float,
) -> typing.Any:
    """The tree with other values for some leaves, or steps of them, if a function computes the same on it.

    Raises:
      ValueError: a result differs by more than ``tolerance`` of the largest magnitude in it, or than four roundings
        of its dtype.
    """
    changed = joined(dict(named_leaves(params)), changed)
    new, run = replaced(params, changed), jax.jit(lambda params: fn(params, *args))
    for a, b in zip(*(jax.tree.leaves(run(tree)) for tree in (params, new)), strict=True):
        if not jnp.issubdtype(a.dtype, jnp.floating) or not a.size:
            continue  # a choice by comparison may fall otherwise in the last bit; the numbers behind it are looked at
        limit = max(tolerance, 4 * float(jnp.finfo(a.dtype).eps))
        a, b = (x.astype(work_dtype(x)) for x in (a, b))
        off = jnp.where(a == b, 0, jnp.abs(a - b))  # infinity that masks stays
        error = float(jnp.max(off) / jnp.maximum(jnp.max(jnp.where(jnp.isinf(a), 0, jnp.abs(a))), 1e-30))
        if not error <= limit:
            raise ValueError(
                f"{who}: the outputs change by {error:.1e} of their magnitude, more than {limit:.0e}: one of "
                f"{sorted(changed)} is used in a way that is not seen here, or the model computes in fewer bits than "
                f"its output has. Use a larger tolerance in the second case, this model without {who} in the first."
            )
    return new
