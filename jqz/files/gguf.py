"""GGUF files, as llama.cpp has them: codes in blocks become QTensors, and QTensors of such blocks are written."""

import dataclasses
import math
import mmap
import struct
import typing
from collections.abc import Callable

import jax
import ml_dtypes
import numpy as np

from jqz import _packing, schemes
from jqz._granularity import PerGroup
from jqz._qtensor import QTensor, is_qtensor
from jqz._scheme import Scheme
from jqz.files import lazy, names
from jqz.files.atomic import Path, replacing
from jqz.files.lazy import Lazy, Source
from jqz.files.safetensors import naming

_ALIGNMENT = 32
#: Numbers by the format's type number.
_PLAIN = {
    0: np.float32,
    1: np.float16,
    24: np.int8,
    25: np.int16,
    26: np.int32,
    27: np.int64,
    28: np.float64,
    30: ml_dtypes.bfloat16,
}
_NUMBERS = {np.dtype(dtype): number for number, dtype in _PLAIN.items()}
#: Bytes of a metadata value by its type number; 8 is a string, 9 an array.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_LONGEST = 2**24  # entries of a metadata array of strings, and tensors

Blocks = np.ndarray  # (..., blocks, bytes of a block) uint8
Part = Callable[[Blocks], np.ndarray]


@typing.final
@dataclasses.dataclass(frozen=True)
class Layout:
    """Blocks of a type: how many values and bytes, and how codes (..., blocks, values) and grids are in them."""

    name: str
    values: int
    size_bytes: int
    scheme: Scheme
    codes: Part
    grid: tuple[Part, ...]


