"""Functions of functions: run unmodified models on codes."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from jqz import _paths, observers
from jqz._activations import Site
from jqz._evaluate import is_array, is_leaf, walk_through
from jqz._learnable import value_and_grid
from jqz._observer import Observer
from jqz._policy import Decision, Policy, PolicyLike, resolve
from jqz._qtensor import QTensor
from jqz._requant import Float32Requant, Requant
from jqz._scheme import Scheme
from jqz._sites import Sites, Stats
from jqz._stacked import Stacked
from jqz._ste import straight_through
from jqz._transform import fake_quantize, quantize
from jqz._values import Value, Weight
from jqz._walk import PRODUCTS, Note, Rules, Walk, either
from jqz.kernels import (
    cache,
    convolution,
    dot,
    floats,
    gather,
    places,
    ragged,
    row,
    simulate,
    structure,
    waiting,
    watch,
)

Inputs = Scheme | Mapping[str, Scheme | None] | Policy | None
Observers = Observer | Mapping[str, Observer]


def quantized(
    fn: Callable[..., typing.Any],
    sites: Sites | None = None,
    *,
    inputs: Inputs = None,
    requant: Requant = Float32Requant(),
) -> Callable[..., typing.Any]:
    """The same function, taking QTensors wherever it took arrays.

    ``fn`` is any JAX function: a Linen ``model.apply``, a function that merges an NNX module, plain code. It
    is traced as it stands, and its jaxpr is evaluated on codes; nothing is patched. Put ``jax.jit``
    around the result. Law: ``quantized(fn)(q, x) == fn(dequantize(q), x)`` to float rounding.

    Activations stay float unless you say otherwise. With ``sites`` (static quantization) what meets a weight is
    coded on the grid that ``calibrate`` found; with ``inputs`` (dynamic quantization) on a grid measured on the
    fly. Either way the product runs in integers, for every scheme with integer levels of at most 8 bits:
    Symmetric, Asymmetric, PowerOfTwo up to 4 bits, Binary, Ternary, FixedPoint and their chains. A product whose
    grids do not allow integers runs on the same rounded values in float. An activation is coded once, and with
    static grids its later readers (a residual, say) read the codes as well. What follows a product on a static
    grid (bias, normalization, relu, pooling, a residual) waits for the next one, which rescales all of it at once.

    A QTensor that ``fn`` writes to (``dynamic_update_slice``, ``x.at[...].set``), such as a key-value cache, is
    updated on its codes and returned as a QTensor of the same structure.

    Args:
      fn: a pure function. Arguments that are neither arrays nor QTensors (strings, booleans, Python numbers)
        reach it as they are.
      sites: grids of the activations, from ``calibrate``.
      inputs: a Scheme for the activations, or rules by the path of the weight they meet: a dict of globs, or
        a Policy with ``inputs``. Products of two activations, as in attention, stay float unless a rule names
        them by scope: ``"**/(dot*)"``.
      requant: how int32 accumulators become int8 codes on static grids: ``Float32Requant()``, ``HalfAway()``, or
        in integers only ``Gemmlowp()`` or ``Ruy()`` (see ``jqz.requant``). ``Int16x8()`` is for static grids of 9 to
        16 bits, whose products are in float32 under other rules.

    Raises:
      TypeError: ``fn`` is not callable, or ``sites``, ``inputs`` or ``requant`` is none of the above.
      ValueError: ``Int16x8()`` meets a grid of 8 bits or fewer.

    >>> import jax, jax.numpy as jnp, jqz
    >>> def model(params, x):
    ...     return jnp.tanh(x @ params["kernel"])
    >>> params = {"kernel": jax.random.normal(jax.random.key(0), (64, 8)) / 8}
    >>> qparams = jqz.quantize(params, jqz.Symmetric(bits=8))
    >>> x = jax.random.normal(jax.random.key(1), (4, 64))
    >>> exact = model(jqz.dequantize(qparams), x)
    >>> bool(jnp.allclose(jax.jit(jqz.quantized(model))(qparams, x), exact, atol=1e-5))
    True
    >>> dynamic = jax.jit(jqz.quantized(model, inputs=jqz.Symmetric(bits=8)))
    >>> bool(jnp.allclose(dynamic(qparams, x), exact, atol=0.05))
    True
    >>> policy = jqz.Policy({"kernel": jqz.Symmetric(bits=8)}, inputs=jqz.Asymmetric(bits=8))
    >>> sites = jqz.calibrate(jqz.observe(model, policy)(params, x), policy)
    >>> static = jax.jit(jqz.quantized(model, sites))
    >>> bool(jnp.allclose(static(qparams, x), exact, atol=0.05))
    True
    """
    run = walked(fn, sites, inputs, requant)

    @functools.wraps(fn, updated=())
    def on_codes(*args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        return run(None, *args, **kwargs)

    return on_codes


def walked(
    fn: Callable[..., typing.Any],
    sites: Sites | None,
    inputs: Inputs,
    requant: Requant,
    place: places.Place | None = None,
) -> Callable[..., typing.Any]:
    """``quantized`` with a function that takes a log to keep notes in (or None) before its arguments.

    With ``place``, it returns what that has recorded as well.
    """
    _check_callable("quantized", fn)
    _check_requant("quantized", requant)
    given = given_sites("quantized", sites)
    _check_bits(requant, given)
    tables = [structure.RULES, gather.RULES, cache.RULES]
    always: frozenset[str] = frozenset()
    if inputs is not None or given:
        policy = _input_policy("quantized", {} if inputs is None else inputs)
        tables += [family.rules(policy.input_at, requant) for family in (dot, ragged, convolution)]
        always = _always(policy, given)
    tables.append(row.RULES)
    finish: Callable[[Walk, Value], Value] | None = None
    if given:
        at = place or places.rounded(requant)
        if place is not None or any(map(places.is_place, given)):
            tables.append(places.rules(at))
            finish = functools.partial(places.result, at)
        tables.append(waiting.rules(requant))
    rules = either(*tables)

    def run(log: dict[str, Note] | None, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        walk = Walk(rules, given, log=log, derivatives=not given, always=always, forms=floats.RULES)
        result = walk_through(fn, args, kwargs, walk, finish)
        return result if place is None else (result, _recorded(walk))

    return run


def _check_bits(requant: Requant, given: Mapping[str, Stacked]) -> None:
    """A rule for 16-bit codes does not make others."""
    narrow = next((name for name, site in given.items() if requant.long and site.tree.scheme.bits <= 8), None)
    if narrow is not None:
        raise ValueError(
            f"quantized: {narrow!r} is coded by {given[narrow].tree.scheme!r}, wanted more than 8 bits for "
            f"requant={requant!r}. Use inputs=Symmetric(bits=16)."
        )


def _check_callable(who: str, fn: typing.Any) -> None:
    if not callable(fn):
        raise TypeError(f"{who}: got {type(fn).__name__}, wanted a function. Use {who}(model.apply, ...).")


def _check_requant(who: str, requant: typing.Any) -> None:
    if not isinstance(requant, Requant):
        raise TypeError(f"{who}: got requant={requant!r}, wanted a rule. Use requant=jqz.requant.Float32Requant().")


def _always(policy: PolicyLike, given: Mapping[str, typing.Any]) -> frozenset[str]:
    """The primitives to look at wherever they stand: products, if any without weights is to be rounded."""
    globs = [glob for glob, _ in policy.inputs] if isinstance(policy, Policy) else []
    return frozenset(PRODUCTS) if any(map(_paths.names_product, [*globs, *given])) else frozenset()


def given_sites(who: str, sites: Sites | None) -> dict[str, Stacked]:
    """Sites as a walk carries them."""
    if sites is None:
        return {}
    if not isinstance(sites, Mapping) or not all(isinstance(site, Site) for site in sites.values()):
        raise TypeError(
            f"{who}: got sites={type(sites).__name__}, wanted what calibrate returns. "
            "Use sites = calibrate(observe(fn, policy)(variables, batch), policy)."
        )
    return {name: Stacked(site, site.lengths) for name, site in sites.items()}


def _input_policy(who: str, inputs: Inputs) -> Policy:
    if isinstance(inputs, Policy):
        return inputs
    if isinstance(inputs, Scheme | Mapping):
        return Policy({}, inputs=inputs)
    raise TypeError(
        f"{who}: got inputs={inputs!r}, wanted a Scheme, a dict of rules or a Policy. Use inputs=Symmetric(bits=8)."
    )


def simulated(
    fn: Callable[..., typing.Any], policy: PolicyLike, *, requant: Requant | None = None
) -> Callable[..., typing.Any]:
    """The same function with weights and activations rounded as deployment will round them, for training.

    The result takes ``(variables, sites, *args)``: the leaves of ``variables`` that the policy selects are
    fake-quantized, and so is what meets them in a dot or convolution: on the grids of ``sites``, or, with
    ``sites=None``, by the policy's ``inputs`` on grids measured on the fly. Gradients go straight through.

    Law, to float rounding: ``simulated(fn, policy)(p, sites, x) == quantized(fn, sites)(quantize(p, policy), x)``,
    and ``simulated(fn, policy)(p, None, x) == quantized(fn, inputs=policy)(quantize(p, policy), x)``. The last bit of a
    float sum decides now and then which of two neighbouring codes is nearer. With ``requant`` it does not: values
    are those of ``quantized(fn, sites, requant=requant)``, to the bit, and gradients those of the simulation. A
    training step then computes both; where no gradient is taken, ``jax.jit`` keeps only the integers.

    Args:
      fn: a pure function of ``(variables, *args)``, such as a Linen ``model.apply``.
      policy: as for ``quantize``; a Policy's ``inputs`` say what happens to activations.
      requant: None for values computed in float, or the rule by which the deployed network will rescale, such as
        ``jqz.Gemmlowp()``: values are then computed in integers.

    Raises:
      ValueError: as ``fake_quantize``.
      TypeError: ``fn`` is not callable, ``sites`` is not what ``calibrate`` returns, or ``requant`` is no rule.

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
    _check_callable("simulated", fn)
    if requant is not None:
        _check_requant("simulated", requant)
    rules = {**structure.RULES, **simulate.rules(_inputs_of(policy))}

    @functools.wraps(fn, updated=())
    def in_training(variables: typing.Any, sites: Sites | None, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        result = walk_in_training(fn, policy, rules, variables, sites, args, kwargs)[0]
        if requant is None:
            return result
        inputs = policy if sites is None and isinstance(policy, Policy) and policy.inputs else None
        held, given, named = jax.tree.map(_held, (variables, args, kwargs), is_leaf=is_leaf)
        coded = jax.lax.optimization_barrier(quantize(held, policy))  # a program of its own, as in deployment
        exact = quantized(fn, sites, inputs=inputs, requant=requant)(coded, *given, **named)
        return jax.tree.map(_of_codes, result, exact)

    return in_training


def _held(leaf: typing.Any) -> typing.Any:
    return jax.lax.stop_gradient(leaf) if is_array(leaf) else leaf


def _of_codes(simulated: typing.Any, exact: typing.Any) -> typing.Any:
    """What was computed on codes, with the gradient of its simulation."""
    exact = exact.dequantize() if isinstance(exact, QTensor) else exact
    return straight_through(simulated, exact) if jnp.issubdtype(jnp.result_type(exact), jnp.inexact) else exact


def walk_in_training(
    fn: Callable[..., typing.Any],
    policy: PolicyLike,
    rules: Rules,
    variables: typing.Any,
    sites: Sites | None,
    args: typing.Any,
    kwargs: typing.Any,
) -> tuple[typing.Any, Stats]:
    """What a function returns on rounded weights by the rules of a walk, and what these recorded."""
    decisions, treedef = resolve("simulated", policy, variables)
    rounded = fake_quantize(variables, treedef.unflatten([d.scheme for d in decisions]))
    weights = _tagged(treedef.flatten_up_to(rounded), decisions)
    given = given_sites("simulated", sites)
    walk = Walk(rules, given, always=_always(policy, given), forms=floats.RULES)
    return walk_through(fn, (treedef.unflatten(weights), *args), kwargs, walk), _recorded(walk)


def _recorded(walk: Walk) -> Stats:
    return {name: dataclasses.replace(r.tree, lengths=r.lengths) for name, r in walk.records.items()}


def observe(
    fn: Callable[..., typing.Any], policy: Policy, observer: Observers = observers.MinMax()
) -> Callable[..., Stats]:
    """A function of ``(variables, *args)`` that measures what meets each weight, in the float model.

    Pure and jit-able. Merge the statistics of several batches with ``merge``, then ``calibrate`` them. A site is
    named by the path of its weight (``path#2`` where a weight is used a second time); a scanned stack of layers
    has one statistic for each layer.

    Args:
      fn: a pure function of ``(variables, *args)``, such as a Linen ``model.apply``.
      policy: its rules select the weights, its ``inputs`` the sites to watch.
      observer: what to measure, one of ``jqz.observers``; or rules from globs of weights' paths to these.

    Raises:
      TypeError: ``fn`` is not callable, ``policy`` is not a Policy with ``inputs``, or ``observer`` is none.
      ValueError: rules give a weight no observer.

    >>> import jax.numpy as jnp, jqz
    >>> def model(params, x):
    ...     return x @ params["kernel"]
    >>> policy = jqz.Policy(jqz.Symmetric(), inputs=jqz.Symmetric())
    >>> stats = jqz.observe(model, policy)({"kernel": jnp.ones((2, 3))}, jnp.array([[1.0, -2.0]]))
    >>> float(stats["kernel"].observer.low)
    -2.0
    """
    _check_callable("observe", fn)
    if not isinstance(policy, Policy) or not policy.inputs:
        raise TypeError(
            f"observe: got {policy!r}, wanted a Policy with inputs. "
            'Use Policy({"**/kernel": Symmetric(bits=8)}, inputs=Asymmetric(bits=8)).'
        )
    rules = {**structure.RULES, **watch.rules(policy.input_at, _observer_at(observer))}

    @functools.wraps(fn, updated=())
    def watched(variables: typing.Any, *args: typing.Any, **kwargs: typing.Any) -> Stats:
        decisions, treedef = resolve("observe", policy, variables)
        walk = Walk(rules, always=_always(policy, {}), forms=floats.RULES)
        leaves = [value_and_grid("observe", d.path, d.leaf, None)[0] for d in decisions]
        walk_through(fn, (treedef.unflatten(_tagged(leaves, decisions)), *args), kwargs, walk)
        return _recorded(walk)

    return watched


def _observer_at(observer: Observers) -> Callable[[str], Observer]:
    rules = observer if isinstance(observer, Mapping) else {"**": observer}
    if not all(isinstance(one, Observer) for one in rules.values()):
        raise TypeError(
            f"observe: got observer={observer!r}, wanted an Observer or a dict from globs to Observers. "
            "Use observer=jqz.observers.MinMax()."
        )

    def at(path: str) -> Observer:
        found = next((one for glob, one in rules.items() if _paths.matches(glob, path)), None)
        if found is None:
            raise ValueError(
                f"observe: the observers give {path!r} none; their rules are {list(rules)}. "
                'Add "**": jqz.observers.MinMax() as the last rule.'
            )
        return found

    return at


def _inputs_of(policy: PolicyLike) -> Callable[[str], Scheme | None]:
    return policy.input_at if isinstance(policy, Policy) else lambda path: None


def _tagged(leaves: Sequence[typing.Any], decisions: Sequence[Decision]) -> list[typing.Any]:
    """Leaves that the policy selects, as weights that a walk follows."""
    pairs = zip(leaves, decisions, strict=True)
    return [v if d.scheme is None else Weight(v, d.path, tuple(range(v.ndim))) for v, d in pairs]
