"""What a model computes and reads, layer by layer."""

import dataclasses
import math
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jqz import _paths
from jqz._audit import audit
from jqz._learnable import is_whole
from jqz._policy import Policy, PolicyLike, resolve
from jqz._qtensor import is_qtensor
from jqz._scheme import Identity, Scheme
from jqz._transform import quantize, size_bytes


@typing.final
@dataclasses.dataclass(frozen=True)
class Cost:
    """A dot or convolution.

    Attributes:
      name: the path of its weight (``path#2`` for a second use), or its scope where it has none.
      macs: multiply-accumulate operations.
      weights: how many; 0 for a product of two activations.
      weight_bits: the width of its weights, or of its second operand.
      input_bits: the width of what meets them.
      weight_bytes: as stored, grids included.
    """

    name: str
    macs: int
    weights: int
    weight_bits: int
    input_bits: int
    weight_bytes: int

    @property
    def bit_operations(self) -> int:
        """macs * weight_bits * input_bits ("BOPs")."""
        return self.macs * self.weight_bits * self.input_bits


@typing.final
@dataclasses.dataclass(frozen=True)
class Costs:
    """All dots and convolutions of a model, in the order in which they run; ``print`` it for a table."""

    layers: tuple[Cost, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bit_operations(self) -> int:
        """The sum over layers of macs * weight_bits * input_bits."""
        return sum(layer.bit_operations for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of dots and convolutions; a weight that is used twice is stored once."""
        return sum(layer.weight_bytes for layer in self.layers if "#" not in layer.name)

    def __str__(self) -> str:
        wide = max((len(layer.name) for layer in self.layers), default=5)
        lines = [f"{'layer':{wide}}  {'MACs':>14}  {'bits':>7}  {'bit operations':>18}  {'bytes':>12}"]
        for one in self.layers:
            width = f"{one.weight_bits} x {one.input_bits}"
            lines.append(
                f"{one.name:{wide}}  {one.macs:>14,}  {width:>7}  {one.bit_operations:>18,}  {one.weight_bytes:>12,}"
            )
        lines.append(
            f"{'total':{wide}}  {self.macs:>14,}  {'':7}  {self.bit_operations:>18,}  {self.weight_bytes:>12,}"
        )
        return "\n".join(lines)


def costs(fn: Callable[..., typing.Any], policy: PolicyLike = None) -> Callable[..., Costs]:
    """A function of ``(variables, *args)`` that counts what ``fn`` computes under a policy.

    Nothing is executed: the model is traced, on arrays or ``jax.ShapeDtypeStruct``s. QTensors count as what they
    are, what is not quantized as 32 bits. Counts are for the whole batch: pass one example for figures by example.

    Args:
      fn: a pure function of ``(variables, *args)``, such as a Linen ``model.apply``.
      policy: as for ``quantize``, its ``inputs`` for what meets the weights; None for the float model.

    Raises:
      ValueError, TypeError: as ``quantize``.

    >>> import jax.numpy as jnp, jqz
    >>> from jqz.analysis import costs
    >>> params = {"w": jnp.ones((8, 4)), "v": jnp.ones((4, 2))}
    >>> policy = jqz.Policy({"w": jqz.Symmetric(bits=4)}, inputs={"w": jqz.Symmetric(bits=8)})
    >>> found = costs(lambda p, x: x @ p["w"] @ p["v"], policy)(params, jnp.ones((1, 8)))
    >>> [(layer.name, layer.macs, layer.weight_bits, layer.input_bits) for layer in found.layers]
    [('w', 32, 4, 8), ('v', 8, 32, 32)]

    References: bit operations are those of HAWQ-V3, arXiv:2011.10680.
    """

    def count(variables: typing.Any, *args: typing.Any) -> Costs:
        rules = (lambda path, leaf: None) if policy is None else policy
        decisions = {d.path: d for d in resolve("costs", rules, variables)[0]}
        # identity codes give every product the name of its weight, whatever the policy does with it
        named = jax.eval_shape(lambda tree: quantize(tree, lambda path, leaf: _identity(leaf)), variables)
        layers = []
        for product in audit(fn)(named, *args).products:
            path = product.name.split("#")[0]
            found = decisions.get(path)
            if found is None:
                left, right = (_input_bits(policy, _paths.operand(path, side)) for side in (0, 1))
                layers.append(Cost(product.name, product.multiplications, 0, right, left, 0))
                continue
            shapes = jax.eval_shape(lambda leaf, scheme=found.scheme: _coded(leaf, scheme), found.leaf)
            scheme = found.leaf.scheme if is_qtensor(found.leaf) else found.scheme
            bits = 32 if scheme is None else scheme.bits
            macs, weights = product.multiplications, math.prod(found.leaf.shape)
            layers.append(Cost(product.name, macs, weights, bits, _input_bits(policy, path), size_bytes(shapes)))
        return Costs(tuple(layers))

    return count


def _identity(leaf: typing.Any) -> Scheme | None:
    floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) and not is_whole(leaf)
    return Identity() if floating and leaf.ndim >= 2 else None


def _coded(leaf: typing.Any, scheme: Scheme | None) -> typing.Any:
    return leaf if scheme is None else quantize(leaf, scheme)


def _input_bits(policy: PolicyLike, path: str) -> int:
    scheme = policy.input_at(path) if isinstance(policy, Policy) else None
    return 32 if scheme is None else scheme.bits
