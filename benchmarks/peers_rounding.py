"""How much does what a layer computes change, by the rounders of jqz and by qwix's GPTQ, on the same matrices?

    python benchmarks/peers_rounding.py             # a few minutes on two cores
    python benchmarks/peers_rounding.py --only 4    # one width

Weights are drawn from Student's t with 5 degrees of freedom, inputs are relu of normal values, correlated, their
variances falling. Figures are ||X Q - X W||**2 in float64 on the inputs that the rounders saw, as a share of that of
the reference: qwix's GPTQ, which wants a dtype and so has no 3 bits, and there GPTQ as published, on the same grid
(``gptq(order=AsStored(), sweeps=0)``). The first columns are on qwix's grid, whose outermost level is half a step below
the largest magnitude; in groups, qwix chooses it anew for weights that earlier errors have moved. Under "clip" grids
have the least squared error. "hqq" looks at no inputs, and has a real zero point.
"""

import argparse
import collections
import typing

import jax.numpy as jnp
import numpy as np
import report

import jqz
from jqz import algorithms
from jqz._learnable import Learnable
from jqz._scheme import ScaleGrid
from jqz.algorithms.gptq import AsStored

SHAPES = ((128, 128), (256, 128), (512, 128))
GROUP = 64


def draw(terms: int, outputs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and a weight."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(terms, terms)))[0] * np.arange(1, terms + 1) ** -0.5
    x = np.maximum(rng.normal(size=(4 * terms, terms)) @ basis.T * np.sqrt(terms) / 2 + 0.1, 0)
    return x.astype(np.float32), (0.05 * rng.standard_t(5, size=(terms, outputs))).astype(np.float32)


def qwix_gptq(x: np.ndarray, w: np.ndarray, bits: int, grouped: bool) -> np.ndarray | None:
    """The values that qwix rounds to, or None where it cannot."""
    dtype = {2: jnp.int2, 4: jnp.int4, 8: jnp.int8}.get(bits)
    if dtype is None:
        return None
    from qwix._src.core import qarray
    from qwix.contrib import gptq_core

    how = qarray.HowToQuantize(qtype=dtype, channelwise_axes=(0,), tiled_axes={1: GROUP} if grouped else {})
    found, _ = gptq_core.quantize_weight(jnp.asarray(w.T), jnp.asarray(x.T @ x), how, blocksize=32)
    return np.asarray(qarray.dequantize(found)).T


def ours(x: np.ndarray, w: np.ndarray, bits: int, grouped: bool) -> typing.Iterator[tuple[str, typing.Any]]:
    """Names, and the values that jqz rounds to."""
    granularity = jqz.PerGroup(GROUP) if grouped else jqz.PerAxis(-1)
    params, inputs = {"w": jnp.asarray(w)}, jnp.asarray(x)

    def policy(scheme: jqz.Scheme) -> jqz.Policy:
        return jqz.Policy(scheme, inputs=jqz.Identity())

    full = jqz.Symmetric(bits, granularity, codes=jqz.schemes.Full())
    top = 2 ** (bits - 1) - 1
    theirs = ScaleGrid(full.calibrate(params["w"]).scale * (top / (top + 0.5)))
    on_theirs = {"w": Learnable(params["w"], theirs, full)}
    clip = policy(jqz.Symmetric(bits, granularity, codes=jqz.schemes.Full(), range=jqz.ranges.MSE()))
    stats = jqz.observe(lambda p, x: x @ p["w"], clip, jqz.observers.Gram())(params, inputs)
    yield "published", algorithms.gptq(on_theirs, policy(full), stats, order=AsStored(), sweeps=0)
    for name, tree, way in (("", on_theirs, policy(full)), (", clip", params, clip)):
        yield "nearest" + name, algorithms.nearest(tree, way)
        yield "gptq" + name, algorithms.gptq(tree, way, stats)
        yield "adaround" + name, algorithms.adaround(tree, way, stats)
    yield "hqq", algorithms.hqq(params, policy(jqz.Asymmetric(bits, granularity, anchor=jqz.schemes.Minimum())))


def row(terms: int, outputs: int, bits: int, grouped: bool, seed: int) -> dict[str, float]:
    """The errors of all rounders on one matrix."""
    x, w = draw(terms, outputs, seed)

    def error(values: np.ndarray) -> float:
        return float(np.sum((x.astype(np.float64) @ (values.astype(np.float64) - w.astype(np.float64))) ** 2))

    found = {name: error(np.asarray(jqz.dequantize(q)["w"])) for name, q in ours(x, w, bits, grouped)}
    theirs = qwix_gptq(x, w, bits, grouped)
    return found if theirs is None else {"qwix": error(theirs), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", type=int, choices=(2, 3, 4), help="bits")
    args = parser.parse_args()
    print(report.in_words(report.facts(jqz="float32", errors="on the inputs seen")))
    lines, shares = [], collections.defaultdict(list)
    for bits in (4, 3, 2) if args.only is None else (args.only,):
        for grouped in (False, True):
            for seed, (terms, outputs) in enumerate(SHAPES):
                found = row(terms, outputs, bits, grouped, seed)
                reference = found.get("qwix", found["published"])
                names = [name for name in found if name not in ("qwix", "published")]
                for name in names:
                    shares[name].append(found[name] / reference)
                kind = f"int{bits}, {f'groups of {GROUP}' if grouped else 'a channel'}, {terms} x {outputs}"
                label = "qwix" if "qwix" in found else "published"
                lines.append([kind, label, *(f"{found[name] / reference:.2f}" for name in names)])
                print(*lines[-1], sep=" | ", flush=True)
    lines.append(["mean", "", *(f"{np.mean(share):.2f}" for share in shares.values())])
    report.table(["weights", "reference", *shares], lines)


if __name__ == "__main__":
    main()
