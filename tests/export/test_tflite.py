"""Files for LiteRT against its interpreter: XNNPACK and the reference kernels."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import jqz
import jqz.export

RUNTIMES = {
    "xnnpack": (jqz.requant.XNNPACK(), OpResolverType.AUTO),
    "reference": (jqz.Gemmlowp(), OpResolverType.BUILTIN_REF),
}


def litert(file, x, resolver=OpResolverType.AUTO):
    interpreter = Interpreter(model_content=file, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    details = interpreter.get_output_details()
    return [interpreter.get_tensor(d["index"]) for d in details], [d["quantization"] for d in details]


def input_codes(file, x):
    details = Interpreter(model_content=file).get_input_details()[0]
    (scale, zero_point), ends = details["quantization"], np.iinfo(details["dtype"])
    return np.clip(np.rint(x / np.float32(scale)) + zero_point, ends.min, ends.max).astype(details["dtype"])


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_codes_are_ours(name, runtime):
    net, x = networks.case(name)
    rule, resolver = RUNTIMES[runtime]
    file = jqz.export.tflite(net, x, interface=jqz.export.Codes())
    got, grids = litert(file, input_codes(file, x), resolver)
    want = networks.wanted(name, rule)
    assert len(got) == len(want)
    for theirs, (scale, zero_point), ours in zip(got, grids, want, strict=True):
        if theirs.dtype == np.int8:
            codes = np.rint(ours / np.float32(scale)) + zero_point
            assert len(np.unique(codes)) > 20
            np.testing.assert_array_equal(theirs, codes)
        else:  # softmax and the like are float32 on the same codes
            np.testing.assert_allclose(theirs, ours, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", ["mobile", "lenet", "branches", "sums", "means"])
def test_sixteen_bits(name):
    net, x = networks.case(name, networks.LONG)
    assert net.requant == jqz.requant.Int16x8()
    file = jqz.export.tflite(net, x, interface=jqz.export.Codes())
    want = jax.tree.leaves(net(x))
    for resolver in (OpResolverType.BUILTIN_REF, OpResolverType.AUTO):
        got, grids = litert(file, input_codes(file, x), resolver)
        for theirs, (scale, _), ours in zip(got, grids, want, strict=True):
            if theirs.dtype == np.int16:
                assert np.abs(theirs).max() > 2**14
                np.testing.assert_array_equal(theirs, np.rint(ours / np.float32(scale)))
            else:
                np.testing.assert_allclose(theirs, ours, rtol=2e-6, atol=2e-7)


def test_fewer_than_sixteen_bits():
    """And a weight with one scale, a dead channel with a bias beyond 32 bits, and sums of the same codes."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((40, 6), (6, 6)))
    w[:, 2] = 0
    gamma = np.float32([1, -1, 0, 1e-12, 2, 1])

    def fn(params, x):
        y = (x @ params["w"]) * gamma[None] + 0.5
        return y + jax.nn.relu(y)

    policy = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Symmetric(bits=12))
    net = jqz.export.complete(jqz.convert(fn, {"w": jnp.asarray(w)}, [x], policy), x)
    file = jqz.export.tflite(net, x, interface=jqz.export.Codes())
    ends = 2**11 - 1
    codes = np.clip(input_codes(file, x), -ends, ends)
    (theirs,), ((scale, _),) = litert(file, codes, OpResolverType.BUILTIN_REF)
    np.testing.assert_array_equal(theirs, np.rint(np.asarray(net(x)) / np.float32(scale)))
    assert ends // 2 < np.abs(theirs).max() <= ends
    np.testing.assert_allclose(net(x), fn(jqz.dequantize(net.qparams), x), atol=0.03)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_dense_layers_with_one_scale(runtime):
    rule, resolver = RUNTIMES[runtime]
    params, x = networks.kernels(a_kernel=(20, 30)), np.random.default_rng(3).standard_normal((100, 20))
    x = x.astype(np.float32)
    policy = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Asymmetric(bits=8))
    net = jqz.export.complete(jqz.convert(lambda params, x: x @ params["a/kernel"], params, [x], policy), x)
    file = jqz.export.tflite(net, x, interface=jqz.export.Codes())
    (theirs,), ((scale, zero_point),) = litert(file, input_codes(file, x), resolver)
    ours = dataclasses.replace(net, requant=rule)(x)
    assert len(file) < 20 * 30 + 30 * 4 + 3_000  # a bias for each channel, but no scale
    np.testing.assert_array_equal(theirs, np.rint(np.asarray(ours) / np.float32(scale)) + zero_point)