def _half(blocks: Blocks, at: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(blocks: Blocks) -> np.ndarray:
    return np.concatenate([blocks & 15, blocks >> 4], -1).astype(np.int8) - np.int8(8)


def _q4_0_bytes(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    raw = (codes + np.int8(8)).astype(np.uint8)
    return np.concatenate([_halves(scale), raw[..., :16] | (raw[..., 16:] << 4)], -1)


def _q8_0_bytes(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.concatenate([_halves(scale), codes.view(np.uint8)], -1)


def _halves(scale: np.ndarray) -> np.ndarray:
    if np.any(np.abs(scale) > float(np.finfo(np.float16).max)):
        raise ValueError("gguf.write: a scale is too large for float16. Use jqz.save.")
    if np.any((scale != 0) & (np.abs(scale) < float(np.finfo(np.float16).tiny))):
        raise ValueError("gguf.write: a scale is too small for float16, which would lose its codes. Use jqz.save.")
    return scale.astype(np.float16)[..., None].view(np.uint8)


def _q4_1_scale(blocks: Blocks) -> np.ndarray:
    return _nonzero(_half(blocks, 0))


def _q4_1_codes(blocks: Blocks) -> np.ndarray:
    return np.where(_half(blocks, 0) == 0, np.int8(-8), _nibbles(blocks[..., 4:]))


def _nonzero(scale: np.ndarray) -> np.ndarray:
    """Where a step is zero, all codes are the lowest one, and any step will do."""
    return np.where(scale == 0, np.float32(1), scale)


def _q4_k_levels(blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Steps and minima (..., blocks, 8) of 32 values each: 6-bit numbers times two halves."""
    a, b, c = (blocks[..., at : at + 4] for at in (4, 8, 12))
    steps = np.concatenate([a & 63, (c & 15) | (a >> 6 << 4)], -1)
    minima = np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], -1)
    return _half(blocks, 0) * steps.astype(np.float32), -(_half(blocks, 2) * minima.astype(np.float32))


def _q4_k_codes(blocks: Blocks) -> np.ndarray:
    quads = blocks[..., 16:].reshape(*blocks.shape[:-1], 4, 32)
    codes = _nibbles(quads).reshape(*blocks.shape[:-1], 8, 32)
    steps, _ = _q4_k_levels(blocks)
    return np.where(steps[..., None] == 0, np.int8(-8), codes).reshape(*blocks.shape[:-1], 256)


def _q6_k_codes(blocks: Blocks) -> np.ndarray:
    shape = blocks.shape[:-1]
    low = blocks[..., :128].reshape(*shape, 2, 1, 64) >> np.array([[0], [4]], np.uint8) & 15
    high = blocks[..., 128:192].reshape(*shape, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & 3
    codes = low.reshape(*shape, 256) | (high.reshape(*shape, 256) << 4)
    return codes.astype(np.int8) - np.int8(32)


def _q6_k_scale(blocks: Blocks) -> np.ndarray:
    return _half(blocks, 208) * np.ascontiguousarray(blocks[..., 192:208]).view(np.int8).astype(np.float32)


def _symmetric(bits: int, group: int) -> Scheme:
    codes = schemes.Full() if bits < 8 else schemes.Narrow()
    return schemes.Symmetric(bits=bits, granularity=PerGroup(group, axis=-1), codes=codes)


_SHIFTED = schemes.Asymmetric(bits=4, granularity=PerGroup(32, axis=-1), anchor=schemes.Minimum())

LAYOUTS = {
    2: Layout("Q4_0", 32, 18, _symmetric(4, 32), lambda b: _nibbles(b[..., 2:]), (lambda b: _half(b, 0),)),
    3: Layout("Q4_1", 32, 20, _SHIFTED, _q4_1_codes, (_q4_1_scale, lambda b: _half(b, 2))),
    8: Layout("Q8_0", 32, 34, _symmetric(8, 32), lambda b: b[..., 2:].view(np.int8), (lambda b: _half(b, 0),)),
    12: Layout(
        *("Q4_K", 256, 144, _SHIFTED, _q4_k_codes),
        (lambda b: _nonzero(_q4_k_levels(b)[0]), lambda b: _q4_k_levels(b)[1]),
    ),
    14: Layout("Q6_K", 256, 210, _symmetric(6, 16), _q6_k_codes, (_q6_k_scale,)),
}
_WRITERS = {4: (2, _q4_0_bytes), 8: (8, _q8_0_bytes)}


def read(path: Path) -> typing.Any:
    """Reads the tensors as nested dicts by their dotted names: floats as arrays, Q4_0, Q4_1, Q8_0, Q4_K and Q6_K as
    QTensors, whose codes are those of the file.

    Shapes are NumPy's, with the inputs of a matrix last: ``x @ w.T``. Scales that a file keeps in 6 bits and a half
    take float32 here.

    Raises:
      ValueError: the file is damaged, or a tensor is of another type.

    >>> import pathlib, tempfile, jax.numpy as jnp, jqz
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.gguf"
    >>> scheme = jqz.Symmetric(bits=8, granularity=jqz.PerGroup(32, axis=-1))
    >>> jqz.files.gguf.write(path, {"blk": {"0": jqz.quantize(jnp.ones((4, 64)), scheme)}})
    >>> jqz.files.gguf.read(path)["blk"]["0"].codes.shape
    (4, 64)
    """
    with naming("gguf.read", path):
        return jax.tree.map(lazy.value, _scan(path))


def scan(path: Path) -> typing.Any:
    """As ``read``, with leaves that are read one at a time, when asked."""
    with naming("gguf.scan", path):
        return _scan(path)


def write(path: Path, tree: typing.Any) -> None:
    """Writes arrays, and QTensors of Q4_0 or Q8_0, under dotted names; the file appears whole or not at all.

    Those are ``Symmetric(bits=4, granularity=PerGroup(32, axis=-1))`` and the same of 8 bits, with a last axis of whole
    groups. Codes stay; scales become float16, which moves values by at most one part in 2048. There is no metadata
    that llama.cpp would need to run a model.

    Raises:
      TypeError: a leaf is neither.
      ValueError: a QTensor of such a scheme has a last group that is not whole, or a scale too large or too small for
        float16.
    """
    leaves = _leaves(tree)
    infos, offset = [], 0
    for name, leaf in leaves.items():
        number, size = _form(name, leaf)
        dims = struct.pack(f"<I{len(leaf.shape)}Q", len(leaf.shape), *reversed(leaf.shape))
        infos.append(_text(name) + dims + struct.pack("<IQ", number, offset))
        offset += size + -size % _ALIGNMENT
    fields = _text("general.architecture") + struct.pack("<I", 8) + _text("jqz")
    head = b"GGUF" + struct.pack("<IQQ", 3, len(leaves), 1) + fields + b"".join(infos)
    with replacing(path) as file:
        file.write(head + bytes(-len(head) % _ALIGNMENT))
        for leaf in leaves.values():
            raw = _raw(leaf)
            file.write(raw.data)
            file.write(bytes(-raw.size % _ALIGNMENT))


def _leaves(tree: typing.Any) -> dict[str, typing.Any]:
    return names.readable("gguf.write", names.dotted("gguf.write", names.flat("gguf.write", tree, is_qtensor)))


def _form(name: str, leaf: typing.Any) -> tuple[int, int]:
    """The type number of a leaf and its bytes."""
    if len(leaf.shape) > 4:
        raise ValueError(f"gguf.write: {name!r} has shape {leaf.shape}, wanted at most 4 axes. Use x.reshape.")
    if not isinstance(leaf, QTensor):
        if leaf.dtype not in _NUMBERS:
            raise TypeError(f"gguf.write: {name!r} has dtype {leaf.dtype}, which GGUF has not. Use jqz.save.")
        return _NUMBERS[np.dtype(leaf.dtype)], leaf.size * leaf.dtype.itemsize
    bits = getattr(leaf.scheme, "bits", None)
    if not isinstance(leaf.scheme, schemes.Symmetric) or bits not in _WRITERS or leaf.scheme.granularity != _GROUPS:
        raise TypeError(
            f"gguf.write: {name!r} is QTensor of {leaf.scheme!r}, wanted Q4_0 or Q8_0. Use "
            "Symmetric(bits=4, granularity=PerGroup(32, axis=-1)), bits=8, or jqz.save."
        )
    if not leaf.shape or leaf.shape[-1] % 32:
        raise ValueError(f"gguf.write: {name!r} has shape {leaf.shape}, wanted a last axis of whole groups of 32.")
    number, _ = _WRITERS[bits]
    return number, leaf.size // 32 * LAYOUTS[number].size_bytes


_GROUPS = PerGroup(32, axis=-1)


def _raw(leaf: typing.Any) -> np.ndarray:
    if isinstance(leaf, QTensor):
        read = jax.tree.map(lazy.value, leaf)
        codes, scale = np.asarray(read.codes), np.asarray(jax.tree.leaves(read.grid)[0])
        _, encode = _WRITERS[leaf.scheme.bits]
        leaf = encode(codes.reshape(*scale.shape, 32), scale)
    return np.ascontiguousarray(lazy.value(leaf)).reshape(-1).view(np.uint8)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


class _Cursor:
    """Reads on in a map, and not beyond its end."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def skip(self, count: int) -> None:
        if count > len(self.data) - self.at:
            raise ValueError(f"it is damaged: {count} bytes wanted at {self.at} of {len(self.data)}.")
        self.at += count

    def numbers(self, form: str) -> tuple[int, ...]:
        start, size = self.at, struct.calcsize("<" + form)
        self.skip(size)
        return struct.unpack("<" + form, self.data[start : self.at])

    def text(self) -> str:
        (length,) = self.numbers("Q")
        start = self.at
        self.skip(length)
        return self.data[start : self.at].decode()

    def field(self, kind: int) -> int | None:
        """Passes over a value of the metadata; the number, if it is an unsigned one of 4 bytes."""
        if kind == 8:
            self.skip(*self.numbers("Q"))
        elif kind == 9:
            inner, count = self.numbers("IQ")
            if inner in _SIZES:
                self.skip(_SIZES[inner] * count)
            elif inner == 8 and count <= _LONGEST:
                for _ in range(count):
                    self.skip(*self.numbers("Q"))
            else:
                raise ValueError(f"it is damaged: an array of {count} of type {inner}.")
        elif kind == 4:
            return self.numbers("I")[0]
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise ValueError(f"it is damaged: a value of type {kind}.")
        return None


def _scan(path: Path) -> typing.Any:
    source, alignment = Source(path), _ALIGNMENT
    if source.size < 24:
        raise ValueError(f"it is damaged or no GGUF file: {source.size} bytes.")
    with mmap.mmap(source.descriptor, 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        magic, version, tensors, fields = cursor.numbers("IIQQ")
        if magic != 0x46554747 or version not in (2, 3):
            raise ValueError(f"it is no GGUF file of version 2 or 3, least byte first: version {version}.")
        for _ in range(fields):
            name = cursor.text()
            found = cursor.field(*cursor.numbers("I"))
            alignment = found if name == "general.alignment" and found else alignment
        infos = {}
        for _ in range(tensors):
            name = cursor.text()
            (rank,) = cursor.numbers("I")
            if rank > 4 or name in infos:
                raise ValueError(f"it is damaged: {name!r} has {rank} axes, or is there twice.")
            shape = tuple(reversed(cursor.numbers(f"{rank}Q")))
            infos[name] = (shape, *cursor.numbers("IQ"))
        start = cursor.at + -cursor.at % alignment
    return names.nested({n: _leaf(n, source, start + at, shape, kind) for n, (shape, kind, at) in infos.items()})


def _leaf(name: str, source: Source, start: int, shape: tuple[int, ...], kind: int) -> typing.Any:
    layout = LAYOUTS.get(kind)
    if layout is None and kind not in _PLAIN:
        known = ", ".join(layout.name for layout in LAYOUTS.values())
        raise ValueError(f"{name!r} is of the type {kind}, wanted floats, integers or {known}.")
    per_block, block = (layout.values, layout.size_bytes) if layout else (1, np.dtype(_PLAIN[kind]).itemsize)
    if layout and (not shape or shape[-1] % per_block):
        raise ValueError(f"{name!r} has shape {shape}, wanted a last axis of whole blocks of {per_block}.")
    size = math.prod(shape) // per_block * block
    if start + size > source.size or any(n >= 2**48 for n in shape):
        raise ValueError(f"it is damaged: {name!r} of shape {shape} ends at {start + size} of {source.size} bytes.")
    if layout is None:
        dtype = np.dtype(_PLAIN[kind])
        return Lazy(shape, dtype, lambda: source.bytes_at(start, size).view(dtype).reshape(shape))
    return _coded(layout, shape, lambda: source.bytes_at(start, size).reshape(*shape[:-1], -1, block))


def _coded(layout: Layout, shape: tuple[int, ...], blocks: Callable[[], Blocks]) -> QTensor:
    scheme, bits = layout.scheme, layout.scheme.bits
    group = typing.cast(PerGroup, scheme.granularity).size
    groups = (*shape[:-1], shape[-1] // group)
    structure = jax.tree.structure(jax.eval_shape(scheme.calibrate, jax.ShapeDtypeStruct((1, group), np.float32)))
    grid = [
        Lazy(groups, np.dtype(np.float32), lambda part=part: part(blocks()).reshape(groups)) for part in layout.grid
    ]

    def payload() -> np.ndarray:
        codes = np.ascontiguousarray(layout.codes(blocks())).reshape(shape)
        return codes if bits == 8 else _packing.pack(codes, bits)

    if bits == 8:
        stored = Lazy(shape, np.dtype(np.int8), payload)
    else:
        stored = Lazy((*shape[:-1], _packing.packed_length(shape[-1], bits)), np.dtype(np.uint8), payload)
    length = None if bits == 8 else shape[-1]
    return QTensor(typing.cast(typing.Any, stored), structure.unflatten(grid), scheme, np.dtype(np.float32), length)
