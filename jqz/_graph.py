"""A quantized network as a list of operators on coded tensors: what an exporter writes down.

Images are laid out (batch, ..., channels), kernels (out, ..., in), matrices (out, in). Codes are int8, and
int16 where a grid has more of them.
"""

import dataclasses
import typing

import jax

Padding = tuple[tuple[int, int], ...]


@typing.dataclass_transform(frozen_default=True, eq_default=False)
def _tree(*arrays: str) -> typing.Callable[[type], typing.Any]:
    """A frozen dataclass and pytree, of which these fields are arrays and all others static."""

    def register(cls: type) -> typing.Any:
        cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        return jax.tree_util.register_dataclass(
            cls, [n for n in names if n in arrays], [n for n in names if n not in arrays]
        )

    return register


@_tree("scale", "zero_point")
class Grid:
    """``scale * (code - zero_point)``, two scalars, for codes from ``low`` to ``high``."""

    scale: typing.Any
    zero_point: typing.Any
    low: int
    high: int

    @property
    def long(self) -> bool:
        """Whether codes are int16."""
        return self.high > 127

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest and the highest number of the codes' type."""
        return (-(2**15), 2**15 - 1) if self.long else (-128, 127)


@_tree("grid")
class Tensor:
    """Codes on a grid; without one, float32, or truth values."""

    shape: tuple[int, ...]
    grid: Grid | None
    boolean: bool = False


@_tree("low", "high")
class Operator:
    """Reads tensors and makes one, by their numbers; ``low`` and ``high`` are real bounds of its values, or None."""

    inputs: tuple[int, ...]
    result: int
    low: typing.Any
    high: typing.Any


@_tree("low", "high", "codes", "scale", "bias", "rest")
class Convolution(Operator):
    """``scale`` is the accumulator's over the input's, one an output channel, and may be 0 or negative.

    ``bias`` is in steps of accumulators (float32 whole numbers for int16), ``rest`` in steps of the result: 0 but where
    a scale is as good as 0. Of a float32 input ``bias`` is real, and ``codes`` may be real as well. No code is above
    ``limit``.
    """

    codes: typing.Any
    scale: typing.Any
    bias: typing.Any
    rest: typing.Any
    strides: tuple[int, ...]
    padding: Padding
    dilation: tuple[int, ...]
    groups: int
    limit: int


@_tree("low", "high", "codes", "scale", "bias", "rest")
class Dense(Operator):
    """A product of the last axis with a matrix; ``scale``, ``bias`` and ``rest`` as of a convolution."""

    codes: typing.Any
    scale: typing.Any
    bias: typing.Any
    rest: typing.Any
    limit: int


@_tree("low", "high")
class MatMul(Operator):
    """Products of the matrices that the last two axes hold, in float32."""


@_tree("low", "high")
class Add(Operator):
    """The sum of two tensors of one shape."""


@_tree("low", "high", "factor")
class Sum(Operator):
    """Sums over axes, times ``factor``: means, mostly; of codes or of float32. The result may keep axes of length 1."""

    factor: typing.Any
    axes: tuple[int, ...]


@_tree("low", "high", "factor")
class SumPool(Operator):
    """Sums over windows, times ``factor``: average pooling, mostly; of codes or of float32."""

    factor: typing.Any
    window: tuple[int, ...]
    strides: tuple[int, ...]


@_tree("low", "high")
class MaxPool(Operator):
    """Maxima over windows; ``window``, ``strides`` and ``padding`` are those of the axes between first and last."""

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Padding


@_tree("low", "high")
class Reshape(Operator):
    """The same values in another shape."""


@_tree("low", "high")
class Transpose(Operator):
    """``permutation`` as of NumPy."""

    permutation: tuple[int, ...]


@_tree("low", "high")
class Pad(Operator):
    """Zeros (real ones) at both ends of each axis."""

    padding: Padding


@_tree("low", "high")
class Slice(Operator):
    """From ``start`` to ``limit`` in ``strides``."""

    start: tuple[int, ...]
    limit: tuple[int, ...]
    strides: tuple[int, ...]


@_tree("low", "high", "indices")
class Take(Operator):
    """The entries of an axis at these places, a vector."""

    indices: typing.Any
    axis: int


@_tree("low", "high")
class Concatenate(Operator):
    """Tensors side by side along an axis."""

    axis: int


@_tree("low", "high")
class Convert(Operator):
    """From float32 to codes, from codes to float32, or from codes on one grid to another."""


@_tree("low", "high")
class Softmax(Operator):
    """Over the last axis, in float32."""


@_tree("low", "high")
class Function(Operator):
    """A function of each number, in float32, by the name of its primitive, such as ``tanh`` or ``mul``."""

    name: str


@_tree("low", "high", "values")
class Constant(Operator):
    """float32 numbers that depend on no input."""

    values: typing.Any


@_tree("operators", "tensors")
class Graph:
    """Operators in the order that they run, and the tensors that they read and make."""

    operators: list[typing.Any]
    tensors: list[Tensor]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
