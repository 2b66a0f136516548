"""A tree as a document and arrays: structure, schemes and dtypes in JSON, numbers beside it.

A node of the document is null, a string, an integer, a boolean, or a dict with one word that says what it is ::

    {"float": "0.5"}                                  a Python number; also "complex"
    {"dict": [[key, node], ...]}                      also {"list": [node, ...]}, {"tuple": [node, ...]}
    {"array": name, "dtype": ..., "shape": [...]}     name is that of its tensor in the container
    {"key": node, "impl": ...}                        a PRNG key: its data and its generator
    {"qtensor": repr of the scheme, "codes": node, "grid": [node, ...], "dtype": ..., "length": ...}
    {"learnable": repr, "value": node, "grid": [node, ...]}
    {"site": repr, "grid": [node, ...], "lengths": [...]}

Where the codes are entropy-coded, the node of ``codes`` says ``"entropy": name`` in place of ``"array"``.
"""

import functools
import math
import typing
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jqz import _packing
from jqz._activations import Site
from jqz._expression import classes_of, parse
from jqz._learnable import Learnable
from jqz._qtensor import QTensor
from jqz._scheme import Grid, Scheme
from jqz.files import lazy
from jqz.files.lazy import Lazy, Unsettled
from jqz.files.range_coding import Entropy, Packed

Node = typing.Any
Arrays = dict[str, typing.Any]  #: NumPy arrays and Lazy ones

#: What the container stores as it is, so that any of its readers sees it.
PLAIN = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
)
#: What it stores as bytes.
BYTES = (
    *("complex64", "complex128", "int2", "int4", "uint2", "uint4", "float8_e3m4", "float8_e4m3", "float8_e8m0fnu"),
    *("float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    *("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"),
)
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in (*PLAIN, *BYTES)}

#: What NNX calls the array of a variable.
_VALUE = ("value", "raw_value")


def describe(tree: typing.Any, compress: Entropy | None) -> tuple[Node, Arrays]:
    """The document of a tree, and its arrays by name.

    Raises:
      TypeError: something in it is none of what a file can hold.
      ValueError: a scheme's repr does not read back.
    """
    writer = _Writer(compress)
    return writer.node(tree, ()), writer.arrays


