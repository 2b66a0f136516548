"""Dots and convolutions in float, which record what meets each weight."""

from collections.abc import Callable, Sequence

from jqz._activations import Inputs, meet
from jqz._observer import Observer
from jqz._sites import Seen
from jqz._stacked import Stacked
from jqz._values import Value, decode
from jqz._walk import Equation, Rule


def rules(inputs: Inputs, observer: Callable[[str], Observer]) -> dict[str, Rule]:
    """The rule table: ``observer(path)`` starts a statistic for each weight that ``inputs`` gives a scheme."""

    def product(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        met = meet(eqn, operands[:2], inputs)
        if met is None:
            return None
        for one in (met, met.other):
            if one is not None and one.scheme is not None:
                x = decode(one.x)
                eqn.walk.records[one.name] = Stacked(Seen(observer(one.name.split("#")[0]).update(x), x.ndim))
        return [eqn.on(*operands)]

    return dict.fromkeys(("dot_general", "ragged_dot_general", "conv_general_dilated"), product)
