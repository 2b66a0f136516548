"""Training's twin of the integer kernels against NumPy: rounded operands, exact gradients of their product."""

import functools
import itertools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqz
from jqz import _ste
from jqz.kernels import simulate

CHANNELS = jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1))
POLICY = jqz.Policy({"**/kernel": CHANNELS}, inputs=jqz.Symmetric(bits=8))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def rounded(x, axes=None):
    """8 bits about zero, in NumPy."""
    x = np.asarray(x, np.float64)
    scale = np.abs(x).max(axis=axes, keepdims=True) / 127
    return np.rint(x / scale) * scale


def ours(fn, kernel, x, g, policy=POLICY):
    """The value of the simulated function, and its gradients for a cotangent."""

    @jax.jit
    def run(kernel, x, g):
        value, pull = jax.vjp(lambda kernel, x: jqz.simulated(fn, policy)({"kernel": kernel}, None, x), kernel, x)
        return value, *pull(g)

    return run(kernel, x, g)


def close(got, wanted, tolerance=1e-5):
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def test_a_dot():
    kernel, x, g = normal(0, 12, 5), normal(1, 3, 7, 12), normal(2, 3, 7, 5)
    w, a, c = rounded(kernel, 0), rounded(x), np.asarray(g, np.float64)
    wanted = a @ w, np.einsum("bti,bto->io", a, c), c @ w.T
    close(ours(lambda v, x: x @ v["kernel"], kernel, x, g), wanted)


