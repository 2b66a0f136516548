"""Headers, compiled by the system's C compiler, against jqz in integers."""

import ctypes
import dataclasses
import subprocess

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax import linen as nn

import jqz
import jqz.export


class LeNet5(nn.Module):
    """Two convolutions, max pooling, flattening, three dense layers."""

    @nn.compact
    def __call__(self, x):
        for features, padding in ((6, "SAME"), (16, "VALID")):
            x = nn.max_pool(nn.relu(nn.Conv(features, (5, 5), padding=padding)(x)), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(10)(nn.relu(nn.Dense(84)(nn.relu(nn.Dense(120)(x)))))


class Depthwise(nn.Module):
    """Strided, dilated, grouped and depthwise convolutions, batch norm with a dead and a negative channel, relu6."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), 2, use_bias=False)(x)
        x = nn.relu6(nn.BatchNorm(use_running_average=True)(x))
        y = nn.relu(nn.Conv(16, (3, 3), feature_group_count=8)(x))
        y = nn.Conv(8, (3, 3), padding=((2, 2), (1, 3)), kernel_dilation=2, feature_group_count=2)(y)
        x = nn.relu(x + y)
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (0, 1)))


def moves(params, x):
    """Channels first; transposed, sliced, padded, concatenated; two results; a bound of its own."""
    spec = ("NCHW", "HWIO", "NCHW")
    y = jax.lax.conv_general_dilated(x, params["a/kernel"], (1, 1), "VALID", dimension_numbers=spec)
    y = jnp.clip(y + params["a/bias"][:, None, None][None], -0.75, 1.5)
    y = jnp.concatenate([y[:, :, 1::2], jnp.pad(y[:, :, 1:2], ((0, 0), (0, 0), (0, 1), (0, 0)))], axis=2)
    flat = y.transpose(0, 2, 3, 1).reshape(y.shape[0], -1)
    return flat @ params["b/kernel"], jnp.minimum(flat @ params["c/kernel"], 0.5)


def mlp(params, x):
    for name in "abc":
        x = x @ params[f"{name}/kernel"] + params[f"{name}/bias"][None]
        x = x if name == "c" else jax.nn.relu(x)
    return x


def _module(module, shape):
    variables = networks.filled(jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, *shape))))
    return module.apply, variables, shape


def _depthwise():
    fn, variables, shape = _module(Depthwise(), (11, 12, 3))
    scale = variables["params"]["BatchNorm_0"]["scale"]
    variables["params"]["BatchNorm_0"]["scale"] = scale.at[0].set(0).at[1].multiply(-1)
    return fn, variables, shape


EIGHT = jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1))
NETWORKS = {
    "mlp": lambda: (
        mlp,
        networks.kernels(
            a_kernel=(20, 30), a_bias=(30,), b_kernel=(30, 16), b_bias=(16,), c_kernel=(16, 5), c_bias=(5,)
        ),
        (20,),
    ),
    "lenet": lambda: _module(LeNet5(), (28, 28, 1)),
    "depthwise": _depthwise,
    "moves": lambda: (
        moves,
        networks.kernels(a_kernel=(3, 3, 2, 4), a_bias=(4,), b_kernel=(100, 6), c_kernel=(100, 3)),
        (2, 8, 7),
    ),
}  # fmt: skip
SHIFTS = EIGHT >> jqz.PowerOfTwo(bits=4, granularity=jqz.PerAxis(-1))
CASES = [("mlp", EIGHT), ("mlp", SHIFTS), ("lenet", EIGHT), ("depthwise", jqz.PowerOfTwo(bits=4)), ("moves", EIGHT)]


def compiled(text, folder):
    """The function of a header, with strict warnings, on NumPy arrays."""
    (folder / "net.h").write_text(text)
    arguments = text.split("static inline void run(")[1].split(")")[0]
    names = [argument.split("*")[1] for argument in arguments.split(", ")]
    (folder / "net.c").write_text(
        f'#include "net.h"\nvoid go({arguments});\nvoid go({arguments}) {{ run({", ".join(names)}); }}\n'
    )
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-fsanitize=undefined"]
    strict += ["-fno-sanitize-recover=all", "-O1", "-shared", "-fPIC"]
    subprocess.run(["cc", *strict, "-o", folder / "net.so", folder / "net.c"], check=True)
    return ctypes.CDLL(str(folder / "net.so")).go


def macro(text, name):
    value = text.split(f"#define JQZ_{name} ")[1].splitlines()[0].strip("()f")
    return float(value)


@pytest.mark.parametrize(("name", "scheme"), CASES, ids=str)
def test_codes_are_ours(name, scheme, tmp_path):
    fn, variables, shape = NETWORKS[name]()
    x = np.random.default_rng(5).standard_normal((100, *shape)).astype(np.float32)
    policy = jqz.Policy({"**/kernel": scheme}, inputs=jqz.Asymmetric(bits=8))
    net = jqz.export.complete(jqz.convert(fn, variables, [x[:50]], policy), x[:50])
    text = jqz.export.header(net, x[:1])
    run = compiled(text, tmp_path)
    want = jax.tree.leaves(dataclasses.replace(net, requant=jqz.Gemmlowp())(x))
    codes = np.clip(np.rint(x / np.float32(macro(text, "IN_SCALE"))) + macro(text, "IN_ZERO_POINT"), -128, 127)
    outs = ["OUT"] if len(want) == 1 else [f"OUT{i}" for i in range(len(want))]
    results = [np.zeros((100, int(macro(text, f"{out}_SIZE"))), np.int8) for out in outs]
    for i, row in enumerate(codes.astype(np.int8)):
        run(np.ascontiguousarray(row).ctypes.data_as(ctypes.c_void_p),
            *(result[i].ctypes.data_as(ctypes.c_void_p) for result in results))  # fmt: skip
    for out, theirs, ours in zip(outs, results, want, strict=True):
        ours = np.rint(ours / np.float32(macro(text, f"{out}_SCALE"))) + macro(text, f"{out}_ZERO_POINT")
        assert len(np.unique(theirs)) > 20
        np.testing.assert_array_equal(theirs.reshape(ours.shape), ours)
    assert ("jqz_product(" in text) == (scheme == EIGHT)  # else it shifts
    assert ("jqz_shifted(" in text) == (scheme != EIGHT)


def test_refusals_name_the_equation_and_its_line():
    policy, x = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Asymmetric(bits=8)), jnp.ones((4, 6))
    net = jqz.convert(lambda params, x: jnp.tanh(x @ params["w"]), {"w": jnp.eye(6)}, [x], policy)
    with pytest.raises(ValueError, match=r"export: tanh of \(4, 6\) at .*test_header.py:\d+"):
        jqz.export.header(net, x)
    wide = jqz.Policy(dict(policy.rules), inputs={"**/(residual)": jqz.Symmetric(bits=8), **dict(policy.inputs)})
    net = jqz.convert(lambda params, x: x + x @ params["w"], {"w": jnp.eye(6)}, [x], wide)
    with pytest.raises(ValueError, match=r"export: 'w/\(residual\)' has codes of its own"):
        jqz.export.header(net, x)


def test_sums_stay_in_their_bits():
    policy, x = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Asymmetric(bits=8)), jnp.ones((1, 33_200))
    net = jqz.convert(lambda params, x: x @ params["w"], {"w": jnp.ones((33_200, 1))}, [x], policy)
    with pytest.raises(ValueError, match="header: sums of 33200 products"):
        jqz.export.header(net, x)
