"""What a quantization scheme is, and how schemes chain."""

import abc
import dataclasses
import math
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jqz import _rounding, _ste
from jqz._granularity import Granularity, PerTensor

Grid = typing.Any  # a NamedTuple of arrays (a tuple of those for a chain)


class Affine(typing.NamedTuple):
    """A grid as integer arithmetic sees it: ``decode(c) == scale * (levels(c) - zero_point)``.

    Attributes:
      scale: real, in the grid's shape.
      zero_point: int32 in the grid's shape, or None where it is 0 for every value.
      levels: maps codes to integer levels, elementwise: int8, or int16 where ``limit`` is above 128.
      limit: the largest magnitude of a level, at most 2**15.
      ends: the lowest and the highest level, where every integer between them is one and ``encode`` takes the
        nearest; None otherwise.

    >>> import jax.numpy as jnp, jqz
    >>> q = jqz.quantize(jnp.array([0.0, 0.5, 1.0]), jqz.Symmetric(bits=3))
    >>> affine = q.scheme.affine(q.grid)
    >>> affine.levels(q.codes).tolist(), affine.limit
    ([0, 2, 3], 3)
    """

    scale: jax.Array
    zero_point: jax.Array | None
    levels: Callable[[jax.Array], jax.Array]
    limit: int
    ends: tuple[int, int] | None = None


