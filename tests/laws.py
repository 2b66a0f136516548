"""What every scheme obeys: functions ``law(scheme, x)`` that raise AssertionError where it does not.

``tests/test_laws.py`` applies them to whatever ``jqz.schemes.CATALOGUE`` lists. To hold a scheme of your
own to its word, call ``check(scheme)``, or one law with an array of your choice.

A law finds out by itself what it may ask: it decodes every code, keeps those that encode back to themselves
("codes in use"), and asks for the nearest of their values, for oddness where they lie evenly about zero, and
for an exact zero where zero is among them. ``EXEMPT`` lists what a definition contradicts, with the reason.
"""

import collections
import copy
import dataclasses
import itertools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from specimens import forms, inputs, zoo
from studies import KEY, block_ids, fits, has, levels_of, named, parts, slack, study, work

import jqz
from jqz import _packing, gradients, ranges, rounding, schemes, ste
from jqz._scheme import Chain, Scheme


def _equal(got: typing.Any, wanted: typing.Any, what: str) -> None:
    np.testing.assert_array_equal(got, wanted, err_msg=what)


def codes_fit(scheme: Scheme, x: np.ndarray) -> None:
    """Codes have the shape of x and the promised dtype, fit ``bits`` bits, and survive packing."""
    s = study(scheme, x)
    assert s.codes.shape == x.shape
    assert s.codes.dtype == np.dtype(scheme.code_dtype), f"codes are {s.codes.dtype}"
    signed = np.issubdtype(s.codes.dtype, np.signedinteger)
    low = -(2 ** (scheme.bits - 1)) if signed else 0
    wide = s.codes.astype(np.int64)
    assert ((low <= wide) & (wide < low + 2**scheme.bits)).all(), f"codes {wide.min()}..{wide.max()}"
    _equal(s.stored, s.codes, "packed and unpacked codes")


def grid_keeps_rank(scheme: Scheme, x: np.ndarray) -> None:
    """A grid array has the shape that the granularity says, with at most one more axis, and the work dtype.

    A second, coarser scale has length 1 where it is shared.
    """
    grids = study(scheme, x).grid
    for stage, grid in zip(parts(scheme), grids if isinstance(scheme, Chain) else (grids,), strict=True):
        assert isinstance(grid, tuple), "a grid is a NamedTuple of arrays"
        leaves, wanted = jax.tree.leaves(grid), stage.granularity.grid_shape(x.shape)
        assert not leaves or wanted in [leaf.shape[: x.ndim] for leaf in leaves], "no array of the grid's shape"
        for leaf in leaves:
            assert x.ndim <= leaf.ndim <= x.ndim + 1
            assert all(n in (1, w) for n, w in zip(leaf.shape, wanted, strict=False)), f"{leaf.shape} of {x.shape}"
            assert not np.issubdtype(leaf.dtype, np.floating) or leaf.dtype == work(x)
            assert np.isfinite(leaf.astype(np.float64)).all(), "the grid of finite values is not finite"


def finite(scheme: Scheme, x: np.ndarray) -> None:
    """Finite values decode to finite values, in the dtype of the grid or, where that holds integers, in float32."""
    s = study(scheme, x)
    integers = not any(np.issubdtype(leaf.dtype, np.floating) for leaf in jax.tree.leaves(s.grid))
    assert s.values.dtype == (np.float32 if integers else work(x))
    bad = ~np.isfinite(s.values)
    assert not bad.any(), f"{x[bad][:3]} -> {s.values[bad][:3]}"


def idempotent(scheme: Scheme, x: np.ndarray) -> None:
    """A representable value stays what it is: encode(decode(c)) == c for every code that encode makes."""
    s = study(scheme, x)
    _equal(s.again, s.codes, "codes of decoded codes")
    wrong = np.abs(s.twice.astype(np.float64) - s.values) > slack(x, s.values)
    assert not wrong.any(), f"{s.values[wrong][:3]} -> {s.twice[wrong][:3]}"


def monotone(scheme: Scheme, x: np.ndarray) -> None:
    """On one grid a larger value never gets a smaller reproduction."""
    s, ids = study(scheme, x), block_ids(scheme, x.shape).ravel()
    order = np.lexsort((x.ravel(), ids))
    steps = np.diff(s.values.ravel()[order].astype(np.float64))
    falls = (steps < -slack(s.values.ravel()[order][1:])) & (np.diff(ids[order]) == 0)
    assert not falls.any(), f"falls after {x.ravel()[order][:-1][falls][:3]}"


