"""Did it quantize? What every dot and convolution of a model runs on, and why."""

import dataclasses
import math
import typing
from collections.abc import Callable

import jax

from jqz._inference import Inputs, walked
from jqz._qtensor import QTensor, is_qtensor
from jqz._requant import Float32Requant
from jqz._sites import Sites
from jqz._transform import named_leaves
from jqz._walk import Note


@dataclasses.dataclass(frozen=True)
class Product:
    """One dot or convolution.

    Attributes:
      name: the site: the path of the weight, or the scope where no coded weight takes part.
      kind: ``dot`` or ``conv``.
      how: ``int8`` (integer product), ``int16`` (the same, of 16-bit activations), ``rounded float`` (the same values
        in float), or ``float``.
      why: the reason.
      scheme: the weight's, or None.
      weight_bytes: what the weight stores, grid included; 0 without a coded weight.
      multiplications: multiply-accumulate operations, all steps of surrounding scans counted.
    """

    name: str
    kind: str
    how: str
    why: str
    scheme: str | None
    weight_bytes: int
    multiplications: int


@typing.final
@dataclasses.dataclass(frozen=True)
class Audit:
    """What ran how: ``print`` it for a table, or read ``products``.

    >>> import jax.numpy as jnp, jqz
    >>> params = jqz.quantize({"w": jnp.eye(4), "v": jnp.eye(4)}, {"**/w": jqz.Symmetric(bits=8)})
    >>> audit = jqz.audit(lambda p, x: x @ p["w"] @ p["v"], inputs=jqz.Symmetric(bits=8))(params, jnp.ones((2, 4)))
    >>> [product.how for product in audit.products], audit.share("int8")
    (['int8', 'float'], 0.5)
    """

    products: tuple[Product, ...]

    def share(self, how: str) -> float:
        """The share of all multiplications that ran so."""
        total = sum(p.multiplications for p in self.products)
        return sum(p.multiplications for p in self.products if p.how == how) / total if total else 0.0

    def __str__(self) -> str:
        head = ("product", "kind", "runs in", "weight", "bytes", "MACs", "why")
        rows = [
            (p.name, p.kind, p.how, p.scheme or "", f"{p.weight_bytes:,}", f"{p.multiplications:,}", p.why)
            for p in self.products
        ]
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = [
            "  ".join(f"{cell:{'>' if i in (4, 5) else '<'}{widths[i]}}" for i, cell in enumerate(row))
            for row in (head, tuple("-" * w for w in widths), *rows)
        ]
        return "\n".join([*(line.rstrip() for line in lines), f"{100 * self.share('int8'):.1f} % of MACs in int8"])


def audit(fn: Callable[..., typing.Any], sites: Sites | None = None, *, inputs: Inputs = None) -> Callable[..., Audit]:
    """A function of what ``quantized(fn, sites, inputs=inputs)`` takes that reports instead of computing.

    Every dot and convolution is listed: those in int8, those that ran on rounded values in float because their grids
    allow no integers, and those left in float; each with its reason. Nothing is executed: the model is traced.

    Args and errors are those of ``quantized``.

    >>> import jax.numpy as jnp, jqz
    >>> params = jqz.quantize({"w": jnp.eye(4)}, jqz.NormalFloat(bits=4))
    >>> report = jqz.audit(lambda p, x: x @ p["w"], inputs=jqz.Symmetric(bits=8))(params, jnp.ones((2, 4)))
    >>> report.products[0].how, report.products[0].why
    ('rounded float', "the weight's scheme has no integer levels here")
    """
    run = walked(fn, sites, inputs, Float32Requant())

    def report(*args: typing.Any, **kwargs: typing.Any) -> Audit:
        log: dict[str, Note] = {}
        static = {}

        def traced(leaves: list[typing.Any]) -> typing.Any:
            merged = [static.get(i, leaf) for i, leaf in enumerate(leaves)]
            again, kwagain = treedef.unflatten(merged)
            return run(log, *again, **kwagain)

        leaves, treedef = jax.tree.flatten((args, kwargs), is_leaf=is_qtensor)
        for i, leaf in enumerate(leaves):
            if not (isinstance(leaf, QTensor) or hasattr(leaf, "dtype")):
                static[i], leaves[i] = leaf, None
        jax.eval_shape(traced, leaves)
        stored = {path: leaf for path, leaf in named_leaves((args, kwargs), drop=2) if is_qtensor(leaf)}
        return Audit(tuple(_product(name, note, stored) for name, note in log.items()))

    return report


def _product(name: str, note: Note, stored: dict[str, QTensor]) -> Product:
    weight = stored.get(note.path) if note.path is not None else None
    return Product(
        name,
        "conv" if note.eqn.primitive.name.startswith("conv") else "dot",
        note.how,
        note.why,
        None if weight is None else repr(weight.scheme),
        0 if weight is None else weight.size_bytes,
        note.steps * _multiplications(note.eqn),
    )


def _multiplications(eqn: typing.Any) -> int:
    lhs, rhs = (v.aval.shape for v in eqn.invars[:2])
    out = math.prod(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == "dot_general":
        return out * math.prod(lhs[i] for i in eqn.params["dimension_numbers"][0][0])
    if eqn.primitive.name == "conv_general_dilated":
        channel = eqn.params["dimension_numbers"].rhs_spec[0]
        return out * math.prod(n for i, n in enumerate(rhs) if i != channel)
    return out * lhs[-1]
