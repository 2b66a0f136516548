"""Magnitude pruning while training: how many weights, which ones, and masks that keep them at zero."""

import abc
import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jqz._masks import choose, find, rank, replaced
from jqz._policy import PolicyLike
from jqz._scheme import Identity
from jqz._transform import at

Step = jax.typing.ArrayLike


def _check_share(who: str, name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{who}: got {name}={share!r}, wanted a share from 0 to 1. Use {name}=0.75.")


def _check_end(who: str, begin: int, end: int) -> None:
    if not 0 <= begin < end:
        raise ValueError(f"{who}: got begin={begin!r} and end={end!r}, wanted 0 <= begin < end. Use end=10_000.")


@typing.final
@dataclasses.dataclass(frozen=True)
class OneShot:
    """All at once: 0 before a step, ``final`` from it on. Train long afterwards.

    >>> [float(OneShot(0.75, begin=10)(step)) for step in (9, 10, 11)]
    [0.0, 0.75, 0.75]
    """

    final: float
    begin: int = 0

    def __post_init__(self) -> None:
        _check_share("OneShot", "final", self.final)

    def __call__(self, step: Step) -> jax.Array:
        return jnp.where(jnp.asarray(step) < self.begin, 0, self.final).astype(jnp.float32)


@typing.final
@dataclasses.dataclass(frozen=True)
class Polynomial:
    """Fast at first, when many weights are superfluous, and slower as they become few.

    final + (initial - final) * (1 - t)**power, t from 0 at ``begin`` to 1 at ``end``; 0 before ``begin``.

    >>> [round(float(Polynomial(0.8, end=100)(step)), 3) for step in (0, 50, 100, 200)]
    [0.0, 0.7, 0.8, 0.8]

    References: arXiv:1710.01878.
    """

    final: float
    end: int
    begin: int = 0
    initial: float = 0.0
    power: int = 3

    def __post_init__(self) -> None:
        _check_share("Polynomial", "final", self.final)
        _check_share("Polynomial", "initial", self.initial)
        _check_end("Polynomial", self.begin, self.end)

    def __call__(self, step: Step) -> jax.Array:
        done = (jnp.asarray(step) - self.begin) / (self.end - self.begin)
        left = 1 - jnp.clip(done, 0, 1).astype(jnp.float32)
        share = self.final + (self.initial - self.final) * left**self.power
        return jnp.where(done < 0, 0, share)


@typing.final
@dataclasses.dataclass(frozen=True)
class Logarithmic:
    """Paddle's dynamic pruning: final * ln(2 + step / interval) / ln(2 + end / interval), at most ``final``.

    It starts with ln(2) / ln(2 + end / interval) of the final share, 0.22 of it with Paddle's defaults of an
    interval of 3 and an end of 60 epochs, and prunes more evenly than ``Polynomial``. Times are in steps: multiply
    epochs by the steps of an epoch, and give ``prune`` the interval as ``every``.

    >>> [round(float(Logarithmic(0.75, end=60, interval=3)(step)), 3) for step in (0, 30, 60, 90)]
    [0.168, 0.603, 0.75, 0.75]

    References: the pruning of MobileNet in PaddlePaddle/Mobile, ``model_compression/pruning``.
    """

    final: float
    end: int
    interval: int

    def __post_init__(self) -> None:
        _check_share("Logarithmic", "final", self.final)
        _check_end("Logarithmic", 0, self.end)
        if not self.interval > 0:
            raise ValueError(
                f"Logarithmic: got interval={self.interval!r}, wanted a positive number of steps. Use 100."
            )

    def __call__(self, step: Step) -> jax.Array:
        passed = jnp.minimum(jnp.asarray(step), self.end).astype(jnp.float32) / self.interval
        return self.final * jnp.log(2 + passed) / jnp.log(jnp.float32(2 + self.end / self.interval))


class Threshold(abc.ABC):
    """Among which weights the smallest are pruned."""

    @abc.abstractmethod
    def keep(self, scores: list[jax.Array], share: jax.Array) -> list[jax.Array]:
        """True where a weight stays, for the leaves that are pruned together.

        Args:
          scores: magnitudes, below 0 where a weight is pruned already; equal ones go in the order of their flat index.
          share: of the weights to prune.
        """


@typing.final
@dataclasses.dataclass(frozen=True)
class LeafThreshold(Threshold):
    """Each leaf loses the same share."""

    def keep(self, scores: list[jax.Array], share: jax.Array) -> list[jax.Array]:
        return [rank(score) < score.size - _count(share, score.size) for score in scores]


@typing.final
@dataclasses.dataclass(frozen=True)
class GlobalThreshold(Threshold):
    """All leaves together lose the share; one whose weights are small loses more, perhaps all of them."""

    def keep(self, scores: list[jax.Array], share: jax.Array) -> list[jax.Array]:
        if not scores:
            return []
        flat = jnp.concatenate([score.reshape(-1).astype(jnp.float32) for score in scores])
        kept, out, start = rank(flat) < flat.size - _count(share, flat.size), [], 0
        for score in scores:
            out.append(kept[start : start + score.size].reshape(score.shape))
            start += score.size
        return out


@typing.final
@dataclasses.dataclass(frozen=True)
class GroupThreshold(Threshold):
    """Each ``size`` consecutive weights along ``axis`` lose the same number: N:M sparsity.

    A share of 1/2 in groups of 4 is 2:4; the default axis is the one that a product of a Flax kernel (in, out) sums
    over, as sparse matrix units want it.
    """

    size: int = 4
    axis: int = -2

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 2:
            raise ValueError(f"GroupThreshold: got size={self.size!r}, wanted an integer of at least 2. Use size=4.")

    def keep(self, scores: list[jax.Array], share: jax.Array) -> list[jax.Array]:
        left = self.size - _count(share, self.size)
        return [self._places(score) < left for score in scores]

    def _places(self, score: jax.Array) -> jax.Array:
        if not -score.ndim <= self.axis < score.ndim or score.shape[self.axis] % self.size:
            raise ValueError(
                f"{self!r} got weights of shape {score.shape}, wanted axis {self.axis} divisible by {self.size}. "
                "Use another size or axis, or map this path to None."
            )
        lanes = jnp.moveaxis(score, self.axis, -1)
        groups = lanes.reshape(*lanes.shape[:-1], -1, self.size)
        one, other = groups[..., :, None], groups[..., None, :]
        earlier = jnp.arange(self.size)[None, :] < jnp.arange(self.size)[:, None]
        earlier = jnp.broadcast_to(earlier, (*groups.shape, self.size))
        places = jnp.sum((other > one) | ((other == one) & earlier), axis=-1, dtype=jnp.int32)
        return jnp.moveaxis(places.reshape(lanes.shape), -1, self.axis)


class PruneState(typing.NamedTuple):
    """The state of ``prune``.

    Attributes:
      step: how many updates there were, int32.
      kept: by the path of each leaf that is pruned, True where a weight is alive.
    """

    step: jax.Array
    kept: dict[str, jax.Array]


def prune(
    policy: PolicyLike,
    sparsity: Callable[[Step], jax.typing.ArrayLike],
    *,
    every: int = 100,
    threshold: Threshold = LeafThreshold(),
) -> optax.GradientTransformation:
    """Sets the smallest weights to zero, more of them as training goes on, and keeps them there: last in a chain.

    Every so many updates round(sparsity(step) * size) weights are chosen anew, those that are zero already first, by
    their magnitude before the update; equal ones stay in the order of their flat index. What is pruned gets the
    update -p, which makes it an exact zero whatever came before in the chain.

    Rounding keeps the zeros exactly under a scheme that has zero among its levels: ``Symmetric``, ``Asymmetric`` and
    ``PowerOfTwo`` (but for ``Minimum`` and ``WithoutZero``), ``FixedPoint``, ``Ternary``, ``AdditivePowerOfTwo``,
    ``NormalFloat``, ``Float`` and ``BlockFloat``. ``Binary`` has none, ``Codebook`` none for sure; ``apply_masks`` puts
    them back there, after ``fake_quantize``.

    Args:
      policy: as for ``quantize``; leaves that it gives a scheme are pruned. ``Identity()`` selects as well as any. For
        leaves of different sparsity chain several ``prune``.
      sparsity: the share of zeros at a step, of ``OneShot``, ``Polynomial``, ``Logarithmic``, or any optax schedule.
      every: updates from one choice to the next; a share that begins in between waits for the next one.
      threshold: ``LeafThreshold()``, ``GlobalThreshold()``, or ``GroupThreshold(size, axis)`` for N:M.

    Raises:
      TypeError: ``sparsity`` is no function.
      ValueError: ``every`` is not positive, a share is outside [0, 1] at the first step or in the end, update got no
        params, or a shape does not fit a GroupThreshold.

    >>> import jax, jax.numpy as jnp, optax, jqz.training
    >>> half = jqz.training.prune(jqz.Identity(), jqz.training.OneShot(0.5))
    >>> optimizer = optax.chain(optax.sgd(0.1), half)
    >>> w = jnp.array([0.3, -2.0, 0.1, 1.0])
    >>> updates, state = jax.jit(optimizer.update)(jnp.ones(4), optimizer.init(w), w)
    >>> [round(p, 3) for p in optax.apply_updates(w, updates).tolist()]
    [0.0, -2.1, 0.0, 0.9]

    References: arXiv:1506.02626; schedules arXiv:1710.01878; N:M arXiv:2102.04010.
    """
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"prune: got every={every!r}, wanted a positive number of updates. Use every=100.")
    if not callable(sparsity):
        raise TypeError(f"prune: got sparsity={sparsity!r}, wanted a schedule. Use OneShot(0.5).")
    for step in (0, 2**30):
        share = sparsity(jnp.asarray(step, jnp.int32))
        if not isinstance(share, Tracer) and not 0 <= np.asarray(share) <= 1:
            raise ValueError(
                f"prune: sparsity is {share} at step {step}, wanted a share of zeros from 0 to 1. Use 0.75 for 75 %."
            )

    def init(params: optax.Params) -> PruneState:
        chosen = choose("prune", policy, params)
        for d in chosen:
            with at("prune", d.path, d.leaf):  # whether the threshold takes its shape
                jax.eval_shape(
                    lambda w: threshold.keep([w], jnp.zeros(())), jax.ShapeDtypeStruct(d.leaf.shape, jnp.float32)
                )
        return PruneState(jnp.zeros([], jnp.int32), chosen.named(jnp.ones(d.leaf.shape, bool) for d in chosen))

    def update(
        updates: optax.Updates, state: typing.Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, PruneState]:
        chosen = choose("prune", policy, params)
        weights = [jnp.asarray(d.leaf) for d in chosen]

        def again(kept: list[jax.Array]) -> list[jax.Array]:
            scores = [jnp.where(alive, jnp.abs(w), -1) for w, alive in zip(weights, kept, strict=True)]
            return threshold.keep(scores, jnp.asarray(sparsity(state.step), jnp.float32))

        kept = jax.lax.cond(state.step % every == 0, again, lambda kept: kept, chosen.at("prune", state.kept))
        zeroed = [replaced(u, -w, ~alive) for u, w, alive in zip(chosen.of(updates), weights, kept, strict=True)]
        step = jnp.asarray(optax.safe_increment(state.step))
        return chosen.tree(zeroed, updates), PruneState(step, chosen.named(kept))

    return optax.GradientTransformation(init, update)


