"""NNabla's functions under jit and vmap, in every dtype, and what they refuse."""

import jax
import jax.numpy as jnp
import pytest
from test_nnabla import bits, sample, value_and_slope

import jqz
from jqz import nnabla

FUNCTIONS = {
    "sign": nnabla.sign,
    "binary_tanh": nnabla.binary_tanh,
    "binary_sigmoid": nnabla.binary_sigmoid,
    "fixed_point": lambda x: nnabla.fixed_point_quantize(x, delta=0.1),
    "pow2": nnabla.pow2_quantize,
    "min_max": lambda x: nnabla.min_max_quantize(x, -0.7, 0.9)[0],
    "min_max_measured": lambda x: nnabla.min_max_quantize(x, -6.0, 6.0, x_min_max=True, ema=True)[0],
    "binary_weight": nnabla.binary_weight,
    "inq": nnabla.inq_quantize,
}
EXACT = [name for name in FUNCTIONS if name != "binary_weight"]  # a mean depends on the order of its sum


@pytest.mark.parametrize("name", EXACT)
def test_jit_gives_the_same_bits(name):
    x = jnp.asarray(sample(1.0, 4096)[6:])
    assert bits(jax.jit(FUNCTIONS[name])(x)) == bits(FUNCTIONS[name](x))


@pytest.mark.parametrize("name", EXACT)
def test_vmap_is_a_loop(name):
    x = jnp.asarray(sample(1.0)[6:].reshape(3, 26, 3))
    value, gradient = jax.vmap(lambda x: value_and_slope(FUNCTIONS[name], x))(x)
    for i in range(3):
        one, slope = value_and_slope(FUNCTIONS[name], x[i])
        assert bits(value[i]) == bits(one)
        assert gradient[i].tolist() == slope.tolist()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_types_are_computed_in_float32(name, dtype):
    x = jnp.asarray(sample(1.0, 60)[6:]).astype(dtype)
    value, pull = jax.vjp(FUNCTIONS[name], x)
    want, wide_pull = jax.vjp(FUNCTIONS[name], x.astype(jnp.float32))
    assert value.dtype == dtype
    assert bits(value.astype(jnp.float32)) == bits(want.astype(dtype).astype(jnp.float32))
    assert pull(jnp.ones_like(value))[0].tolist() == wide_pull(jnp.ones_like(want))[0].tolist()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_scalars_and_empty_arrays(name, shape):
    y = FUNCTIONS[name](jnp.full(shape, 0.5))
    assert y.shape == shape
    assert bool(jnp.isfinite(y).all())


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "sign" not in name and "binary" not in name])
def test_nan_shows(name):
    assert jnp.isnan(FUNCTIONS[name](jnp.asarray([1.0, jnp.nan]))[1])


def test_quantize_false_returns_the_input():
    x = jnp.asarray([0.123, 9.0])
    assert nnabla.fixed_point_quantize(x, quantize=False).tolist() == x.tolist()
    assert nnabla.pow2_quantize(x, quantize=False).tolist() == x.tolist()
    y, (low, high) = nnabla.min_max_quantize(x, -1.0, 1.0, quantize=False)
    assert (y.tolist(), float(low), float(high)) == (x.tolist(), -1.0, 1.0)


def test_arguments_stand_in_nnablas_order():
    x = jnp.asarray(sample(2.0)[6:])
    assert bits(nnabla.fixed_point_quantize(x, False, 4, 0.25, True, False)) == bits(
        nnabla.fixed_point_quantize(x, sign=False, n=4, delta=0.25, quantize=True, ste_fine_grained=False)
    )
    assert bits(nnabla.pow2_quantize(x, False, False, 4, 0, True, False)) == bits(
        nnabla.pow2_quantize(x, sign=False, with_zero=False, n=4, m=0, quantize=True, ste_fine_grained=False)
    )
    a = nnabla.min_max_quantize(x, -1.0, 1.0, 1, 9, 0.5, True, True, False, 0.1, True)
    b = nnabla.min_max_quantize(
        x, qr_min=-1.0, qr_max=1.0, ql_min=1, ql_max=9, decay=0.5, x_min_max=True, ema=True, eps=0.1
    )
    assert [bits(leaf) for leaf in jax.tree.leaves(a)] == [bits(leaf) for leaf in jax.tree.leaves(b)]


ONE = jnp.ones((2, 3))
REFUSED = [
    (lambda: nnabla.fixed_point_quantize(ONE, n=1), "n=1"),
    (lambda: nnabla.fixed_point_quantize(ONE, sign=False, n=0), "n=0"),
    (lambda: nnabla.fixed_point_quantize(ONE, n=2.5), "n=2.5"),
    (lambda: nnabla.fixed_point_quantize(ONE, delta=0.0), "delta=0.0"),
    (lambda: nnabla.fixed_point_quantize(ONE, delta=float("nan")), "delta=nan"),
    (lambda: nnabla.pow2_quantize(ONE, n=2), "n=2.*sign and zero"),
    (lambda: nnabla.pow2_quantize(ONE, sign=False, n=1), "n=1.*zero"),
    (lambda: nnabla.pow2_quantize(ONE, m=128), "m=128"),
    (lambda: nnabla.pow2_quantize(ONE, m=0.5), "m=0.5"),
    (lambda: nnabla.min_max_quantize(ONE, -1, 1, 255, 0), "255 to 0"),
    (lambda: nnabla.min_max_quantize(ONE, -1, 1, jnp.ones((1, 1)), jnp.ones((1, 1))), "ql_min < ql_max"),
    (lambda: nnabla.min_max_quantize(ONE, -1, 1, eps=0.0), "eps=0.0"),
    (lambda: nnabla.min_max_quantize(ONE, -1, 1, decay=1.5), "decay=1.5"),
    (lambda: nnabla.min_max_quantize(ONE, jnp.zeros((1, 2)), jnp.ones((1, 2))), r"x \(2, 3\), qr_min \(1, 2\)"),
    (lambda: nnabla.min_max_quantize(ONE, jnp.zeros(3), jnp.ones(3)), r"qr_min \(3,\)"),
    (lambda: nnabla.min_max_quantize(ONE, jnp.zeros((1, 1)), 1.0), r"qr_max \(\)"),
    (lambda: nnabla.min_max_quantize(ONE, -1.0, 1.0, jnp.zeros((1, 3)), 9), r"ql_min \(1, 3\)"),
    (lambda: nnabla.inq_quantize(ONE, num_bits=1), "num_bits=1"),
]


@pytest.mark.parametrize(("call", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_refused_arguments(call, says):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_integers_are_refused(name):
    with pytest.raises(TypeError, match="wanted a floating dtype"):
        FUNCTIONS[name](jnp.arange(3))


def test_the_namespace():
    assert jqz.nnabla is nnabla
    assert nnabla.sign(jnp.ones(2)).tolist() == [1.0, 1.0]
