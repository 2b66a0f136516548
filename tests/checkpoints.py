"""Trained networks for tests that should not train."""

import pathlib
import typing

import numpy as np

RESNET20 = pathlib.Path(__file__).parent / "data" / "resnet20_fashion.npz"


class Coded(typing.NamedTuple):
    """int8 codes and one scale for each output channel."""

    codes: np.ndarray
    scale: np.ndarray


def read(path: pathlib.Path = RESNET20) -> dict[str, Coded | np.ndarray]:
    """Path of a leaf -> its codes and scales, or its float32 values."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    coded = {name.removesuffix("/codes") for name in arrays if name.endswith("/codes")}
    plain = {name: array for name, array in arrays.items() if not name.endswith(("/codes", "/scale")) or "Norm" in name}
    return plain | {name: Coded(arrays[f"{name}/codes"], arrays[f"{name}/scale"]) for name in coded}


def resnet20(path: pathlib.Path = RESNET20) -> dict[str, typing.Any]:
    """Variables of ``benchmarks/tables.py``'s float ResNet-20, trained on Fashion-MNIST, from 8 bits a weight.

    ``ResNet((3, 3, 3), 16, stem=3, classes=10, stem_stride=2)`` of ``benchmarks/networks.py``; images as
    (x / 255 - 0.286) / 0.353. It classifies 92.5 % of the test images.
    """
    tree: dict[str, typing.Any] = {}
    for name, leaf in read(path).items():
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = leaf.codes * leaf.scale if isinstance(leaf, Coded) else leaf
    return tree
