"""Which products of narrow numbers a backend can run."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

#: Operands and result of the products that are tried.
TRIED = (
    ("int8", "int8", "int32"),
    ("uint8", "int8", "int32"),
    ("int4", "int4", "int32"),
    ("int8", "int4", "int32"),
    ("float32", "int8", "float32"),
    ("bfloat16", "int8", "bfloat16"),
    ("bfloat16", "int4", "bfloat16"),
    ("bfloat16", "bfloat16", "float32"),
    ("float16", "float16", "float32"),
    ("float8_e4m3fn", "float8_e4m3fn", "float32"),
    ("float8_e5m2", "float8_e5m2", "float32"),
)


@typing.final
@dataclasses.dataclass(frozen=True)
class Product:
    """What came of a product of two dtypes: it ran and was exact on small integers, or why not."""

    primitive: str
    lhs: str
    rhs: str
    result: str
    runs: bool
    why: str = ""


@typing.final
@dataclasses.dataclass(frozen=True)
class Capabilities:
    """The products that were tried on a backend; prints as a table."""

    backend: str
    products: tuple[Product, ...]

    def runs(self, primitive: str, lhs: jax.typing.DTypeLike, rhs: jax.typing.DTypeLike) -> bool:
        """Whether ``"dot"`` or ``"convolution"`` runs on these dtypes."""
        pair = jnp.dtype(lhs).name, jnp.dtype(rhs).name
        found = [p.runs for p in self.products if (p.primitive, p.lhs, p.rhs) == (primitive, *pair)]
        if not found:
            tried = sorted({(p.primitive, p.lhs, p.rhs) for p in self.products})
            raise ValueError(f"runs: got {(primitive, *pair)}, wanted one of {tried}. Use runs('dot', 'int8', 'int8').")
        return found[0]

    def __str__(self) -> str:
        lines = [f"{self.backend:14}{'':14}{'':10}{'dot':>18}{'convolution':>18}"]
        cells = {(p.primitive, p.lhs, p.rhs): "yes" if p.runs else p.why for p in self.products}
        for lhs, rhs, result in TRIED:
            both = (cells.get((primitive, lhs, rhs), "") for primitive in ("dot", "convolution"))
            lines.append(f"{lhs:14}{rhs:14}{result:10}" + "".join(f"{cell:>18}" for cell in both))
        return "\n".join(lines)


def capabilities() -> Capabilities:
    """Tries the products of narrow integers and floats on the default backend; once a process.

    Nothing depends on it: a kernel computes the right numbers on every backend, through wider dtypes if need be.
    Ask it to see what a scheme can gain on a machine, as when int4 codes could be multiplied as they are.

    >>> import jax.numpy as jnp, jqz
    >>> jqz.capabilities().runs("dot", jnp.int8, jnp.int8)
    True
    """
    return _of(jax.default_backend())


@functools.lru_cache
def _of(backend: str) -> Capabilities:
    with jax.ensure_compile_time_eval():  # asked while a function is traced, it must not become a part of it
        products = tuple(_tried(primitive, *row) for primitive in ("dot", "convolution") for row in TRIED)
    return Capabilities(backend, products)


def _tried(primitive: str, lhs: str, rhs: str, result: str) -> Product:
    rng = np.random.default_rng(0)
    shapes = ((16, 32), (32, 16)) if primitive == "dot" else ((1, 4, 4, 32), (3, 3, 32, 32))
    # no value or sum that any of the dtypes rounds
    a, b = (rng.integers(0, 2, shape) * (rng.random(shape) < 0.25) for shape in shapes)

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        dtype = jnp.dtype(result)
        if primitive == "dot":
            return jax.lax.dot(a, b, preferred_element_type=dtype)
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            a, b, (1, 1), "SAME", dimension_numbers=numbers, preferred_element_type=dtype
        )

    wide = [v.astype(np.float32) for v in (a, b)]
    try:
        narrow = [jnp.asarray(v, jnp.dtype(name)) for v, name in zip((a, b), (lhs, rhs), strict=True)]
        got = np.asarray(jax.jit(product)(*narrow), np.float32)
    except Exception as error:  # whatever a compiler raises means that it cannot
        return Product(primitive, lhs, rhs, result, False, type(error).__name__)
    exact = np.array_equal(got, wide[0] @ wide[1] if primitive == "dot" else _convolved(*wide))
    return Product(primitive, lhs, rhs, result, exact, "" if exact else "inexact")


def _convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    wide = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    return np.sum([wide[:, i : i + 4, j : j + 4] @ kernel[i, j] for i in range(3) for j in range(3)], axis=0)
