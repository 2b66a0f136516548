"""C headers."""

import math
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jqz import _graph as g
from jqz import _loops_in_c as c
from jqz._requant import integer_multiplier
from jqz._runtime import Codes, clip_codes, inner_tensors, sound_weights
from jqz._target import target_graph, write_each

_integer_multiplier = jax.jit(integer_multiplier)

#: What there are no loops for.
WITHOUT = frozenset({"float32", "int16", "gather", "reduce_sum", "reduce_window_sum", "reduce_max"})


def header(net: typing.Any, example: typing.Any) -> str:
    """A quantized net as one C99 header without dependencies: constants and plain loops, in integers throughout.

    It defines ``run(in, out)``, from int8 codes to int8 codes (``in0, in1, ...`` where there are several), the macros
    ``JQZ_IN_SCALE``, ``JQZ_IN_ZERO_POINT``, ``JQZ_OUT_SCALE``, ``JQZ_OUT_ZERO_POINT``, which say what these stand for,
    and ``JQZ_IN_SIZE``, ``JQZ_OUT_SIZE``. ``run`` returns the codes of ``complete(net, example)`` with
    ``requant=jqz.Gemmlowp()`` bit for bit: a value is ``code = rint(value / SCALE) + ZERO_POINT``, clipped to int8.

    A layer whose weights are all zero or signed powers of two, such as ``Symmetric(bits=8) >> PowerOfTwo(bits=4)``,
    shifts and adds: no multiplication touches its activations.

    Use it for microcontrollers without a runtime, and to read what integer inference does. The loops are for clarity:
    where there is a runtime, ``tflite`` is many times as fast. Tensors between layers are static, so that the linker
    counts them; ``run`` is not reentrant. An array lies as NumPy has it, and images have their channels last.

    Args:
      net: from ``convert``, as for ``tflite``, of dense layers and convolutions (grouped and depthwise as well),
        biases, batch norm, relu and clip, residuals, max pooling, flattening, transposes, slices, padding and
        concatenation.
      example: an input, or a tuple of arguments, as for ``tflite``: its shape, batch included, is the function's.

    Raises:
      ValueError: an equation has no loop here, and the message names it and its line; or a sum may leave 30 bits.

    >>> import jax.numpy as jnp, jqz, jqz.export
    >>> policy = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Asymmetric(bits=8))
    >>> net = jqz.convert(lambda params, x: x @ params["w"], {"w": jnp.eye(4)}, [jnp.ones((2, 4))], policy)
    >>> jqz.export.header(net, jnp.ones((1, 4))).splitlines()[-4:]
    ['static inline void run(const int8_t *in, int8_t *out) {',
     '  jqz_product(in, t2, &l0);', '  memcpy(out, t2, JQZ_OUT_SIZE);', '}']

    References: arXiv:1712.05877.
    """
    return _Writer(target_graph(net, example, Codes(), without=WITHOUT)).text()


