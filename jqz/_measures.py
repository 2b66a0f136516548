"""What rounding one layer costs a model: measures whose sum over layers estimates what rounding all of them costs."""

import abc
import dataclasses
import math
import typing
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

#: Path -> array: the weights that are scored, by path.
Weights = dict[str, jax.Array]


class Problem(typing.NamedTuple):
    """What a measure gets: the model as a function of its weights, and their rounded copies.

    Attributes:
      apply: ``apply(weights, *batch)``, the model's output.
      weights: the float weights.
      rounded: for each candidate a function that rounds those weights that it is offered to.
      batches: tuples of arguments.
    """

    apply: Callable[..., typing.Any]
    weights: Weights
    rounded: Sequence[Callable[[], Weights]]
    batches: Sequence[tuple[typing.Any, ...]]


class Measure(abc.ABC):
    """A rule from a rounded layer to a number: 0 where nothing changes, larger where more is lost.

    Measures are additive to first order: the sum of the layers' scores estimates that of the whole model, which is
    what a search over layers minimizes.
    """

    #: Whether it needs examples.
    needs_batches: typing.ClassVar[bool] = True
    #: What a score is, for tables and axes.
    unit: typing.ClassVar[str]

    @abc.abstractmethod
    def scores(self, problem: Problem) -> list[dict[str, float]]:
        """For each candidate the score of each layer that it is offered to, that layer alone being rounded."""


@typing.final
@dataclasses.dataclass(frozen=True)
class WeightNoise(Measure):
    """sum((w - rounded(w))**2) / sum(w**2): the noise of the weights alone; needs no data and no run of the model.

    Where each layer is followed by a norm, noise relative to the signal is what the next layer meets. It does not
    see that layers differ in what they matter.

    >>> import jqz
    >>> jqz.measures.WeightNoise().unit
    'noise / signal of weights'
    """

    needs_batches = False
    unit = "noise / signal of weights"

    def scores(self, problem: Problem) -> list[dict[str, float]]:
        @jax.jit
        def ratio(rounded: jax.Array, exact: jax.Array) -> jax.Array:
            signal = _energy(exact)
            return jnp.where(signal > 0, _energy(rounded - exact) / signal, 0)

        return [
            {path: float(ratio(r, problem.weights[path])) for path, r in rounded().items()}
            for rounded in problem.rounded
        ]


class _Output(Measure):
    """Runs the model once for each layer and candidate, all through one compiled program."""

    @abc.abstractmethod
    def parts(self, reference: typing.Any, output: typing.Any) -> tuple[jax.Array, jax.Array]:
        """Numerator and denominator of the score, to be summed over batches."""

    def scores(self, problem: Problem) -> list[dict[str, float]]:
        reference = jax.jit(problem.apply)
        exact = [reference(problem.weights, *batch) for batch in problem.batches]

        @jax.jit
        def compare(weights: Weights, exact: typing.Any, *batch: typing.Any) -> tuple[jax.Array, jax.Array]:
            return self.parts(exact, problem.apply(weights, *batch))

        def score(weights: Weights) -> float:
            sums = [compare(weights, e, *batch) for e, batch in zip(exact, problem.batches, strict=True)]
            above, below = np.sum(jax.device_get(sums), axis=0, dtype=np.float64)
            if not np.isfinite(above):
                return math.inf  # rounding broke the model
            return max(0.0, float(above / below)) if below else 0.0  # a divergence may round to below 0

        if score(problem.weights) == math.inf:
            raise ValueError(
                f"{self!r}: the float model's output has NaN, or infinity where it should have numbers. "
                "Use batches on which it works."
            )
        return [
            {path: score({**problem.weights, path: r}) for path, r in rounded().items()} for rounded in problem.rounded
        ]


