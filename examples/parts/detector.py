"""A single-shot detector in Flax, with published weights for faces and rendered shapes to train on.

The network is that of YOLOv2 (arXiv:1612.08242) with separable convolutions: each cell of a coarse grid tells, for each
of a few anchors, where a box lies, how large it is, how sure it is of an object, and of which class. The weights (193
thousand, kept in 8 bits) and six photographs are those of the npm package ``@vladmandic/face-api``.
"""

import argparse
import hashlib
import io
import json
import pathlib
import subprocess
import tarfile
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jqz

#: npm package, version, and the SHA-256 of its archive.
PACKAGE = ("@vladmandic/face-api", "1.7.15", "0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031")
WEIGHTS = "package/model/tiny_face_detector_model"
PHOTOGRAPHS = tuple(f"package/demo/sample{i}.jpg" for i in range(1, 7))


class Detector(nn.Module):
    """Images (batch, side, side, 3), mean 0, to (batch, cells, cells, anchors, 5 + classes): x, y, width, height, how
    sure, and the classes if there are several."""

    filters: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    #: Width and height in cells.
    anchors: tuple[tuple[float, float], ...] = (
        (1.603231, 2.094468), (6.041143, 7.080126), (2.882459, 3.518061), (4.266906, 5.178857), (9.041765, 10.66308),
    )  # fmt: skip
    classes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, filters in enumerate(self.filters):
            if i:
                x = nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
                x = nn.Conv(
                    x.shape[-1], (3, 3), feature_group_count=x.shape[-1], use_bias=False, name=f"conv{i}_depthwise"
                )(x)
            x = nn.Conv(filters, (1, 1) if i else (3, 3), padding="VALID", name=f"conv{i}")(x)
            x = nn.leaky_relu(x, 0.1)
        x = nn.max_pool(x, (2, 2), (1, 1), padding="SAME")
        each = 5 + (self.classes if self.classes > 1 else 0)
        x = nn.Conv(each * len(self.anchors), (1, 1), name="boxes")(x)
        return x.reshape(*x.shape[:3], len(self.anchors), each)


class Boxes(typing.NamedTuple):
    """Boxes of one image: corners (n, 4) as x, y, x, y in shares of the side; how sure (n,); classes (n,)."""

    corners: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def surer(self, least: float) -> "Boxes":
        """Those that are surer."""
        return Boxes(*(part[self.scores > least] for part in self))


def places(outputs: typing.Any, anchors: typing.Any) -> tuple[typing.Any, typing.Any]:
    """Centers and sizes (batch, cells, cells, anchors, 2) that outputs stand for, in shares of the side."""
    cells = outputs.shape[-3]
    column, row = jnp.meshgrid(jnp.arange(cells), jnp.arange(cells))
    corner = jnp.stack([column, row], -1)[None, :, :, None].astype(jnp.float32)
    center = (jax.nn.sigmoid(outputs[..., :2]) + corner) / cells
    return center, jnp.exp(jnp.minimum(outputs[..., 2:4], 8.0)) * _sizes(anchors) / cells


def _sizes(anchors: typing.Any) -> jax.Array:
    return jnp.asarray(anchors, jnp.float32)[None, None, None]


def detections(outputs: typing.Any, anchors: typing.Any, least: float = 0.05) -> list[Boxes]:
    """The boxes of each image that are surer than ``least``, of those that overlap by more than 0.4 the surest."""
    center, size = (np.asarray(part) for part in places(outputs, anchors))
    corners = np.concatenate([center - size / 2, center + size / 2], -1)
    sure = np.asarray(jax.nn.sigmoid(outputs[..., 4]))
    kinds = np.asarray(outputs[..., 5:])
    classes = kinds.argmax(-1) if kinds.shape[-1] else np.zeros(sure.shape, int)
    found = []
    for box, score, kind in zip(corners, sure, classes, strict=True):
        chosen = score > least
        box, score, kind = box[chosen], score[chosen], kind[chosen]
        order, kept = list(np.argsort(-score, kind="stable")), []
        while order:
            best, *rest = order
            kept.append(best)
            near = (overlaps(box[best][None], box[rest])[0] > 0.4) & (kind[rest] == kind[best])
            order = [i for i, close in zip(rest, near, strict=True) if not close]
        found.append(Boxes(box[kept], score[kept], kind[kept]))
    return found


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 4) and (m, 4): (n, m)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), -1)
    areas = (np.prod(boxes[:, 2:] - boxes[:, :2], -1) for boxes in (a, b))
    return shared / np.maximum(np.add.outer(*areas) - shared, 1e-12)


def mean_average_precision(found: list[Boxes], wanted: list[Boxes], overlap: typing.Sequence[float]) -> float:
    """Of the area under precision over recall, the mean over classes and over how much boxes must overlap: 0 to 1."""
    classes = sorted({int(kind) for boxes in wanted for kind in boxes.classes})
    return float(np.mean([_average_precision(found, wanted, kind, least) for kind in classes for least in overlap]))


