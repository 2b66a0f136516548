import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz.schemes import Dynamic, GivenStep, Signed, Unsigned

GOLDEN = json.loads((pathlib.Path(__file__).parent.parent / "data" / "golden.json").read_text())["fixed_point"]
X = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32) * np.float32([1e-20, 0.02, 1, 7, 300, 1e30])


@pytest.mark.parametrize(
    ("scheme", "column"),
    [
        (jqz.FixedPoint(bits=8, step=GivenStep(2.0**-4)), "n8_d0.0625_signed"),
        (jqz.FixedPoint(bits=4, step=GivenStep(0.25)), "n4_d0.25_signed"),
        (jqz.FixedPoint(bits=4, step=GivenStep(0.25), sign=Unsigned()), "n4_d0.25_unsigned"),
    ],
    ids=str,
)
def test_values_of_nnabla(scheme, column):
    x = jnp.asarray(GOLDEN["x"], jnp.float32)
    assert jqz.fake_quantize(x, scheme).tolist() == GOLDEN[column]


@pytest.mark.parametrize(
    ("scheme", "column"),
    [
        (jqz.FixedPoint(bits=8, step=GivenStep()), "grad"),
        (jqz.FixedPoint(bits=4, step=GivenStep(0.25), sign=Unsigned()), "grad_n4_unsigned"),
    ],
    ids=str,
)
def test_gradients_of_nnabla(scheme, column):
    x = jnp.asarray(GOLDEN["x"], jnp.float32)
    assert jax.grad(lambda x: jqz.fake_quantize(x, scheme).sum())(x).tolist() == GOLDEN[column]


def exact_step(magnitude, high):
    """The least power of two whose multiple ``high`` is not below ``magnitude``, in exact integer arithmetic."""
    numerator, denominator = float(magnitude).as_integer_ratio()
    exponent = -200
    while (
        high * 2**200 * 2**exponent * denominator < numerator * 2**200
        if exponent >= 0
        else (high * denominator < numerator * 2**-exponent)
    ):
        exponent += 1
    return 2.0**exponent


@pytest.mark.parametrize("sign", [Signed(), Unsigned()], ids=repr)
@pytest.mark.parametrize("bits", [2, 3, 8, 9, 16])
def test_dynamic_by_brute_force(bits, sign):
    scheme = jqz.FixedPoint(bits=bits, sign=sign, granularity=jqz.PerAxis(-1))
    q = jqz.quantize(jnp.asarray(X), scheme)
    high = 2 ** (bits - isinstance(sign, Signed)) - 1
    low = -high if isinstance(sign, Signed) else 0
    wide = X.astype(np.float64)
    magnitude = np.abs(wide).max(0) if low else np.maximum(wide.max(0), 0)
    step = np.array([exact_step(m, high) for m in magnitude])
    assert np.asarray(q.grid.scale[0], np.float64).tolist() == step.tolist()
    steps = wide / step
    expected = np.clip(np.sign(steps) * np.floor(np.abs(steps) + 0.5), low, high)
    assert np.array_equal(q.codes, expected)
    values = np.asarray(jqz.dequantize(q), np.float64)
    assert np.array_equal(values, expected * step)
    assert (np.abs(values - wide) <= step / 2)[wide >= low * step].all()
    assert (
        q.codes.dtype
        == {
            (True, True): jnp.int8,
            (True, False): jnp.int16,
            (False, True): jnp.uint8,
            (False, False): jnp.uint16,
        }[low < 0, bits <= 8]
    )


@pytest.mark.parametrize("exponent", [-99, -1, 0, 3, 90])
@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_the_step_turns_exactly_where_the_highest_code_no_longer_covers(bits, exponent):
    high = 2 ** (bits - 1) - 1
    edge = np.ldexp(np.float32(high), exponent - bits + 2)  # the largest magnitude that 2**(exponent-bits+2) covers
    scheme = jqz.FixedPoint(bits=bits)
    for magnitude, up in ((edge, 0), (np.nextafter(edge, np.float32(np.inf)), 1)):
        scale = scheme.calibrate(jnp.asarray([-magnitude, 0])).scale.item()
        assert scale == math.ldexp(1.0, exponent - bits + 2 + up)


def test_ties_go_away_from_zero_unless_asked_otherwise():
    x = jnp.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    given = {"bits": 8, "step": GivenStep(1.0)}
    assert jqz.fake_quantize(x, jqz.FixedPoint(**given)).tolist() == [-3, -2, -1, 1, 2, 3]
    even = jqz.FixedPoint(**given, rounding=jqz.rounding.HalfEven())
    assert jqz.fake_quantize(x, even).tolist() == [-2, -2, 0, 0, 2, 2]


def test_stochastic_rounding_keeps_the_mean():
    x = jnp.full(20_000, 0.3)
    scheme = jqz.FixedPoint(bits=8, step=GivenStep(1.0), rounding=jqz.rounding.Stochastic())
    values = jqz.fake_quantize(x, scheme, key=jax.random.key(0))
    assert set(values.tolist()) == {0.0, 1.0}
    assert abs(values.mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 20_000)


@pytest.mark.parametrize("sign", [Signed(), Unsigned()], ids=repr)
def test_zeros(sign):
    q = jqz.quantize(jnp.array([[0.0, 1.0], [-0.0, 0.5]]), jqz.FixedPoint(granularity=jqz.PerAxis(-1), sign=sign))
    assert q.grid.scale[0, 0] == 1
    assert q.codes[:, 0].tolist() == jqz.dequantize(q)[:, 0].tolist() == [0, 0]