def test_values_in_and_out():
    net, x = networks.case("mobile")
    file = jqz.export.tflite(net, x[:1])
    scale = float(net.sites["(result)"].grid.scale.reshape(()))
    apart = [np.abs(litert(file, x[i : i + 1])[0][0] - networks.wanted("mobile", jqz.requant.XNNPACK())[0][i]).max()
             for i in range(10)]  # fmt: skip
    assert max(apart) < 2.5 * scale  # a tie at the input may fall otherwise
    assert np.median(apart) < 1e-6


@pytest.mark.parametrize("name", ["mobile", "lenet", "branches"])
def test_floats_are_the_float_function(name):
    """Of the weights' values: what stands between the two is the rounding of activations alone."""
    net, x = networks.case(name)
    file = jqz.export.tflite(net, x, numbers=jqz.export.Floats())
    exact = jax.tree.leaves(net.fn(jqz.dequantize(net.qparams), x))
    for theirs, ours in zip(litert(file, x)[0], exact, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=2e-3)


@pytest.mark.parametrize("name", networks.FORMATS)
def test_weights_alone_are_coded(name):
    net, x = networks.weights_only(name)
    file = jqz.export.tflite(net, x)
    np.testing.assert_allclose(litert(file, x)[0][0], net(x), rtol=1e-5, atol=1e-5)
    weights = networks.FORMATS[name][1] * (3 * 3 * 2 * 8 + 200 * 64 + 64 * 5)
    assert weights < len(file) < weights + 6_000


def test_four_bits_are_half_a_byte():
    net, x = networks.four_bits()
    file = jqz.export.tflite(net, x, interface=jqz.export.Codes())
    wanted = np.asarray(dataclasses.replace(net, requant=jqz.Gemmlowp())(x))
    (theirs,), ((scale, zero_point),) = litert(file, input_codes(file, x), OpResolverType.BUILTIN_REF)
    codes = np.rint(wanted / np.float32(scale)) + zero_point
    np.testing.assert_array_equal(theirs, codes)
    (theirs,), _ = litert(file, input_codes(file, x))  # its own kernels, where XNNPACK has none
    assert np.abs(theirs - codes).max() <= 2
    assert len(file) < 64 * 64 * 2 / 2 + 5_000


def test_weights_take_a_byte_each():
    net, x = networks.case("mobile")
    codes = sum(leaf.codes.size for leaf in _qtensors(net.qparams))
    assert codes < len(jqz.export.tflite(net, x[:1])) < codes + 12_000


def _qtensors(tree):
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, jqz.QTensor))
    return [leaf for leaf in leaves if isinstance(leaf, jqz.QTensor)]


def test_without_the_extra(monkeypatch):
    net, x = networks.case("nnx")
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ImportError, match=r"pip install 'jqz\[tflite\]'"):
        jqz.export.tflite(net, x)


ASYMMETRIC = jqz.Asymmetric(bits=8)


def refused(fn, weight_scheme=None, inputs=ASYMMETRIC, **params):
    """The message for a function that has no operators."""
    policy = jqz.Policy(weight_scheme or jqz.Symmetric(bits=8), inputs=inputs)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6)), jnp.float32)
    net = jqz.convert(fn, {"w": jnp.eye(6), **params}, [x], policy)
    with pytest.raises(ValueError, match="export: ") as caught:
        jqz.export.tflite(net, x)
    return str(caught.value)


def test_refusals_name_the_equation_and_its_line():
    message = refused(lambda params, x: jnp.sort(x @ params["w"]))
    assert message.startswith("export: sort of (4, 6) at ")
    assert "test_tflite.py:" in message
    assert refused(lambda params, x: (x @ params["w"])[::-1]).startswith("export: rev of (4, 6) at ")
    assert "expm1 of (4, 6) at " in refused(lambda params, x: jnp.expm1(x @ params["w"]))
    assert "an input in float32 meets codes" in refused(lambda params, x: (x * 2) * (x @ params["w"]))
    assert "mul of (4, 6), " in refused(lambda params, x: (x @ params["w"] + x) * 0.5)
    message = refused(
        lambda params, x: (x @ params["w"]) @ (x @ params["w"]).T, inputs={"**/(dot*)": ASYMMETRIC, "**": ASYMMETRIC}
    )
    assert "Leave '(dot lhs)' out of inputs" in message
    assert "Use Symmetric(bits=8" in refused(lambda params, x: x @ params["w"], jqz.Asymmetric(bits=8))
    assert "PerAxis(1)" in refused(lambda params, x: x @ params["w"], jqz.Symmetric(bits=8, granularity=jqz.PerAxis(0)))


