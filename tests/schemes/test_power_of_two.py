import dataclasses
import functools
import json
import pathlib
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz._ranges import MSE, AbsMax, Given, Percentile
from jqz.schemes import (
    INQ,
    Dense,
    Geometric,
    GivenTop,
    NNabla,
    NonNegative,
    PowerOfTwo,
    RealScale,
    Unscaled,
    WithoutZero,
)

GOLDEN = json.loads((pathlib.Path(__file__).parent.parent / "data" / "golden.json").read_text())
POSITIVE = NNabla(NonNegative())
ALL_CODES = NNabla(zero=WithoutZero())
POSITIVE_ALL_CODES = NNabla(NonNegative(), WithoutZero())


@functools.partial(jax.jit, static_argnums=0)
def _decoded(scheme, x):
    grid = scheme.calibrate(x)
    return scheme.decode(scheme.encode(x, grid), grid)


def decoded(scheme, x):
    return np.asarray(_decoded(scheme, jnp.asarray(x)))


def nearest(x, highest, count):
    """Brute force: the nearest of 0 and ``count`` powers of both signs, of two the larger."""
    powers = 2.0 ** (highest - np.arange(count, dtype=float))
    levels = np.concatenate([powers, [0.0]])
    distance = np.abs(np.abs(np.asarray(x, np.float64))[:, None] - levels)
    return np.sign(x) * levels[distance.argmin(1)]


def test_dense_codes_are_signed_indices_from_the_lowest_power():
    q = jqz.quantize(jnp.array([0.0, 1.0, -1.0, 0.25, -0.5]), PowerOfTwo(bits=3))
    assert q.codes.tolist() == [0, 3, -3, 1, -2]
    assert q.grid.scale.tolist() == [0.25]


@pytest.mark.parametrize(
    ("key", "bits", "codebook"),
    [
        ("n8_m1_signed_zero", 8, NNabla()),
        ("n4_m1_signed_zero", 4, NNabla()),
        ("n4_m1_signed_nozero", 4, ALL_CODES),
        ("n4_m1_unsigned_zero", 4, POSITIVE),
        ("n4_m1_unsigned_nozero", 4, POSITIVE_ALL_CODES),
    ],
)
def test_equals_nnabla_bit_for_bit(key, bits, codebook):
    golden = GOLDEN["pow2"]
    x = jnp.asarray(golden["x"], jnp.float32)
    scheme = PowerOfTwo(bits=bits, codebook=codebook, rounding=Geometric(), top=GivenTop(1))
    y, pull = jax.vjp(scheme.simulate, x)
    np.testing.assert_array_equal(y, np.float32(golden[key]))
    np.testing.assert_array_equal(
        pull(jnp.ones_like(x))[0], golden["grad_unsigned" if "unsigned" in key else "grad_signed"]
    )


def test_equals_inq():
    golden = GOLDEN["inq"]["q_b4_max1"]
    x = np.float32(golden["x"])
    np.testing.assert_array_equal(decoded(PowerOfTwo(bits=4, codebook=INQ()), x), np.float32(golden["y"]))
    for case, (n1, n2) in GOLDEN["inq"]["n1n2"].items():
        largest, bits = (part.split("=")[1] for part in case.split(","))
        x = np.float32([largest, float(largest) / -3])
        scheme = PowerOfTwo(bits=int(bits), codebook=INQ())
        assert scheme.calibrate(jnp.asarray(x)).scale == 2.0**n2, case
        assert decoded(scheme, x)[0] == 2.0**n1, case


def test_top_from_the_data_is_floor_log2_of_four_thirds_of_the_maximum():
    edges = (1.5 * 2.0 ** np.arange(-8, 9)).astype(np.float32)
    largest = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.float32([1e-30, 7e-20, 1e10, 3e38 / 2])])
    grid = PowerOfTwo(bits=4, granularity=jqz.PerAxis(0)).calibrate(jnp.asarray(largest))
    for value, lowest in zip(largest, np.asarray(grid.scale), strict=True):
        bound = Fraction(float(value)) * 4 / 3
        n1 = bound.numerator.bit_length() - bound.denominator.bit_length()
        n1 -= Fraction(2) ** n1 > bound
        assert lowest == 2.0 ** (n1 - 6)


