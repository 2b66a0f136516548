"""Rounding up or down, learned for what whole blocks compute: AdaRound on residual blocks, as in BRECQ."""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import optax

from jqz._blocks import Block, arrays_of, blocks
from jqz._channels import bind
from jqz._inference import simulated
from jqz._policy import Policy
from jqz._qtensor import QTensor, is_qtensor, pack
from jqz._scheme import Identity, narrow, work_dtype
from jqz._soft_rounding import Annealing, annealing, inverse, neighbours, soft
from jqz._transform import dequantize, fake_quantize, named_leaves


def reconstruct(
    fn: Callable[..., typing.Any],
    params: typing.Any,
    qparams: typing.Any,
    batches: Iterable[typing.Any],
    *,
    together: Iterable[Sequence[str]] = (),
    steps: int = 500,
    learning_rate: float = 0.03,
    strength: float = 5.0,
    beta: tuple[float, float] = (20.0, 2.0),
    warm_up: float = 0.2,
) -> typing.Any:
    """Rounds the weights of each block up or down, whichever is learned to keep what the block makes.

    The program is cut where one activation is all that the rest of it needs: a layer of a chain is a block, and so is
    a residual block with its shortcut. One block after the other, with x from the blocks before it as they are rounded
    already and y what it makes in float, ::

        minimizes   sum((block(Q, x) - y)**2) / U + strength sum(1 - abs(2 h - 1)**beta)

    as ``adaround`` does for a layer: Q = low + h(V) (high - low), from Q = W, by Adam, a batch a step. U is the first
    sum with x in float, the weights rounded as they were and the others in float, for each weight that can move. What a
    weight may become is what it was rounded to, and the next level on the side of its float value. A block that makes
    no less of an error keeps its codes.

    Use it at 2 and 3 bits behind ``gptq``, with a few hundred inputs: it sees what one layer's error does to the next,
    and makes up for errors of the blocks before. Measure batch norms again before, so that blocks see what they will
    see, and afterwards. It costs ``steps`` times forward and backward through each block.

    Args:
      fn: a pure function of ``(params, *args)`` that infers, such as a Linen ``model.apply``.
      params: its float parameters.
      qparams: the same tree with rounded weights, as QTensors. Other leaves may differ from those of ``params``.
      batches: arguments of ``fn`` after the parameters: an array or a tuple each, all of the same shapes; 32 to 128
        inputs each.
      together: groups of globs: what stands from the first weight that one of a group names to the last is one block.
      steps: of Adam for each block.
      learning_rate: of Adam.
      strength: of the second sum.
      beta: its exponent at first and in the end.
      warm_up: share of the steps without it.

    Returns:
      ``qparams`` with other codes.

    Raises:
      ValueError: there are no batches, their shapes differ, ``qparams`` has no QTensor, or a group of ``together``
        names no weight.

    >>> import jax, jax.numpy as jnp, jqz, jqz.algorithms
    >>> def model(params, x):
    ...     return x + jax.nn.relu(x @ params["a"]) @ params["b"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"a": jax.random.normal(keys[0], (8, 16)), "b": jax.random.normal(keys[1], (16, 8))}
    >>> x = jax.random.normal(keys[2], (64, 8))
    >>> rounded = jqz.quantize(params, jqz.Symmetric(bits=3))
    >>> better = jqz.algorithms.reconstruct(model, params, rounded, [x], steps=100)
    >>> errors = [jnp.linalg.norm(model(jqz.dequantize(q), x) - model(params, x)) for q in (better, rounded)]
    >>> bool(errors[0] < 0.8 * errors[1])
    True

    References: BRECQ, arXiv:2102.05426; AdaRound, arXiv:2004.10568.
    """
    plan = annealing("reconstruct", steps, strength, beta, warm_up)
    fn, inputs = bind("reconstruct", fn, batches)
    params = fake_quantize(params, lambda path, leaf: None)  # without the grids that search_clips leaves beside weights
    coded = {path: leaf for path, leaf in named_leaves(qparams) if is_qtensor(leaf)}
    _check(inputs, coded)
    fast = simulated(fn, Policy(Identity()))  # gradients of convolutions in forms that are fast on CPU

    def on_floats(params: typing.Any, *args: typing.Any) -> typing.Any:
        return fast(params, None, *args)

    wanted, given = ([arrays_of(tree, args) for args in inputs] for tree in (params, dequantize(qparams)))
    named = [path for path, leaf in named_leaves(params) if hasattr(leaf, "dtype")]
    places = {path: i for i, path in enumerate(named) if path in coded}
    exact: list[list[jax.Array]] = [[] for _ in inputs]
    before = exact
    for block in blocks(on_floats, params, inputs[0], list(coded), together):
        problem = _Problem(block, tuple(places[path] for path in block.weights), plan, float(learning_rate))
        made = [problem.run(*both) for both in zip(wanted, exact, strict=True)]
        found = problem.solve([coded[path] for path in block.weights], wanted, given, exact, before, made)
        for path, q in zip(block.weights, found, strict=True):
            coded[path] = q
            for arrays in given:
                arrays[places[path]] = q.dequantize()
        exact, before = made, [problem.run(*both) for both in zip(given, before, strict=True)]
    leaves, treedef = jax.tree.flatten(qparams, is_leaf=is_qtensor)
    paths = [path for path, _ in named_leaves(qparams)]
    return treedef.unflatten([coded.get(path, leaf) for path, leaf in zip(paths, leaves, strict=True)])


