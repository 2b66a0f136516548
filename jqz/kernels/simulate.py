"""Dots and convolutions with rounded activations, in float, with straight-through gradients.

The oracle of the integer kernels, and the forward pass of training.
"""

from collections.abc import Sequence

from jqz import _ste
from jqz._activations import Inputs, meet
from jqz._interpret import Equation, Rule
from jqz._values import Value, decode


def rules(inputs: Inputs) -> dict[str, Rule]:
    """The rule table: round what meets a weight, by the scheme that ``inputs`` gives for the weight's path."""

    def product(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        met = meet(eqn, operands, inputs)
        if met is None:
            return None
        x = decode(met.x) if met.scheme is None else met.rounded(lambda x, scheme, grid: scheme.simulate(x, grid))
        return [_ste.bilinear(eqn.on, *met.ordered(x, decode(met.weight)))]

    return {"dot_general": product, "conv_general_dilated": product}
