"""The verbs on trees: quantize, dequantize, fake_quantize, and what a tree weighs."""

import contextlib
import functools
import itertools
import typing
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jqz import _paths, _qtensor, _ste
from jqz._learnable import Learnable, value_and_grid
from jqz._policy import Decision, PolicyLike, resolve
from jqz._qtensor import QTensor, is_qtensor
from jqz._scheme import Grid, Scheme


@contextlib.contextmanager
def at(who: str, path: str, leaf: typing.Any) -> Iterator[None]:
    """Names the verb, the leaf and its shape in an error that a scheme raises."""
    try:
        yield
    except (ValueError, TypeError) as error:
        place = f"{path!r} has shape {tuple(leaf.shape)}; " if path else ""
        raise type(error)(f"{who}: {place}{error}") from error


def _check(who: str, decision: Decision) -> None:
    leaf = decision.leaf
    place = f"{decision.path!r}" if decision.path else "the array"
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise TypeError(
            f"{who}: {place} is {type(leaf).__name__}, wanted an array. Use jnp.asarray, or map it to None."
        )
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(
            f"{who}: {place} has dtype {leaf.dtype}, wanted a floating dtype. "
            "Use x.astype(jnp.float32), or map this path to None."
        )


def _check_static(who: str, decision: Decision) -> None:
    """A QTensor keeps its scheme beside the arrays, where jit must be able to compare it."""
    try:
        hash(decision.scheme)
    except TypeError as error:
        place = f"{decision.path!r}" if decision.path else "the array"
        raise TypeError(
            f"{who}: {place} has the scheme {decision.scheme!r}, which holds an array; a stored scheme holds plain "
            "values. Use quantize(params, policy, key=key) for Stochastic(), int(bits) for a width, or fake_quantize."
        ) from error


_NO_GRADIENT = (
    "quantize: integer codes have no gradient. Use fake_quantize(params, policy) in a loss, "
    "or quantize(jax.lax.stop_gradient(params), policy)."
)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _quantize_leaves(leaves, distinct: tuple[Scheme, ...], which: tuple[int, ...], paths: tuple[str, ...], key):
    """All leaves, each with a grid or None, in one program: XLA runs them back to back, without a dispatch each.

    ``which`` indexes the distinct schemes, so that a call hashes each of them once.
    """
    out, finite = [], []
    for i, ((leaf, grid), index, path) in enumerate(zip(leaves, which, paths, strict=True)):
        scheme = distinct[index]
        with at("quantize", path, leaf):
            keyed = scheme if key is None else scheme.with_key(jax.random.fold_in(key, i))
            q = _qtensor.encode(_ste.refuse_gradient(leaf, _NO_GRADIENT), keyed, grid)
        out.append(QTensor(q.payload, q.grid, scheme, q.dtype, q.length))
        finite.append(scheme.finite(leaf, q.codes, q.grid))
    return out, jnp.stack(finite) if finite else jnp.ones(0, bool)


def quantize(params: typing.Any, policy: PolicyLike, *, key: jax.Array | None = None) -> typing.Any:
    """Codes the leaves of a tree that a policy selects; the others stay as they are.

    Pure and jit-able; the whole tree is one compiled program, compiled once for each set of shapes.

    Args:
      params: any pytree of floating arrays (Linen variables, an NNX state or module), or one array.
      policy: a ``Policy``, one ``Scheme``, a callable ``(path, leaf) -> Scheme | None``, or a tree of schemes.
      key: for stochastic rounding; every leaf gets its own.

    Returns:
      The same tree with QTensor leaves.

    Raises:
      ValueError: a rule matches nothing, a leaf holds NaN or infinity (seen outside jit only), or a scheme's
        granularity does not fit a leaf's shape. The message names the path.
      TypeError: a selected leaf is not a floating array.

    >>> import jax.numpy as jnp, jqz
    >>> params = {"Dense_0": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
    >>> jqz.quantize(params, jqz.Symmetric(bits=4))["Dense_0"]["kernel"]
    QTensor(shape=(4, 2), dtype=float32, scheme=Symmetric(bits=4))
    """
    decisions, treedef = resolve("quantize", policy, params)
    chosen = [d for d in decisions if d.scheme is not None]
    for d in chosen:
        _check("quantize", d)
    distinct = {id(d.scheme): d for d in reversed(chosen)}
    for d in distinct.values():
        _check_static("quantize", d)
    leaves = [value_and_grid("quantize", d.path, d.leaf, d.scheme) for d in decisions]
    order = {scheme: index for index, scheme in enumerate(distinct)}
    coded, finite = _quantize_leaves(
        [leaf for leaf, d in zip(leaves, decisions, strict=True) if d.scheme is not None],
        tuple(typing.cast(Scheme, d.scheme) for d in distinct.values()),
        tuple(order[id(d.scheme)] for d in chosen),
        tuple(d.path for d in chosen),
        key,
    )
    if not isinstance(finite, Tracer):
        for d, surely in zip(chosen, jax.device_get(finite), strict=True):
            if not surely and not all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(d.leaf)):
                place = repr(d.path) if d.path else "the array"
                raise ValueError(
                    f"quantize: {place} holds NaN or infinite values. Use jnp.nan_to_num, or map this path to None."
                )
    coded = iter(coded)
    return treedef.unflatten(
        [leaf if d.scheme is None else next(coded) for (leaf, _), d in zip(leaves, decisions, strict=True)]
    )