def _average_precision(found: list[Boxes], wanted: list[Boxes], kind: int, least: float) -> float:
    hits, scores, total = [], [], 0
    for ours, theirs in zip(found, wanted, strict=True):
        truth = theirs.corners[theirs.classes == kind]
        mine = ours.classes == kind
        order = np.argsort(-ours.scores[mine], kind="stable")
        shared = overlaps(ours.corners[mine][order], truth)
        for row in shared:  # the surest box takes the object; a second one of it is wrong
            best = int(row.argmax()) if row.size else -1
            hits.append(row.size > 0 and row[best] >= least)
            if hits[-1]:
                shared[:, best] = -1
        scores.extend(ours.scores[mine][order])
        total += len(truth)
    right = np.cumsum(np.asarray(hits, float)[np.argsort(-np.asarray(scores), kind="stable")])
    precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
    return float(np.sum(precision * np.diff(right, prepend=0)) / max(total, 1))


# --- faces ------------------------------------------------------------------------------------------------------------


def faces(cache: pathlib.Path) -> tuple[dict, list[typing.Any]]:
    """The published weights as Linen variables, and the photographs as pillow images."""
    from PIL import Image

    files = _archive(cache)
    described = json.loads(files[f"{WEIGHTS}-weights_manifest.json"])[0]["weights"]
    data, at, tree = files[f"{WEIGHTS}.bin"], 0, {}
    for entry in described:
        count, kept = int(np.prod(entry["shape"])), entry["quantization"]
        codes = np.frombuffer(data, np.uint8, count, at).reshape(entry["shape"])
        layer, kind = entry["name"].replace("conv8", "boxes").split("/")
        if kind == "depthwise_filter":
            layer, codes = f"{layer}_depthwise", codes.transpose(0, 1, 3, 2)
        leaf = "bias" if kind == "bias" else "kernel"
        values = codes.astype(np.float32) * np.float32(kept["scale"]) + np.float32(kept["min"])
        tree.setdefault(layer, {})[leaf] = jnp.asarray(values)
        at += count
    return {"params": tree}, [Image.open(io.BytesIO(files[name])).convert("RGB") for name in PHOTOGRAPHS]


def _archive(cache: pathlib.Path) -> dict[str, bytes]:
    """The files of the package, downloaded to ``cache`` once."""
    name, version, digest = PACKAGE
    path = cache / f"{name[1:].replace('/', '-')}-{version}.tgz"
    if not path.exists():
        print(f"{name}: downloading it from npm to {cache}")
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=cache, check=True, capture_output=True)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path} is not the published file. Delete it and run again.")
    wanted = {f"{WEIGHTS}.bin", f"{WEIGHTS}-weights_manifest.json", *PHOTOGRAPHS}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive if entry.name in wanted}
        return {name: file.read() for name, file in files.items() if file is not None}


def squares(photographs: list[typing.Any], side: int) -> np.ndarray:
    """Photographs, each also mirrored, in the upper left corner of black squares: what the published network takes."""
    from PIL import Image, ImageOps

    out = []
    for photograph in photographs:
        for picture in (photograph, ImageOps.mirror(photograph)):
            ratio = side / max(picture.size)
            small = picture.resize([round(length * ratio) for length in picture.size], Image.Resampling.BILINEAR)
            square = Image.new("RGB", (side, side))
            square.paste(small)
            out.append(np.asarray(square, np.float32))
    return (np.stack(out) - np.float32([117.001, 114.697, 97.404])) / 255


# --- shapes -----------------------------------------------------------------------------------------------------------

#: A smaller network for discs, squares and triangles.
SHAPES = Detector((12, 24, 32, 48), ((1.5, 1.5), (3.0, 3.0)), classes=3)


def shapes(count: int, side: int, seed: int) -> tuple[np.ndarray, list[Boxes]]:
    """Images of one to three discs, squares and triangles on noise, and where they are."""
    from PIL import Image, ImageDraw

    rng, images, boxes = np.random.default_rng(seed), [], []
    for _ in range(count):
        noise = rng.normal(rng.uniform(60, 200), 12, (side, side, 3))
        image, mine = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)), []
        draw = ImageDraw.Draw(image)
        for _ in range(rng.integers(1, 4)):
            size = rng.uniform(0.14, 0.42) * side
            x, y = rng.uniform(0, side - size, 2)
            corners, kind = np.array([x, y, x + size, y + size]), int(rng.integers(3))
            if mine and overlaps(corners[None] / side, np.stack([box for box, _ in mine])).max() > 0.05:
                continue
            color = tuple(int(c) for c in rng.integers(0, 256, 3))
            if kind == 0:
                draw.ellipse(corners.tolist(), fill=color)
            elif kind == 1:
                draw.rectangle(corners.tolist(), fill=color)
            else:
                draw.polygon([(x + size / 2, y), (x + size, y + size), (x, y + size)], fill=color)
            mine.append((corners / side, kind))
        images.append(np.asarray(image, np.float32))
        boxes.append(Boxes(np.stack([b for b, _ in mine]), np.ones(len(mine)), np.array([k for _, k in mine])))
    return (np.stack(images) - 127.5) / np.float32(127.5), boxes


