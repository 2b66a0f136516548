"""What a scheme does with an array, measured in one compiled program for the laws of ``laws.py``."""

import collections
import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import specimens

from jqz import _packing, _qtensor, ranges, rounding, schemes
from jqz._scheme import Chain, Scheme

KEY = jax.random.key(20)


class Study(typing.NamedTuple):
    """All that the laws look at, as NumPy arrays."""

    grid: typing.Any
    codes: np.ndarray
    stored: np.ndarray  # the codes that come back out of a QTensor
    values: np.ndarray
    again: np.ndarray  # codes of the values
    twice: np.ndarray  # and their values
    zeros: np.ndarray  # values of +0 and -0 on this grid
    minus: np.ndarray  # values of -x on this grid
    simulated: np.ndarray
    slope: np.ndarray | None
    cotangent: np.ndarray
    gradient: np.ndarray
    gradient_on_grid: np.ndarray  # where the grid was given instead of calibrated
    candidates: np.ndarray  # (k, *x.shape): every code up to 8 bits, else the neighbours of each code
    levels: np.ndarray  # their values
    kept: np.ndarray  # whether a level, quantized, is itself
    affine: typing.Any  # (scale, zero_point, levels of the candidates), expanded to the values; or None
    affine_shapes: typing.Any


@functools.lru_cache(maxsize=16)
def _study(scheme: Scheme) -> typing.Any:
    keyed = scheme.with_key(KEY)

    def run(x: jax.Array) -> Study:
        def there_and_back(values):
            codes = keyed.encode(values, grid)
            return codes, keyed.decode(codes, grid)

        grid = keyed.calibrate(x)
        zero = jnp.zeros_like(x)
        # each use of encode costs compile time, so many arrays share one
        coded, decoded = jax.vmap(there_and_back)(jnp.stack([x, -x, zero, -zero]))
        codes, values = coded[0], decoded[0]
        payload, length = _qtensor.pack(codes, scheme)
        stored = _qtensor.QTensor(payload, grid, scheme, x.dtype, length).codes
        simulated, pull = jax.vjp(keyed.simulate, x)
        cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape), x.dtype)
        if scheme.bits <= 8:
            every = jnp.arange(2**scheme.bits, dtype=jnp.uint8)
            every = _packing.unpack(_packing.pack(every, scheme.bits), scheme.bits, every.size, scheme.code_dtype)
            candidates = jnp.broadcast_to(every.reshape(-1, *[1] * x.ndim), (every.size, *x.shape))
        else:
            candidates = jnp.stack([codes - 1, codes, codes + 1])
        levels = jax.vmap(lambda c: keyed.decode(c, grid))(candidates)
        again, twice = jax.vmap(there_and_back)(jnp.concatenate([values[None], levels]))
        affine, shapes = scheme.affine(grid), None
        if affine is not None:
            shapes = [None if part is None else (part.shape, part.dtype) for part in affine[:2]]
            expanded = [
                None if part is None else scheme.granularity.expand(part, x.shape) + jnp.zeros(x.shape, part.dtype)
                for part in affine[:2]
            ]
            affine = (*expanded, affine.levels(candidates))
        return Study(
            grid,
            codes,
            stored,
            values,
            again[0],
            twice[0],
            decoded[2:],
            decoded[1],
            simulated,
            keyed.slope(x.astype(values.dtype), grid),
            cotangent,
            pull(cotangent)[0],
            jax.vjp(lambda x: keyed.simulate(x, grid), x)[1](cotangent)[0],
            candidates,
            levels,
            twice[1:] == levels,
            affine,
            None,
        ), shapes

    static = {}

    @jax.jit
    def compiled(x):
        out, static[x.shape, x.dtype] = run(x)
        return out

    def studied(x: np.ndarray) -> Study:
        with jax.enable_x64(x.dtype == np.float64):
            out = compiled(jnp.asarray(x))
            return jax.tree.map(np.asarray, out)._replace(affine_shapes=static[x.shape, x.dtype])

    return studied


_cache: collections.OrderedDict[typing.Any, Study] = collections.OrderedDict()


def study(scheme: Scheme, x: np.ndarray) -> Study:
    """Codes, values and levels of ``x``; the last few are remembered, so that many laws cost one run."""
    key = scheme, x.tobytes(), x.shape, x.dtype
    if key not in _cache:
        _cache[key] = _study(scheme)(x)
        while len(_cache) > 40:
            _cache.popitem(last=False)
    return _cache[key]


def parts(scheme: Scheme) -> tuple[Scheme, ...]:
    return scheme.stages if isinstance(scheme, Chain) else (scheme,)


def has(scheme: Scheme, *types: type) -> bool:
    """Whether a scheme, one of its stages or a field of these is of one of the types."""
    stages = parts(scheme)
    every = [getattr(s, f.name) for s in stages for f in dataclasses.fields(typing.cast(typing.Any, s))]
    every += [scheme, *stages]
    return any(isinstance(value, types) for value in every)


def named(*names: str) -> tuple[type, ...]:
    """The types of these names, in any file of the catalogue."""
    spaces = [vars(rounding), vars(ranges), *(vars(m) for m in vars(schemes).values() if hasattr(m, "__file__"))]
    return tuple(space[name] for name in names for space in spaces if name in space)


def levels_of(scheme: Scheme, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What codes in use stand for on the grid of x, (k, *x.shape) in float64, NaN for other codes; and the mask.

    A code is in use if normal values' grid keeps its value: one that a scheme reserves quantizes to another.
    """
    s = study(scheme, x)
    mask = s.kept
    if scheme.bits <= 8:
        kept = study(scheme, specimens.inputs()["normal"]).kept
        mask = np.broadcast_to(kept.reshape(len(kept), -1).any(axis=1).reshape(-1, *[1] * x.ndim), mask.shape)
    mask = mask & np.isfinite(s.levels)
    return np.where(mask, s.levels.astype(np.float64), np.nan), mask


def fits(scheme: Scheme, shape: tuple[int, ...]) -> bool:
    """Whether the scheme's granularity takes arrays of this shape."""
    try:
        for stage in parts(scheme):
            stage.granularity.grid_shape(shape)
    except ValueError:
        return False
    return True


def block_ids(scheme: Scheme, shape: tuple[int, ...]) -> np.ndarray:
    """An integer for each value, the same where values share every grid of the scheme."""
    ids = np.zeros(shape, np.int64)
    for stage in parts(scheme):
        block = stage.granularity.block(shape)
        index = [np.arange(n) // max(b, 1) for n, b in zip(shape, block, strict=True)]
        for axis, (n, i) in enumerate(zip(stage.granularity.grid_shape(shape), index, strict=True)):
            ids = ids * max(n, 1) + i.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return ids


def work(x: np.ndarray) -> typing.Any:
    return np.float64 if x.dtype == np.float64 else np.float32


def slack(x: np.ndarray, *values: np.ndarray, ulps: float = 4) -> np.ndarray:
    """A few units in the last place of the largest of the magnitudes, and what flushing denormals may lose."""
    info = np.finfo(work(x))
    top = functools.reduce(np.maximum, [np.abs(np.asarray(v, np.float64)) for v in (x, *values)])
    return ulps * float(info.eps) * top + 2 * float(info.tiny)
