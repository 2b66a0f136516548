"""Fine-tuning after quantization: start at the float solution, and take small, ever smaller steps."""

import functools
import math
import typing
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import optax

from jqz import observers
from jqz._inference import observe
from jqz._policy import Policy
from jqz._sites import Sites, calibrate, merge
from jqz._transform import dequantize


def faq_sites(
    fn: Callable[..., typing.Any],
    policy: Policy,
    variables: typing.Any,
    batches: Iterable[typing.Any],
    percent: float = 99.99,
) -> Sites:
    """Grids of the activations from a high percentile of a few batches, to be kept while the weights are trained.

    With ``fn`` and float ``variables`` from pretraining, the recipe is::

        sites = faq_sites(model.apply, policy, variables, batches)
        optimizer = faq_optimizer(learning_rate, steps)
        loss(variables, x) = ... simulated(model.apply, policy)(variables, sites, x) ...

    A grid that moves is noise to the gradient, and a clip at the largest value ever seen wastes levels on outliers.

    Args:
      fn: a pure function of ``(variables, *args)``, such as a Linen ``model.apply``.
      policy: its rules select the weights, its ``inputs`` the schemes of the activations.
      variables: the pretrained parameters.
      batches: arguments of ``fn`` after the variables, arrays: one or a tuple each. Bind a flag to the function:
        ``functools.partial(model.apply, train=False)``.
      percent: of the values that a grid covers.

    Raises:
      ValueError: there are no batches.

    >>> import jax, jax.numpy as jnp, jqz.training
    >>> def model(params, x):
    ...     return x @ params["kernel"]
    >>> policy = jqz.Policy({"kernel": jqz.Symmetric(bits=4)}, inputs=jqz.Symmetric(bits=8))
    >>> params, x = {"kernel": jnp.ones((1, 2))}, jnp.linspace(-1, 1, 2001)[:, None].at[0].set(-50.0)
    >>> sites = jqz.training.faq_sites(model, policy, params, [x], percent=99.9)
    >>> round(float(sites["kernel"].grid.scale[0, 0] * 127), 1)
    1.0

    References: arXiv:1809.04191.
    """
    watch = jax.jit(observe(fn, policy, observers.Percentile(percent)))
    stats = [watch(variables, *(batch if isinstance(batch, tuple) else (batch,))) for batch in batches]
    if not stats:
        raise ValueError("faq_sites: got no batches. Use batches=[x], with x as the model takes it.")
    return calibrate(functools.reduce(merge, stats), policy)


def faq_optimizer(
    learning_rate: float, steps: int, *, end: float = 1e-3, momentum: float = 0.9, weight_decay: float = 1e-5
) -> optax.GradientTransformation:
    """SGD with momentum at a low learning rate that falls exponentially, for fine-tuning a rounded network.

    learning_rate * end**(step / steps). How long SGD takes grows with the noise of its gradients, to which rounding
    adds, and with the distance to the solution, which is short from a pretrained network: so start there, and
    average the noise out with small steps. The rounded weights then stay close to the float ones (see
    ``cosine_similarity``).

    Use it for 8 bits with a hundredth of the learning rate of float training, over an epoch; for 4 bits with a tenth,
    over a tenth of the epochs of float training or more. Below 4 bits more has to change: ``inq``, LSQ.

    Args:
      learning_rate: of the first step.
      steps: of the whole run.
      end: the share of the learning rate that is left at the last of them.
      momentum: of SGD.
      weight_decay: added to the gradient of leaves of rank 2 and more; less than float training had.

    Raises:
      TypeError: ``learning_rate`` is a schedule; the fall is built in.
      ValueError: ``steps`` is not positive or ``end`` not in (0, 1].

    >>> import jax.numpy as jnp, jqz.training
    >>> optimizer = jqz.training.faq_optimizer(0.1, steps=2, end=0.01, momentum=0.0, weight_decay=0.0)
    >>> state, seen = optimizer.init(jnp.zeros(1)), []
    >>> for _ in range(3):
    ...     updates, state = optimizer.update(jnp.ones(1), state, jnp.zeros(1))
    ...     seen.append(round(float(-updates[0]), 4))
    >>> seen
    [0.1, 0.01, 0.001]

    References: arXiv:1809.04191.
    """
    if not isinstance(steps, int) or steps < 1 or not 0 < end <= 1:
        raise ValueError(
            f"faq_optimizer: got steps={steps!r} and end={end!r}, wanted a positive number and a share. "
            "Use steps=1000, end=1e-3."
        )

    if callable(learning_rate):
        raise TypeError(
            f"faq_optimizer: got learning_rate={learning_rate!r}, wanted a number: it falls by itself. "
            "Use learning_rate=1e-3."
        )

    def annealed(step: jax.typing.ArrayLike) -> jax.Array:
        return learning_rate * jnp.exp(jnp.asarray(step, jnp.float32) * (math.log(end) / steps))

    def matrices(params: optax.Params) -> typing.Any:
        return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)

    return optax.chain(
        optax.add_decayed_weights(weight_decay, matrices), optax.trace(momentum), optax.scale_by_learning_rate(annealed)
    )


def cosine_similarity(params: typing.Any, others: typing.Any) -> jax.Array:
    """The cosine of the angle between two trees of weights, as vectors; 1 where fine-tuning has changed nothing.

    QTensors count as what they decode to.

    Raises:
      ValueError: the trees have no weights, or not the same structure.

    >>> import jax.numpy as jnp, jqz.training
    >>> cosine = jqz.training.cosine_similarity({"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([4.0, 3.0])})
    >>> round(float(cosine), 2)
    0.96
    """

    (ours, one), (theirs, other) = (jax.tree.flatten(dequantize(tree)) for tree in (params, others))
    if not ours or one != other:
        raise ValueError(
            f"cosine_similarity: got trees of {len(ours)} and {len(theirs)} leaves, wanted weights in one structure. "
            "Use the parameters before and after."
        )

    def dot(a: list[typing.Any], b: list[typing.Any]) -> jax.Array:
        return sum(
            (jnp.sum(jnp.asarray(x, jnp.float32) * jnp.asarray(y, jnp.float32)) for x, y in zip(a, b, strict=True)),
            jnp.zeros(()),
        )

    return dot(ours, theirs) / jnp.sqrt(dot(ours, ours) * dot(theirs, theirs))