@jax.jit
def _dequantize_leaves(coded):
    return [q.dequantize() for q in coded]


def dequantize(tree: typing.Any) -> typing.Any:
    """Decodes every QTensor of a tree, in one compiled program; other leaves stay as they are.

    >>> import jax.numpy as jnp, jqz
    >>> jqz.dequantize(jqz.quantize(jnp.array([-1.0, 0.5, 1.0]), jqz.Symmetric(bits=2))).tolist()
    [-1.0, 0.0, 1.0]
    """
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_qtensor)
    values = iter(_dequantize_leaves([leaf for leaf in leaves if is_qtensor(leaf)]))
    return treedef.unflatten([next(values) if is_qtensor(leaf) else leaf for leaf in leaves])


def fake_quantize(params: typing.Any, policy: PolicyLike, *, key: jax.Array | None = None) -> typing.Any:
    """Rounds the selected leaves to what ``dequantize(quantize(...))`` gives, with straight-through gradients.

    The result is floating: put it between the parameters and the model in a loss, under jit, and
    train the float parameters as usual. NaN passes through, so that a diverging run shows as one.

    Args and errors are those of ``quantize``.

    >>> import jax, jax.numpy as jnp, jqz
    >>> w = jnp.array([-1.0, 0.4, 1.0])
    >>> jqz.fake_quantize(w, jqz.Symmetric(bits=2)).tolist()
    [-1.0, 0.0, 1.0]
    >>> jax.grad(lambda w: (jqz.fake_quantize(w, jqz.Symmetric(bits=2)) * 3).sum())(w).tolist()
    [3.0, 3.0, 3.0]
    """
    index = itertools.count()

    def rounded(leaf: Selected) -> jax.Array:
        scheme = leaf.scheme if key is None else leaf.scheme.with_key(jax.random.fold_in(key, next(index)))
        return scheme.simulate(leaf.value, leaf.grid)

    return map_selected("fake_quantize", params, policy, rounded)


class Selected(typing.NamedTuple):
    """A leaf that a policy selects: its path, its float values, its own grid if it has one, its scheme."""

    path: str
    value: jax.Array
    grid: Grid
    scheme: Scheme

    def moved(self, value: jax.Array) -> typing.Any:
        """Another value in the place of this one, with the grid that is trained beside it, if there is one."""
        return value if self.grid is None else Learnable(value, self.grid, self.scheme)


