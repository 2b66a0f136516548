"""The trained ResNet-20 that other tests start from."""

import importlib.util
import pathlib
import sys

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np

import jqz


def _model():
    path = pathlib.Path(__file__).parent.parent / "benchmarks" / "networks.py"
    spec = importlib.util.spec_from_file_location("benchmark_networks", path)
    sys.modules["benchmark_networks"] = networks = importlib.util.module_from_spec(spec)  # dataclasses look it up
    spec.loader.exec_module(networks)
    return networks.ResNet((3, 3, 3), 16, stem=3, classes=10, stem_stride=2)


def test_it_has_every_leaf_of_the_network():
    x = jnp.zeros((1, 28, 28, 1))
    wanted = jax.eval_shape(lambda: _model().init(jax.random.key(0), x))
    found = checkpoints.resnet20()
    described = [jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree) for tree in (wanted, found)]
    assert described[0] == described[1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert all(np.all(leaf > 0) for name, leaf in checkpoints.read().items() if name.endswith("/var"))


def test_its_codes_use_their_range():
    """The largest weight of each channel has the code 127 or -127, so no weight was moved by more than scale / 2."""
    coded = {name: leaf for name, leaf in checkpoints.read().items() if isinstance(leaf, checkpoints.Coded)}
    assert len(coded) == 22  # 20 layers and two shortcuts
    for name, (codes, scale) in coded.items():
        assert name.endswith("/kernel")
        assert codes.dtype == np.int8
        assert scale.shape == (1,) * (codes.ndim - 1) + codes.shape[-1:]
        assert np.all(np.abs(codes.reshape(-1, codes.shape[-1])).max(0) == 127)
        again = jqz.quantize(codes * scale, jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1)))
        assert np.array_equal(again.codes, codes)
        assert np.allclose(again.grid.scale, scale, rtol=1e-6)


def test_it_is_small():
    assert checkpoints.RESNET20.stat().st_size <= 300_000


def test_it_tells_images_apart():
    """Trained weights answer differently to a dark and to a striped image, and alike to the same image twice."""
    stripes = np.where(np.arange(28)[:, None] % 4 < 2, 2.0, -0.8) * np.ones((28, 28))
    images = np.stack([np.full((28, 28), -0.8), stripes, stripes], dtype=np.float32)[..., None]
    logits = jax.jit(_model().apply)(checkpoints.resnet20(), images)
    assert jnp.allclose(logits[1], logits[2], atol=1e-4)
    assert jnp.abs(logits[0] - logits[1]).max() > 1
