"""What every observer obeys: functions ``law(observer)`` that raise AssertionError where it does not.

``tests/test_observer_laws.py`` applies them to whatever ``jqz.observers.CATALOGUE`` lists. Counts and extremes
must agree bit for bit, sums of floats to rounding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jqz import observers
from jqz._observer import Observer


@functools.cache
def rows() -> jax.Array:
    """Eight rows whose magnitudes grow and shrink, so that ranges must follow; zeros, and a negative outlier."""
    x = np.random.default_rng(0).standard_normal((8, 5)) * np.array([1, 0, 30, 1e-3, 2, 400, 1, 5])[:, None]
    x[5, 3] = -2000
    return jnp.asarray(x, jnp.float32)


@functools.cache
def seen(observer: Observer) -> list[Observer]:
    """A statistic of each row."""
    return unstack(jax.jit(jax.vmap(observer.update))(rows()), len(rows()))


def unstack(stack: Observer, count: int) -> list[Observer]:
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(count)]


@jax.jit
def update(observer: Observer, x: jax.Array) -> Observer:
    return observer.update(x)


@jax.jit
def merged(a: Observer, b: Observer) -> Observer:
    return a.merge(b)


def same(got: Observer, wanted: Observer, what: str, exactly: bool = False) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted), what
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert np.shape(a) == np.shape(b), what
        assert np.asarray(a).dtype == np.asarray(b).dtype, what
        if exactly or np.asarray(b).dtype != np.float32 or "counts" in vars(wanted) or isinstance(wanted, EXTREMES):
            np.testing.assert_array_equal(a, b, err_msg=what)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max(initial=0), err_msg=what)


EXTREMES = (observers.AbsMax, observers.MinMax, observers.TermMax)


def nothing_is_neutral(observer: Observer) -> None:
    """Merging with ``empty()`` or with ``init(x)``, on either side, changes nothing."""
    one = seen(observer)[2]
    for nothing in (observer.empty(), observer.init(rows()[0])):
        same(merged(one, nothing), one, "a.merge(nothing)", exactly=True)
        same(merged(nothing, one), one, "nothing.merge(a)", exactly=True)
    same(one.empty(), observer.empty(), "a statistic's empty()", exactly=True)


def associative(observer: Observer) -> None:
    a, b, c = (seen(observer)[i] for i in (0, 2, 5))
    same(merged(merged(a, b), c), merged(a, merged(b, c)), "(a b) c and a (b c)")


def commutative(observer: Observer) -> None:
    a, b = (seen(observer)[i] for i in (0, 5))
    same(merged(a, b), merged(b, a), "a b and b a")


def updates_are_merges(observer: Observer) -> None:
    """Seeing one batch after another is merging what was seen in each."""
    folded = functools.reduce(merged, seen(observer))

    @jax.jit
    def scanned(x):
        return jax.lax.scan(lambda o, row: (o.update(row), None), observer.init(x[0]), x)[0]

    same(scanned(rows()), folded, "updates in a scan")

    @jax.jit
    def stacked(x):  # as the records of a scan come out, and a weight that all steps share merges them
        each = jax.lax.scan(lambda _, row: (None, observer.update(row)), None, x)[1]
        return jax.lax.scan(lambda o, one: (o.merge(one), None), observer.init(x[0]), each)[0]

    same(stacked(rows()), folded, "statistics stacked by a scan")


def batches_do_not_matter(observer: Observer) -> None:
    """One batch, its parts, and its rows in another order give the same statistic."""
    whole = update(observer, rows())
    same(functools.reduce(merged, seen(observer)), whole, "row by row")
    same(update(update(observer, rows()[:3]), rows()[3:]), whole, "two batches")
    same(update(observer, rows()[::-1]), whole, "reversed rows")


def devices_merge(observer: Observer) -> None:
    """``all_merge`` gives every member of a mapped axis the merge of all, in their order."""

    def over(x):
        return observers.all_merge({"site": observer.update(x)}, "devices")["site"]

    together = jax.jit(jax.vmap(over, axis_name="devices"))(rows())
    folded = functools.reduce(merged, seen(observer))
    for one in unstack(together, len(rows())):
        same(one, folded, "all_merge")


def nothing_in_nothing_out(observer: Observer) -> None:
    """An empty array changes nothing."""
    one = seen(observer)[2]
    same(update(one, jnp.zeros((0, 5))), one, "an empty array", exactly=True)


def narrow_is_measured_wide(observer: Observer) -> None:
    """Half types and float64 give the statistic of their float32 values."""
    x = rows().astype(jnp.bfloat16)
    wanted = update(observer, x.astype(jnp.float32))
    same(update(observer, x), wanted, "bfloat16", exactly=True)
    with jax.enable_x64():
        wide = update(observer, jnp.asarray(np.asarray(x.astype(jnp.float32), np.float64)))
    same(wide, wanted, "float64", exactly=True)


def every_rank(observer: Observer) -> None:
    """Arrays of any rank are seen, those of rank 0 as well."""
    for shape in ((), (3,), (2, 3, 2), (1, 2, 1, 3)):
        one = update(observer, jnp.full(shape, -2.0))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one)), shape


def not_finite_shows(observer: Observer) -> None:
    """A NaN or an infinity, once seen, stays visible through updates and merges."""
    clean, first = rows()[:2], seen(observer)[0]
    for bad in (np.nan, np.inf, -np.inf):
        spoilt = update(observer, clean.at[1, 2].set(bad))
        for one in (spoilt, update(spoilt, clean), merged(spoilt, first), merged(first, spoilt)):
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(one)]
            assert any(not np.isfinite(leaf).all() for leaf in leaves), f"{bad} went unnoticed"


def nothing_seen_shows(observer: Observer) -> None:
    """Limits of nothing are not finite, those of rows are, and cover zero or lie within the extremes."""
    from jqz import Asymmetric, Symmetric

    for scheme in (Symmetric(bits=8), Asymmetric(bits=8)):
        limits = jax.jit(lambda o, scheme=scheme: o.limits(scheme))
        assert not np.isfinite(limits(observer.init(rows()))).all()
        low, high = limits(update(observer, rows()))
        assert np.isfinite([low, high]).all()
        assert low < high


LAWS = (
    nothing_is_neutral,
    associative,
    commutative,
    updates_are_merges,
    batches_do_not_matter,
    devices_merge,
    nothing_in_nothing_out,
    narrow_is_measured_wide,
    every_rank,
    not_finite_shows,
    nothing_seen_shows,
)

#: law -> observers that it does not hold for, and why
EXEMPT = {
    commutative: {observers.EMA: "later batches weigh more"},
    batches_do_not_matter: {observers.EMA: "an average over batches"},
    nothing_seen_shows: {observers.Gram: "has no limits"},
}
