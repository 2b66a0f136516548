"""From a float model and a few batches to a quantized model, in one call."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.core import Tracer

from jqz import _sites, observers
from jqz._inference import Observers, observe, quantized
from jqz._policy import Policy
from jqz._prepare import Split, split
from jqz._requant import Float32Requant, Requant
from jqz._sites import Sites, Stats
from jqz._transform import quantize, size_bytes

Options = tuple[tuple[str, typing.Any], ...]
#: Bytes of codes and grids up to which a net on a CPU is compiled with them inside.
CONSTANTS = 2**26


@typing.final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Net:
    """A quantized model: codes, activation grids and the function they belong to; a pytree with a compiled call.

    Make one with ``convert``. ``net(x)`` equals ``quantized(net.fn, net.sites)(net.qparams, x)`` under jit.

    >>> import jax.numpy as jnp, jqz
    >>> policy = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Symmetric(bits=8))
    >>> net = jqz.convert(lambda params, x: x @ params["w"], {"w": jnp.eye(4)}, [jnp.ones((2, 4))], policy)
    >>> net, net(jnp.ones((1, 4))).shape
    (Net(1 sites, 20 bytes), (1, 4))
    """

    qparams: typing.Any
    sites: Sites
    fn: Callable[..., typing.Any] = dataclasses.field(metadata={"static": True})
    options: Options = dataclasses.field(default=(), metadata={"static": True})
    requant: Requant = dataclasses.field(default=Float32Requant(), metadata={"static": True})

    def __call__(self, *args: typing.Any) -> typing.Any:
        """Runs the model on codes; ``args`` follow the variables in the float function.

        What follows from weights and grids alone is computed at the first call for inputs of a shape, and kept.
        On a CPU the program of a net of up to 64 MiB holds its codes as constants, which XLA arranges once; nets
        that shall share a program run as ``jax.jit(quantized(fn, sites))``.
        """
        kept = self.__dict__.setdefault("_kept", {})
        signature = _signature(args)
        if signature not in kept:
            known = (self.qparams, self.sites)
            if signature is None or _signature(known) is None:
                return _compiled(self.fn, self.options, self.requant)(known, args)
            steps, shared = _steps(self.fn, self.options, self.requant, _signature(known), signature)
            numbers = steps.before(known), steps.used(known)
            own = functools.partial(steps.after, *numbers)
            kept[signature] = (
                jax.jit(own, compiler_options=dict(self.options) or None)
                if _fits_inside(numbers)
                else functools.partial(shared, *numbers)
            )
        return kept[signature](args)

    def __repr__(self) -> str:
        return f"Net({len(self.sites)} sites, {size_bytes(self.qparams)} bytes)"


def _fits_inside(numbers: typing.Any) -> bool:
    """Whether these arrays are few enough for constants, and all on one CPU."""
    leaves = jax.tree.leaves(numbers)
    devices = {device for leaf in leaves if isinstance(leaf, jax.Array) for device in leaf.devices()}
    on_cpu = len(devices) <= 1 and all(device.platform == "cpu" for device in devices)
    return on_cpu and sum(leaf.nbytes for leaf in leaves) <= CONSTANTS


Signature = tuple[typing.Any, tuple[tuple[tuple[int, ...], typing.Any], ...]]


def _signature(tree: typing.Any) -> Signature | None:
    """Structure, shapes and dtypes of a tree of concrete arrays; None where something else is in it."""
    leaves, treedef = jax.tree.flatten(tree)
    if any(isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves):
        return None
    return treedef, tuple((leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves)


def _whole(fn: Callable[..., typing.Any], requant: Requant) -> Callable[..., typing.Any]:
    def run(known: typing.Any, args: typing.Any) -> typing.Any:
        qparams, sites = known
        return quantized(fn, sites, requant=requant)(qparams, *args)

    return run


@functools.lru_cache(maxsize=64)
def _compiled(fn: Callable[..., typing.Any], options: Options, requant: Requant) -> Callable[..., typing.Any]:
    return jax.jit(_whole(fn, requant), compiler_options=dict(options) or None)


@functools.lru_cache(maxsize=64)
def _steps(
    fn: Callable[..., typing.Any], options: Options, requant: Requant, known: Signature, args: Signature
) -> tuple[Split, Callable[..., typing.Any]]:
    """The two steps of the program, and the second one compiled for all nets that share it."""
    known_tree, args_tree = (
        treedef.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in leaves]) for treedef, leaves in (known, args)
    )
    steps = split(_whole(fn, requant), known_tree, args_tree)
    shared = jax.jit(steps.after, compiler_options=dict(options) or None)
    return steps._replace(before=jax.jit(steps.before)), shared


def convert(
    fn: Callable[..., typing.Any],
    variables: typing.Any,
    batches: Iterable[typing.Any],
    policy: Policy,
    *,
    observer: Observers = observers.MinMax(),
    compiler_options: dict[str, typing.Any] | None = None,
    progress: Callable[[Iterable[typing.Any]], Iterable[typing.Any]] = iter,
    requant: Requant = Float32Requant(),
) -> Net:
    """Calibrates over batches and quantizes: ``observe``, ``merge``, ``calibrate`` and ``quantize`` in one.

    Args:
      fn: a pure function of ``(variables, *args)``, such as a Linen ``model.apply``.
      variables: its float variables.
      batches: inputs, each an array or a tuple of positional arguments; 100 to 500 samples in all are plenty.
      policy: rules for the weights, and ``inputs`` for the activations; without, these stay float and ``batches`` may
        be empty.
      observer: as for ``observe``: one of ``jqz.observers``, or rules by path.
      compiler_options: for ``jax.jit``; ``{"xla_cpu_prefer_vector_width": 512}`` gains 5 to 25 % on CPUs with AVX-512.
      progress: wraps the batches in a progress bar: ``rich.progress.track`` and ``tqdm.tqdm`` do.
      requant: as for ``quantized``; ``Gemmlowp()`` keeps to integers between the first code and the last.

    Returns:
      A ``Net``: call it on inputs.

    Raises:
      TypeError: ``batches`` is one array.
      ValueError: there are no batches to calibrate on, or a weight or rule does not fit (see ``quantize``).
      TypeError: as ``observe``.

    >>> import jax, jax.numpy as jnp, jqz
    >>> def model(params, x):
    ...     return jax.nn.relu(x @ params["a"]["kernel"]) @ params["b"]["kernel"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"a": {"kernel": jax.random.normal(keys[0], (8, 16)) / 3}, "b": {"kernel": jnp.ones((16, 2)) / 16}}
    >>> x = jax.random.normal(keys[1], (32, 8))
    >>> policy = jqz.Policy({"**/kernel": jqz.Symmetric(bits=8)}, inputs=jqz.Asymmetric(bits=8))
    >>> net = jqz.convert(model, params, [x[:16], x[16:]], policy)
    >>> bool(jnp.allclose(net(x), model(params, x), atol=0.05))
    True
    """
    options = tuple(sorted((compiler_options or {}).items()))
    if isinstance(policy, Policy) and not policy.inputs:
        return Net(quantize(variables, policy), {}, fn, options, requant)
    if hasattr(batches, "shape"):
        raise TypeError("convert: got an array as batches, wanted a list of them. Use batches=[x].")
    watch = jax.jit(observe(fn, policy, observer))
    stats: Stats | None = None
    for batch in progress(batches):
        seen = watch(variables, *(batch if isinstance(batch, tuple) else (batch,)))
        stats = seen if stats is None else _merge(stats, seen)
    if stats is None:
        raise ValueError("convert: got no batches, wanted at least one to calibrate on. Use batches=[x].")
    sites = _sites.calibrate(stats, policy)
    return Net(quantize(variables, policy), sites, fn, options, requant)


_merge = jax.jit(_sites.merge)