def test_bounds_that_no_activation_has_keep_the_kernels():
    """A clip, or fewer bits, behind a dense layer: XNNPACK computes it still, with the codes of its rule."""
    rng = np.random.default_rng(0)
    params, x = (
        {"w": jnp.asarray(rng.normal(size=(8, 6)) / 3, jnp.float32)},
        rng.normal(size=(2000, 8)).astype(np.float32),
    )
    policy = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Asymmetric(bits=8))
    net = jqz.convert(lambda params, x: jnp.clip(x @ params["w"], -0.3, 0.7), params, [x], policy)
    net = jqz.export.complete(net, x)
    file = jqz.export.tflite(net, x, interface=jqz.export.Codes())
    for rule, resolver in RUNTIMES.values():
        (theirs,), ((scale, zero_point),) = litert(file, input_codes(file, x), resolver)
        ours = np.rint(np.asarray(dataclasses.replace(net, requant=rule)(x)) / np.float32(scale)) + zero_point
        np.testing.assert_array_equal(theirs, ours)


def test_padding_is_of_zeros_and_places_are_inside():
    def padded(value):
        return lambda params, x: jnp.pad(x @ params["w"], ((0, 0), (0, 1)), constant_values=value)

    assert "pad of (4, 6), () at " in refused(padded(1.0))
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    policy = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Asymmetric(bits=8))

    def made(fn):
        net = jqz.export.complete(jqz.convert(fn, {"w": jnp.eye(6)}, [x], policy), x)
        return litert(jqz.export.tflite(net, x), x)[0][0], net(x)

    np.testing.assert_array_equal(made(padded(0.0))[0][:, 6], 0)
    for mode in ("clip", "wrap"):
        theirs, ours = made(lambda params, x, mode=mode: jnp.take(x @ params["w"], np.array([7, 0]), axis=1, mode=mode))
        np.testing.assert_allclose(theirs, ours, atol=0.03)
    outside = refused(lambda params, x: (x @ params["w"]).at[:, np.array([7, 0])].get(mode="promise_in_bounds"))
    assert "wanted places from 0 to 5" in outside


def test_constants_in_codes():
    """Behind a function they are numbers; folded into a product they would be rounded otherwise than jqz does."""
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    params = {"w": jnp.eye(6), "table": jnp.ones((4, 6)), "bias": jnp.linspace(0, 1, 6)}
    policy = jqz.Policy({"**/{w,table,bias}": jqz.Symmetric(bits=8)}, inputs=jqz.Asymmetric(bits=8))
    net = jqz.convert(lambda params, x: jax.nn.gelu(x @ params["w"]) + params["table"], params, [x], policy)
    net = jqz.export.complete(net, x)
    np.testing.assert_allclose(litert(jqz.export.tflite(net, x), x)[0][0], net(x), atol=0.03)
    net = jqz.convert(lambda params, x: x @ params["w"] + params["bias"][None], params, [x], policy)
    with pytest.raises(ValueError, match=r"add of .* a bias or scale in codes meets a sum that is not rounded yet"):
        jqz.export.tflite(net, x)


@pytest.mark.parametrize(
    "wrong", [{"interface": jqz.export.Values}, {"interface": "codes"}, {"numbers": jqz.export.Floats}]
)
def test_classes_need_their_parentheses(wrong):
    net, x = networks.case("mobile")
    with pytest.raises(TypeError, match=f"export: got {next(iter(wrong))}="):
        jqz.export.tflite(net, x, **wrong)
    with pytest.raises(TypeError, match=r"export: got \w+, wanted a Net"):
        jqz.export.tflite(net.fn, x)


def test_refusals_found_later_name_an_equation_too():
    message = refused(lambda params, x: jax.nn.log_softmax(x @ params["w"]))
    assert "log of (4, 1) at " in message
    assert "the sum of a softmax is used by itself" in message
    net = jqz.convert(lambda params, x: x @ params["w"], {"w": jnp.eye(6)}, [np.ones((4, 6), np.float32)], jqz.Policy(
        jqz.Symmetric(bits=8), inputs=ASYMMETRIC))  # fmt: skip
    with pytest.raises(TypeError, match="export: got an input of int32, wanted float32"):
        jqz.export.tflite(net, np.ones((4, 6), np.int32))