@typing.final
@dataclasses.dataclass(frozen=True)
class OutputKL(_Output):
    """The mean of KL(p || q), p the float model's distribution over classes and q the rounded one's, in nats.

    The model's output is logits, classes last. No labels are needed. The default for classifiers and language models.

    >>> import jqz
    >>> jqz.measures.OutputKL()
    OutputKL()

    References: ZeroQ, arXiv:2001.00281, section 3.2.
    """

    unit = "KL divergence of the output, nats"

    def parts(self, reference: typing.Any, output: typing.Any) -> tuple[jax.Array, jax.Array]:
        p, q = (jax.nn.log_softmax(_logits(self, y)) for y in (reference, output))
        divergence = jnp.sum(jnp.where(p == -jnp.inf, 0, jnp.exp(p) * (p - q)), axis=-1)  # classes may be masked
        return jnp.sum(divergence), jnp.asarray(divergence.size, jnp.float32)


@typing.final
@dataclasses.dataclass(frozen=True)
class OutputNoise(_Output):
    """sum((y - rounded y)**2) / sum(y**2) over all outputs y: 10**(-SQNR / 10).

    For regression, detection, and any output that is no distribution.

    >>> import jqz
    >>> jqz.measures.OutputNoise().unit
    'noise / signal of the output'
    """

    unit = "noise / signal of the output"

    def parts(self, reference: typing.Any, output: typing.Any) -> tuple[jax.Array, jax.Array]:
        pairs = list(zip(jax.tree.leaves(reference), jax.tree.leaves(output), strict=True))
        # what is masked by infinity in both is no noise, and no signal
        noise = sum((_energy(jnp.where(a == b, 0, a - b)) for a, b in pairs), jnp.zeros(()))
        return noise, sum((_energy(jnp.where(jnp.isinf(a), 0, a)) for a, _ in pairs), jnp.zeros(()))


@typing.final
@dataclasses.dataclass(frozen=True)
class FisherDiagonal(Measure):
    """sum(F * (w - rounded(w))**2) / 2, F = E[(d log p(class) / dw)**2], classes drawn from the model: nats.

    An estimate of ``OutputKL`` from one backward pass for each example, whatever the number of candidates; it leaves
    out how errors of different weights add up. F is the diagonal of the Fisher information, which is the Hessian of
    the divergence at the float weights; no labels are needed. Examples are differentiated one at a time: the model
    must treat them apart, and every argument in a batch must have them along its first axis.

    Args:
      samples: classes that are drawn for each prediction.
      seed: of these draws.

    >>> import jqz
    >>> jqz.measures.FisherDiagonal(samples=4)
    FisherDiagonal(samples=4, seed=0)

    References: arXiv:2102.05426 (BRECQ), section 3.2.
    """

    samples: int = 1
    seed: int = 0
    unit: typing.ClassVar[str] = "KL divergence by the Fisher diagonal, nats"

    def scores(self, problem: Problem) -> list[dict[str, float]]:
        def chosen(weights: Weights, example: typing.Any, key: jax.Array) -> typing.Any:
            log_p = jax.nn.log_softmax(_logits(self, problem.apply(weights, *example)))
            drawn = jax.random.categorical(key, jax.lax.stop_gradient(log_p), shape=log_p.shape[:-1])
            return jnp.sum(jnp.take_along_axis(log_p, drawn[..., None], axis=-1)), drawn.size

        def squares(total: Weights, one: typing.Any) -> tuple[Weights, typing.Any]:
            example, key = one
            example = jax.tree.map(lambda x: x[None], example)
            gradient, count = jax.grad(chosen, has_aux=True)(problem.weights, example, key)
            return jax.tree.map(lambda t, g: t + g * g, total, gradient), count

        @jax.jit
        def information(key: jax.Array, *batch: typing.Any) -> tuple[Weights, jax.Array]:
            if any(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(batch)):
                raise ValueError(
                    f"{self!r}: got a number among the arguments, wanted arrays with examples along their first axis. "
                    "Use functools.partial(fn, ...) for what all examples share, or jqz.measures.OutputKL()."
                )
            size = jax.tree.leaves(batch)[0].shape[0]
            zero = jax.tree.map(jnp.zeros_like, problem.weights)
            total, counts = jax.lax.scan(squares, zero, (batch, jax.random.split(key, size)))
            return total, jnp.sum(counts)

        total, count = jax.tree.map(jnp.zeros_like, problem.weights), 0
        for i, batch in enumerate(batch for batch in problem.batches for _ in range(self.samples)):
            more, n = information(jax.random.fold_in(jax.random.key(self.seed), i), *batch)
            total, count = jax.tree.map(jnp.add, total, more), count + int(n)

        @jax.jit
        def weighed(total: Weights, rounded: Weights) -> dict[str, jax.Array]:
            return {path: _energy(r - problem.weights[path], total[path]) for path, r in rounded.items()}

        return [{k: float(v) / (2 * count) for k, v in weighed(total, r()).items()} for r in problem.rounded]


