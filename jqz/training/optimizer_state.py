"""Optimizer state in few bits: moments are QTensors between steps."""

import dataclasses
import itertools
import typing

import jax
import jax.numpy as jnp
import optax

from jqz import _qtensor
from jqz._learnable import Learnable
from jqz._masks import Chosen
from jqz._policy import Decision, PolicyLike, resolve
from jqz._qtensor import QTensor
from jqz._scheme import Grid, Identity, Scheme
from jqz._transform import at, dequantize


class QuantizedState(typing.NamedTuple):
    """The state of ``quantize_state``.

    Attributes:
      inner: the state of the optimizer, with arrays of size 0 in the place of what is coded.
      coded: the QTensors, by their path in that state.
      key: the data of the key for the next stochastic rounding, which any checkpoint can hold, or None.
    """

    inner: typing.Any
    coded: dict[str, QTensor]
    key: jax.Array | None


def quantize_state(
    optimizer: optax.GradientTransformation,
    policy: PolicyLike,
    *,
    smallest: int = 4096,
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that its state is stored in few bits; every update decodes, computes in float, codes.

    A moving average with decay b changes by (1 - b) of its distance a step. Where levels are further apart than
    that, rounding to the nearest undoes every step, and the average stands still: give a ``key``, and each number is
    rounded to one of the two levels around it with the probability that makes its mean exact, in any scheme.

    First moments have both signs, and 8 bits in blocks of any scheme will do. Second moments are squares: no sign, and
    a range that an even grid cannot hold, since what it rounds to zero is divided by. These serve:

    ===== ========================================= =====================================================
    bits  first moments ("mu", "trace")             second moments ("nu")
    ===== ========================================= =====================================================
    8     ``Float(E4M3(), PerInputGroup(64))``      ``Float(E5M2(), PerInputGroup(64))``: 9.6 decades
    4     ``NormalFloat(4, PerInputGroup(64))``     ``PowerOfTwo(4, PerInputGroup(64), NNabla(NonNegative(),
                                                    WithoutZero()))``: 16 levels, 4.5 decades, never zero
    ===== ========================================= =====================================================

    An even grid for second moments, such as ``Asymmetric(8)``, diverges. Without a key the table's 8 bits train as well
    as float does, but second moments stop growing early, which acts as a larger learning rate. Moments of a learned
    grid (``learnable``) stay float, beside those of its weight.

    Use it where the state is what fills the memory. Not for small models: the step takes longer.

    Args:
      optimizer: any optax optimizer.
      policy: as for ``quantize``, on the optimizer's state, in which Adam's moments are "**/mu/**" and "**/nu/**".
        As there, leaves of rank 0 and 1 stay float unless a rule names them.
      smallest: leaves of fewer numbers stay float.
      key: rounds stochastically, from this key on; to the nearest if left out.

    Raises:
      ValueError: a rule matches nothing in the state.

    >>> import jax, jax.numpy as jnp, optax, jqz.training
    >>> groups = jqz.PerInputGroup(64)
    >>> policy = {
    ...     "**/mu/**": jqz.Float(jqz.schemes.E4M3(), groups),
    ...     "**/nu/**": jqz.Float(jqz.schemes.E5M2(), groups),
    ... }
    >>> params = {"kernel": jnp.ones((128, 64)), "bias": jnp.ones(64)}
    >>> optimizer = jqz.training.quantize_state(optax.adam(1e-3), policy, key=jax.random.key(0))
    >>> state = jax.jit(optimizer.init)(params)
    >>> jqz.size_bytes(optax.adam(1e-3).init(params)), jqz.size_bytes(state)
    (66052, 17932)

    References: 8-bit optimizers arXiv:2110.02861; 4-bit states, and why second moments want no zero, arXiv:2309.01507.
    """
    inner = optax.with_extra_args_support(optimizer)
    kind = None if key is None else jax.random.key_impl(key)

    def store(state: typing.Any, data: jax.Array | None) -> QuantizedState:
        decisions, treedef = resolve("quantize_state", policy, state)
        chosen = Chosen([d if _pays(d, smallest) else d._replace(scheme=None) for d in decisions], treedef)
        sizes = [d.leaf.size for d in chosen]
        draws: typing.Any = [None] * len(sizes)
        if data is not None and sizes:
            ahead, now = jax.random.split(jax.random.wrap_key_data(data, impl=kind))
            data = jax.random.key_data(ahead)
            # one draw for all leaves: a generator takes long to compile, and each leaf would have its own
            draws = jnp.split(jax.random.uniform(now, (sum(sizes),)), list(itertools.accumulate(sizes[:-1])))
        coded = chosen.named(_coded(d, draw) for d, draw in zip(chosen, draws, strict=True))
        empty = (_beside(d.leaf, jnp.zeros(0, d.leaf.dtype)) for d in chosen)
        return QuantizedState(chosen.tree(empty, state), coded, data)

    def load(state: QuantizedState) -> typing.Any:
        decisions, treedef = resolve(
            "quantize_state", lambda path, leaf: Identity() if path in state.coded else None, state.inner
        )
        chosen = Chosen(decisions, treedef)
        values = dequantize(chosen.at("quantize_state", state.coded))
        return chosen.tree((_beside(d.leaf, value) for d, value in zip(chosen, values, strict=True)), state.inner)

    def init(params: optax.Params) -> typing.Any:
        return store(inner.init(params), None if key is None else jax.random.key_data(key))

    def update(
        updates: optax.Updates, state: typing.Any, params: optax.Params | None = None, **extra: typing.Any
    ) -> tuple[optax.Updates, typing.Any]:
        updates, after = inner.update(updates, load(state), params, **extra)
        return updates, store(after, state.key)

    return optax.GradientTransformationExtraArgs(init, update)


def _pays(d: Decision, smallest: int) -> bool:
    return d.scheme is not None and d.leaf.size >= smallest and jnp.issubdtype(d.leaf.dtype, jnp.floating)


def _beside(leaf: typing.Any, value: jax.Array) -> typing.Any:
    """A value in the place of a leaf; what a state holds of a learned grid stays beside it, in float."""
    return dataclasses.replace(leaf, value=value) if isinstance(leaf, Learnable) else value


def _coded(d: Decision, draw: jax.Array | None) -> QTensor:
    x, scheme = d.leaf.value if isinstance(d.leaf, Learnable) else d.leaf, typing.cast(Scheme, d.scheme)
    with at("quantize_state", d.path, x):
        grid = scheme.calibrate(x)
    if draw is None:
        return _qtensor.encode(x, scheme, grid)
    payload, length = _qtensor.pack(_stochastic(x, scheme, grid, draw.reshape(x.shape)), scheme)
    return QTensor(payload, grid, scheme, jnp.dtype(x.dtype), length)


def _stochastic(x: jax.Array, scheme: Scheme, grid: Grid, draw: jax.Array) -> jax.Array:
    """Codes of one of the two levels around each value, so that its mean is the value.

    The nearest level is one of them. The other has the code before or after, in every scheme: what it decodes to
    tells on which side of the value it is. Beyond the last level there is no other.
    """
    codes = scheme.encode(x, grid)
    wide, here = codes.astype(jnp.int32), scheme.decode(codes, grid)
    x = x.astype(here.dtype)
    low = -(2 ** (scheme.bits - 1)) if jnp.issubdtype(codes.dtype, jnp.signedinteger) else 0
    high = low + 2**scheme.bits - 1
    best, gap, share = codes, jnp.full(x.shape, jnp.inf, here.dtype), jnp.zeros(x.shape, here.dtype)
    for beside in (wide - 1, wide + 1):
        other = jnp.clip(beside, low, high).astype(codes.dtype)
        there = scheme.decode(other, grid)
        # false where there is NaN; the codes of floats wrap around to the other end, which is further away
        between = (jnp.sign(there - x) * jnp.sign(here - x) < 0) & (jnp.abs(there - x) < gap)
        best, gap = jnp.where(between, other, best), jnp.where(between, jnp.abs(there - x), gap)
        share = jnp.where(between, (x - here) / jnp.where(between, there - here, 1), share)
    return jnp.where(draw.astype(here.dtype) < share, best, codes)
