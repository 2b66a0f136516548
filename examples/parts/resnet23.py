"""resnet23 of NNabla's quantization example, and its nine networks with NNabla's own arithmetic.

Substitutions, as that example makes them: how weights are rounded on their way into a layer, what is inserted
between batch norm and relu, what stands for relu. ``Network.weights`` rounds weights, the model itself activations.
"""

import functools
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp

from jqz import nnabla

#: (module, name of the place, values) -> values; it may declare parameters of the module
Site = Callable[[nn.Module, str, jax.Array], jax.Array]
Fields = Mapping[str, typing.Any]
#: (parameters, other variables) -> what the layers compute with, and the other variables after a step
Weights = Callable[[typing.Any, typing.Any], tuple[typing.Any, typing.Any]]


def as_they_are(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Inserts nothing."""
    return x


class ResNet23(nn.Module):
    """23 layers of weights: a stem, seven bottlenecks with pooling after the 2nd, 4th and 6th, a linear head."""

    maps: int = 64
    units: int = 7
    site: Site = as_they_are
    relu: Callable[[jax.Array], jax.Array] = nn.relu
    enter: Callable[[jax.Array], jax.Array] = lambda x: x  # what a unit does to its input beside the shortcut
    leave: Callable[[jax.Array], jax.Array] | None = None  # what becomes of the sum; None for relu
    relu_first: tuple[str, ...] = ()  # the layers of a unit in which relu comes before batch norm
    use_bias: bool = True
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def conv(x: jax.Array, name: str, maps: int, size: int) -> jax.Array:
            glorot = nn.initializers.glorot_uniform()
            x = nn.Conv(maps, (size, size), padding=size // 2, use_bias=False, kernel_init=glorot, name=name)(x)
            first = name.rsplit("_", 1)[-1] in self.relu_first
            x = self.relu(x) if first else x
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"{name}_norm")(x)
            return self.site(self, name, x)

        def relu_after(x: jax.Array, name: str) -> jax.Array:
            return x if name in self.relu_first else self.relu(x)

        leave = self.leave or self.relu
        x = leave(conv(x, "stem", self.maps, 3))
        for k in range(2, 2 + self.units):
            h = relu_after(conv(self.enter(x), f"unit{k}_conv1", self.maps // 2, 1), "conv1")
            h = relu_after(conv(h, f"unit{k}_conv2", self.maps // 2, 3), "conv2")
            x = leave(conv(h, f"unit{k}_conv3", self.maps, 1) + x)
            if k in (3, 5, 7):
                x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(
            self.classes, use_bias=self.use_bias, kernel_init=nn.initializers.glorot_uniform(), name="head"
        )(x.mean((1, 2)))


class Network(typing.NamedTuple):
    """What a variant puts in the place of weights, and the fields of the model that differ."""

    weights: Weights
    fields: Fields = MappingProxyType({})
    #: parameters and other variables that the weights need, from those of the model
    extra: Callable[[typing.Any], tuple[typing.Any, typing.Any]] = lambda params: ({}, {})


def rounded(fn: Callable[[jax.Array], jax.Array], *others: tuple[str, str]) -> Weights:
    """Applies a function to every kernel, and to other leaves that are named by layer and name."""

    def weights(params: typing.Any, rest: typing.Any) -> typing.Any:
        return {
            layer: {
                name: fn(leaf) if name == "kernel" or (layer, name) in others else leaf for name, leaf in leaves.items()
            }
            for layer, leaves in params.items()
        }, rest

    return weights


def _fixed_point(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    return nnabla.fixed_point_quantize(x)


def _pow2(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    return nnabla.pow2_quantize(x)


def _learned_range(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    limits = [
        module.param(f"{name}_{end}", nn.initializers.constant(value), ()) for end, value in (("low", -6), ("high", 6))
    ]
    return nnabla.min_max_quantize(x, *limits)[0]


def _ranged(params: typing.Any) -> tuple[typing.Any, typing.Any]:
    """A learned range for each kernel: its parameters, and nothing else."""
    layers = [name for name, leaves in params.items() if isinstance(leaves, dict) and "kernel" in leaves]
    return {"ranges": {name: {"low": jnp.float32(-2), "high": jnp.float32(2)} for name in layers}}, {}


def _min_max(params: typing.Any, rest: typing.Any) -> typing.Any:
    ranges = params["ranges"]

    def layer(name: str, leaves: typing.Any) -> typing.Any:
        if name not in ranges:
            return leaves
        kernel, _ = nnabla.min_max_quantize(leaves["kernel"], ranges[name]["low"], ranges[name]["high"])
        return {**leaves, "kernel": kernel}

    return {name: layer(name, leaves) for name, leaves in params.items() if name != "ranges"}, rest


class Incremental(typing.NamedTuple):
    """NNabla's INQ: at each of the steps half of the free weights are fixed, the largest first; at the last one all."""

    steps: tuple[int, ...]
    bits: int = 4

    def extra(self, params: typing.Any) -> tuple[typing.Any, typing.Any]:
        kernels = {name: leaves["kernel"] for name, leaves in params.items() if "kernel" in leaves}
        fixed = {name: jnp.zeros(kernel.shape, bool) for name, kernel in kernels.items()}
        return {}, {"inq": {"step": jnp.int32(0), "fixed": fixed, "held": jax.tree.map(jnp.zeros_like, kernels)}}

    def __call__(self, params: typing.Any, rest: typing.Any) -> typing.Any:
        """Undoes what the optimizer did to fixed weights, fixes more if it is time, and rounds all that are fixed."""
        state = rest["inq"]
        due = jnp.any(state["step"] == jnp.array(self.steps))
        whole = state["step"] == self.steps[-1]
        out, fixed, held = {}, {}, {}
        for name, leaves in params.items():
            out[name] = leaves
            if name in state["fixed"]:
                was = state["fixed"][name]
                kernel = jnp.where(was, jax.lax.stop_gradient(state["held"][name]), leaves["kernel"])
                fixed[name] = jax.lax.cond(due, lambda *a: whole | _half(*a), lambda w, was: was, kernel, was)
                kernel = nnabla.inq_quantize(kernel, self.bits, fixed=fixed[name])
                held[name], out[name] = kernel, {**leaves, "kernel": kernel}
        return out, {**rest, "inq": {"step": state["step"] + 1, "fixed": fixed, "held": held}}


def _half(w: jax.Array, fixed: jax.Array) -> jax.Array:
    """The larger half of the free weights fixed too, one at least."""
    order = jnp.argsort(jnp.where(fixed, -1, jnp.abs(w)).ravel(), descending=True, stable=True)
    place = jnp.argsort(order).reshape(w.shape)
    free = jnp.sum(~fixed, dtype=jnp.int32)
    return fixed | (place < jnp.maximum(1, free // 2))


def networks(total_steps: int) -> dict[str, Network]:
    """NNabla's nine networks and the float one. INQ's steps are NNabla's, in proportion in a run that is shorter."""
    steps = (5000, 6000, 7000, 8000, 9000)
    if total_steps <= 2 * steps[-1]:  # so many are left to train with all weights fixed, as batch norm does
        steps = tuple(total_steps * tenths // 10 for tenths in (4, 5, 6, 7, 8))
    inq, head_bias = Incremental(steps), ("head", "bias")
    sign = rounded(nnabla.sign)
    fixed_point = rounded(nnabla.fixed_point_quantize, head_bias)
    pow2 = rounded(functools.partial(nnabla.pow2_quantize, with_zero=False), head_bias)
    ranged = {"site": _learned_range, "relu_first": ("conv1", "conv2"), "use_bias": False}
    return {
        "float": Network(lambda params, rest: (params, rest)),
        "binary-connect": Network(sign),
        "binary-net": Network(sign, {"relu": nnabla.binary_tanh}),
        "binary-weight": Network(rounded(nnabla.binary_weight)),
        "fixed-point-connect": Network(fixed_point),
        "fixed-point-net": Network(fixed_point, {"site": _fixed_point}),
        "pow2-connect": Network(pow2),
        "pow2-net": Network(pow2, {"site": _pow2}),
        "inq": Network(inq, extra=inq.extra),
        "min-max": Network(_min_max, ranged, _ranged),
    }