@typing.final
@dataclasses.dataclass(frozen=True)
class HessianTrace(Measure):
    """trace(H) / n * sum((w - rounded(w))**2) / 2, H the layer's Hessian of the output's divergence: nats.

    Each weight of a layer counts as the mean of them. The trace is Hutchinson's: the mean of v . H v over random signs
    v, all layers at once. The divergence is from the float model's own output, so no labels are needed; there its
    Hessian is the Fisher information.

    Args:
      probes: vectors v; each costs about as much as ten runs of the model.
      seed: of the signs.

    >>> import jqz
    >>> jqz.measures.HessianTrace(probes=50)
    HessianTrace(probes=50, seed=0)

    References: HAWQ-V2, arXiv:1911.03852; HAWQ-V3, arXiv:2011.10680.
    """

    probes: int = 8
    seed: int = 0
    unit: typing.ClassVar[str] = "KL divergence by the Hessian's trace, nats"

    def scores(self, problem: Problem) -> list[dict[str, float]]:
        def log_probabilities(weights: Weights, *batch: typing.Any) -> jax.Array:
            return jax.nn.log_softmax(_logits(self, problem.apply(weights, *batch)))

        def divergence(weights: Weights, exact: jax.Array, *batch: typing.Any) -> jax.Array:
            return jnp.sum(jnp.exp(exact) * (exact - log_probabilities(weights, *batch)))

        @jax.jit
        def traces(key: jax.Array, *batch: typing.Any) -> tuple[dict[str, jax.Array], jax.Array]:
            exact = log_probabilities(problem.weights, *batch)
            keys = zip(problem.weights, jax.random.split(key, len(problem.weights)), strict=True)
            signs = {
                path: jax.random.rademacher(k, w.shape, w.dtype) for path, k in keys for w in [problem.weights[path]]
            }
            gradient = jax.grad(lambda weights: divergence(weights, exact, *batch))
            along = jax.jvp(gradient, (problem.weights,), (signs,))[1]
            return {path: jnp.sum(signs[path] * along[path]) for path in signs}, jnp.asarray(exact[..., 0].size)

        trace, count = dict.fromkeys(problem.weights, 0.0), 0
        for i, batch in enumerate(batch for batch in problem.batches for _ in range(self.probes)):
            more, n = jax.device_get(traces(jax.random.fold_in(jax.random.key(self.seed), i), *batch))
            trace, count = {path: t + float(more[path]) for path, t in trace.items()}, count + int(n)

        @jax.jit
        def energies(rounded: Weights) -> dict[str, jax.Array]:
            return {path: _energy(r - problem.weights[path]) / r.size for path, r in rounded.items()}

        return [
            {path: max(trace[path], 0.0) / (2 * count) * float(e) for path, e in energies(rounded()).items()}
            for rounded in problem.rounded
        ]


#: One of each: what the shared tests hold to the laws of measures.
CATALOGUE: tuple[Measure, ...] = (WeightNoise(), OutputKL(), OutputNoise(), FisherDiagonal(), HessianTrace())


def _energy(x: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    squares = jnp.square(x.astype(jnp.float32))
    return jnp.sum(squares if weight is None else squares * weight)


def _logits(measure: Measure, output: typing.Any) -> jax.Array:
    leaves = jax.tree.leaves(output)
    if len(leaves) != 1 or jnp.ndim(leaves[0]) < 1:
        raise TypeError(
            f"{measure!r}: the model returns {jax.tree.map(jnp.shape, output)}, wanted one array of logits, classes "
            "last. Use measure=jqz.measures.OutputNoise(), or wrap the model: lambda *args: model(*args)[0]."
        )
    return leaves[0].astype(jnp.float32)