class Scheme(abc.ABC):
    """A rule from values to codes and back: a frozen dataclass, hashable, its repr its constructor call.

    To write one, make a final frozen dataclass with a ``bits`` and a ``granularity``, and the three
    methods ``calibrate``, ``encode`` and ``decode``. Packing, trees, policies, chaining,
    straight-through training and decoding inference follow from these, and the laws of
    ``tests/laws.py`` hold it to its word once it stands in the catalogue ``jqz.schemes.CATALOGUE``.

    A grid array keeps the rank of the values (length 1 where values share it; a codebook has one
    more axis at the end), so that ``scan`` and ``vmap`` can slice a stack of layers. Grids are
    float32, or float64 for float64 values.

    >>> import dataclasses, jax.numpy as jnp, jqz
    >>> @dataclasses.dataclass(frozen=True)
    ... class Quarters(jqz.Scheme):
    ...     bits: int = 8
    ...     granularity: jqz.Granularity = jqz.PerTensor()
    ...     def calibrate(self, x):
    ...         return ()
    ...     def encode(self, x, grid):
    ...         return jnp.clip(jnp.round(4 * x), -128, 127).astype(jnp.int8)
    ...     def decode(self, codes, grid):
    ...         return codes.astype(jnp.float32) / 4
    >>> jqz.fake_quantize(jnp.array([0.3, 1.0]), Quarters()).tolist()
    [0.25, 1.0]
    """

    bits: typing.Any
    granularity: Granularity

    #: The grid is not finite where a value is not, so finiteness needs no pass of its own.
    propagates: typing.ClassVar[bool] = False

    #: A grid that ``calibrate`` chose may leave some of the values outside, where gradients stop.
    clips: bool = True

    #: Codes are numbers in proportion to values, so a chain may hand fractions to ``decode``.
    linear: typing.ClassVar[bool] = False

    @property
    def learns(self) -> bool:
        """Whether a given grid gets gradients."""
        return False

    @property
    def code_dtype(self) -> typing.Any:
        """The integer dtype of codes: int8 up to 8 bits, int16 above, uint8 for table indices."""
        return jnp.int8 if self.bits <= 8 else jnp.int16

    @abc.abstractmethod
    def calibrate(self, x: jax.Array) -> Grid:
        """Chooses the grid for these values: a NamedTuple of arrays."""

    @abc.abstractmethod
    def encode(self, x: jax.Array, grid: Grid) -> jax.Array:
        """Codes of ``x``, in its shape."""

    @abc.abstractmethod
    def decode(self, codes: jax.Array, grid: Grid) -> jax.Array:
        """Values of codes, in the grid's floating dtype."""

    def finite(self, x: jax.Array, codes: jax.Array, grid: Grid) -> jax.Array:
        """Whether ``x`` is finite for sure: from its grid where that ``propagates``, else from its sum.

        A sum is NaN or infinite wherever a value is, and where large values overflow. XLA sums more than
        twice as fast as it tests each value; a maximum would not do, since on CPU it passes over NaN.
        """
        parts = [g for g in jax.tree.leaves(grid) if jnp.issubdtype(g.dtype, jnp.floating)]
        if parts and self.propagates:
            return jnp.all(jnp.stack([jnp.all(jnp.isfinite(part)) for part in parts]))
        return jnp.isfinite(jnp.sum(x, dtype=jnp.float32 if x.dtype.itemsize < 4 else x.dtype))

    def affine(self, grid: Grid) -> Affine | None:
        """The grid for integer kernels, or None where values are not integer levels times a scale."""
        return None

    def slope(self, x: jax.Array, grid: Grid) -> jax.Array | None:
        """The straight-through derivative at ``x``, given in the grid's dtype; None means 1 everywhere."""
        return None

    def partials(self, x: jax.Array, value: jax.Array, grid: Grid) -> tuple[jax.Array, Grid] | None:
        """The derivatives of ``value``, what x is rounded to, by x and by each array of the grid, in the shape of x.

        None where the grid gets no gradient. ``x`` is in the grid's dtype.
        """
        return None

    def simulate(self, x: jax.Array, grid: Grid = None) -> jax.Array:
        """Quantizes and dequantizes in the dtype of ``x``; the gradient goes straight through.

        Args:
          x: floating values.
          grid: where to round to; calibrated from ``x`` if left out. It gets a gradient if the scheme ``learns``.
        """
        fixed = jax.lax.stop_gradient(self.calibrate(x) if grid is None else grid)
        still = jax.lax.stop_gradient(x)
        wide = self.decode(self.encode(still, fixed), fixed)
        value = jnp.where(jnp.isnan(x), x, narrow(wide, x.dtype))  # codes cannot hold it; a diverging run must show
        if grid is not None and self.learns:
            slope, slopes = typing.cast(typing.Any, self.partials(still.astype(work_dtype(x)), wide, fixed))
            fine = [self.granularity.expand(part, x.shape) for part in jax.tree.leaves(grid)]
            parts = [jnp.broadcast_to(part, x.shape) for part in fine]
            return _ste.with_partials(value, (x, *parts), (slope.astype(x.dtype), *jax.tree.leaves(slopes)))
        own = grid is None and not self.clips
        slope = None if own else self.slope(still.astype(work_dtype(x)), fixed)
        return _ste.straight_through(x, value, None if slope is None else slope.astype(x.dtype))

    def with_key(self, key: jax.Array) -> "Scheme":
        """This scheme with a key for stochastic rounding, where it rounds so and has none."""
        changed = {
            f.name: _rounding.Stochastic(key)
            for f in dataclasses.fields(typing.cast(typing.Any, self))
            if isinstance(rounding := getattr(self, f.name), _rounding.Stochastic) and rounding.key is None
        }
        return dataclasses.replace(typing.cast(typing.Any, self), **changed) if changed else self

    def __rshift__(self, other: "Scheme") -> "Scheme":
        return chain(self, other) if isinstance(other, Scheme) else NotImplemented


def scheme(cls: type) -> type:
    """Makes a Scheme of a class: a final frozen dataclass whose repr names what differs from the defaults.

    The repr is a constructor call that an author can paste back:

    >>> import jqz
    >>> jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1))
    Symmetric(bits=4, granularity=PerAxis(-1))
    """
    typing.cast(typing.Any, cls).__repr__ = _repr
    return typing.final(dataclasses.dataclass(frozen=True, repr=False)(cls))


def _repr(self: typing.Any) -> str:
    shown = []
    for f in dataclasses.fields(self):
        value = getattr(self, f.name)
        if f.name == "bits" or not _same(value, f.default):
            shown.append(f"{f.name}={value!r}")
    return f"{type(self).__name__}({', '.join(shown)})"


def _same(a: typing.Any, b: typing.Any) -> bool:
    return type(a) is type(b) and not isinstance(a, jax.Array) and a == b


