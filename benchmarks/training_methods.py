"""What does a step of each method of ``jqz.training`` cost next to the float step?

    python benchmarks/training_methods.py --tuned                  # ResNet-20, batch 128
    python benchmarks/training_methods.py --tuned --only LSQ inq   # and no others
    python benchmarks/training_methods.py --quick                  # does it run?

A step and its measurement are those of training_step.py: the float step is plain Flax, rows run in turn. Rows that
go through ``jqz.simulated`` gain what it saves in the gradients of convolutions. "Choosing" is a step in which a
method chooses weights anew. A teacher (distillation) is the float network itself.
"""

import functools
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from training_step import SGD, Row, Task, run

import jqz
from jqz import training

CHANNEL = jqz.PerAxis(-1)
EIGHT = jqz.Symmetric(8, CHANNEL)


def _kernels(scheme: jqz.Scheme, inputs: jqz.Scheme | None = None) -> jqz.Policy:
    return jqz.Policy({"**/kernel": scheme}, inputs=inputs)


def roundings(task: Task) -> dict[str, Row]:
    """Methods that are a scheme, or a function of the weights."""

    def rounding(weights: jqz.Scheme, inputs: jqz.Scheme | None = None, **options: typing.Any) -> Row:
        policy = _kernels(weights, inputs)
        step = jqz.simulated(task.apply, policy, **options)
        return Row(lambda v, x: step(v, None, x), variables=jqz.learnable(task.variables, policy))

    def mapped(change: typing.Callable[[typing.Any, jqz.Policy], typing.Any], weights: jqz.Scheme) -> Row:
        policy = _kernels(weights)
        step = jqz.simulated(task.apply, policy)
        return Row(lambda v, x: step(change(v, policy), None, x), variables=jqz.learnable(task.variables, policy))

    def learned_inputs(weights: jqz.Scheme, inputs: jqz.Scheme) -> Row:
        policy = _kernels(weights, inputs)
        watch = jax.jit(jqz.observe(task.apply, policy, jqz.observers.MSE(bins=512)))
        sites = jqz.calibrate(watch(task.variables, task.x), policy)
        step, variables = jqz.simulated(task.apply, policy), jqz.learnable(task.variables, policy)

        def apply(variables: typing.Any, x: jax.Array) -> typing.Any:
            params, sites = variables["params"]
            return step({**variables, "params": params}, sites, x)

        return Row(apply, variables={**variables, "params": (variables["params"], sites)})

    lsq, shifts = jqz.gradients.LSQ(), jqz.PowerOfTwo(4, top=jqz.schemes.GivenTop(0))
    steps = jqz.Symmetric(4, CHANNEL, range=jqz.ranges.MeanMagnitude(), gradient=lsq)
    apot = jqz.AdditivePowerOfTwo(4, CHANNEL, range=jqz.ranges.Given(-3.0, 3.0), gradient=jqz.gradients.RCF())
    unsigned = functools.partial(jqz.Asymmetric, 4, anchor=jqz.schemes.FromZero())
    two = _kernels(jqz.Symmetric(2, CHANNEL))
    rounded = training.progressive({0: None, 100: _kernels(EIGHT), 200: two})

    def shifted(v: typing.Any, x: jax.Array) -> typing.Any:
        return jqz.lowered(task.apply)({**v, "params": training.deep_shift_join(v["params"])}, x)

    split = training.deep_shift_split(task.variables["params"], _kernels(shifts))
    return {
        "LSQ, 4 bits": rounding(steps),
        "LSQ, 4 bits, activations too": learned_inputs(steps, unsigned(gradient=jqz.gradients.LSQ((0,)))),
        "PACT, 4 bits": learned_inputs(jqz.Symmetric(4, CHANNEL), unsigned(gradient=jqz.gradients.PACT())),
        "APoT, 4 bits": mapped(training.standardize_weights, apot),
        "DeepShift-Q": rounding(shifts),
        "DeepShift-PS": Row(shifted, variables={**task.variables, "params": split}),
        "XNOR weights": rounding(jqz.Binary(granularity=CHANNEL, estimator=jqz.schemes.Scaled())),
        "TWN": rounding(jqz.Ternary(granularity=CHANNEL)),
        "TTQ": rounding(jqz.Ternary(granularity=CHANNEL, scale=jqz.schemes.PerSign())),
        "BitNet b1.58": rounding(training.bit_net_weights(), training.bit_net_activations((0,))),
        "DoReFa weights, 2 bits": mapped(training.dore_fa_squash, training.dore_fa_weights(2)),
        "Quant-Noise": Row(lambda v, x: task.apply(training.quant_noise(v, two, jax.random.key(0), rate=0.5), x)),
        "progressive, at 8 bits": Row(lambda v, x: task.apply(rounded(v, jnp.max(x) * 0 + 100), x)),
        "8 bits, in floats": rounding(EIGHT, jqz.Symmetric(8)),
        "8 bits, in integers": rounding(EIGHT, jqz.Symmetric(8), requant=jqz.requant.Float32Requant()),
    }


