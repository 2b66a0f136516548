"""Dots and convolutions in float, which record what meets each weight."""

import typing
from collections.abc import Callable, Sequence

from jqz._activations import Inputs, Meeting, meet
from jqz._observer import Observer
from jqz._rows import rows
from jqz._sites import Seen
from jqz._stacked import Stacked
from jqz._values import Activation, Value, decode
from jqz._walk import Equation, Rule


def rules(inputs: Inputs, observer: Callable[[str], Observer]) -> dict[str, Rule]:
    """The rule table: ``observer(path)`` starts a statistic for each weight that ``inputs`` gives a scheme."""
    record = recorder(observer)

    def product(eqn: Equation, *operands: Value) -> Sequence[Value] | None:
        met = meet(eqn, operands[:2], inputs)
        if met is None:
            return None
        record(met)
        return [eqn.on(*operands)]

    return dict.fromkeys(("dot_general", "ragged_dot_general", "conv_general_dilated"), product)


def recorder(observer: Callable[[str], Observer]) -> Callable[[Meeting], None]:
    """Records what meets a weight, in float; what another product has rounded was recorded there."""

    def record(met: Meeting) -> None:
        for one in (met, met.other):
            if one is not None and one.scheme is not None and not isinstance(one.x, Activation):
                x = decode(one.x)
                nothing = observer(one.name.split("#")[0])
                found = rows(one.eqn, x, one.weight, one.side) if nothing.by_rows and x.size else None
                seen = nothing.update(x) if found is None else typing.cast(typing.Any, nothing).update_rows(*found)
                one.eqn.walk.records[one.name] = Stacked(Seen(seen, x.ndim))
                if one.residual is not None:
                    name = one.residual[0]
                    beside = observer(name.split("#")[0]).update(x)
                    one.eqn.walk.records[name] = Stacked(Seen(beside, x.ndim))

    return record