class _Writer:
    def __init__(self, compress: Entropy | None):
        self.compress = compress
        self.arrays: Arrays = {}

    def node(self, x: typing.Any, path: tuple[str, ...]) -> Node:
        if x is None or type(x) in (bool, int, str):
            return x
        if type(x) in (float, complex):
            return {type(x).__name__: repr(x)}
        if isinstance(x, QTensor):
            return self.qtensor(x, path)
        if isinstance(x, Learnable):
            shape = _decoded(x.scheme, _like(x.value), tuple(map(_like, jax.tree.leaves(x.grid))), encode=True)
            self.whole(shape == x.value.shape, path, x)
            return {
                "learnable": self.expression(x.scheme, path),
                "value": self.array(x.value, (*path, "value")),
                "grid": self.grid(x.grid, x.scheme, path),
            }
        if isinstance(x, Site):
            expression = self.expression(x.scheme, path)
            return {"site": expression, "grid": self.grid(x.grid, x.scheme, path), "lengths": list(x.lengths)}
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return {"key": self.array(jax.random.key_data(x), path), "impl": str(jax.random.key_impl(x))}
        if isinstance(x, jax.Array | np.ndarray | np.generic | Lazy):
            return self.array(x, path)
        if type(x) in (list, tuple):
            return {type(x).__name__: [self.node(v, (*path, str(i))) for i, v in enumerate(x)]}
        if isinstance(x, Mapping):
            return {"dict": [[self.key(k, path), self.node(v, (*path, str(k)))] for k, v in x.items()]}
        return self.node(self.variable(x, path), path)

    def key(self, key: typing.Any, path: tuple[str, ...]) -> str | int:
        if type(key) not in (str, int):
            raise TypeError(f"{_place(path)} has the key {key!r}, wanted strings and integers. Use str(key).")
        return key

    def variable(self, x: typing.Any, path: tuple[str, ...]) -> typing.Any:
        """What an NNX variable holds: a node with one child, called value."""
        children = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)[0]
        if len(children) == 1 and children[0][0] and getattr(children[0][0][0], "name", "") in _VALUE:
            return children[0][1]
        raise TypeError(
            f"{_place(path)} is {type(x).__name__}, wanted arrays, numbers, None, dicts, lists and tuples. Use its "
            "parts: (net.qparams, net.sites) of a Net, nnx.state(model) of an NNX module, state._asdict() of a "
            "NamedTuple."
        )

    def array(self, x: typing.Any, path: tuple[str, ...]) -> Node:
        dtype = np.dtype(x.dtype)
        if dtype.name not in DTYPES:
            raise TypeError(f"{_place(path)} has dtype {dtype}, wanted numbers. Use x.astype(jnp.float32).")

        def stored() -> np.ndarray:
            array = np.asarray(lazy.value(x), order="C").astype(DTYPES[dtype.name], copy=False)  # other byte orders too
            return array if dtype.name in PLAIN else array.reshape(-1).view(np.uint8)

        if dtype.name in PLAIN:
            promised = Lazy(x.shape, DTYPES[dtype.name], stored)
        else:
            promised = Lazy((x.size * dtype.itemsize,), np.dtype(np.uint8), stored)
        return {"array": self.store(promised, path), "dtype": dtype.name, "shape": list(x.shape)}

    def store(self, array: Lazy, path: tuple[str, ...]) -> str:
        name = unique = "/".join(path) or "value"
        count = 1
        while unique in self.arrays or unique == "__metadata__":
            count += 1
            unique = f"{name}#{count}"
        self.arrays[unique] = array
        return unique

    def qtensor(self, q: QTensor, path: tuple[str, ...]) -> Node:
        grid = self.grid(q.grid, q.scheme, path)
        self.whole(_shape(q) == q.shape, path, q)
        return {
            "qtensor": self.expression(q.scheme, path),
            "codes": self.codes(q, (*path, "codes")),
            "grid": grid,
            "dtype": np.dtype(q.dtype).name,
            "length": q.length,
        }

    def codes(self, q: QTensor, path: tuple[str, ...]) -> Node:
        node, payload = self.array(q.payload, path), q.payload
        dtype = np.dtype(payload.dtype)
        if self.compress is None or dtype.kind not in "iu" or dtype.itemsize > 2:
            return node
        compress, name, packed = self.compress, node["array"], _packed(q.shape, dtype, q.scheme, q.length)

        def coded() -> np.ndarray:
            whole = np.asarray(lazy.value(payload), order="C")
            shorter = compress.encode(whole, packed)
            if shorter is None:
                return whole
            node["entropy"] = node.pop("array", name)
            return shorter

        self.arrays[name] = Unsettled(payload.shape, dtype, coded)
        return node

    def grid(self, grid: Grid, scheme: Scheme, path: tuple[str, ...]) -> list[Node]:
        self.whole(jax.tree.structure(grid) == _grid(scheme)[0], path, scheme)
        leaves = jax.tree_util.tree_leaves_with_path(grid)
        names = [[str(getattr(key, "name", getattr(key, "idx", key))) for key in keys] for keys, _ in leaves]
        return [self.array(leaf, (*path, "grid", *name)) for name, (_, leaf) in zip(names, leaves, strict=True)]

    def expression(self, scheme: Scheme, path: tuple[str, ...]) -> str:
        text = repr(scheme)
        try:
            same = parse(text, classes_of(scheme)) == scheme
        except ValueError as error:
            raise ValueError(f"{_place(path)}: {error}") from error
        self.whole(same, path, scheme)
        return text

    def whole(self, same: bool, path: tuple[str, ...], x: typing.Any) -> None:
        if not same:
            raise ValueError(
                f"{_place(path)} would not read back as it is: {x!r}. Use a scheme of plain numbers whose repr is its "
                "constructor call, with the codes and the grid that quantize gives it."
            )


def rebuild(document: Node, arrays: Arrays, classes: Iterable[type] = ()) -> typing.Any:
    """The tree of a document; ``arrays`` are taken out of the dict as they are used.

    Raises:
      ValueError: document and arrays do not fit, or a scheme is unknown.
    """
    reader = _Reader(arrays, tuple(classes))
    tree = reader.node(document, ())
    if arrays:
        raise ValueError(f"the tree has no place for the array {next(iter(arrays))!r}.")
    return tree