def optimizers(task: Task) -> dict[str, Row]:
    """Methods that are optax transformations."""
    powers = _kernels(jqz.PowerOfTwo(4, codebook=jqz.schemes.INQ()))
    half, two = training.OneShot(0.5), _kernels(jqz.Symmetric(2, CHANNEL))

    def prune(**options: typing.Any) -> typing.Any:
        return optax.chain(SGD, training.prune(_kernels(jqz.Identity()), half, **options))

    def state(scheme: jqz.Scheme, **options: typing.Any) -> typing.Any:
        return training.quantize_state(SGD, {"**/kernel": scheme}, smallest=1024, **options)

    eight = jqz.Float(granularity=jqz.PerInputGroup(64))
    rows = {
        "inq, choosing": training.inq(SGD, powers, {0: 0.5, 1000: 1.0}),
        "prune, choosing": prune(),
        "prune over all leaves, choosing": prune(threshold=training.GlobalThreshold()),
        "oscillations dampened": optax.chain(training.dampen_oscillations(two, 0.01), SGD),
        "oscillations frozen": optax.chain(SGD, training.freeze_oscillations(two, 0.02)),
        "momentum in 8 bits": state(eight),
        "momentum in 8 bits, stochastic": state(eight, key=jax.random.key(0)),
        "momentum in 4 bits": state(jqz.Symmetric(4, jqz.PerInputGroup(64))),
    }
    later = {"inq": rows["inq, choosing"], "prune": rows["prune, choosing"]}
    return {
        **{name: Row(task.apply, optimizer) for name, optimizer in rows.items()},
        **{name: Row(task.apply, optimizer, updates=1) for name, optimizer in later.items()},
    }


def loops(task: Task) -> dict[str, Row]:
    """Methods that add to the loss, to the state or to what is trained."""
    policy = _kernels(EIGHT, jqz.Symmetric(8))
    four = _kernels(jqz.Symmetric(4, CHANNEL))
    student, teacher = jqz.simulated(task.apply, four), jqz.lowered(task.apply)
    params = task.variables["params"]

    def distilled(variables: typing.Any, x: jax.Array, out: jax.Array) -> jax.Array:
        return training.distillation_loss(out, teacher(task.variables, x)[0]).mean()

    ranges = training.moving_ranges(task.apply, policy)

    def moving(v: typing.Any, x: jax.Array) -> typing.Any:
        (out, updated), state = ranges.apply({"params": v["params"], "batch_stats": v["batch_stats"]}, v["ranges"], x)
        return out, {**updated, "ranges": state}

    simulated = jqz.simulated(task.apply, policy)
    sites = training.faq_sites(task.apply, policy, task.variables, [task.x])

    widths = training.learn_widths(params, {"**/kernel": jqz.Symmetric(8)})
    budget = sum(leaf.size for leaf in jax.tree.leaves(params)) / 2
    lowered = jqz.lowered(task.apply)

    def of_widths(v: typing.Any, x: jax.Array) -> typing.Any:
        return lowered({**v, "params": training.round_to_widths(*v["params"])}, x)

    coded = jqz.quantize(params, _kernels(jqz.Codebook(4)))

    def of_levels(v: typing.Any, x: jax.Array) -> typing.Any:
        return lowered({**v, "params": jqz.dequantize(training.rebuild(coded, v["params"]))}, x)

    def folded(v: typing.Any, x: jax.Array) -> typing.Any:
        with nn.intercept_methods(fold_norms(EIGHT)):
            return task.apply(v, x)

    def few_bits_back(v: typing.Any, x: jax.Array) -> typing.Any:
        def behind(call: typing.Any, args: typing.Any, kwargs: typing.Any, context: typing.Any) -> typing.Any:
            y = call(*args, **kwargs)
            return training.dore_fa_gradient(y, jax.random.key(0), 6) if isinstance(context.module, nn.Conv) else y

        with nn.intercept_methods(behind):
            return task.apply(v, x)

    started = {**task.variables, "ranges": jax.jit(ranges.init)(task.variables, task.x)}
    return {
        "distillation, 4 bits": Row(lambda v, x: student(v, None, x), penalty=distilled),
        "moving ranges, 8 bits": Row(moving, variables=started),
        "FAQ, 8 bits": Row(lambda v, x: simulated(v, sites, x), training.faq_optimizer(0.001, steps=1000)),
        "learned widths": Row(
            of_widths,
            variables={**task.variables, "params": (params, widths)},
            penalty=lambda v, x, out: 10 * training.size_penalty(*v["params"], budget),
        ),
        "Deep Compression, centroids": Row(
            of_levels, variables={**task.variables, "params": training.trainable(coded)}
        ),
        "batch norm folded, 8 bits": Row(folded),
        "DoReFa gradients, 6 bits": Row(few_bits_back),
    }


def fold_norms(scheme: jqz.Scheme) -> typing.Any:
    """Makes of each convolution and the batch norm that reads it one layer of ``training.folded_batch_norm``."""
    seen: dict[int, tuple[jax.Array, nn.Conv, jax.Array]] = {}

    def layer(call: typing.Any, args: typing.Any, kwargs: typing.Any, context: typing.Any) -> typing.Any:
        module = context.module
        if isinstance(module, nn.Conv):
            y = call(*args, **kwargs)
            seen[id(y)] = y, module, args[0]
            return y
        if not isinstance(module, nn.BatchNorm):
            return call(*args, **kwargs)
        _, conv, x = seen[id(args[0])]

        def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
            strides = conv.strides if isinstance(conv.strides, tuple) else (conv.strides or 1,) * 2
            padding = conv.padding if isinstance(conv.padding, str) else [(conv.padding,) * 2] * 2
            return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

        params, stats = module.variables["params"], module.variables["batch_stats"]
        norm = training.BatchNorm(params["scale"], params["bias"], stats["mean"], stats["var"])
        kernel = conv.variables["params"]["kernel"]
        y, norm = training.folded_batch_norm(product, x, kernel, norm, scheme, momentum=module.momentum)
        module.put_variable("batch_stats", "mean", norm.mean)
        module.put_variable("batch_stats", "var", norm.var)
        return y

    return layer


def methods(task: Task) -> dict[str, Row]:
    """Name -> a method of ``jqz.training``."""
    return {"float": Row(task.apply), **roundings(task), **loops(task), **optimizers(task)}


if __name__ == "__main__":
    run(__doc__, methods)