class Truth(typing.NamedTuple):
    """What a batch's outputs should be: (batch, cells, cells, anchors) and the axis of what is wanted there."""

    object: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    kind: np.ndarray


def truth(boxes: list[Boxes], cells: int, anchors: typing.Any) -> Truth:
    """Each box belongs to the cell of its center and the anchor nearest in size."""
    sizes = np.asarray(anchors)
    shape = (len(boxes), cells, cells, len(sizes))
    out = Truth(
        np.zeros(shape, np.float32), *(np.zeros((*shape, 2), np.float32) for _ in range(2)), np.zeros(shape, int)
    )
    for i, mine in enumerate(boxes):
        for box, kind in zip(mine.corners, mine.classes, strict=True):
            center, size = (box[:2] + box[2:]) / 2 * cells, (box[2:] - box[:2]) * cells
            column, row = np.minimum(center.astype(int), cells - 1)
            place = i, row, column, int(np.abs(np.log(sizes / size)).sum(-1).argmin())
            out.object[place], out.offset[place], out.size[place] = 1, center - [column, row], size
            out.kind[place] = kind
    return out


def loss(outputs: jax.Array, wanted: Truth, anchors: typing.Any) -> jax.Array:
    """Cross-entropy of objects and classes, and squared distances of offsets and of logarithms of sizes."""
    there = jnp.asarray(wanted.object)
    sure, kinds = outputs[..., 4], jax.nn.log_softmax(outputs[..., 5:])
    object_loss = jnp.where(there > 0, 5.0, 1.0) * (jax.nn.softplus(sure) - there * sure)
    offset = ((jax.nn.sigmoid(outputs[..., :2]) - wanted.offset) ** 2).sum(-1)
    ratio = jnp.log(jnp.maximum(wanted.size, 1e-3) / _sizes(anchors))
    size = ((outputs[..., 2:4] - ratio) ** 2).sum(-1)
    kind = -jnp.take_along_axis(kinds, jnp.asarray(wanted.kind)[..., None], -1)[..., 0]
    return jnp.sum(object_loss + there * (5 * offset + 5 * size + kind)) / len(outputs)


def train(images: np.ndarray, boxes: list[Boxes], steps: int, batch: int = 32) -> dict:
    """The network for shapes, trained with Adam on a cosine."""
    import optax

    variables = jax.jit(SHAPES.init)(jax.random.key(0), images[:1])
    cells = jax.eval_shape(SHAPES.apply, variables, images[:1]).shape[1]
    wanted = truth(boxes, cells, SHAPES.anchors)
    optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, 4e-3))
    state = optimizer.init(variables)

    run = jqz.simulated(
        SHAPES.apply, jqz.Policy({"**/kernel": jqz.Identity()})
    )  # gradients in forms that are fast on CPU

    @jax.jit
    def step(variables, state, x, wanted):
        gradient = jax.grad(lambda variables: loss(run(variables, None, x), wanted, SHAPES.anchors))(variables)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(variables, updates), state

    rng = np.random.default_rng(0)
    for _ in range(steps):
        chosen = rng.integers(len(images), size=batch)
        variables, state = step(variables, state, images[chosen], Truth(*(part[chosen] for part in wanted)))
    return variables


def subject(chosen: argparse.Namespace) -> tuple[Detector, dict, np.ndarray, list[Boxes] | None]:
    """A network, its variables, images, and their boxes if they are known."""
    if chosen.net == "faces":
        variables, photographs = faces(chosen.cache)
        return Detector(), variables, squares(photographs, chosen.side or 416), None
    side = chosen.side or 96
    variables = train(*shapes(max(chosen.steps, 32), side, seed=0), chosen.steps)
    return SHAPES, variables, *shapes(chosen.images, side, seed=1)


def draw(path: pathlib.Path, images: np.ndarray, first: list[Boxes], second: list[Boxes], count: int = 6) -> None:
    """Writes the first images in a row, with boxes in white and boxes in red."""
    from PIL import Image, ImageDraw

    side = images.shape[1]
    row = Image.new("RGB", (side * min(count, len(images)), side))
    for i, image in enumerate(images[:count]):
        low, high = image.min(), image.max()
        picture = Image.fromarray(np.uint8(255 * (image - low) / max(high - low, 1e-6)))
        for boxes, color in ((first, "white"), (second, "red")):
            for box in boxes[i].corners:
                ImageDraw.Draw(picture).rectangle((box * side).tolist(), outline=color, width=max(1, side // 200))
        row.paste(picture, (i * side, 0))
    row.save(path)
