"""Groups along the input axis, for arrays of any rank: the default of block formats."""

import dataclasses
import typing

from jqz._granularity import Granularity


@typing.final
@dataclasses.dataclass(frozen=True)
class PerInputGroup(Granularity):
    """One grid for each ``size`` consecutive values along the axis that a product sums over.

    That is the second to last axis of a Flax kernel (..., in, out), and the only axis of a vector;
    a scalar is a group of its own. On kernels it is ``PerGroup(size, axis=-2)``, which has no meaning for
    a vector. Block formats take groups along this axis, since an integer kernel can then finish the sum
    over a group before it applies the group's scale.

    >>> import jqz
    >>> jqz.PerInputGroup(32).grid_shape((70, 10)), jqz.PerInputGroup(32).grid_shape((70,))
    ((3, 10), (3,))
    """

    size: int
    groups = True

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise ValueError(
                f"PerInputGroup: got size={self.size!r}, wanted a positive integer. Use PerInputGroup(size=32)."
            )

    def block(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = max(len(shape) - 2, 0)
        return tuple(self.size if a == axis else 1 for a in range(len(shape)))

    def period(self, axis: int, ndim: int) -> int | None:
        return self.size
