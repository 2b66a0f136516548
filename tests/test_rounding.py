import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz import rounding

Floor, HalfAway, HalfEven, Stochastic = rounding.Floor, rounding.HalfAway, rounding.HalfEven, rounding.Stochastic

#: value: to even, away, down
TABLE = {
    0.5: (0, 1, 0),
    1.5: (2, 2, 1),
    2.5: (2, 3, 2),
    -0.5: (0, -1, -1),
    -1.5: (-2, -2, -2),
    -2.5: (-2, -3, -3),
    0.49999997: (0, 0, 0),
    -0.49999997: (0, 0, -1),
    0.50000006: (1, 1, 0),
    8388607.5: (8388608, 8388608, 8388607),  # the last half in float32
    8388609.0: (8388609, 8388609, 8388609),  # adding a half here rounds up by itself
    -16777215.0: (-16777215, -16777215, -16777215),
    3e38: (int(np.float32(3e38)),) * 3,
    0.0: (0, 0, 0),
}


@pytest.mark.parametrize(("rule", "column"), [(HalfEven(), 0), (HalfAway(), 1), (Floor(), 2)], ids=str)
def test_ties_by_table(rule, column):
    x = jnp.asarray(list(TABLE), jnp.float32)
    np.testing.assert_array_equal(rule(x), np.asarray([row[column] for row in TABLE.values()], np.float32))
    np.testing.assert_array_equal(jax.jit(rule)(x), rule(x))


def _half_away(value):
    exact = fractions.Fraction(value)
    whole = math.floor(abs(exact) + fractions.Fraction(1, 2))
    return whole if exact >= 0 else -whole


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16], ids=["float32", "float16", "bfloat16"])
def test_against_exact_arithmetic(dtype):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=300) * 100, rng.integers(-400, 400, 300) / 2]).astype(dtype)
    exact = [float(v) for v in x]
    np.testing.assert_array_equal(HalfEven()(jnp.asarray(x)).astype(jnp.float32), np.rint(exact))
    np.testing.assert_array_equal(HalfAway()(jnp.asarray(x)).astype(jnp.float32), [_half_away(v) for v in exact])
    np.testing.assert_array_equal(Floor()(jnp.asarray(x)).astype(jnp.float32), np.floor(exact))
    assert {rule(jnp.asarray(x)).dtype for rule in (HalfEven(), HalfAway(), Floor())} == {jnp.dtype(dtype)}


def test_stochastic_is_unbiased_with_the_stated_variance():
    n = 40_000
    for fraction in (0.1, 0.5, 0.9):
        for whole in (-3, 0, 100):
            out = np.asarray(Stochastic(jax.random.key(whole + 7))(jnp.full(n, whole + fraction, jnp.float32)), float)
            assert set(out) == {whole, whole + 1}
            deviation = math.sqrt(fraction * (1 - fraction))
            assert abs(out.mean() - (whole + fraction)) < 5 * deviation / math.sqrt(n)
            assert out.std() == pytest.approx(deviation, rel=0.05)


def test_stochastic_keeps_integers():
    """floor(x + uniform) would move one in 200,000 of these up."""
    x = jnp.full(1_000_000, 100.0)
    assert (Stochastic(jax.random.key(0))(x) == x).all()


def test_stochastic_draws_by_key():
    x = jnp.full(100, 0.5)
    a, again, b = (Stochastic(jax.random.key(k))(x) for k in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert (a != b).any()
    with pytest.raises(ValueError, match=r"got no key. Use quantize\(params, policy, key=jax.random.key\(0\)\)"):
        Stochastic()(x)


def test_rules_are_values():
    assert HalfEven() == HalfEven() != HalfAway()
    assert len({HalfEven(), HalfAway(), Floor(), Stochastic(), HalfEven()}) == 4
    assert repr(jqz.Symmetric(bits=4, rounding=HalfAway())) == "Symmetric(bits=4, rounding=HalfAway())"
