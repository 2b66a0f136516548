"""What sharding must not change, on eight host devices: run by test_sharding.py in a process of its own.

Prints one JSON object: for each check, what is wrong (an empty string where nothing is).
"""

import functools
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jqz

SCHEMES = (
    jqz.Symmetric(bits=8),
    jqz.Symmetric(bits=4),
    jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1)),
    jqz.Symmetric(bits=4, granularity=jqz.PerGroup(16)),
    jqz.Asymmetric(bits=3, granularity=jqz.PerAxis(-1)),
    jqz.Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4),
    jqz.BlockFloat(),
)
SPECS = (P(None, "model"), P("model", None))
OBSERVERS = (
    jqz.observers.MinMax(),
    jqz.observers.MSE(bins=256, candidates=8),
    jqz.observers.EMA(),
    jqz.observers.Moments(),
)
POLICIES = {
    "int8": jqz.Policy(jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1)), inputs=jqz.Asymmetric(bits=8)),
    "int4": jqz.Policy(jqz.Symmetric(bits=4), inputs=jqz.Symmetric(bits=8)),
    "groups": jqz.Policy(jqz.Symmetric(bits=4, granularity=jqz.PerGroup(16)), inputs=jqz.Symmetric(bits=8)),
}
RUNS = (*itertools.product(("int8",), ("weight-only", "dynamic", "static")), ("int4", "static"), ("groups", "dynamic"))
KEYS = jax.random.split(jax.random.key(0), 4)
W = jax.random.normal(KEYS[0], (64, 32))
PARAMS = {"a": jax.random.normal(KEYS[1], (32, 64)) / 6, "b": jax.random.normal(KEYS[2], (64, 32)) / 8}
X = jax.random.normal(KEYS[3], (32, 32))
AS_SHARDED = {"a": P(None, "model"), "b": P("model", None)}  # columns, then rows


@functools.cache  # not at import, which the search for doctests does with one device
def mesh():
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def model(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def put(x, spec):
    return jax.device_put(x, NamedSharding(mesh(), spec))


def sharded(tree):
    return {name: put(leaf, AS_SHARDED[name]) for name, leaf in tree.items()}


def differences(a, b, tolerance=0.0):
    """What differs between two trees of arrays."""
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        off = np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).max(initial=0)
        if not off <= tolerance * max(1.0, np.abs(np.asarray(one, np.float64)).max(initial=0)):
            return f"off by {off}"
    return ""


def verbs(scheme, spec):
    """quantize and dequantize give the codes, grids and values of one device, sharded as the weight is."""
    coded, alone = jqz.quantize(put(W, spec), scheme), jqz.quantize(W, scheme)
    decoded, fake = jqz.dequantize(coded), jax.jit(lambda w: jqz.fake_quantize(w, scheme))(put(W, spec))
    for what, x in (("codes", coded.payload), ("values", decoded), ("rounded values", fake)):
        if not x.sharding.is_equivalent_to(NamedSharding(mesh(), spec), 2):
            return f"{what} are sharded as {x.sharding}"
    return differences(coded, alone) or differences((decoded, fake), (jqz.dequantize(alone), jqz.dequantize(alone)))


def calibration(observer):
    """Data-parallel calibration, by the compiler and by ``all_merge``, finds the sites of one device."""
    policy = POLICIES["int8"]
    watch = jqz.observe(model, policy, observer)
    alone = jqz.calibrate(jax.jit(watch)(PARAMS, X), policy)
    x = put(X, P("data", None))
    compiled = jqz.calibrate(jax.jit(watch)(PARAMS, x), policy)
    mapped = jax.jit(
        jax.shard_map(
            lambda x: jqz.observers.all_merge(watch(PARAMS, x), "data"), mesh=mesh(), in_specs=P("data"), out_specs=P()
        )
    )
    by_merging = jqz.calibrate(mapped(x), policy)
    exact = isinstance(observer, jqz.observers.MinMax | jqz.observers.MSE | jqz.observers.Percentile)
    if isinstance(observer, jqz.observers.EMA):  # four devices are four batches
        batches = [jax.jit(watch)(PARAMS, part) for part in X.reshape(4, 8, 32)]
        wanted = batches[0]
        for batch in batches[1:]:
            wanted = jqz.merge(wanted, batch)
        return differences(alone, compiled) or differences(jqz.calibrate(wanted, policy), by_merging, 1e-6)
    return differences(alone, compiled, 0 if exact else 1e-5) or differences(alone, by_merging, 0 if exact else 1e-5)


def inference(name, kind):
    """Weights in columns and rows, activations by batch: the codes and, on integers, the sums of one device."""
    policy = POLICIES[name]
    sites = jqz.calibrate(jax.jit(jqz.observe(model, policy))(PARAMS, X), policy)
    qparams, alone = jqz.quantize(sharded(PARAMS), policy), jqz.quantize(PARAMS, policy)
    run = {
        "weight-only": jqz.quantized(model),
        "dynamic": jqz.quantized(model, inputs=policy),
        "static": jqz.quantized(model, sites),
    }[kind]
    y, wanted = jax.jit(run)(qparams, put(X, P("data", None))), jax.jit(run)(alone, X)
    if "data" not in y.sharding.spec:
        return f"the batch came out as {y.sharding}"
    # in floats the rows of the second weight are summed in another order, and so are groups
    exact = kind != "weight-only" and name != "groups"
    return differences(qparams, alone) or differences(y, wanted, 0 if exact else 1e-6)


def mapped_inference():
    """Under shard_map, where weights are marked as differing between devices, codes stay codes."""
    policy = POLICIES["int8"]
    sites = jqz.calibrate(jax.jit(jqz.observe(model, policy))(PARAMS, X), policy)
    qparams = jqz.quantize(PARAMS, policy)
    run = jqz.quantized(model, sites)
    mapped = jax.shard_map(lambda x: run(qparams, x), mesh=mesh(), in_specs=P("data"), out_specs=P("data"))
    if str(jax.make_jaxpr(mapped)(X)).count("preferred_element_type=int32") < 2:
        return "a product does not run on integers"
    return differences(jax.jit(mapped)(X), jax.jit(run)(qparams, X))


def training():
    """Gradients of weights keep the weights' sharding."""
    policy, x = POLICIES["int4"], put(X, P("data", None))
    loss = lambda params, x: jnp.mean(jqz.simulated(model, policy)(params, None, x) ** 2)  # noqa: E731
    grads, alone = jax.jit(jax.grad(loss))(sharded(PARAMS), x), jax.jit(jax.grad(loss))(PARAMS, X)
    for name, g in grads.items():
        if not g.sharding.is_equivalent_to(NamedSharding(mesh(), AS_SHARDED[name]), 2):
            return f"the gradient of {name} is sharded as {g.sharding}"
    return differences(grads, alone, 1e-5)


def main():
    checks = {f"verbs {scheme}": (verbs, scheme, P("data", "model")) for scheme in SCHEMES}
    checks |= {f"verbs {spec}": (verbs, SCHEMES[3], spec) for spec in SPECS}
    checks |= {f"calibration {observer}": (calibration, observer) for observer in OBSERVERS}
    checks |= {f"inference {name} {kind}": (inference, name, kind) for name, kind in RUNS}
    checks |= {"mapped inference": (mapped_inference,), "training": (training,)}
    json.dump({name: check(*arguments) for name, (check, *arguments) in checks.items()}, sys.stdout)


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    main()