class _Reader:
    def __init__(self, arrays: Arrays, classes: tuple[type, ...]):
        self.arrays = arrays
        self.classes = classes
        self.parsed: dict[str, Scheme] = {}

    def node(self, node: Node, path: tuple[str, ...]) -> typing.Any:
        if node is None or type(node) in (bool, int, str):
            return node
        if type(node) is not dict or not node:
            raise ValueError(f"{_place(path)} is described by {str(node)[:100]!r}.")
        kind, inner = next(iter(node.items()))
        if kind in ("float", "complex"):
            return {"float": float, "complex": complex}[kind](inner)
        if kind == "dict":
            found = {key: self.node(value, (*path, str(key))) for key, value in inner}
            if len(found) != len(inner) or not all(type(key) in (str, int) for key in found):
                raise ValueError(f"{_place(path)} has a key twice, or one that is neither string nor integer.")
            return found
        if kind in ("list", "tuple"):
            return {"list": list, "tuple": tuple}[kind](self.node(v, (*path, str(i))) for i, v in enumerate(inner))
        if kind == "array":
            return self.array(node, path)
        if kind == "key":
            data = lazy.value(self.array(inner, path))
            return jax.random.wrap_key_data(jnp.asarray(data), impl=node["impl"])
        if kind not in ("qtensor", "learnable", "site"):
            raise ValueError(f"{_place(path)} is of the unknown kind {kind[:100]!r}.")
        scheme = self.scheme(inner, path)
        grid = self.grid(node["grid"], scheme, path)
        if kind == "qtensor":
            return self.qtensor(node, scheme, grid, path)
        if kind == "site":
            if not all(type(n) is int and n > 0 for n in node["lengths"]):
                raise ValueError(f"{_place(path)} has the lengths {node['lengths']!r}.")
            return Site(grid, scheme, tuple(node["lengths"]))
        value = self.array(node["value"], path)
        shape = _decoded(scheme, _like(value), tuple(map(_like, jax.tree.leaves(grid))), encode=True)
        if shape != value.shape:
            raise ValueError(f"{_place(path)} has shape {value.shape}, and {scheme!r} makes {shape} of it.")
        return Learnable(typing.cast(typing.Any, value), grid, scheme)

    def decoded(self, coded: typing.Any, packed: Packed, shape: tuple[int, ...], path: tuple[str, ...]) -> typing.Any:
        """Entropy-coded codes; lazy as they are."""

        def make() -> np.ndarray:
            try:
                return Entropy().decode(lazy.value(coded), packed)
            except (ValueError, AssertionError) as error:  # constriction asserts that its data is its own
                raise ValueError(f"{_place(path)}: the entropy-coded array is damaged: {error}") from error

        if coded.dtype != np.uint8 or coded.ndim != 1:
            raise ValueError(f"{_place(path)}: its entropy-coded array is no row of bytes.")
        return Lazy(shape, packed.dtype, make) if isinstance(coded, Lazy) else make()

    def scheme(self, text: str, path: tuple[str, ...]) -> Scheme:
        if text not in self.parsed:
            try:
                self.parsed[text] = parse(text, self.classes)
            except ValueError as error:
                raise ValueError(f"{_place(path)}: {error}") from error
        return self.parsed[text]

    def array(self, node: Node, path: tuple[str, ...]) -> typing.Any:
        dtype, shape = DTYPES.get(node["dtype"]), _sizes(node["shape"], path)
        stored = self.take(node["array"], path)
        if dtype is None:
            raise ValueError(f"{_place(path)} has the unknown dtype {node['dtype']!r}.")
        if node["dtype"] in BYTES and stored.dtype == np.uint8 and stored.ndim == 1:
            stored = _viewed(stored, dtype, shape)
        if stored.dtype != dtype or stored.shape != shape:
            got = f"{stored.dtype} of shape {stored.shape}"
            raise ValueError(f"{_place(path)} is {got}, wanted {dtype} of shape {shape}.")
        return stored

    def take(self, name: str, path: tuple[str, ...]) -> typing.Any:
        if name not in self.arrays:
            raise ValueError(f"{_place(path)}: its array {name!r} is missing, or used twice.")
        return self.arrays.pop(name)

    def grid(self, nodes: list[Node], scheme: Scheme, path: tuple[str, ...]) -> Grid:
        structure, dtypes = _grid(scheme)
        leaves = [self.array(node, path) for node in nodes]
        fits = [
            leaf.dtype in (dtype, np.float64 if dtype == np.float32 else dtype)
            for leaf, dtype in zip(leaves, dtypes, strict=False)
        ]
        if len(leaves) != len(dtypes) or not all(fits):
            raise ValueError(
                f"{_place(path)} has a grid of {[str(leaf.dtype) for leaf in leaves]}, and {scheme!r} wants "
                f"{[str(dtype) for dtype in dtypes]}."
            )
        return jax.tree.unflatten(structure, leaves)

    def qtensor(self, node: Node, scheme: Scheme, grid: Grid, path: tuple[str, ...]) -> QTensor:
        codes, length, dtype = node["codes"], node["length"], DTYPES.get(node["dtype"])
        shape = _sizes(codes["shape"], path)
        packs = scheme.bits < 8 and len(shape) > 0
        wanted = np.dtype(np.uint8 if packs else scheme.code_dtype or dtype)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or codes["dtype"] != wanted.name:
            got = f"codes of {codes['dtype']} for values of {node['dtype']}"
            raise ValueError(f"{_place(path)} has {got}, and {scheme!r} stores {wanted.name}.")
        if (length is not None) != packs or (packs and shape[-1:] != (_packed_length(length, scheme.bits),)):
            raise ValueError(
                f"{_place(path)} has codes of shape {shape} and length {length!r}; {scheme!r} packs others."
            )
        if "entropy" in codes:
            packed = _packed((*shape[:-1], length) if packs else shape, wanted, scheme, length)
            payload = self.decoded(self.take(codes["entropy"], path), packed, shape, path)
        else:
            payload = self.array(codes, path)
        q = QTensor(typing.cast(typing.Any, payload), grid, scheme, dtype, length)
        if _shape(q) != q.shape:
            raise ValueError(f"{_place(path)} has shape {q.shape}, which the grid of {scheme!r} does not fit.")
        return q