def nearest(scheme: Scheme, x: np.ndarray) -> None:
    """The reproduction is a nearest one of all values that codes in use stand for (brute force)."""
    s = study(scheme, x)
    wide, values = x.astype(np.float64), s.values.astype(np.float64)
    levels, mask = levels_of(scheme, x)
    distance = np.sort(np.where(mask, np.abs(levels - wide), np.inf), axis=0)
    best = distance[0]
    # x / scale + offset is rounded in units of the offset: a tie may be missed by that, at most by a share of the gap
    gap = best + distance[1]
    offset = np.minimum(slack(x, np.abs(levels).max(axis=0, where=mask, initial=0)), 0.05 * gap)
    worse = np.abs(values - wide) > best + slack(x, values) + offset
    assert not worse.any(), f"{x[worse][:3]} -> {values[worse][:3]}, {best[worse][:3]} away is another level"


def zero_stays(scheme: Scheme, x: np.ndarray) -> None:
    """Zero of either sign is reproduced exactly where it is a level."""
    s = study(scheme, x)
    level = (levels_of(scheme, x)[0] == 0).any(axis=0)
    assert not (s.zeros[:, level] != 0).any(), f"0 -> {s.zeros[:, level].ravel()[:3]}"


def odd(scheme: Scheme, x: np.ndarray) -> None:
    """Q(-x) == -Q(x) where the levels lie evenly about zero; ties and zero itself excepted."""
    if scheme.bits > 8:
        return
    s, (levels, _) = study(scheme, x), levels_of(scheme, x)
    mirrored = [np.sort(sign * levels, axis=0) for sign in (1, -1)]  # NaN last in both
    symmetric = np.all((mirrored[0] == mirrored[1]) | np.isnan(mirrored[0]), axis=0)
    # a tie: the two reproductions are as far from x and -x as each other
    away = [np.abs(sign * q.astype(np.float64) - x.astype(np.float64)) for sign, q in ((1, s.values), (-1, s.minus))]
    tie = np.abs(away[0] - away[1]) <= slack(x, s.values)
    wrong = symmetric & ~tie & (s.minus != -s.values)
    assert not wrong.any(), f"Q({x[wrong][:3]}) = {s.values[wrong][:3]}, Q(-x) = {s.minus[wrong][:3]}"


def scale_equivariant(scheme: Scheme, x: np.ndarray) -> None:
    """Q(2**k x) == 2**k Q(x), exactly, with a grid calibrated anew."""
    if np.abs(x).max() < 1e35 and np.abs(x).min(where=x != 0, initial=1) > 1e-25:
        for k in (5, -7):
            _equal(study(scheme, np.ldexp(x, k)).values, np.ldexp(study(scheme, x).values, k), f"x * 2**{k}")


def affine_holds(scheme: Scheme, x: np.ndarray) -> None:
    """decode(c) == scale * (levels(c) - zero_point) for every code in use, |levels| <= limit, as int8 or int16."""
    s = study(scheme, x)
    if s.affine is None:
        return
    with jax.enable_x64(x.dtype == np.float64):
        limit = scheme.affine(s.grid).limit
    scale, zero_point, levels = s.affine
    assert limit <= 2**15
    assert levels.dtype == (np.int8 if limit <= 128 else np.int16)
    mask = levels_of(scheme, x)[1]
    assert np.abs(levels.astype(np.int64))[mask].max(initial=0) <= limit, "levels beyond the limit"
    broadcast = np.broadcast_shapes(*(stage.granularity.grid_shape(x.shape) for stage in parts(scheme)))
    assert s.affine_shapes[0] == (broadcast, s.values.dtype), f"scale of shape and dtype {s.affine_shapes[0]}"
    assert s.affine_shapes[1] in (None, (broadcast, np.int32)), f"zero point of shape and dtype {s.affine_shapes[1]}"
    point = 0 if zero_point is None else zero_point.astype(np.float64)
    wanted = scale.astype(np.float64) * (levels.astype(np.float64) - point)
    wrong = mask & (np.abs(s.levels.astype(np.float64) - wanted) > slack(x, np.zeros(()), wanted))
    assert not wrong.any(), f"codes {s.candidates[wrong][:3]}: {s.levels[wrong][:3]}, affine says {wanted[wrong][:3]}"


def gradient_passes(scheme: Scheme, x: np.ndarray) -> None:
    """simulate gives the decoded values, and its gradient is slope times cotangent, finite.

    On a grid of its own the slope is 1 for a scheme that does not clip.
    """
    s = study(scheme, x)
    _equal(s.simulated, s.values.astype(x.dtype), "simulate(x)")
    slope = 1 if s.slope is None else np.broadcast_to(s.slope, x.shape).astype(x.dtype)
    for gradient, wanted in ((s.gradient, slope if scheme.clips else 1), (s.gradient_on_grid, slope)):
        assert gradient.dtype == x.dtype
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(gradient, s.cotangent * wanted, rtol=1e-6, atol=1e-37, err_msg="gradient")