def map_selected(
    who: str, params: typing.Any, policy: PolicyLike, fn: Callable[..., typing.Any], *others: typing.Any
) -> typing.Any:
    """The tree with ``fn(leaf, *parts)`` for each leaf that a policy selects.

    Other leaves are what the first of ``others`` has in their place; without others they stay, as floats without grids.

    Args:
      who: the verb that errors name.
      params: any pytree of floating arrays.
      policy: as for ``quantize``.
      fn: takes a ``Selected``, and what each of ``others`` has in the leaf's place.
      others: trees with a subtree for each leaf of ``params``.
    """
    decisions, treedef = resolve(who, policy, params)
    rows = zip(*(treedef.flatten_up_to(other) for other in others), strict=True) if others else ((),) * len(decisions)
    out = []
    for d, parts in zip(decisions, rows, strict=True):
        leaf, grid = value_and_grid(who, d.path, d.leaf, d.scheme)
        if d.scheme is None:
            out.append(parts[0] if parts else leaf)
            continue
        _check(who, d)
        with at(who, d.path, d.leaf):
            out.append(fn(Selected(d.path, jnp.asarray(leaf), grid, d.scheme), *parts))
    return treedef.unflatten(out)


def learnable(params: typing.Any, policy: PolicyLike) -> typing.Any:
    """Puts a grid beside every weight whose scheme learns it, so that gradients and optimizers treat it as a parameter.

    Schemes learn with ``gradient=jqz.gradients.LSQ()`` or ``PACT()``. The result goes where the parameters went:
    ``fake_quantize``, ``simulated`` and ``quantize`` round each weight on its own grid; law:
    ``dequantize(quantize(p, policy)) == fake_quantize(p, policy)``. Grids of activations are in the sites that
    ``calibrate`` returns, and learn likewise.

    Args and errors are those of ``quantize``.

    Returns:
      The same tree, in which these weights are ``(value, grid)``. Keep scales positive, as with
      ``optax.keep_params_nonnegative`` on them; a step in proportion to a scale does by itself.

    >>> import jax, jax.numpy as jnp, jqz
    >>> scheme = jqz.Symmetric(bits=3, range=jqz.ranges.MeanMagnitude(), gradient=jqz.gradients.LSQ())
    >>> params = jqz.learnable({"w": jnp.array([[0.3, -1.0], [2.0, 0.1]])}, scheme)
    >>> grads = jax.grad(lambda p: (jqz.fake_quantize(p, scheme)["w"] ** 2).sum())(params)
    >>> grads["w"].value.shape, grads["w"].grid.scale.shape
    ((2, 2), (1, 1))
    """
    decisions, treedef = resolve("learnable", policy, params)
    out = []
    for d in decisions:
        leaf, grid = value_and_grid("learnable", d.path, d.leaf, d.scheme)
        if d.scheme is not None and d.scheme.learns and grid is None:
            _check("learnable", d)
            _check_static("learnable", d)
            with at("learnable", d.path, d.leaf):
                leaf = Learnable(jnp.asarray(leaf), d.scheme.calibrate(jnp.asarray(leaf)), d.scheme)
            out.append(leaf)
        else:
            out.append(d.leaf)
    return treedef.unflatten(out)


def size_bytes(tree: typing.Any) -> int:
    """Bytes that a tree's arrays hold: packed codes and grids for QTensors, items times item size for others.

    >>> import jax.numpy as jnp, jqz
    >>> w = jnp.ones((64, 10))
    >>> jqz.size_bytes(w), jqz.size_bytes(jqz.quantize(w, jqz.Symmetric(bits=4)))
    (2560, 324)
    """
    total = 0
    for leaf in jax.tree.leaves(tree, is_leaf=is_qtensor):
        if is_qtensor(leaf):
            total += leaf.size_bytes
        elif hasattr(leaf, "dtype"):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            total += -(-leaf.size * jax.dtypes.itemsize_bits(leaf.dtype) // 8)
    return total


def bits_per_weight(tree: typing.Any) -> float:
    """Stored bits for each number of the tree, grids included.

    >>> import jax.numpy as jnp, jqz
    >>> jqz.bits_per_weight(jqz.quantize(jnp.ones((64, 10)), jqz.Symmetric(bits=4)))
    4.05
    """
    leaves = jax.tree.leaves(tree, is_leaf=is_qtensor)
    count = sum(leaf.size for leaf in leaves if hasattr(leaf, "size"))
    return 8 * size_bytes(tree) / count if count else 0.0


def named_leaves(tree: typing.Any, drop: int = 0) -> list[tuple[str, typing.Any]]:
    """Every leaf with its path, QTensors whole; the first ``drop`` parts of each path are left out."""
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_qtensor)
    return [(_paths.name(path[drop:]), leaf) for path, leaf in flat]