def _viewed(stored: typing.Any, dtype: np.dtype, shape: tuple[int, ...]) -> typing.Any:
    """Bytes as what they are."""
    if not isinstance(stored, Lazy):
        return stored.view(dtype).reshape(shape)
    if math.prod(shape) * dtype.itemsize != stored.size:
        raise ValueError(f"{stored.size} bytes are no {dtype} of shape {shape}.")
    return Lazy(shape, dtype, lambda: stored.make().view(dtype).reshape(shape))


def _place(path: tuple[str, ...]) -> str:
    return repr("/".join(path)) if path else "the tree"


def _sizes(shape: typing.Any, path: tuple[str, ...]) -> tuple[int, ...]:
    if type(shape) is not list or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise ValueError(f"{_place(path)} has the shape {str(shape)[:100]}.")
    return tuple(shape)


def _packed_length(length: typing.Any, bits: int) -> int | None:
    return _packing.packed_length(length, bits) if type(length) is int and length >= 0 else None


def _packed(shape: tuple[int, ...], dtype: np.dtype, scheme: Scheme, length: int | None) -> Packed:
    return Packed(shape, dtype, 8 * dtype.itemsize if length is None else scheme.bits, length)


Like = tuple[tuple[int, ...], typing.Any]


def _like(x: typing.Any) -> Like:
    return x.shape, jax.dtypes.canonicalize_dtype(x.dtype)


@functools.lru_cache(maxsize=1024)
def _grid(scheme: Scheme) -> tuple[typing.Any, list[np.dtype]]:
    """The structure of a scheme's grids and their dtypes, from values of the least rank that it takes."""
    for rank in range(1, 9):
        try:
            grid = jax.eval_shape(scheme.calibrate, jax.ShapeDtypeStruct((1,) * rank, jnp.float32))
        except ValueError:
            if rank == 8:
                raise
            continue
        return jax.tree.structure(grid), [np.dtype(leaf.dtype) for leaf in jax.tree.leaves(grid)]
    raise AssertionError


def _shape(q: QTensor) -> tuple[int, ...]:
    """The shape of what a tensor decodes to."""
    return _decoded(q.scheme, _like(q.payload), tuple(map(_like, jax.tree.leaves(q.grid))), length=q.length)


@functools.lru_cache(maxsize=1024)
def _decoded(
    scheme: Scheme, x: Like, grid: tuple[Like, ...], *, length: int | None = None, encode: bool = False
) -> tuple[int, ...]:
    """The shape that codes, or values that are coded first, decode to on a grid; nothing is computed."""
    leaves = [jax.ShapeDtypeStruct(*leaf) for leaf in grid]
    whole = jax.tree.unflatten(_grid(scheme)[0], leaves)

    def decode(x: jax.Array, grid: Grid) -> jax.Array:
        if encode:
            return scheme.decode(scheme.encode(x, grid), grid)
        return QTensor(x, grid, scheme, jnp.float32, length).dequantize()

    return jax.eval_shape(decode, jax.ShapeDtypeStruct(*x), whole).shape
