"""Two ways to train resnet23 and its nine networks: as NNabla's example does, and as well as they go.

``nnabla``: Adam at 1e-3 from random weights, batches of 64, rotation by up to 0.25 radians and flips, every
function of the example with its own defaults, all layers alike.

``best``: from the float network, which also teaches (temperature 1): Adam on a cosine, schemes that fit their grids to
each layer, gradients that know the scale, weights of binary networks clipped to [-1, 1], 8 bits for the first and the
last layer, and batch norm measured again at the end with the weights as they are rounded. Activations are rounded on
grids that the float network's decided. In the binary net the sum of a unit stays real on the shortcut and is binary
where a layer reads it (Bi-Real Net, arXiv:1808.00278).
"""

import functools
import typing
from collections.abc import Callable
from types import MappingProxyType

import jax
import jax.numpy as jnp
import optax
from parts import loop, resnet23, steps
from parts.fashion_mnist import Data

import jqz
import jqz.training

#: Convolutions whose gradients have forms that are fast on CPU, weights as they are.
FLOAT = jqz.Policy({"**/kernel": jqz.Identity()})
CHANNEL = jqz.PerAxis(-1)
EIGHT = jqz.Symmetric(bits=8, granularity=CHANNEL)


class Job(typing.NamedTuple):
    """What the loop needs, and what to say of the network that comes out."""

    step: loop.Step
    predict: loop.Predict
    state: steps.State
    finish: Callable[[steps.State], dict[str, float]]


def prepare(images: jax.Array) -> jax.Array:
    return images.astype(jnp.float32) / 255


def _variables(model: resnet23.ResNet23, plan: loop.Plan, data: Data) -> typing.Any:
    return jax.jit(model.init)(jax.random.key(plan.seed), jnp.zeros((1, *data.train.images.shape[1:])))


def _trained(model: resnet23.ResNet23) -> Callable[..., typing.Any]:
    return functools.partial(model.apply, train=True, mutable=["batch_stats"])


def nnabla(name: str, base: resnet23.ResNet23, plan: loop.Plan, data: Data) -> Job:
    """A network of NNabla's example, trained as there."""
    network = resnet23.networks(plan.steps(data))[name]
    model = base.clone(**network.fields)
    run = jqz.simulated(_trained(model), FLOAT)

    def apply(params: typing.Any, rest: typing.Any, x: jax.Array) -> typing.Any:
        used, rest = network.weights(params, rest)
        logits, updated = run({"params": used, "batch_stats": rest["batch_stats"]}, None, x)
        return logits, {**rest, **updated}

    def predict(state: steps.State, images: jax.Array) -> jax.Array:
        used, rest = network.weights(state.params, state.rest)
        return model.apply({"params": used, "batch_stats": rest["batch_stats"]}, prepare(images))

    variables = _variables(model, plan, data)
    more, rest = network.extra(variables["params"])
    params, optimizer = {**variables["params"], **more}, optax.adam(1e-3)
    step = steps.make_step(apply, optimizer, prepare, (steps.rotate(0.25), steps.flip))
    state = steps.State(params, {"batch_stats": variables["batch_stats"], **rest}, optimizer.init(params))
    return Job(step, jax.jit(predict), state, lambda state: {})


class Variant(typing.NamedTuple):
    """A network of the recipe ``best``: a policy, the fields of the model that differ, what is done to parameters.

    ``rate`` is that of the first step behind the float network.
    """

    policy: jqz.Policy
    fields: resnet23.Fields = MappingProxyType({})
    project: Callable[[typing.Any], typing.Any] = lambda params: params
    rate: float = 2e-3


def _inner(scheme: jqz.Scheme, inputs: jqz.Scheme | None = None) -> jqz.Policy:
    """A scheme for the layers between the first and the last, which have 8 bits; the same for what meets them.

    A unit's shortcut has codes of 8 bits of its own: rounded as coarsely as what the products read, errors would add
    up from unit to unit.
    """
    ends = ("**/{stem,head}/kernel", "**/(residual)")
    around = None if inputs is None else {**dict.fromkeys(ends, jqz.Asymmetric(bits=8)), "**": inputs}
    return jqz.Policy({"**/{stem,head}/kernel": EIGHT, "**/kernel": scheme}, inputs=around)


def _clip_kernels(params: typing.Any) -> typing.Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.clip(leaf, -1, 1) if path[-1].key == "kernel" else leaf, params
    )


def _sign(x: jax.Array) -> jax.Array:
    return jqz.ste.sign(x, jqz.ste.ApproxSign())


def _as_it_is(x: jax.Array) -> jax.Array:
    return x