#: Cheap on any array of a shape that has been compiled.
LAWS = (
    codes_fit,
    grid_keeps_rank,
    finite,
    idempotent,
    monotone,
    nearest,
    zero_stays,
    odd,
    scale_equivariant,
    affine_holds,
    gradient_passes,
)


def text_is_constructor(scheme: Scheme, x: np.ndarray) -> None:
    """repr is the constructor call: it evaluates to an equal scheme with an equal hash."""
    del x
    modules = (m for m in vars(schemes).values() if hasattr(m, "__file__"))
    names = {name: v for space in (ste, rounding, ranges, gradients, *modules, jqz) for name, v in vars(space).items()}
    other = eval(repr(scheme), names)
    assert other == scheme, f"{scheme!r} evaluates to another scheme"
    assert hash(other) == hash(scheme) == hash(copy.deepcopy(scheme))


def jit_agrees(scheme: Scheme, x: np.ndarray) -> None:
    """Eager code gives the compiled grid and values, but for rounding errors."""
    s, keyed = study(scheme, x), scheme.with_key(KEY)
    grid = keyed.calibrate(jnp.asarray(x))
    for got, wanted in zip(jax.tree.leaves(grid), jax.tree.leaves(s.grid), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6, err_msg="grid")
    values = keyed.decode(keyed.encode(jnp.asarray(x), grid), grid)
    np.testing.assert_allclose(values, s.values, rtol=1e-5, atol=1e-6)


def vmap_stacks(scheme: Scheme, x: np.ndarray) -> None:
    """Quantizing a stack under vmap is quantizing its members."""
    members = [x, -2 * x[::-1]]
    keyed = scheme.with_key(KEY)
    stack = jax.jit(jax.vmap(keyed.simulate))(jnp.stack(members))
    for got, member in zip(stack, members, strict=True):
        np.testing.assert_allclose(got, study(scheme, member).values, rtol=1e-5, atol=1e-6)


def blocks_stand_alone(scheme: Scheme, x: np.ndarray) -> None:
    """A granularity is PerTensor on each of its blocks; PerTensor itself is tried as PerAxis(-1)."""
    if not any(f.name == "granularity" for f in dataclasses.fields(typing.cast(typing.Any, scheme))):
        return
    fine = typing.cast(typing.Any, scheme)
    if isinstance(fine.granularity, jqz.PerTensor):
        fine = dataclasses.replace(fine, granularity=jqz.PerAxis(-1))
    coarse = dataclasses.replace(fine, granularity=jqz.PerTensor()).with_key(KEY)
    together = jax.jit(fine.with_key(KEY).simulate)(x)
    by_shape = collections.defaultdict(list)
    block = fine.granularity.block(x.shape)
    for start in itertools.product(*(range(0, n, b) for n, b in zip(x.shape, block, strict=True))):
        place = tuple(slice(i, i + b) for i, b in zip(start, block, strict=True))
        by_shape[x[place].shape].append(place)
    for places in by_shape.values():
        alone = jax.jit(jax.vmap(coarse.simulate))(jnp.stack([x[place] for place in places]))
        for place, got in zip(places, alone, strict=True):
            np.testing.assert_allclose(together[place], got, rtol=1e-5, atol=1e-6, err_msg=f"block {place}")


#: On one plain array.
COMPILED_LAWS = (text_is_constructor, jit_agrees, vmap_stacks, blocks_stand_alone)


def taken_by(scheme: Scheme) -> typing.Any:
    """A policy: the scheme, wherever its granularity fits."""

    def policy(path: str, leaf: typing.Any) -> Scheme | None:
        del path
        return scheme if fits(scheme, leaf.shape) else None

    return policy


def _sum(tree: typing.Any) -> jax.Array:
    return sum((jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(tree)), jnp.zeros(()))


def verbs_agree(scheme: Scheme, tree: typing.Any) -> None:
    """quantize and dequantize keep shapes and dtypes, give finite values and store what they say."""
    coded = jqz.quantize(tree, taken_by(scheme), key=KEY)
    decoded = jqz.dequantize(coded)
    for name, x in tree.items():
        q, values = coded[name], np.asarray(decoded[name], np.float64)
        if not fits(scheme, x.shape):
            assert q is x
            continue
        assert isinstance(q, jqz.QTensor)
        assert q.scheme == scheme
        assert (q.shape, q.dtype) == (decoded[name].shape, decoded[name].dtype) == (x.shape, x.dtype)
        assert (q.codes.shape, q.codes.dtype) == (x.shape, np.dtype(scheme.code_dtype))
        assert np.isfinite(values).all(), f"{name}: {np.asarray(x, np.float64)[~np.isfinite(values)][:3]}"
        if x.ndim and scheme.bits <= 8:
            rows = int(np.prod(x.shape[:-1], dtype=int))
            assert q.payload.nbytes == rows * _packing.packed_length(x.shape[-1], scheme.bits)
    assert isinstance(coded["half"], jqz.QTensor)