class _Writer:
    """Calls of loops, and the constants that they read."""

    def __init__(self, graph: g.Graph):
        self.graph = graph
        self.constants: list[str] = []
        self.calls: list[str] = []
        self.kernels: set[str] = set()
        self.layers = 0
        self.names = dict(zip(graph.inputs, _numbered("in", graph.inputs), strict=True))

    def text(self) -> str:
        graph, read = self.graph, {*self.graph.inputs}
        write_each(self, graph)
        outs = dict(zip(_numbered("out", graph.outputs), graph.outputs, strict=True))
        macros = []
        for name, i in [*((name, i) for i, name in self.names.items() if i in read), *outs.items()]:
            (scale, zero), size, stem = self._grid(i), self._size(i), f"JQZ_{name.upper()}"
            macros += [f"#define {stem}_SIZE {size}", f"#define {stem}_SCALE {scale:.9g}f"]
            macros += [f"#define {stem}_ZERO_POINT ({zero})"]
        arguments = [f"const int8_t *{self.names[i]}" for i in graph.inputs] + [f"int8_t *{name}" for name in outs]
        tensors = [f"static int8_t {self._name(i)}[{self._size(i)}];" for i in inner_tensors(graph) if i not in read]
        ends = [f"memcpy({name}, {self._name(i)}, JQZ_{name.upper()}_SIZE);" for name, i in outs.items()]
        return "\n".join([
            c.PROLOGUE, *macros, *(text for name, text in c.TEXTS.items() if name in self.kernels), "",
            *self.constants, *tensors, "",
            f"static inline void run({', '.join(arguments)}) {{", *(f"  {line}" for line in self.calls + ends), "}", "",
        ])  # fmt: skip

    # --- names and numbers --------------------------------------------------------------------------------------------

    def _name(self, i: int) -> str:
        return self.names.get(i, f"t{i}")

    def _grid(self, i: int) -> tuple[np.float32, int]:
        grid = self.graph.tensors[i].grid
        assert grid is not None
        return np.float32(grid.scale), int(grid.zero_point)

    def _shape(self, i: int) -> tuple[int, ...]:
        return self.graph.tensors[i].shape

    def _size(self, i: int) -> int:
        return math.prod(self._shape(i))

    def _call(self, kernel: str, op: typing.Any, **fields: typing.Any) -> None:
        """A call of a kernel with a struct of its own for one result."""
        name = f"l{self.layers}"
        self.layers += 1
        inner = ", ".join(f".{field} = {_written(value)}" for field, value in fields.items())
        self.constants.append(f"static const jqz_{c.STRUCTS[kernel]} {name} = {{{inner}}};")
        self.kernels |= {c.STRUCTS[kernel], kernel, "rescaled", *(["shifted"] if kernel == "shift_product" else [])}
        inputs = ", ".join(map(self._name, op.inputs))
        self.calls.append(f"jqz_{kernel}({inputs}, {self._name(op.result)}, &{name});")

    def _array(self, stem: str, kind: str, values: typing.Any) -> str:
        name, numbers = f"{stem}{self.layers}", np.asarray(values).reshape(-1)
        self.constants.append(f"static const {kind} {name}[{len(numbers)}] = {{")
        rows = [numbers[i : i + 20] for i in range(0, len(numbers), 20)]
        self.constants += [f"  {', '.join(map(str, row))}," for row in rows] + ["};"]
        return name

    def _multipliers(self, first: typing.Any, second: typing.Any, target: typing.Any) -> tuple[np.ndarray, np.ndarray]:
        """``first * second / target`` as gemmlowp writes it: mantissas and exponents."""
        numbers = (jnp.asarray(np.atleast_1d(x), jnp.float32) for x in np.broadcast_arrays(first, second, target))
        first, second, target = numbers
        return jax.device_get(_integer_multiplier((first, second), target))

    def _ends(self, op: typing.Any) -> dict[str, int]:
        grid = self.graph.tensors[op.result].grid
        assert grid is not None
        low, high = clip_codes(op, grid)
        return {"low": low, "high": high}

    # --- operators ----------------------------------------------------------------------------------------------------

    def _product(self, op: typing.Any, images: Sequence[int], results: Sequence[int], **geometry: int) -> None:
        (source, zero), (target, result_zero) = self._grid(op.inputs[0]), self._grid(op.result)
        codes, scale, bias = sound_weights(op, source, target)
        largest = 255 * np.abs(codes.astype(np.int64)).reshape(len(codes), -1).sum(1) + np.abs(bias.astype(np.int64))
        if largest.max(initial=0) >= 2**30:
            raise ValueError(
                f"header: sums of {codes[0].size} products with weights up to {np.abs(codes).max()} and biases up to "
                f"{np.abs(bias).max()} may leave 30 bits, wanted {largest.max()} below {2**30}. "
                "Use fewer bits for the weights of this layer."
            )
        magnitudes = np.abs(codes.astype(np.int32))
        shifts = bool(((magnitudes & (magnitudes - 1)) == 0).all())
        if shifts:  # 1 + log2, signed
            codes = np.sign(codes) * np.frexp(magnitudes.astype(np.float32))[1]
        mantissa, exponent = self._multipliers(source, scale, target)
        batch, height, width, channels = images
        self._call(
            "shift_product" if shifts else "product", op, batch=batch, height=height, width=width, channels=channels,
            out_height=results[1], out_width=results[2], out_channels=results[3], **geometry, zero=zero,
            result_zero=result_zero, **self._ends(op), weights=self._array("weights", "int8_t", codes),
            bias=self._array("bias", "int32_t", bias), mantissa=self._array("mantissa", "int32_t", mantissa),
            exponent=self._array("exponent", "int8_t", exponent),
        )  # fmt: skip

    def _on_convolution(self, op: g.Convolution) -> None:
        (down, right), (lower, wider) = op.strides, op.dilation
        (top, _), (left, _) = op.padding
        self._product(
            op, self._shape(op.inputs[0]), self._shape(op.result), kernel_height=op.codes.shape[1],
            kernel_width=op.codes.shape[2], groups=op.groups, stride_y=down, stride_x=right, dilation_y=lower,
            dilation_x=wider, top=top, left=left,
        )  # fmt: skip

    def _on_dense(self, op: g.Dense) -> None:
        outs, ins = op.codes.shape
        rows = math.prod(self._shape(op.result)[:-1])
        ones = ("kernel_height", "kernel_width", "groups", "stride_y", "stride_x", "dilation_y", "dilation_x")
        self._product(op, (rows, 1, 1, ins), (rows, 1, 1, outs), **dict.fromkeys(ones, 1), top=0, left=0)

    def _on_maxpool(self, op: g.MaxPool) -> None:
        (batch, height, width, channels), (_, rows, columns, _) = self._shape(op.inputs[0]), self._shape(op.result)
        self._call(
            "maxima", op, batch=batch, height=height, width=width, channels=channels, out_height=rows,
            out_width=columns, window_y=op.window[0], window_x=op.window[1], stride_y=op.strides[0],
            stride_x=op.strides[1], top=op.padding[0][0], left=op.padding[1][0],
        )  # fmt: skip

    def _on_add(self, op: g.Add) -> None:
        grids, (target, zero) = [self._grid(i) for i in op.inputs], self._grid(op.result)
        larger = max(scale for scale, _ in grids)
        halves = [self._multipliers(scale, np.float32(0.5), larger) for scale, _ in grids]
        ends = self._multipliers(larger, np.float32(2.0**-19), target)
        mantissa, exponent = (np.concatenate(parts) for parts in zip(*halves, ends, strict=True))
        zeros = [zero for _, zero in grids]
        self._call(
            "sums", op, count=self._size(op.result), zero=zeros, result_zero=zero, **self._ends(op),
            mantissa=mantissa.tolist(), exponent=exponent.tolist(),
        )  # fmt: skip

    def _on_convert(self, op: g.Convert) -> None:
        if self.graph.tensors[op.inputs[0]].grid is None or self.graph.tensors[op.result].grid is None:
            raise ValueError("header: a tensor is float32 between two layers. Return what is computed on it apart.")
        (source, zero), (target, result_zero) = self._grid(op.inputs[0]), self._grid(op.result)
        (mantissa,), (exponent,) = self._multipliers(source, np.float32(1), target)
        self._call(
            "rescaling", op, count=self._size(op.result), zero=zero, result_zero=result_zero, **self._ends(op),
            mantissa=mantissa, exponent=exponent,
        )  # fmt: skip

    # --- moves: one loop, which copies between two strided arrays ---------------------------------------------------

    def _copied(
        self, source: int, target: int, sizes: Sequence[int], steps: tuple[Sequence[int], Sequence[int]],
        starts: tuple[int, int] = (0, 0),
    ) -> None:  # fmt: skip
        if len(sizes) > 4:
            raise ValueError(f"header: an array of shape {tuple(sizes)} is moved, wanted at most 4 axes.")
        ones = (1,) * (4 - len(sizes))
        arguments = ", ".join(_compound((*ones, *numbers)) for numbers in (sizes, *steps))
        pairs = zip((source, target), starts, strict=True)
        places = (f"{self._name(i)} + {start}" if start else self._name(i) for i, start in pairs)
        self.kernels.add("copied")
        self.calls.append(f"jqz_copied({', '.join(places)}, {arguments});")

    def _on_reshape(self, op: g.Reshape) -> None:
        self.calls.append(f"memcpy({self._name(op.result)}, {self._name(op.inputs[0])}, {self._size(op.result)});")

    def _on_transpose(self, op: g.Transpose) -> None:
        shape, steps = self._shape(op.result), _steps(self._shape(op.inputs[0]))
        self._copied(op.inputs[0], op.result, shape, ([steps[axis] for axis in op.permutation], _steps(shape)))

    def _on_slice(self, op: g.Slice) -> None:
        shape, steps = self._shape(op.result), _steps(self._shape(op.inputs[0]))
        start = sum(a * b for a, b in zip(op.start, steps, strict=True))
        strided = [a * b for a, b in zip(op.strides, steps, strict=True)]
        self._copied(op.inputs[0], op.result, shape, (strided, _steps(shape)), (start, 0))

    def _on_pad(self, op: g.Pad) -> None:
        shape, steps = self._shape(op.inputs[0]), _steps(self._shape(op.result))
        start = sum(low * step for (low, _), step in zip(op.padding, steps, strict=True))
        self.calls.append(f"memset({self._name(op.result)}, {self._grid(op.result)[1]}, {self._size(op.result)});")
        self._copied(op.inputs[0], op.result, shape, (_steps(shape), steps), (0, start))

    def _on_concatenate(self, op: g.Concatenate) -> None:
        steps, start = _steps(self._shape(op.result)), 0
        for i in op.inputs:
            shape = self._shape(i)
            self._copied(i, op.result, shape, (_steps(shape), steps), (0, start))
            start += shape[op.axis] * steps[op.axis]


def _numbered(stem: str, of: Sequence[int]) -> list[str]:
    return [stem] if len(of) == 1 else [f"{stem}{i}" for i in range(len(of))]


def _written(value: typing.Any) -> str:
    return f"{{{', '.join(map(str, value))}}}" if isinstance(value, list) else str(value)


def _compound(numbers: Sequence[int]) -> str:
    return f"(const int32_t[]){{{', '.join(map(str, numbers))}}}"


def _steps(shape: Sequence[int]) -> list[int]:
    """How far apart the neighbours along each axis are."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