class Window(typing.NamedTuple):
    """A convolution of images (N, H, W, C) with a kernel (H, W, C / groups, O)."""

    size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))
    apart: tuple[int, int] = (1, 1)
    groups: int = 1

    def jax(self, x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            self.strides,
            self.padding,
            rhs_dilation=self.apart,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )

    def numpy(self, x, kernel):
        """The result, and a function from its cotangent to the gradients of kernel and images."""
        wide = np.pad(x, ((0, 0), *self.padding, (0, 0)))
        reach = [(k - 1) * a + 1 for k, a in zip(self.size, self.apart, strict=True)]
        out = [(n - r) // s + 1 for n, r, s in zip(wide.shape[1:3], reach, self.strides, strict=True)]
        taps = kernel.reshape(*kernel.shape[:3], self.groups, -1)

        def seen(i, j):
            start = i * self.apart[0], j * self.apart[1]
            stop = [b + (n - 1) * s + 1 for b, n, s in zip(start, out, self.strides, strict=True)]
            return slice(None), slice(start[0], stop[0], self.strides[0]), slice(start[1], stop[1], self.strides[1])

        def by_group(a):
            return a.reshape(*a.shape[:3], self.groups, -1)

        positions = list(itertools.product(*map(range, self.size)))
        y = sum(np.einsum("nhwgc,cgo->nhwgo", by_group(wide[seen(i, j)]), taps[i, j]) for i, j in positions)

        def gradients(g):
            g, of_taps, of_wide = by_group(g), np.zeros_like(taps), np.zeros_like(wide)
            for i, j in positions:
                of_taps[i, j] = np.einsum("nhwgc,nhwgo->cgo", by_group(wide[seen(i, j)]), g)
                patch = of_wide[seen(i, j)]
                patch += np.einsum("nhwgo,cgo->nhwgc", g, taps[i, j]).reshape(patch.shape)
            (top, _), (left, _) = self.padding
            return of_taps.reshape(kernel.shape), of_wide[:, top : top + x.shape[1], left : left + x.shape[2]]

        return y.reshape(*y.shape[:3], -1), gradients


WINDOWS = {
    "plain": Window(),
    "strided": Window(strides=(2, 1)),
    "strided, rows left over": Window(size=(2, 3), strides=(3, 2), padding=((0, 0), (0, 0))),
    "uneven padding": Window(padding=((2, 0), (0, 3))),
    "dilated": Window(padding=((2, 2), (1, 2)), apart=(2, 3)),
    "one pixel": Window(size=(1, 1), padding=((0, 0), (0, 0))),
    "one pixel, strided": Window(size=(1, 1), strides=(2, 3), padding=((0, 0), (0, 0))),
    "one pixel, padded": Window(size=(1, 1)),
    "groups": Window(strides=(2, 2), groups=2),
    "depthwise": Window(groups=4),
}


@pytest.mark.parametrize("at_a_time", [2, 6])
@pytest.mark.parametrize("name", WINDOWS)
def test_a_convolution(monkeypatch, name, at_a_time):
    window = WINDOWS[name]
    x, kernel = normal(0, 6, 8, 9, 4), normal(1, *window.size, 4 // window.groups, 8)
    y, gradients = window.numpy(rounded(x), rounded(kernel, (0, 1, 2)))
    g = normal(2, *y.shape)
    monkeypatch.setattr(simulate, "CACHE_BYTES", at_a_time * 4 * (x.size + g.size) // 6)
    got = ours(lambda v, x: window.jax(x, v["kernel"]), kernel, x, g)
    close(got, (y, *gradients(np.asarray(g, np.float64))))


def program(cache, batch, window, monkeypatch):
    """The compiled gradient of the kernel, as text."""
    monkeypatch.setattr(simulate, "CACHE_BYTES", cache)
    fn = jqz.simulated(lambda v, x: window.jax(x, v["kernel"]).sum(), POLICY)
    kernel, x = jnp.ones((*window.size, 4, 8)), jnp.ones((batch, 8, 8, 4))
    return jax.jit(jax.grad(lambda v: fn(v, None, x))).lower({"kernel": kernel}).as_text()


@pytest.mark.parametrize(
    ("cache", "batch", "window", "loops"),
    [
        (2 * 3072, 6, "plain", True),
        (2**20, 6, "plain", False),
        (4 * 3072, 7, "plain", True),  # single images out of four
        (5 * 3072, 7, "plain", False),  # single images are too few
        (1, 6, "plain", True),
        (1, 6, "strided", False),
        (2 * 3072, 6, "one pixel", False),
    ],
)
def test_parts_of_the_batch_that_fit_the_cache(monkeypatch, cache, batch, window, loops):
    """An image of 8 x 8 x 4 and its result of 8 x 8 x 8 take 3072 bytes."""
    text = program(cache, batch, WINDOWS[window], monkeypatch)
    assert ("stablehlo.while" in text) == loops
    assert ("stablehlo.dot_general" in text) == (window == "one pixel")


@pytest.mark.parametrize("spec", [("NCHW", "OIHW", "NCHW"), ("HWNC", "OHWI", "NHWC"), ("CHWN", "IHWO", "HWCN")])
def test_other_layouts(monkeypatch, spec):
    """The same numbers in another order have the same gradients in another order."""
    monkeypatch.setattr(simulate, "CACHE_BYTES", 2**11)
    policy = jqz.Policy({"kernel": jqz.Symmetric(bits=8)}, inputs=jqz.Symmetric(bits=8))
    x, kernel = normal(0, 6, 8, 9, 4), normal(1, 2, 3, 4, 8)
    y, gradients = Window((2, 3), (1, 2)).numpy(rounded(x), rounded(kernel))
    g = normal(2, *y.shape)
    plain = "NHWC", "HWIO", "NHWC"
    there = [[a.index(axis) for axis in b] for a, b in zip(plain, spec, strict=True)]
    x, kernel, turned = (jnp.transpose(a, order) for a, order in zip((x, kernel, g), there, strict=True))

    def fn(v, x):
        return jax.lax.conv_general_dilated(x, v["kernel"], (1, 2), [(1, 1), (1, 1)], dimension_numbers=spec)

    got = ours(fn, kernel, x, turned, policy)
    orders = there[2], there[1], there[0]
    wanted = (y, *gradients(np.asarray(g, np.float64)))
    close(got, [np.transpose(a, order) for a, order in zip(wanted, orders, strict=True)])


def test_transposed_convolution():
    """Spread-out images are those of a strided window's gradient: both directions against JAX's own."""
    x, kernel = normal(0, 2, 4, 5, 3), normal(1, 3, 2, 3, 8)

    def fn(v, x):
        return jax.lax.conv_transpose(x, v["kernel"], (2, 3), "SAME", rhs_dilation=(2, 1))

    hats = jnp.asarray(rounded(kernel, (0, 1, 2)), jnp.float32), jnp.asarray(rounded(x), jnp.float32)
    y, pull = jax.vjp(lambda kernel, x: fn({"kernel": kernel}, x), *hats)
    g = normal(2, *y.shape)
    close(ours(fn, kernel, x, g), (y, *pull(g)))


def test_images_as_the_weight():
    """A weight may be what the window slides over."""
    kernel, x = normal(0, 2, 6, 6, 3), normal(1, 3, 3, 3, 5)
    policy = jqz.Policy({"kernel": jqz.Symmetric(bits=8)}, inputs=jqz.Symmetric(bits=8))
    y, gradients = Window().numpy(rounded(kernel), rounded(x))
    g = normal(2, *y.shape)
    of_x, of_kernel = gradients(np.asarray(g, np.float64))
    close(ours(lambda v, x: Window().jax(v["kernel"], x), kernel, x, g, policy), (y, of_kernel, of_x))


def test_two_products_of_one_activation(monkeypatch):
    """A convolution and a shortcut read one rounded activation; the residual reads the original."""
    monkeypatch.setattr(simulate, "CACHE_BYTES", 2**11)
    x, g = normal(0, 4, 6, 6, 3), normal(1, 4, 6, 6, 3)
    params = {"a": {"kernel": normal(2, 3, 3, 3, 3)}, "b": {"kernel": normal(3, 1, 1, 3, 3)}}
    pixel = WINDOWS["one pixel"]

    def fn(v, x):
        return Window().jax(x, v["a"]["kernel"]) + pixel.jax(x, v["b"]["kernel"]) + x

    y, pull = jax.vjp(lambda v, x: jqz.simulated(fn, POLICY)(v, None, x), params, x)
    of_params, of_x = pull(g)
    hat, c = rounded(x), np.asarray(g, np.float64)
    wide, wide_gradients = Window().numpy(hat, rounded(params["a"]["kernel"], (0, 1, 2)))
    narrow, narrow_gradients = pixel.numpy(hat, rounded(params["b"]["kernel"], (0, 1, 2)))
    (of_a, through_a), (of_b, through_b) = wide_gradients(c), narrow_gradients(c)
    got = y, of_params["a"]["kernel"], of_params["b"]["kernel"], of_x
    close(got, (wide + narrow + np.asarray(x), of_a, of_b, through_a + through_b + c))


def test_stacks_of_layers(monkeypatch):
    """The gradients hold inside scan and under vmap, where they are batched."""
    monkeypatch.setattr(simulate, "CACHE_BYTES", 2**11)
    kernels, x = normal(0, 3, 3, 3, 4, 4) / 6, normal(1, 4, 6, 6, 4)
    policy = jqz.Policy({"kernel": jqz.Symmetric(bits=8, granularity=jqz.PerAxis((0, -1)))}, inputs=jqz.Symmetric())
    single = jqz.Policy({"kernel": CHANNELS}, inputs=jqz.Symmetric())

    def layer(v, x):
        return jax.nn.relu(Window().jax(x, v["kernel"]))

    def scanned(v, x):
        return jax.lax.scan(lambda x, kernel: (layer({"kernel": kernel}, x), None), x, v["kernel"])[0]

    def unrolled(kernels, x):
        for i in range(3):
            x = jqz.simulated(layer, single)({"kernel": kernels[i]}, None, x)
        return x

    def gradient(fn, kernels):
        return jax.jit(jax.grad(lambda kernels: jnp.square(fn(kernels)).sum()))(kernels)

    got = gradient(lambda kernels: jqz.simulated(scanned, policy)({"kernel": kernels}, None, x), kernels)
    close([got], [gradient(functools.partial(unrolled, x=x), kernels)])

    def mapped(kernels):
        return jax.vmap(lambda kernel: jqz.simulated(layer, single)({"kernel": kernel}, None, x))(kernels)

    def each(kernels):
        return jnp.stack([jqz.simulated(layer, single)({"kernel": kernels[i]}, None, x) for i in range(3)])

    close([gradient(mapped, kernels)], [gradient(each, kernels)])


def test_narrow_types_and_nothing_at_all():
    """bfloat16 gradients are those of float32 to its precision; an empty batch has the gradient zero."""
    x, kernel = normal(0, 4, 6, 6, 3), normal(1, 3, 3, 3, 8)
    g = normal(2, 4, 6, 6, 8)

    def fn(v, x):
        return Window().jax(x, v["kernel"])

    wanted = ours(fn, kernel, x, g)
    got = ours(fn, *(a.astype(jnp.bfloat16) for a in (kernel, x, g)))
    assert {a.dtype for a in got} == {jnp.dtype(jnp.bfloat16)}
    close([a.astype(jnp.float32) for a in got], wanted, 0.03)
    y, of_kernel, of_x = ours(fn, kernel, x[:0], g[:0])
    assert y.shape == (0, 6, 6, 8)
    assert of_x.shape == (0, 6, 6, 3)
    assert not of_kernel.any()


def test_the_given_gradients_are_used():
    """``bilinear`` asks for them where they are given; the barrier changes no number."""
    a, b, g = normal(0, 3, 4), normal(1, 4, 5), normal(2, 3, 5)
    product = functools.partial(_ste.bilinear, jnp.matmul)
    plain = jax.vjp(jnp.matmul, a, b)[1](g)
    for of_a, of_b in itertools.product((None, lambda b, g: 2 * (g @ b.T)), (None, lambda a, g: 3 * (a.T @ g))):
        got = jax.vjp(lambda a, b, of_a=of_a, of_b=of_b: product(a, b, of_a, of_b), a, b)[1](g)
        close(got, (plain[0] * (2 if of_a else 1), plain[1] * (3 if of_b else 1)), 1e-6)