def check_bits(who: str, bits: typing.Any, low: int, high: int, hint: str = "") -> None:
    """Refuses a bit width outside [low, high]; traced widths pass."""
    if isinstance(bits, jax.Array):
        return
    if not isinstance(bits, int) or isinstance(bits, bool) or not low <= bits <= high:
        raise ValueError(
            f"{who}: got bits={bits!r}, wanted an integer from {low} to {high}.{' ' + hint if hint else ''}"
        )


def work_dtype(x: jax.Array) -> typing.Any:
    """The dtype that grids and errors are computed in: float64 for float64, else float32."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"got dtype {x.dtype}, wanted a floating dtype. Use x.astype(jnp.float32), or map this path to None."
        )
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def narrow(values: jax.Array, dtype: typing.Any) -> jax.Array:
    """Values in the dtype of a tensor: what rounding carried beyond its largest number becomes that number."""
    if jnp.finfo(dtype).bits < 32:
        limit = float(jnp.finfo(dtype).max)
        values = jnp.clip(values, -limit, limit)
    return values.astype(dtype)


#: Below this a block counts as all zeros: reciprocals of what remains stay finite in float32.
TINY = 2.0**-100


class ScaleGrid(typing.NamedTuple):
    """One positive step size a block."""

    scale: jax.Array


def power(bits: typing.Any) -> typing.Any:
    """2 ** bits, exactly, for a Python or a traced integer."""
    return jnp.ldexp(jnp.float32(1), bits) if isinstance(bits, jax.Array) else 2**bits


def quotient(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x / scale, correctly rounded.

    XLA turns division by a scale that broadcasts into a product with its reciprocal: one unit in the last
    place off, which flips ties, and 0 for scales beyond 2**126. It cannot where the divisor depends on x.
    """
    return x / jnp.where(x == jnp.inf, 1, scale)


def mean_magnitude(x: jax.Array, axes: tuple[int, ...], chosen: jax.Array | None = None) -> jax.Array:
    """The mean of abs(x) over ``axes``, kept with length 1; over the ``chosen`` values if some are.

    Summing multiples of a power of two rounds as summing the values does, but cannot overflow.
    NaN where nothing is chosen.
    """
    size = math.prod(x.shape[axis] for axis in axes)
    shrink = 2.0 ** -(size - 1).bit_length()
    share = jnp.abs(x) * shrink
    if chosen is None:
        return jnp.sum(share, axis=axes, keepdims=True) / (size * shrink)
    count = jnp.sum(chosen, axis=axes, keepdims=True, dtype=jnp.int32).astype(x.dtype)
    return jnp.sum(jnp.where(chosen, share, 0), axis=axes, keepdims=True) / (count * shrink)


class _Values(typing.NamedTuple):
    """The grid of Identity: nothing."""


@scheme
class Identity(Scheme):
    """Keeps values as they are: the neutral element of ``chain``.

    >>> import jqz
    >>> jqz.chain() == jqz.Identity()
    True
    """

    bits: int = 32
    granularity: Granularity = PerTensor()
    linear = True

    @property
    def code_dtype(self) -> typing.Any:
        return None

    def calibrate(self, x: jax.Array) -> Grid:
        work_dtype(x)
        return _Values()

    def encode(self, x: jax.Array, grid: Grid) -> jax.Array:
        return x

    def decode(self, codes: jax.Array, grid: Grid) -> jax.Array:
        return codes