def apply_masks(values: typing.Any, state: optax.OptState) -> typing.Any:
    """Zeros where ``prune`` has pruned, in a tree of the structure of the parameters.

    Args:
      values: for example what ``fake_quantize`` returns under a scheme without a zero.
      state: the state of the optimizer, or the PruneState in it.

    Raises:
      ValueError: the state holds no PruneState, or several.

    >>> import jax.numpy as jnp, jqz.training
    >>> state = jqz.training.PruneState(jnp.zeros([], int), {"w": jnp.array([True, False])})
    >>> jqz.training.apply_masks({"w": jnp.array([3.0, 4.0]), "b": 5.0}, state)["w"].tolist()
    [3.0, 0.0]
    """
    kept = find("apply_masks", state, PruneState).kept
    chosen = choose("apply_masks", lambda path, leaf: Identity() if path in kept else None, values)
    if missing := kept.keys() - {d.path for d in chosen}:
        raise ValueError(f"apply_masks: the values have no {sorted(missing)}. Use a tree like the parameters.")
    return chosen.tree((jnp.where(kept[d.path], d.leaf, 0).astype(d.leaf.dtype) for d in chosen), values)


def _count(share: jax.Array, size: int) -> jax.Array:
    return jnp.round(share * size).astype(jnp.int32)