def variants() -> dict[str, Variant]:
    """The float network and its nine variants, each as a policy of jqz."""
    unit = jqz.Binary(scale=jqz.schemes.UnitScale(), estimator=jqz.ste.Clipped())
    mean = jqz.Binary(granularity=CHANNEL, estimator=jqz.schemes.Scaled())
    fixed = {"**/kernel": jqz.FixedPoint(bits=8)}
    pow2 = jqz.PowerOfTwo(bits=4, granularity=CHANNEL, scale=jqz.schemes.RealScale())
    affine = {"**/kernel": jqz.Asymmetric(bits=8, granularity=CHANNEL)}
    return {
        "float": Variant(FLOAT),
        "binary-connect": Variant(_inner(unit), project=_clip_kernels),
        "binary-net": Variant(_inner(unit), {"relu": _sign, "enter": _sign, "leave": _as_it_is}, _clip_kernels, 0.04),
        "binary-weight": Variant(_inner(mean), project=_clip_kernels),
        "fixed-point-connect": Variant(jqz.Policy(fixed)),
        "fixed-point-net": Variant(jqz.Policy(fixed, inputs=jqz.FixedPoint(bits=8, sign=jqz.schemes.Unsigned()))),
        "pow2-connect": Variant(_inner(pow2)),
        "pow2-net": Variant(_inner(pow2, jqz.PowerOfTwo(bits=4)), rate=8e-3),
        "inq": Variant(_inner(jqz.PowerOfTwo(bits=4, codebook=jqz.schemes.INQ()))),
        "min-max": Variant(jqz.Policy(affine, inputs=jqz.Asymmetric(bits=8))),
    }


def best(name: str, base: resnet23.ResNet23, plan: loop.Plan, data: Data, start: typing.Any = None) -> Job:
    """A network trained as well as it goes.

    Args:
      name: of the network.
      base: the float network.
      plan: how long.
      data: what on.
      start: the variables of a trained float network, to start from and to learn from; None to train that one.
    """
    variant = variants()[name]
    model = base.clone(**variant.fields)
    total, incremental = plan.steps(data), name == "inq"
    falling = optax.cosine_decay_schedule(variant.rate, total)
    optimizer = optax.adam(optax.cosine_onecycle_schedule(total, 5e-3) if start is None else falling)
    if incremental:
        portions = jqz.training.inq_portions(4, every=max(1, total // 7))  # the last seventh trains batch norm
        optimizer = jqz.training.inq(optimizer, variant.policy, portions)
    run = jqz.simulated(_trained(model), FLOAT if incremental else variant.policy)
    sites = None
    if variant.policy.inputs and start is not None:
        watch = jax.jit(jqz.observe(base.apply, variant.policy, jqz.observers.Percentile(99.95)))
        sites = jqz.calibrate(watch(start, prepare(data.train.images[:1000])), variant.policy)

    def apply(params: typing.Any, rest: typing.Any, x: jax.Array) -> typing.Any:
        return run({"params": params, **rest}, sites, x)

    def predict(state: steps.State, images: jax.Array) -> jax.Array:
        variables = {"params": state.params, **state.rest}
        return jqz.simulated(model.apply, FLOAT if incremental else variant.policy)(variables, sites, prepare(images))

    learn = None if start is None else lambda x: jqz.lowered(base.apply)(start, x)
    variables = _variables(model, plan, data) if start is None else start
    step = steps.make_step(apply, optimizer, prepare, (steps.shift(1), steps.flip), learn, variant.project)
    params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
    state = steps.State(params, rest, optimizer.init(params))

    def finish(state: steps.State) -> dict[str, float]:
        state = state._replace(rest=steps.reestimate(apply, state, data.train.images, prepare))
        plain = {"params": state.params, **state.rest}
        coded = (
            {**plain, "params": jqz.training.inq_finalize(state.params, state.optimizer, variant.policy)}
            if incremental
            else jqz.quantize(plain, variant.policy)
        )
        infer = jax.jit(lambda coded, x: jqz.quantized(model.apply, sites)(coded, prepare(x)))
        ours = loop.evaluate(infer, coded, data.test)
        figures = {"codes": loop.accuracy(ours, data.test), "bytes": jqz.size_bytes(coded)}
        if not incremental:
            round_trip = jax.jit(lambda v, x: jqz.simulated(model.apply, variant.policy)(v, sites, prepare(x)))
            figures["same as simulated"] = 100 * (ours == loop.evaluate(round_trip, plain, data.test)).mean()
        if start is not None:
            exact = loop.evaluate(jax.jit(lambda v, x: base.apply(v, prepare(x))), start, data.test)
            figures["same as float"] = 100 * (ours == exact).mean()
        return figures

    return Job(step, jax.jit(predict), state, finish)
