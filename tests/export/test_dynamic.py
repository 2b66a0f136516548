"""Files whose activations LiteRT codes on the fly, against dynamic inference."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import jqz
import jqz.export

SPEC = ("NHWC", "HWIO", "NHWC")


def dense(params, x):
    return jax.nn.relu(x @ params["w"] + params["b"][None])


def rows(params, x):
    return x @ params["w"]


def convolution(params, x):
    return jax.lax.conv_general_dilated(x, params["w"], (1, 2), "SAME", dimension_numbers=SPEC)


def depthwise(params, x):
    return jax.lax.conv_general_dilated(x, params["w"], (1, 1), "SAME", dimension_numbers=SPEC, feature_group_count=8)


#: A function, the shapes of its weights and input, the bits of weights, and the axes of the input with a grid for each.
CASES = {
    "dense": (dense, {"w": (64, 32), "b": (32,)}, (16, 64), 8, 0),
    "rows": (rows, {"w": (24, 32)}, (4, 6, 24), 8, (0, 1)),
    "convolution": (convolution, {"w": (3, 3, 8, 16)}, (16, 6, 6, 8), 8, 0),
    "depthwise": (depthwise, {"w": (3, 3, 1, 8)}, (16, 6, 6, 8), 8, 0),
    "int4": (dense, {"w": (64, 32), "b": (32,)}, (16, 64), 4, 0),
}


def litert(file, x, resolver):
    interpreter = Interpreter(model_content=file, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    kinds = {details["op_name"] for details in interpreter._get_ops_details()}
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), kinds


@pytest.mark.parametrize("name", CASES)
def test_activations_are_coded_as_ours(name):
    fn, shapes, shape, bits, axes = CASES[name]
    params = networks.kernels(**shapes)
    rng = np.random.default_rng(1)
    spread = np.exp(rng.uniform(-2, 2, (*shape[: 1 + (axes == (0, 1))], *[1] * (len(shape) - 1 - (axes == (0, 1))))))
    x = np.float32(rng.standard_normal(shape) * spread + 0.3)
    scheme = jqz.Symmetric(bits=bits, granularity=jqz.PerAxis(-1))
    net = jqz.convert(fn, params, [], jqz.Policy({"w": scheme}))
    file = jqz.export.tflite(net, x, numbers=jqz.export.Dynamic())
    inputs = jqz.Asymmetric(bits=8, granularity=jqz.PerAxis(axes))
    ours = np.asarray(jax.jit(jqz.quantized(fn, inputs=inputs))(net.qparams, x))
    for resolver in (OpResolverType.AUTO, OpResolverType.BUILTIN_REF):
        theirs, kinds = litert(file, x, resolver)
        assert "DEQUANTIZE" not in kinds
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-6 * np.abs(ours).max())
    assert np.abs(ours - np.asarray(net(x))).max() > 1e-4 * np.abs(ours).max()  # else nothing is shown


def test_a_whole_net():
    """A code may fall otherwise between layers, where a function's last place decides a tie."""
    net, x = networks.weights_only("int8")
    file = jqz.export.tflite(net, x, numbers=jqz.export.Dynamic())
    inputs = jqz.Asymmetric(bits=8, granularity=jqz.PerAxis(0))
    ours = np.asarray(jax.jit(jqz.quantized(net.fn, inputs=inputs))(net.qparams, x))
    theirs, kinds = litert(file, x, OpResolverType.AUTO)
    assert "DEQUANTIZE" not in kinds
    assert np.median(np.abs(theirs - ours)) < 1e-5
    assert np.abs(theirs - ours).max() < 0.01 * np.abs(ours).max()


def test_onnx_refuses():
    net, x = networks.weights_only("int8")
    with pytest.raises(ValueError, match=r"got numbers=Dynamic\(\), which is for tflite"):
        jqz.export.onnx(net, jnp.asarray(x), numbers=jqz.export.Dynamic())