def _check(inputs: list[tuple[typing.Any, ...]], coded: dict[str, QTensor]) -> None:
    shapes = {tuple((leaf.shape, leaf.dtype) for leaf in arrays_of((), args)) for args in inputs}
    if len(shapes) != 1:
        raise ValueError(
            f"reconstruct: got batches of shapes {sorted(map(str, shapes))}, wanted one or more of the same shapes. "
            "Use batches=[x[i : i + 64] for i in range(0, len(x) - 63, 64)]."
        )
    if not coded:
        raise ValueError(
            "reconstruct: qparams holds no QTensor. Use gptq(params, policy, stats), or quantize(params, policy)."
        )


class _Range(typing.NamedTuple):
    """What a weight may become: its codes and the others, the values of both, and the float value."""

    codes: jax.Array
    other: jax.Array
    near: jax.Array
    far: jax.Array
    weight: jax.Array

    @property
    def moves(self) -> jax.Array:
        return self.near != self.far

    @property
    def share(self) -> jax.Array:
        """How far the float value is from what it was rounded to."""
        gap = jnp.where(self.moves, self.far - self.near, 1)
        return jnp.where(self.moves, jnp.clip((self.weight - self.near) / gap, 0, 1), 0)

    def at(self, share: jax.Array, dtype: typing.Any) -> jax.Array:
        return narrow(self.near + share * (self.far - self.near), dtype)


@functools.partial(jax.jit, static_argnums=2)
def _range(weight: jax.Array, q: QTensor, dtype: typing.Any) -> _Range:
    weight = weight.astype(dtype)
    return _Range(*neighbours(weight, q.grid, q.scheme, q.dtype, q.codes), weight)


@dataclasses.dataclass(frozen=True, eq=False)
class _Problem:
    """One block, the places of its weights among the arguments, and how to learn."""

    block: Block
    places: tuple[int, ...]
    annealing: Annealing
    learning_rate: float

    @functools.cached_property
    def run(self) -> Callable[..., list[jax.Array]]:
        """What the block makes of a batch."""
        return jax.jit(self.block)

    def solve(
        self,
        coded: list[QTensor],
        wanted: list[list[jax.Array]],
        given: list[list[jax.Array]],
        exact: list[list[jax.Array]],
        before: list[list[jax.Array]],
        made: list[list[jax.Array]],
    ) -> list[QTensor]:
        """The weights with other codes, or as they are where nothing is gained.

        Args:
          coded: the weights.
          wanted: the float arguments of the program, for each batch.
          given: the same with all weights rounded that are so far.
          exact: what the blocks before make in float.
          before: what they make rounded.
          made: what this block makes in float.
        """
        weights = [wanted[0][place] for place in self.places]
        ranges = [_range(w, q, work_dtype(w)) for w, q in zip(weights, coded, strict=True)]
        dtypes = [w.dtype for w in weights]

        def error(shares: list[jax.Array], arrays: typing.Any, before: typing.Any, made: typing.Any) -> jax.Array:
            whole = list(arrays)
            for place, r, share, dtype in zip(self.places, ranges, shares, dtypes, strict=True):
                whole[place] = r.at(share, dtype)
            pairs = zip(self.block(whole, before), made, strict=True)
            squares = (
                jnp.sum(jnp.where(a == b, 0, (a - b).astype(jnp.float32)) ** 2)
                for a, b in pairs
                if jnp.issubdtype(a.dtype, jnp.floating)
            )
            return sum(squares, jnp.zeros(()))

        measure = jax.jit(error)

        def total(shares: list[jax.Array], arrays: typing.Any, before: typing.Any) -> float:
            return sum(float(measure(shares, *parts)) for parts in zip(arrays, before, made, strict=True))

        start = [jnp.zeros_like(r.near) for r in ranges]
        movable = sum(int(jnp.sum(r.moves)) for r in ranges)
        unit = total(start, wanted, exact) / (max(movable, 1) * len(made))
        if math.isnan(unit):
            raise ValueError(
                f"reconstruct: what the block of {list(self.block.weights)} computes has NaN. Find out where the model "
                "makes it, and use batches on which it works."
            )
        if not unit > 0 or not movable:
            return coded
        optimizer = optax.adam(self.learning_rate)

        @jax.jit
        def step(i: jax.Array, v: list[jax.Array], state: typing.Any, *parts: typing.Any) -> typing.Any:
            h, back = jax.vjp(lambda v: list(map(soft, v)), v)
            slopes = jax.grad(error)(h, *parts)
            slopes = [s / unit + self.annealing.slope(a, i) for s, a in zip(slopes, h, strict=True)]
            with jax.numpy_dtype_promotion("standard"):  # Adam raises floats to its integer count
                updates, state = optimizer.update(back(slopes)[0], state)
            return optax.apply_updates(v, updates), state

        v = [inverse(r.share) for r in ranges]
        state = optimizer.init(v)
        for i in range(self.annealing.steps):
            at = i % len(made)
            v, state = step(jnp.asarray(i), v, state, given[at], before[at], made[at])
        found = [
            jnp.where((soft(one) >= 0.5) & r.moves, 1, 0).astype(r.near.dtype) for one, r in zip(v, ranges, strict=True)
        ]
        if not total(found, given, before) < total(start, given, before):
            return coded
        return [_moved(q, r, share > 0) for q, r, share in zip(coded, ranges, found, strict=True)]


def _moved(q: QTensor, r: _Range, moves: jax.Array) -> QTensor:
    payload, length = pack(jnp.where(moves, r.other, r.codes), q.scheme)
    return dataclasses.replace(q, payload=payload, length=length)
