"""A quantized array: codes, their grid, their scheme."""

import dataclasses
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from jqz import _packing, _scheme
from jqz._scheme import Grid, Scheme


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class QTensor:
    """Codes, a grid and the scheme that decodes them; a pytree whose arrays jit, vmap, scan and shard.

    Codes of fewer than 8 bits are packed along the last axis (see ``jqz._packing``), so leading axes
    slice as those of a plain array do; ``length`` holds the last axis' true length where that is so,
    which is all of the shape that the payload does not tell. ``dtype`` is that of the values: grids
    are float32 whatever the values were, since a float16 scale would lose bits.

    Make one with ``quantize`` and read it with ``dequantize``; wrap a model in ``quantized`` to use it.

    >>> import jax.numpy as jnp, jqz
    >>> q = jqz.quantize(jnp.linspace(-1, 1, 6).reshape(2, 3), jqz.Symmetric(bits=4))
    >>> q.codes.tolist(), q.payload.shape, q.size_bytes
    ([[-7, -4, -1], [1, 4, 7]], (2, 2), 8)
    """

    payload: jax.Array
    grid: Grid
    scheme: Scheme = dataclasses.field(metadata={"static": True})
    dtype: typing.Any = dataclasses.field(metadata={"static": True})
    length: int | None = dataclasses.field(metadata={"static": True})

    @property
    def codes(self) -> jax.Array:
        """The integer codes, unpacked, in the shape of the values."""
        if self.length is None:
            return self.payload
        if self.payload.ndim == 0:
            raise ValueError(
                "QTensor: the packed axis was sliced away (vmap or scan over a rank-1 tensor). "
                "Use dequantize before slicing it."
            )
        return _packing.unpack(self.payload, self.scheme.bits, self.length, self.scheme.code_dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.payload.shape
        return shape if self.length is None else (*shape[:-1], self.length)

    @property
    def ndim(self) -> int:
        return self.payload.ndim

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes stored: packed codes and grid."""
        return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves((self.payload, self.grid)))

    def dequantize(self) -> jax.Array:
        """The values, in ``dtype``."""
        return _scheme.narrow(self.scheme.decode(self.codes, self.grid), self.dtype)

    def __repr__(self) -> str:
        try:
            return f"QTensor(shape={self.shape}, dtype={np.dtype(self.dtype).name}, scheme={self.scheme!r})"
        except AttributeError:  # a tree of placeholders, as tree_structure and vmap's axes make them
            return f"QTensor(payload={self.payload!r}, grid={self.grid!r}, scheme={self.scheme!r})"

    def __jax_array__(self) -> jax.Array:
        raise TypeError(
            "a QTensor met a JAX function; wrap the model: quantized(model.apply), or decode it: dequantize(qparams)."
        )

    def __array__(self, *args: typing.Any, **kwargs: typing.Any) -> typing.NoReturn:
        raise TypeError("a QTensor met a NumPy function; decode it first: np.asarray(dequantize(q)).")


def pack(codes: jax.Array, scheme: Scheme) -> tuple[jax.Array, int | None]:
    """The payload of codes, and the last axis' length where it was packed."""
    if codes.ndim == 0 or scheme.bits >= 8:
        return codes, None
    return _packing.pack(codes, scheme.bits), codes.shape[-1]


def encode(x: jax.Array, scheme: Scheme, grid: Grid = None) -> QTensor:
    """Codes ``x``, calibrating a grid unless one is given. For authors; users call ``quantize``."""
    if grid is None:
        grid = scheme.calibrate(x)
    payload, length = pack(scheme.encode(x, grid), scheme)
    return QTensor(payload, grid, scheme, jnp.dtype(x.dtype), length)


def is_qtensor(x: typing.Any) -> bool:
    """Whether x is a QTensor; an ``is_leaf`` for ``jax.tree.map``."""
    return isinstance(x, QTensor)