def test_a_block_of_each_granularity_has_its_own_top():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((6, 5)) * 8.0 ** np.arange(5)).astype(np.float32)
    columns = [decoded(PowerOfTwo(bits=4), x[:, i]) for i in range(5)]
    np.testing.assert_array_equal(
        decoded(PowerOfTwo(bits=4, granularity=jqz.PerAxis(-1)), x), np.stack(columns, axis=1)
    )
    rows = [decoded(PowerOfTwo(bits=4), x[i : i + 4]) for i in (0, 4)]
    np.testing.assert_array_equal(
        decoded(PowerOfTwo(bits=4, granularity=jqz.PerBlock((4, 5))), x), np.concatenate(rows)
    )


def test_all_exponents_take_one_byte_and_no_calibration():
    scheme = PowerOfTwo(bits=None)
    assert scheme == PowerOfTwo(bits=8, top=GivenTop(31))
    assert scheme.bits == 8
    x = np.float32([2.0**31, 3.2e9, 3e38, 2.0**-95, 2.0**-96, 0.99 * 2.0**-96, 1e-45, -0.0, -(2.0**-40), 1.5])
    wanted = [2.0**31, 2.0**31, 2.0**31, 2.0**-95, 2.0**-95, 0, 0, 0, -(2.0**-40), 2]
    assert decoded(scheme, x).tolist() == wanted
    np.testing.assert_array_equal(scheme.calibrate(jnp.zeros((3, 2))).scale, [[2.0**-95]])
    loop = jax.make_jaxpr(lambda x: scheme.encode(x, scheme.calibrate(x)))(jnp.ones((3, 2)))
    assert not [eqn for eqn in loop.eqns if eqn.primitive.name.startswith("reduce")]
    exponents = np.arange(-95, 32)
    every = np.ldexp(np.float32(1.3), exponents) * np.where(exponents % 2, 1, -1)
    np.testing.assert_array_equal(decoded(scheme, every), np.ldexp(np.sign(every), exponents))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "scheme",
    [
        PowerOfTwo(bits=4),
        PowerOfTwo(bits=None),
        PowerOfTwo(bits=4, codebook=INQ(), top=GivenTop(0)),
        PowerOfTwo(bits=4, codebook=POSITIVE, top=GivenTop(0)),
        PowerOfTwo(bits=3, scale=RealScale(MSE(candidates=8))),
        PowerOfTwo(bits=3, scale=RealScale(Percentile(60.0))),
        PowerOfTwo(bits=4, codebook=ALL_CODES),
    ],
    ids=str,
)
def test_what_is_not_finite_shows(scheme, bad):
    x = jnp.ones(5000).at[1].set(bad)  # XLA's maximum of so many values on CPU does not see a NaN
    with pytest.raises(ValueError, match="'w' holds NaN or infinite values"):
        jqz.quantize({"w": x}, {"**/w": scheme})
    assert np.isnan(jqz.fake_quantize(x, scheme)[1]) or np.isinf(bad)
    if scheme.codebook.has_zero:  # a code says so, wherever the grid comes from
        for grid in (scheme.calibrate(x), scheme.calibrate(jnp.ones(5000))):
            assert np.isnan(scheme.decode(scheme.encode(x, grid), grid)[1])