@pytest.mark.parametrize("value", [1.0, -0.375, 2.0**90])
def test_constants_of_few_bits_are_exact(value):
    assert jqz.fake_quantize(jnp.full(5, value), jqz.FixedPoint(bits=8)).tolist() == [value] * 5


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("sign", [Signed(), Unsigned()], ids=repr)
def test_the_largest_numbers_stay_finite(bits, sign):
    top = np.finfo(np.float32).max
    x = np.array([top, 0.6 * top, -top, 1.0], np.float32)
    values = np.asarray(jqz.fake_quantize(jnp.asarray(x), jqz.FixedPoint(bits=bits, sign=sign)), np.float64)
    assert np.isfinite(values).all()
    assert values[0] >= top / 2.01
    half = jqz.fake_quantize(jnp.array([65504.0, 300.0], jnp.float16), jqz.FixedPoint(bits=bits, sign=sign))
    assert half.dtype == jnp.float16
    assert half[0] == 65504 or bits == 2  # the grid says 65536


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (2, 1, 3)], ids=str)
def test_shapes(shape):
    q = jqz.quantize(jnp.full(shape, -0.75), jqz.FixedPoint(bits=4))
    assert q.shape == q.codes.shape == shape
    assert (jqz.dequantize(q) == -0.75).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(np.linspace(-1, 1, 31), dtype)
        q = jqz.quantize(x, jqz.FixedPoint(bits=6))
        assert q.grid.scale.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
        assert q.grid.scale.item() == 2.0**-4
        assert jqz.dequantize(q).dtype == dtype
        assert np.abs(np.asarray(jqz.dequantize(q), float) - np.asarray(x, float)).max() <= 2.0**-5


@pytest.mark.parametrize(("bits", "sign"), [(1, Signed()), (17, Signed()), (0, Unsigned()), (2.0, Signed())])
def test_refuses_other_widths(bits, sign):
    with pytest.raises(ValueError, match="FixedPoint: got bits"):
        jqz.FixedPoint(bits=bits, sign=sign)


@pytest.mark.parametrize("step", [0, -0.5, float("nan"), float("inf"), (1.0, 2.0), "1"])
def test_refuses_other_steps(step):
    with pytest.raises(ValueError, match="GivenStep: got step"):
        GivenStep(step)


@pytest.mark.parametrize("step", [Dynamic(), GivenStep()], ids=repr)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_quantize_sees_every_value_that_is_not_finite(value, step):
    x = np.ones((4097, 4), np.float32)
    x[2000, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        jqz.quantize(jnp.asarray(x), jqz.FixedPoint(step=step))


@pytest.mark.parametrize("sign", [Signed(), Unsigned()], ids=repr)
@pytest.mark.parametrize("bits", [2, 7, 8])
def test_affine_is_the_same_grid(bits, sign):
    scheme = jqz.FixedPoint(bits=bits, sign=sign, granularity=jqz.PerAxis(-1))
    q = jqz.quantize(jnp.asarray(X), scheme)
    affine = scheme.affine(q.grid)
    levels = np.asarray(affine.levels(q.codes))
    assert levels.dtype == np.int8
    assert np.abs(levels.astype(int)).max() <= affine.limit <= 128
    point = 0 if affine.zero_point is None else np.asarray(affine.zero_point, np.float32)
    assert np.array_equal(jqz.dequantize(q), np.asarray(affine.scale) * (levels.astype(np.float32) - point))
    assert (affine.zero_point is None) == (bits < 8 or isinstance(sign, Signed))


def test_no_affine_for_wide_codes():
    scheme = jqz.FixedPoint(bits=9)
    assert scheme.affine(scheme.calibrate(jnp.ones(3))) is None


def test_gradient_of_a_dynamic_step():
    x = jnp.array([-1.0, 0.0, 0.3, 1.0])
    assert jax.grad(lambda x: (jqz.fake_quantize(x, jqz.FixedPoint(bits=3)) * x).sum())(x).tolist() != [0.0] * 4
    signed = jax.grad(lambda x: jqz.fake_quantize(x, jqz.FixedPoint(bits=3)).sum())(x)
    assert signed.tolist() == [1, 1, 1, 1]
    unsigned = jax.grad(lambda x: jqz.fake_quantize(x, jqz.FixedPoint(bits=3, sign=Unsigned())).sum())(x)
    assert unsigned.tolist() == [0, 1, 1, 1]


def test_one_compilation_sweeps_bit_widths():
    sweep = jax.jit(lambda bits: jqz.fake_quantize(jnp.asarray(X), jqz.FixedPoint(bits=bits)))
    for bits in (2, 4, 8, 12):
        assert np.array_equal(sweep(jnp.int32(bits)), jqz.fake_quantize(jnp.asarray(X), jqz.FixedPoint(bits=bits)))
    assert sweep._cache_size() == 1


def test_a_chain_hands_fractions_to_the_inner_stage():
    scheme = jqz.FixedPoint(bits=8) >> jqz.Symmetric(bits=4)
    x = jnp.array([-1.0, 0.0, 0.5, 0.99])
    q = jqz.quantize(x, scheme)
    first, second = q.grid
    assert np.allclose(jqz.dequantize(q), np.asarray(q.codes, np.float32) * second.scale * first.scale, rtol=1e-6)
    assert scheme.affine(q.grid).scale.item() == pytest.approx((first.scale * second.scale).item())