@typing.final
@dataclasses.dataclass(frozen=True, repr=False)
class Chain(Scheme):
    """Several schemes, each coding the codes of the one before; made by ``chain`` or ``>>``."""

    stages: tuple[Scheme, ...]

    @property
    def bits(self) -> typing.Any:  # type: ignore[override]
        return self.stages[-1].bits

    @property
    def granularity(self) -> Granularity:  # type: ignore[override]
        """That of the last stage that groups values, since it alone expands grids of every stage."""
        own = [stage.granularity for stage in self.stages]
        return next((g for g in reversed(own) if g.groups), own[-1])

    @property
    def code_dtype(self) -> typing.Any:
        return self.stages[-1].code_dtype

    @property
    def linear(self) -> bool:  # type: ignore[override]
        return all(stage.linear for stage in self.stages)

    @property
    def clips(self) -> bool:  # type: ignore[override]
        return any(stage.clips for stage in self.stages)

    def __repr__(self) -> str:
        return " >> ".join(map(repr, self.stages))

    def with_key(self, key: jax.Array) -> Scheme:
        return Chain(tuple(s.with_key(jax.random.fold_in(key, i)) for i, s in enumerate(self.stages)))

    def calibrate(self, x: jax.Array) -> Grid:
        grids = []
        for i, stage in enumerate(self.stages):
            grids.append(stage.calibrate(x))
            if i + 1 < len(self.stages):
                x = stage.encode(x, grids[-1]).astype(work_dtype(x))
        return tuple(grids)

    def encode(self, x: jax.Array, grid: Grid) -> jax.Array:
        dtype, codes = work_dtype(x), x
        for i, (stage, part) in enumerate(zip(self.stages, grid, strict=True)):
            codes = stage.encode(codes if i == 0 else codes.astype(dtype), part)
        return codes

    def decode(self, codes: jax.Array, grid: Grid) -> jax.Array:
        values = self.stages[-1].decode(codes, grid[-1])
        for stage, part in zip(self.stages[-2::-1], grid[-2::-1], strict=True):
            if not stage.linear:
                low = -(2 ** (stage.bits - 1)) if jnp.issubdtype(stage.code_dtype, jnp.signedinteger) else 0
                values = jnp.clip(jnp.round(values), low, low + 2**stage.bits - 1).astype(stage.code_dtype)
            values = stage.decode(values, part)
        return values

    def affine(self, grid: Grid) -> Affine | None:
        if len({stage.granularity for stage in self.stages if stage.granularity.groups}) > 1:
            return None  # no one granularity expands a product of their scales
        inner = self.stages[-1].affine(grid[-1])
        for stage, part in zip(self.stages[-2::-1], grid[-2::-1], strict=True):
            outer = stage.affine(part) if stage.linear else None
            if inner is None or outer is None or outer.zero_point is not None:
                return None
            if not all(1 in (a, b) or a == b for a, b in zip(outer.scale.shape, inner.scale.shape, strict=True)):
                return None
            inner = inner._replace(scale=outer.scale * inner.scale)
        return inner

    def slope(self, x: jax.Array, grid: Grid) -> jax.Array | None:
        dtype, total = x.dtype, None
        for stage, part in zip(self.stages, grid, strict=True):
            own = stage.slope(x, part) if stage.clips else None
            total = own if total is None else total if own is None else total * own
            x = stage.encode(x, part).astype(dtype)
        return total


def chain(*schemes: Scheme) -> Scheme:
    """Applies schemes one after the other, each to the codes of the one before.

    ``encode`` is the last after ... after the first, ``decode`` the first after ... after the last.
    A tensor keeps the last stage's codes and every stage's grid. Chains are flat and
    associative; ``chain(a) is a``, and Identity disappears.

    >>> import jqz
    >>> jqz.chain(jqz.Symmetric(bits=8), jqz.PowerOfTwo(bits=4)) == jqz.Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4)
    True

    Raises:
      TypeError: an argument is not a Scheme.
      ValueError: one of several learns its grid.

    References: successive quantization is the outlook of arXiv:1910.04877.
    """
    flat: list[Scheme] = []
    for one in schemes:
        if not isinstance(one, Scheme):
            raise TypeError(f"chain: got {one!r}, wanted schemes. Use chain(Symmetric(bits=8), PowerOfTwo(bits=4)).")
        flat += one.stages if isinstance(one, Chain) else () if isinstance(one, Identity) else (one,)
    if not flat:
        return schemes[0] if schemes else Identity()
    learner = next((one for one in flat if one.learns), None)
    if len(flat) > 1 and learner is not None:
        raise ValueError(f"chain: {learner!r} learns its grid; a chain's grids are fixed. Leave its gradient out.")
    return flat[0] if len(flat) == 1 else Chain(tuple(flat))
