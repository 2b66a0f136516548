"""Dots and convolutions in float, which record what meets each weight."""

from collections.abc import Callable, Sequence

from jqz._activations import Inputs, meet
from jqz._interpret import Equation, Rule
from jqz._observer import Observer
from jqz._sites import Seen
from jqz._stacked import Stacked
from jqz._values import Value, decode


def rules(inputs: Inputs, observer: Callable[[str], Observer]) -> dict[str, Rule]:
    """The rule table: ``observer(path)`` starts a statistic for each weight that ``inputs`` gives a scheme."""

    def product(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        met = meet(eqn, operands, inputs)
        if met is None:
            return None
        x = decode(met.x)
        if met.scheme is not None:
            seen = Seen(observer(met.weight.path).update(x), x.ndim)
            eqn.walk.records[met.name] = Stacked(seen)
        return [eqn.on(*met.ordered(x, met.weight))]

    return {"dot_general": product, "conv_general_dilated": product}