def every_rank_traces(scheme: Scheme, tree: typing.Any) -> None:
    """All verbs and the gradient take every rank and dtype that the granularity fits, under strict promotion."""
    del tree
    policy, shapes = taken_by(scheme), forms()

    def run(t):
        fake = jax.grad(lambda t: _sum(jqz.fake_quantize(t, policy, key=KEY)))
        return jqz.dequantize(jqz.quantize(t, policy, key=KEY)), fake(t)

    for out in jax.eval_shape(run, shapes):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), out) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)


def narrow_computes_wide(scheme: Scheme, tree: typing.Any) -> None:
    """float16 values get the codes that their float32 copies get; only the result is narrow."""
    coded = jqz.quantize(tree, taken_by(scheme), key=KEY)
    _equal(coded["half"].codes, coded["single"].codes, "codes")
    for a, b in zip(jax.tree.leaves(coded["half"].grid), jax.tree.leaves(coded["single"].grid), strict=True):
        _equal(a, b, "grid")


def refuses_what_is_not_finite(scheme: Scheme, tree: typing.Any) -> None:
    """quantize names the leaf that holds NaN or infinity, wherever it stands; fake_quantize lets NaN show."""
    clean = tree["single"]
    for bad, place in itertools.product((np.nan, np.inf, -np.inf), ((0, 0), (3, 5))):
        spoilt = {**tree, "single": clean.at[place].set(bad)}
        try:
            jqz.quantize(spoilt, taken_by(scheme), key=KEY)
        except ValueError as error:
            assert "'single'" in str(error), str(error)  # noqa: PT017
        else:
            raise AssertionError(f"{bad} at {place} went unnoticed")


#: On the tree of ``specimens.zoo``.
TREE_LAWS = (verbs_agree, every_rank_traces, narrow_computes_wide, refuses_what_is_not_finite)


FLOOR = "floor(c * scale / scale) may be c - 1"
CHANCE = "which level a value gets is drawn"

#: law -> (types that it does not hold for, and why)
EXEMPT: dict[typing.Any, list[tuple[tuple[type, ...], str]]] = {
    idempotent: [((rounding.Floor,), FLOOR), ((rounding.Stochastic,), CHANCE)],
    monotone: [((rounding.Stochastic,), CHANCE)],
    nearest: [
        ((rounding.Floor,), "rounds down"),
        ((rounding.Stochastic,), CHANCE),
        ((Chain,), "rounds more than once"),
        (named("Ternary"), "TWN's threshold is 0.7 of the mean magnitude, not half the level"),
        (named("Geometric"), "rounds the exponent"),
    ],
    odd: [((rounding.Floor,), "rounds down"), ((rounding.Stochastic,), CHANCE)],
    scale_equivariant: [
        ((ranges.Given, *named("GivenStep", "UnitScale", "GivenTop")), "the grid is given"),
        (named("NNabla"), "where zero is no level, it becomes the least number"),
    ],
    gradient_passes: [(named("PerSign"), "a cotangent times a magnitude near the largest number overflows")],
    vmap_stacks: [((rounding.Stochastic,), CHANCE)],
    blocks_stand_alone: [((rounding.Stochastic,), CHANCE), (named("E4M3Scale"), "blocks share a second scale")],
    narrow_computes_wide: [((rounding.Stochastic,), "each leaf has a key of its own")],
}


def inputs_for(scheme: Scheme) -> dict[str, np.ndarray]:
    """All inputs; a chain does without the largest numbers, which its second stage may round up beyond them."""
    return {name: x for name, x in inputs().items() if not (isinstance(scheme, Chain) and name == "largest")}


def exempt(law: typing.Any, scheme: Scheme) -> str:
    """Why a law does not hold for a scheme; empty where it does."""
    return next((why for types, why in EXEMPT.get(law, ()) if has(scheme, *types)), "")


def check(scheme: Scheme) -> None:
    """Holds a scheme to every law on every input."""
    for law in LAWS:
        if not exempt(law, scheme):
            for name, x in inputs_for(scheme).items():
                try:
                    law(scheme, x)
                except AssertionError as error:
                    error.add_note(f"{law.__name__} of {scheme!r} for input {name!r}")
                    raise
    for laws, x in ((COMPILED_LAWS, inputs()["normal"]), (TREE_LAWS, zoo())):
        for law in laws:
            if not exempt(law, scheme):
                law(scheme, x)