def test_gradient_stops_above_the_top_only():
    x = jnp.array([0.0, 1e-9, -0.3, 1.0, 1.49, 1.5, -1.49, -1.5, 7.0])
    wanted = [1, 1, 1, 1, 1, 0, 1, 0, 0]
    given = PowerOfTwo(bits=4, top=GivenTop(0))
    assert jax.grad(lambda x: (given.simulate(x) * 3).sum())(x).tolist() == [3 * w for w in wanted]
    data = PowerOfTwo(bits=4)
    assert jax.grad(lambda x: data.simulate(x).sum())(x).tolist() == [1] * 9
    frozen = data.calibrate(jnp.array([1.0]))  # as INQ keeps it
    assert jax.grad(lambda x: data.simulate(x, frozen).sum())(x).tolist() == wanted
    real = PowerOfTwo(bits=3, scale=RealScale(Given(-1.2, 1.2)))
    x = jnp.array([1.2, 1.79, 1.81, -1.79, -1.81])
    assert jax.grad(lambda x: real.simulate(x).sum())(x).tolist() == [1, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("scheme", "limit"),
    [
        (PowerOfTwo(bits=4), 64),
        (PowerOfTwo(bits=2), 1),
        (PowerOfTwo(bits=4, codebook=INQ()), 8),
        (PowerOfTwo(bits=3, codebook=ALL_CODES), 8),
        (PowerOfTwo(bits=3, codebook=POSITIVE), 8),
        (PowerOfTwo(bits=4, scale=RealScale(Percentile(90.0))), 64),
    ],
    ids=str,
)
def test_levels_are_integers_up_to_four_bits(scheme, limit):
    x = jnp.asarray(np.random.default_rng(2).standard_normal((40, 3)), jnp.float32)
    grid = scheme.calibrate(x)
    affine = scheme.affine(grid)
    assert affine.zero_point is None
    assert affine.limit == limit
    codes = scheme.encode(x, grid)
    levels = affine.levels(codes)
    assert levels.dtype == jnp.int8
    assert int(jnp.abs(levels).max()) == limit
    np.testing.assert_array_equal(np.float32(levels) * np.asarray(affine.scale), scheme.decode(codes, grid))


def test_levels_beyond_int8_have_no_affine_form():
    for scheme in (
        PowerOfTwo(bits=5),
        PowerOfTwo(bits=None),
        PowerOfTwo(bits=5, codebook=INQ()),
        PowerOfTwo(bits=4, codebook=ALL_CODES),
        PowerOfTwo(bits=jnp.int32(4)),
    ):
        assert scheme.affine(PowerOfTwo(bits=4).calibrate(jnp.ones(3))) is None


def test_chain_after_symmetric_stores_four_bits_and_keeps_integer_levels():
    x = jnp.asarray(np.random.default_rng(3).standard_normal((30, 6)), jnp.float32)
    scheme = jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1)) >> PowerOfTwo(bits=4)
    q = jqz.quantize(x, scheme)
    assert q.payload.nbytes == 30 * 3
    assert q.grid[1].scale.tolist() == [[2.0]]  # 127 rounds to 128 = 64 * 2
    affine = scheme.affine(q.grid)
    levels = np.asarray(affine.levels(q.codes))
    assert levels.dtype == np.int8
    assert set(np.abs(levels).ravel()) <= {0, 1, 2, 4, 8, 16, 32, 64}
    np.testing.assert_array_equal(np.float32(levels) * np.asarray(affine.scale), jqz.dequantize(q))
    # by hand: round to int8, then to the nearest power
    step = np.abs(np.asarray(x)).max(0, keepdims=True) / np.float32(127)
    codes = np.round(np.asarray(x) / step)
    wanted = nearest(codes.ravel(), 7, 7).reshape(x.shape)
    np.testing.assert_allclose(jqz.dequantize(q), wanted * step, rtol=1e-6)


