"""NNabla parity: published vectors bit for bit, and scalar code written from the definitions."""

import json
import pathlib
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqz import nnabla

GOLDEN = json.loads((pathlib.Path(__file__).parent / "data" / "golden.json").read_text())
F32 = np.float32


def bits(x):
    """Patterns, so that -0 differs from 0."""
    return np.asarray(x, F32).view(np.int32).tolist()


def value_and_slope(fn, x):
    value, pull = jax.vjp(fn, jnp.asarray(x, jnp.float32))
    return value, pull(jnp.ones_like(value))[0]


def sample(scale, size=240, seed=0):
    """Normal values with ties of every dyadic step, zeros of both signs, and extremes."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=size) * scale).astype(F32)
    x[::5] = np.round(x[::5] * 32) / 32
    x[:6] = [0.0, -0.0, 1e30, -1e30, np.inf, -np.inf]
    return x


# ---------------------------------------------------------------------------------------------
# Published vectors
# ---------------------------------------------------------------------------------------------

FIXED_POINT = {
    "n8_d0.0625_signed": ({}, "grad"),
    "n4_d0.25_signed": ({"n": 4, "delta": 0.25}, None),
    "n4_d0.25_unsigned": ({"n": 4, "delta": 0.25, "sign": False}, "grad_n4_unsigned"),
}

POW2 = {
    "n8_m1_signed_zero": ({}, "grad_signed"),
    "n4_m1_signed_zero": ({"n": 4}, "grad_signed"),
    "n4_m1_signed_nozero": ({"n": 4, "with_zero": False}, "grad_signed"),
    "n4_m1_unsigned_zero": ({"n": 4, "sign": False}, "grad_unsigned"),
    "n4_m1_unsigned_nozero": ({"n": 4, "sign": False, "with_zero": False}, "grad_unsigned"),
}

GOLDEN_CASES = [
    pytest.param(fn, GOLDEN[family], key, kwargs, slope, id=f"{family}-{key}")
    for family, fn, table in (
        ("fixed_point", nnabla.fixed_point_quantize, FIXED_POINT),
        ("pow2", nnabla.pow2_quantize, POW2),
    )
    for key, (kwargs, slope) in table.items()
]


@pytest.mark.parametrize(("fn", "golden", "key", "kwargs", "slope"), GOLDEN_CASES)
def test_golden_elementwise(fn, golden, key, kwargs, slope):
    value, gradient = value_and_slope(lambda x: fn(x, **kwargs), golden["x"])
    assert bits(value) == bits(golden[key])
    if slope:
        assert gradient.tolist() == golden[slope]


def test_every_golden_key_is_tested():
    assert set(GOLDEN["fixed_point"]) == {"x", *FIXED_POINT, "grad", "grad_n4_unsigned"}
    assert set(GOLDEN["pow2"]) == {"x", *POW2, "grad_signed", "grad_unsigned"}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("case", GOLDEN["min_max"]["cases"], ids=lambda c: f"{c['lo']}..{c['hi']}-{c['qh']}")
def test_golden_min_max(case, wrap):
    x = jnp.asarray([*case["x"], -1e6], jnp.float32)
    y, (low, high) = wrap(lambda x, lo, hi: nnabla.min_max_quantize(x, lo, hi, case["ql"], case["qh"]))(
        x, F32(case["lo"]), F32(case["hi"])
    )
    bottom = case["params"][2]
    assert bits(y) == bits([*case["y"], bottom])
    assert bits(low) == bits(case["lo"])
    assert bits(high) == bits(max(F32(case["hi"]), F32(case["lo"]) + F32(0.01)))


def test_golden_inq():
    golden = GOLDEN["inq"]["q_b4_max1"]
    assert bits(nnabla.inq_quantize(jnp.asarray(golden["x"], jnp.float32), num_bits=4)) == bits(golden["y"])


@pytest.mark.parametrize(("key", "exponents"), GOLDEN["inq"]["n1n2"].items())
def test_golden_inq_exponents(key, exponents):
    maximum, num_bits = (float(part.split("=")[1]) for part in key.split(","))
    highest, lowest = (2.0**e for e in exponents)
    below = np.nextafter(F32(lowest / 2), F32(0))
    y = nnabla.inq_quantize(jnp.asarray([maximum, lowest / 2, below], jnp.float32), num_bits=int(num_bits))
    assert y.tolist() == [highest, lowest, 0.0]


# ---------------------------------------------------------------------------------------------
# Scalar code
# ---------------------------------------------------------------------------------------------


def half_away(q):
    """Of a float32, through float64, where adding a half is exact."""
    return F32(np.floor(float(q) + 0.5)) if q >= 0 else -F32(np.floor(0.5 - float(q)))


def fixed_point(x, sign, n, delta):
    delta = F32(delta)
    top = F32((2 ** (n - 1 if sign else n) - 1) * Fraction(float(delta)))
    bottom = -top if sign else F32(0)
    if x > top:
        return top, 0
    if x < bottom:
        return bottom, 0
    magnitude = half_away(abs(x) / delta) * delta
    return (-magnitude if x < 0 else magnitude), 1


def pow2(x, sign, with_zero, n, m):
    smallest = Fraction(2) ** (m - (2 ** (n - sign - with_zero) - 1))
    a = abs(float(x))
    q, over = Fraction(0), np.isinf(a)
    if not over and a > 0:
        a = Fraction(a)
        q = Fraction(2) ** (a.numerator.bit_length() - a.denominator.bit_length())
        q = q / 2 if q > a else q  # the largest power not above
        q = 2 * q if a * a > 2 * q * q else q  # beyond the geometric mean of two powers
        over = q > Fraction(2) ** m
    if over:
        q = Fraction(2) ** m
    elif q < smallest:
        threshold = F32(float(smallest) * 0.5**0.5)
        q = Fraction(0) if with_zero and abs(x) < threshold else smallest
    if x >= 0:
        return float(q), int(not over)
    return (-float(q) if sign else 0.0 if with_zero else float(smallest)), int(sign and not over)


def min_max(x, low, high, first, last, eps=0.01):
    low, high, first, last = map(F32, (low, high, first, last))
    if high - low < F32(eps):
        high = low + F32(eps)
    scale = (high - low) / (last - first)
    zero = first - low / scale
    zero = first if zero <= first else last if zero >= last else half_away(zero)
    bottom, top = (first - zero) * scale, (last - zero) * scale
    y = half_away((min(max(x, bottom), top) - bottom) / scale) * scale + bottom
    return y, int(x < bottom), int(bottom <= x <= top), int(x > top)


@pytest.mark.parametrize("delta", [2**-4, 0.1, 0.3])
@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("sign", [True, False])
def test_fixed_point_against_scalar_code(sign, n, delta):
    # half steps are where a reciprocal instead of a division decides differently
    x = np.concatenate([sample(delta * 2.0 ** (n - 2)), np.arange(-30, 30, dtype=F32) * F32(delta) * F32(0.5)])
    want, slopes = zip(*(fixed_point(v, sign, n, delta) for v in x), strict=True)
    value, gradient = value_and_slope(lambda x: nnabla.fixed_point_quantize(x, sign, n, delta), x)
    assert bits(value) == bits(want)
    assert gradient.tolist() == list(slopes)
    coarse, gradient = value_and_slope(
        lambda x: nnabla.fixed_point_quantize(x, sign, n, delta, ste_fine_grained=False), x
    )
    assert bits(coarse) == bits(want)
    assert gradient.tolist() == [1.0] * len(x)


@pytest.mark.parametrize(("n", "m"), [(3, 1), (4, -2), (5, 0), (8, 2)])
@pytest.mark.parametrize("with_zero", [True, False])
@pytest.mark.parametrize("sign", [True, False])
def test_pow2_against_scalar_code(sign, with_zero, n, m):
    x = np.concatenate([sample(2.0**m), sample(2.0 ** (m - 6)), [2.0 ** (m + 0.5), 2.0 ** (m - 0.5), 1.5]]).astype(F32)
    x = np.concatenate([x, np.nextafter(x[-3:], F32(0)), np.nextafter(x[-3:], F32(9))])
    want, slopes = zip(*(pow2(v, sign, with_zero, n, m) for v in x), strict=True)
    tiny = np.finfo(F32).tiny  # a smallest power below this is 0: no denormals
    want = [0.0 if 0 < v < tiny else v for v in want]
    value, gradient = value_and_slope(lambda x: nnabla.pow2_quantize(x, sign, with_zero, n, m), x)
    assert bits(value) == bits(want)
    assert gradient.tolist() == list(slopes)
    coarse, gradient = value_and_slope(
        lambda x: nnabla.pow2_quantize(x, sign, with_zero, n, m, ste_fine_grained=False), x
    )
    assert bits(coarse) == bits(want)
    assert gradient.tolist() == [1.0] * len(x)


def test_pow2_rounds_exactly_at_every_boundary():
    at = np.sqrt(2.0) * 2.0 ** np.arange(-126, 127)
    x = np.concatenate([np.nextafter(F32(at), F32(0)), F32(at), np.nextafter(F32(at), F32(np.inf)), F32(at / 2**0.5)])
    want, slopes = zip(*(pow2(v, True, False, 9, 127) for v in x), strict=True)
    value, gradient = value_and_slope(lambda x: nnabla.pow2_quantize(x, True, False, 9, 127), x)
    assert bits(value) == bits(want)
    assert gradient.tolist() == list(slopes)


@pytest.mark.parametrize("exponent", [-100, -3, 0, 90])
def test_inq_rounds_exactly_at_every_boundary(exponent):
    powers = 2.0 ** np.arange(exponent - 7, exponent + 1)
    at = np.array([powers[0] / 2, *(1.5 * powers[:-1])], F32)
    below = np.nextafter(at, F32(0))
    y = nnabla.inq_quantize(jnp.asarray(np.concatenate([at, below])), num_bits=5, maximum=2.0**exponent)
    assert y.tolist() == [*powers, 0.0, *powers[:-1]]


def test_pow2_takes_the_tie_at_its_float32_threshold():
    threshold = F32(0.25 * 0.5**0.5)
    x = jnp.asarray([np.nextafter(threshold, F32(0)), threshold])
    assert nnabla.pow2_quantize(x, n=4, m=1).tolist() == [0.0, 0.25]


RANGES = [(-2, 2, 0, 255), (-6, 6, 0, 255), (-1, 1, 0, 15), (-0.3, 1.7, -128, 127), (0.2, 1, 0, 7), (-3, -1, 1, 255)]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(("low", "high", "first", "last"), [*RANGES, (0.5, 0.5, 0, 255), (1, -1, 0, 3)])
def test_min_max_against_scalar_code(low, high, first, last, wrap):
    step = F32(high - low) / F32(last - first)
    x = np.concatenate([sample(abs(high) + abs(low)), np.arange(-40, 40, dtype=F32) * step * F32(0.5)])
    want, below, inside, above = zip(*(min_max(v, low, high, first, last) for v in x), strict=True)
    g = np.random.default_rng(3).normal(size=x.shape).astype(F32)

    def fn(x, low, high):
        return nnabla.min_max_quantize(x, low, high, first, last)[0]

    def both(*args):
        y, pull = jax.vjp(fn, *args)
        return y, pull(jnp.asarray(g))

    y, (dx, dlow, dhigh) = wrap(both)(jnp.asarray(x), F32(low), F32(high))
    assert bits(y) == bits(want)
    assert dx.tolist() == (g * F32(inside)).tolist()
    # every one of the gradients adds float32 rounding to the sum
    np.testing.assert_allclose(dlow, np.sum(g * F32(below), dtype=np.float64), atol=1e-4)
    np.testing.assert_allclose(dhigh, np.sum(g * F32(above), dtype=np.float64), atol=1e-4)


def test_min_max_symmetric_ranges_meet_their_tie_as_nnabla_does():
    """The zero points that float32 gives: 128 for [-6, 6], 127 for [-2, 2], 7 for [-1, 1] with 16 levels."""
    for magnitude, last, zero in ((6, 255, 128), (2, 255, 127), (1, 15, 7)):
        y, _ = nnabla.min_max_quantize(jnp.float32(-99), -magnitude, magnitude, 0, last)
        assert bits(y) == bits(F32(-zero) * (F32(2 * magnitude) / F32(last)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (8, 1)])
def test_min_max_modes(shape):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(8, 5)).astype(F32) * 3
    low, high = -rng.uniform(1, 2, shape).astype(F32), rng.uniform(1, 2, shape).astype(F32)
    axes = tuple(i for i, n in enumerate(shape) if n == 1)
    seen = x.min(axes, keepdims=True), x.max(axes, keepdims=True)
    kept, new = F32(0.9), F32(1 - float(F32(0.9)))
    average = [kept * old + new * now for old, now in zip((low, high), seen, strict=True)]

    for x_min_max, ema, want in ((1, 0, seen), (0, 1, (low, high)), (1, 1, average), (0, 0, (low, high))):
        for fine in (True, False):

            def fn(x, low, high, x_min_max=x_min_max, ema=ema, fine=fine):
                return nnabla.min_max_quantize(
                    x, low, high, 0, 15, decay=0.9, x_min_max=bool(x_min_max), ema=bool(ema), ste_fine_grained=fine
                )

            y, pull, (got_low, got_high) = jax.vjp(fn, *map(jnp.asarray, (x, low, high)), has_aux=True)
            dx, dlow, dhigh = pull(jnp.ones_like(y))
            assert bits(got_low) == bits(want[0])
            assert bits(got_high) == bits(want[1])
            limits = [np.broadcast_to(limit, x.shape).ravel() for limit in want]
            rows = [min_max(*triple, 0, 15) for triple in zip(x.ravel(), *limits, strict=True)]
            table = np.array(rows).reshape(*x.shape, 4)
            assert bits(y) == bits(table[..., 0])
            np.testing.assert_array_equal(dx, table[..., 2] if fine else 1.0)
            trained = not (x_min_max or ema)
            np.testing.assert_array_equal(dlow, table[..., 1].sum(axes, keepdims=True) * trained)
            np.testing.assert_array_equal(dhigh, table[..., 3].sum(axes, keepdims=True) * trained)


def test_min_max_levels_by_channel():
    x, low, high = jnp.asarray(sample(1.0)[6:46].reshape(8, 5)), jnp.full((1, 5), -1.0), jnp.full((1, 5), 1.0)
    last = jnp.asarray([[1.0, 3, 7, 15, 255]])
    y, _ = nnabla.min_max_quantize(x, low, high, jnp.zeros((1, 5)), last)
    for j in range(5):
        column, _ = nnabla.min_max_quantize(x[:, j], -1.0, 1.0, 0, float(last[0, j]))
        assert bits(y[:, j]) == bits(column)


def test_the_returned_range_carries_no_gradient():
    def width(x, low, high):
        low, high = nnabla.min_max_quantize(x, low, high, x_min_max=True)[1]
        return high - low

    assert [g.sum().item() for g in jax.grad(width, (0, 1, 2))(jnp.arange(4.0), -1.0, 1.0)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("fn", "at_zero", "low", "slopes"),
    [
        (nnabla.sign, 1.0, -1.0, [1.0] * 7),
        (lambda x: nnabla.sign(x, alpha=-0.5), -0.5, -1.0, [1.0] * 7),
        (nnabla.binary_tanh, -1.0, -1.0, [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]),
        (nnabla.binary_sigmoid, 0.0, 0.0, [0.0, 0.0, 0.5, 0.5, 0.5, 0.0, 0.0]),
    ],
)
def test_signs(fn, at_zero, low, slopes):
    inner = np.nextafter(F32(1), F32(0))
    value, gradient = value_and_slope(fn, [-2.0, -1.0, -inner, 0.0, inner, 1.0, 2.0])
    assert value.tolist() == [low] * 3 + [at_zero] + [1.0] * 3
    assert gradient.tolist() == slopes


@pytest.mark.parametrize("shape", [(6,), (6, 4), (3, 3, 2, 4)])
def test_binary_weight(shape):
    w = np.random.default_rng(5).normal(size=shape).astype(F32)
    w.flat[::5] = 0
    g = np.random.default_rng(6).normal(size=shape).astype(F32)
    mean = np.abs(w).reshape(-1, shape[-1]).mean(0, dtype=np.float64) if len(shape) > 1 else np.abs(w)
    value, pull = jax.vjp(nnabla.binary_weight, jnp.asarray(w))
    np.testing.assert_allclose(value, mean * np.where(w >= 0, 1, -1), rtol=1e-6)
    assert pull(jnp.asarray(g))[0].tolist() == g.tolist()
    np.testing.assert_allclose(np.abs(nnabla.binary_weight(jnp.asarray(w.T), axis=0)), np.abs(value).T, rtol=1e-6)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 5])
def test_inq_is_the_nearest_of_its_codebook(num_bits):
    w = sample(0.7, size=400)[6:]
    y, gradient = value_and_slope(lambda w: nnabla.inq_quantize(w, num_bits), w)
    highest = int(np.floor(np.log2(4 * float(np.abs(w).max()) / 3)))
    powers = 2.0 ** np.arange(highest + 1 - 2 ** (num_bits - 2), highest + 1)
    book = np.array([0, *powers, *-powers])
    # zero reaches only to half the smallest power, which is where nearest puts the boundary too
    np.testing.assert_array_equal(np.abs(y - w), np.abs(book[:, None] - w).min(0).astype(F32))
    assert gradient.tolist() == [1.0] * w.size


def test_inq_keeps_free_weights_and_given_exponents():
    w = jnp.asarray([0.25, 0.3, 3.1])
    fixed = jnp.asarray([True, True, False])
    assert nnabla.inq_quantize(w, 3, fixed).tolist() == pytest.approx([0.0, 0.0, 3.1])
    assert nnabla.inq_quantize(w, 3, fixed, maximum=0.3).tolist() == pytest.approx([0.25, 0.25, 3.1])
    assert nnabla.inq_quantize(jnp.zeros(3)).tolist() == [0.0] * 3


def test_means_are_of_an_axis_that_is_there():
    with pytest.raises(ValueError, match=r"binary_weight: got axis=7 for w of shape \(2, 2\), wanted one of its axes"):
        nnabla.binary_weight(jnp.ones((2, 2)), axis=7)
