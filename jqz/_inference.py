"""Functions of functions: run unmodified models on codes."""

import functools
import typing
from collections.abc import Callable, Mapping

import jax
import numpy as np

from jqz import _paths
from jqz._interpret import Rules, Walk, interpret, trace
from jqz._policy import Policy, PolicyLike, resolve
from jqz._qtensor import QTensor
from jqz._scheme import Scheme
from jqz._transform import fake_quantize
from jqz._values import Coded, Value, Weight, decode
from jqz.kernels import convolution, dot, gather, simulate, structure

Inputs = Scheme | Mapping[str, Scheme | None] | Policy | None


def quantized(fn: Callable[..., typing.Any], *, inputs: Inputs = None) -> Callable[..., typing.Any]:
    """The same function, taking QTensors wherever it took arrays.

    ``fn`` is any JAX function: a Linen ``model.apply``, a function that merges an NNX module, plain code. It
    is traced as it stands, and its jaxpr is evaluated on codes; nothing is patched. Put ``jax.jit``
    around the result. Law: ``quantized(fn)(q, x) == fn(dequantize(q), x)`` to float rounding.

    With ``inputs``, what meets a coded weight in a dot or convolution is coded on the fly (dynamic
    quantization) and the product runs in integers, for every scheme with integer levels of at most 8
    bits: Symmetric, Asymmetric, PowerOfTwo up to 4 bits, Binary, Ternary, FixedPoint and their chains. A product
    whose grids do not allow integers runs on decoded values.

    Args:
      fn: a pure function. Arguments that are neither arrays nor QTensors (strings, booleans, Python numbers)
        reach it as they are.
      inputs: a Scheme for the activations, or rules by the path of the weight they meet: a dict of globs, or
        a Policy with ``inputs``. None leaves activations float.

    Raises:
      TypeError: ``fn`` is not callable, or ``inputs`` is none of the above.

    >>> import jax, jax.numpy as jnp, jqz
    >>> def model(params, x):
    ...     return jnp.tanh(x @ params["kernel"])
    >>> params = {"kernel": jax.random.normal(jax.random.key(0), (64, 8))}
    >>> qparams = jqz.quantize(params, jqz.Symmetric(bits=8))
    >>> x = jax.random.normal(jax.random.key(1), (4, 64))
    >>> exact = model(jqz.dequantize(qparams), x)
    >>> bool(jnp.allclose(jax.jit(jqz.quantized(model))(qparams, x), exact, atol=1e-5))
    True
    >>> fast = jax.jit(jqz.quantized(model, inputs=jqz.Symmetric(bits=8)))
    >>> bool(jnp.allclose(fast(qparams, x), exact, atol=0.2))
    True
    """
    if not callable(fn):
        raise TypeError(f"quantized: got {fn!r}, wanted a function. Use quantized(model.apply).")
    rules = _rules(inputs)

    @functools.wraps(fn, updated=())
    def on_codes(*args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        return _walk(fn, args, kwargs, rules)

    return on_codes


def _rules(inputs: Inputs) -> Rules:
    if inputs is None:
        return {**structure.RULES, **gather.RULES}
    policy = _input_policy("quantized", inputs)
    return {
        **structure.RULES,
        **gather.RULES,
        **dot.rules(policy.input_at),
        **convolution.rules(policy.input_at),
    }


def _input_policy(who: str, inputs: Inputs) -> Policy:
    if isinstance(inputs, Policy):
        return inputs
    if isinstance(inputs, Scheme | Mapping):
        return Policy({}, inputs=inputs)
    raise TypeError(
        f"{who}: got inputs={inputs!r}, wanted a Scheme, a dict of rules or a Policy. Use inputs=Symmetric(bits=8)."
    )


def simulated(fn: Callable[..., typing.Any], policy: PolicyLike) -> Callable[..., typing.Any]:
    """The same function with weights and activations rounded as deployment will round them, for training.

    The result takes ``(variables, sites, *args)``: the leaves of ``variables`` that the policy selects are
    fake-quantized, and so is what meets them in a dot or convolution, by the policy's ``inputs``. Gradients
    go straight through. ``sites=None`` measures every activation's range on the fly, as
    ``quantized(fn, inputs=...)`` does. Law: ``simulated(fn, policy)(p, None, x) ==
    quantized(fn, inputs=policy)(quantize(p, policy), x)`` to float rounding.

    Args:
      fn: a pure function of ``(variables, *args)``, such as a Linen ``model.apply``.
      policy: as for ``quantize``; a Policy's ``inputs`` say what happens to activations.

    Raises:
      ValueError: as ``fake_quantize``.
      TypeError: ``fn`` is not callable, or ``sites`` is not None.

    >>> import jax, jax.numpy as jnp, jqz
    >>> def model(params, x):
    ...     return x @ params["kernel"]
    >>> policy = jqz.Policy({"**/kernel": jqz.Symmetric(bits=4)}, inputs=jqz.Symmetric(bits=8))
    >>> params, x = {"kernel": jax.random.normal(jax.random.key(0), (8, 3))}, jnp.ones((2, 8))
    >>> y = jqz.simulated(model, policy)(params, None, x)
    >>> z = jqz.quantized(model, inputs=policy)(jqz.quantize(params, policy), x)
    >>> bool(jnp.allclose(y, z, atol=1e-5))
    True
    """
    if not callable(fn):
        raise TypeError(f"simulated: got {fn!r}, wanted a function. Use simulated(model.apply, policy).")
    inputs = policy.input_at if isinstance(policy, Policy) else lambda path: None
    rules = {**structure.RULES, **simulate.rules(inputs)}

    @functools.wraps(fn, updated=())
    def in_training(variables: typing.Any, sites: None, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        if sites is not None:
            raise TypeError(f"simulated: got sites={sites!r}, wanted None: ranges are measured on the fly.")
        decisions, treedef = resolve("simulated", policy, variables)
        rounded = jax.tree.leaves(fake_quantize(variables, treedef.unflatten([d.scheme for d in decisions])))
        tagged = [v if d.scheme is None else Weight(v, d.path) for v, d in zip(rounded, decisions, strict=True)]
        return _walk(fn, (treedef.unflatten(tagged), *args), kwargs, rules)

    return in_training


def _walk(fn: Callable[..., typing.Any], args: typing.Any, kwargs: typing.Any, rules: Rules) -> typing.Any:
    flat, treedef = jax.tree_util.tree_flatten_with_path((args, kwargs), is_leaf=_is_leaf)
    traced = [i for i, (_, leaf) in enumerate(flat) if _is_array(leaf)]

    def on_arrays(*arrays: jax.Array) -> typing.Any:
        leaves = [leaf for _, leaf in flat]
        for i, array in zip(traced, arrays, strict=True):
            leaves[i] = array
        args, kwargs = treedef.unflatten(leaves)
        return fn(*args, **kwargs)

    jaxpr, structure_out = trace(on_arrays, *(_abstract(flat[i][1]) for i in traced))
    results = interpret(jaxpr, [_value(*flat[i]) for i in traced], Walk(rules))
    return structure_out.unflatten([decode(v) for v in results])


def _is_leaf(leaf: typing.Any) -> bool:
    return isinstance(leaf, QTensor | Weight)


def _is_array(leaf: typing.Any) -> bool:
    return isinstance(leaf, QTensor | Weight | jax.Array | np.ndarray | np.generic)


def _abstract(leaf: typing.Any) -> typing.Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if _is_leaf(leaf) else leaf


def _value(path: typing.Any, leaf: typing.Any) -> Value:
    """A QTensor under the path that a policy knows it by: without the number or name of the argument."""
    return Coded(leaf, _paths.name(path[2:])) if isinstance(leaf, QTensor) else leaf