def sqnr(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return 10 * np.log10((x**2).sum() / ((x - y) ** 2).sum())


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(1)
    n = 32768
    return {"gauss": np.float32(rng.standard_normal(n)), "laplace": np.float32(rng.laplace(size=n) / np.sqrt(2))}


# published in INQ-style codebooks: Gaussian and Laplace, 5/4/3/2 bits
@pytest.mark.parametrize(
    ("scale", "rows"),
    [
        (Unscaled(), {"gauss": (14.3, 13.5, 4.7, 0.6), "laplace": (14.2, 10.4, 1.9, 0.2)}),
        (RealScale(), {"gauss": (14.3, 14.0, 10.8, 7.2), "laplace": (14.2, 13.3, 8.7, 5.7)}),
    ],
)
def test_sqnr_of_inq_codebooks(samples, scale, rows):
    for name, row in rows.items():
        for bits, wanted in zip((5, 4, 3, 2), row, strict=True):
            y = decoded(PowerOfTwo(bits=bits, codebook=INQ(), scale=scale), samples[name])
            assert sqnr(samples[name], y) == pytest.approx(wanted, abs=0.2), (name, bits)


def test_sqnr_of_all_exponents(samples):
    for name, arithmetic, geometric in (("gauss", 14.26, 13.89), ("laplace", 14.21, 13.83)):
        x = samples[name]
        assert sqnr(x, decoded(PowerOfTwo(bits=None), x)) == pytest.approx(arithmetic, abs=0.1)
        assert sqnr(x, decoded(PowerOfTwo(bits=None, rounding=Geometric()), x)) == pytest.approx(geometric, abs=0.1)


@pytest.mark.parametrize("codebook", [Dense(), INQ()])
def test_real_scale_search_is_near_the_best_of_all_scales(samples, codebook):
    x = samples["gauss"][:4000]
    for bits in (2, 3, 4):
        count = {"Dense()": (1, 3, 7), "INQ()": (1, 2, 4)}[repr(codebook)][bits - 2]
        best = max(sqnr(x, nearest(x / s, 0, count) * s) for s in np.abs(x).max() * 2.0 ** np.linspace(-3, 0.6, 60))
        got = sqnr(x, decoded(PowerOfTwo(bits=bits, codebook=codebook, scale=RealScale()), x))
        assert got > best - 0.05, bits


def test_real_scale_levels_are_the_scale_times_powers():
    x = jnp.array([0.9, -0.45, 0.3, 0.1, 0.0])
    scheme = PowerOfTwo(bits=3, scale=RealScale(AbsMax()))
    grid = scheme.calibrate(x)
    assert grid.scale.tolist() == [np.float32(0.9) / 4]
    assert scheme.encode(x, grid).tolist() == [3, -2, 1, 0, 0]
    assert scheme.decode(scheme.encode(x, grid), grid).tolist() == [np.float32(v) for v in (0.9, -0.45, 0.225, 0, 0)]


@pytest.mark.parametrize("scale", [Unscaled(), RealScale(AbsMax())])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_extreme_magnitudes(bits, scale):
    scheme = PowerOfTwo(bits=bits, scale=scale, granularity=jqz.PerAxis(0))
    largest = np.float32([3.4e38, 2.0**127, 1.3e38, 1e20, 1e-20, 1e-37, 2.0**-125, 1.5 * 2.0**-126, 1e-39, 1e-45, 0])
    x = np.stack([largest, -largest / 2, largest / 3], axis=1)
    y = decoded(scheme, x)
    assert np.isfinite(y).all()
    normal = np.abs(x) >= 2.0**-125
    near = normal[:, 0] & (largest < 2.5e38)  # beyond, 2**128 would be nearer
    assert (np.abs(y - x)[near, 0] <= np.abs(x)[near, 0] / 2.9).all()
    np.testing.assert_array_equal(y[largest < 2.0**-126], 0)
    grid = scheme.calibrate(jnp.asarray(x))
    assert np.isfinite(grid.scale).all()
    assert (np.asarray(grid.scale) >= 2.0**-126).all()
    np.testing.assert_array_equal(scheme.decode(scheme.encode(jnp.asarray(y), grid), grid), y)


def test_empty_scalar_constant_and_zero():
    scheme = PowerOfTwo(bits=4)
    assert decoded(scheme, np.zeros((0, 3), np.float32)).shape == (0, 3)
    assert decoded(scheme, np.float32(-0.3)) == -0.25
    assert decoded(scheme, np.full(4, 0.1, np.float32)).tolist() == [0.125] * 4
    assert decoded(scheme, np.float32([0.0, -0.0])).tolist() == [0, 0]
    assert scheme.calibrate(jnp.zeros(3)).scale.tolist() == [1]
    # an empty channel stays next to nothing also where zero is no level
    tiny = decoded(PowerOfTwo(bits=4, codebook=ALL_CODES, granularity=jqz.PerAxis(0)), np.float32([[0], [1]]))
    assert 0 < tiny[0, 0] < 1e-37


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_follow_the_values(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray([1.0, -0.3, 3.0, 0.02], dtype)
        for scheme in (PowerOfTwo(bits=4), PowerOfTwo(bits=None), PowerOfTwo(bits=4, scale=RealScale(AbsMax()))):
            q = jqz.quantize(x, scheme)
            assert q.grid.scale.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
            assert jqz.dequantize(q).dtype == x.dtype
            np.testing.assert_array_equal(jqz.dequantize(q), jqz.fake_quantize(x, scheme))
        assert jqz.fake_quantize(x, PowerOfTwo(bits=None)).tolist() == [1, -0.25, 4, float(jnp.asarray(2.0**-6))]


def test_half_precision_never_rounds_to_infinity():
    x = jnp.asarray([65504.0, -60000.0, 3.0], jnp.float16)
    for scheme in (PowerOfTwo(bits=8), PowerOfTwo(bits=None), PowerOfTwo(bits=4, top=GivenTop(20))):
        y = jqz.dequantize(jqz.quantize(x, scheme))
        assert y.tolist()[:2] == [65504, -65504]  # 2**16 is no float16


def test_float64_has_its_own_range():
    with jax.enable_x64(True):
        x = jnp.array([1e-200, -1.6e-200, 0.0])
        y = decoded(PowerOfTwo(bits=4), x)
        k = np.floor(np.log2(1e-200))
        assert y.tolist() in ([2.0**k, -(2.0 ** (k + 1)), 0], [2.0 ** (k + 1), -(2.0 ** (k + 1)), 0])
        assert np.abs(y / np.where(x == 0, 1, x) - 1)[:2].max() <= 1 / 3


def test_one_compilation_sweeps_the_bits():
    x = jnp.asarray(np.random.default_rng(5).standard_normal(50), jnp.float32)
    for scheme in (PowerOfTwo(), PowerOfTwo(codebook=INQ(), scale=RealScale(MSE(candidates=8)))):
        traces = []

        @jax.jit
        def sweep(x, bits, scheme=scheme, traces=traces):
            traces.append(bits)
            y, pull = jax.vjp(dataclasses.replace(scheme, bits=bits).simulate, x)
            return y, pull(x)[0]

        for bits in (2, 3, 5, 8):
            fixed = dataclasses.replace(scheme, bits=bits)
            got, gradient = sweep(x, jnp.int32(bits))
            np.testing.assert_array_equal(got, decoded(fixed, x), err_msg=str(bits))
            assert gradient.shape == x.shape
        assert len(traces) == 1


def test_stacked_layers_slice_under_scan():
    x = jnp.asarray(np.random.default_rng(6).standard_normal((3, 4, 5)), jnp.float32)
    for scheme in (
        PowerOfTwo(bits=4, granularity=jqz.PerAxis((0, -1))),
        PowerOfTwo(bits=None, granularity=jqz.PerAxis(0)),
    ):
        q = jqz.quantize(x, scheme)
        _, y = jax.lax.scan(lambda carry, layer: (carry, layer.dequantize()), 0, q)
        np.testing.assert_array_equal(y, jqz.dequantize(q))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 1}, r"PowerOfTwo: got bits=1, wanted an integer from 2 to 8. Use Binary\(\)"),
        ({"bits": 9}, "from 2 to 8"),
        ({"bits": 2, "codebook": NNabla()}, "from 3 to 8"),
        ({"bits": None, "codebook": INQ()}, r"got bits=None with INQ\(\).*Use PowerOfTwo\(bits=8"),
        ({"bits": None, "scale": RealScale()}, "all exponents need no scale"),
        ({"top": GivenTop(0), "scale": RealScale()}, "both place the levels.*RealScale"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PowerOfTwo(**fields)


@pytest.mark.parametrize("exponent", [128, -127, 0.5])
def test_given_top_wants_an_exponent_of_float32(exponent):
    with pytest.raises(ValueError, match="wanted an integer from -126 to 127"):
        GivenTop(exponent)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="wanted a floating dtype"):
        PowerOfTwo().calibrate(jnp.arange(3))
