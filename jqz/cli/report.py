"""``jqz report``: a page about what a policy does to the weights in a file."""

import argparse
import os
import typing

import jax

from jqz._budgets import AverageBits
from jqz._granularity import PerAxis
from jqz._measures import WeightNoise
from jqz._policy import Policy, PolicyLike
from jqz._qtensor import is_qtensor
from jqz._search import Found, search
from jqz._solvers import Exact, Lagrangian
from jqz._transform import quantize, size_bytes
from jqz.cli import output, trees
from jqz.cli.policies import policy_of
from jqz.files import atomic
from jqz.schemes import Symmetric

EXAMPLES = """\
  jqz report net.safetensors -o report.html                    a policy of 4 bits on average, and what it costs
  jqz report net.npz --policy "**/kernel=Symmetric(bits=4)"    a policy of yours
"""

_DESCRIPTION = f"""\
Writes one page of HTML that needs no other file: a row for each weight (scheme, bytes, noise), the policy as code, and
figures. Without --policy, a file of floats gets the policy that loses least by noise / signal of the weights alone at
--bits on average, of Symmetric(bits=2) to Symmetric(bits=8) with a scale for each output channel; the page shows what
other averages would lose. What that does to a model's answers, jqz.search measures on data. A file that holds codes is
shown as it is. The whole file is read into memory. {trees.FILES[0].upper() + trees.FILES[1:]}.
"""

_CANDIDATES = tuple(Symmetric(bits, granularity=PerAxis(-1)) for bits in range(2, 9))


def add(commands: typing.Any) -> None:
    """The verb and its arguments."""
    about = "write a page about the weights in a file"
    parser = output.verb(commands, "report", about, _DESCRIPTION, EXAMPLES, trees.told(run))
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("-o", "--output", default="report.html", metavar="HTML", help="default: report.html")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--policy", action="append", metavar="RULE", help="GLOB=SCHEME; repeatable")
    choice.add_argument("--bits", type=float, default=4.0, metavar="B", help="on average (default 4)")


def run(arguments: argparse.Namespace) -> int:
    """Chooses a policy if none is given, and writes the page."""
    from jqz.analysis import figures, report

    if os.path.exists(arguments.output) and os.path.samefile(arguments.file, arguments.output):
        raise ValueError(f"the page would replace {arguments.file!r}. Use -o report.html.")
    tree = {name: trees.whole(leaf) for name, leaf in trees.leaves(arguments.file).items()}
    policy: PolicyLike = _keep
    drawings, average = [], None
    if arguments.policy:
        policy = policy_of(arguments.policy)
    elif not any(map(is_qtensor, tree.values())):
        found = recommended(tree, arguments.bits)
        policy, noise, average = found.policy, found.sensitivity, found.average_bits()
        columns = [f"{scheme.bits} bits" for scheme in _CANDIDATES]
        bits = [found.average_bits(i) for i in range(len(found.front))]
        best = figures.pareto(
            {"best policies": (bits, found.front.scores)},
            "bits a weight, on average",
            f"{noise.measure.unit}, summed",
            {"this page": (average, float(found.front.scores[found.index]))},
        )
        drawings = [
            ("What each weight loses", figures.sensitivities(noise.scores, noise.paths, columns, noise.measure.unit)),
            ("What the best policies of other averages lose", best),
        ]
    page = report(tree, policy, title=f"Weights of {os.path.basename(arguments.file)}", drawings=drawings)
    with atomic.replacing(arguments.output) as file:
        file.write(page.encode(errors="backslashreplace"))
    after = jax.eval_shape(lambda tree: quantize(tree, policy), tree)
    facts = {
        "file": arguments.output,
        "tensors": len(tree),
        "quantized": sum(map(is_qtensor, after.values())),
        "bytes_before": sum(map(trees.value_bytes, tree.values())),
        # what is left as it is counts as it lies in the file: JAX knows no 64 bits
        "bytes": sum(size_bytes(q) if is_qtensor(q) else trees.value_bytes(tree[name]) for name, q in after.items()),
        "average_bits": average,
        "policy": repr(policy) if isinstance(policy, Policy) else None,
    }
    if arguments.json:
        output.emit(facts)
    else:
        output.say(
            f"{facts['file']}: {facts['quantized']} of {facts['tensors']} tensors in codes, "
            f"{facts['bytes_before']:,} -> {facts['bytes']:,} bytes"
            + ("" if average is None else f", {average:.2f} bits a weight")
        )
    return 0


def recommended(tree: typing.Any, bits: float) -> Found:
    """The policy of so many bits on average that loses least by the noise of the weights alone."""
    from jqz.algorithms import sensitivity

    tree = {name: leaf for name, leaf in tree.items() if leaf.size}
    noise = sensitivity(_no_model, tree, [], _CANDIDATES, WeightNoise())
    solver = Exact() if len(noise.paths) <= 32 else Lagrangian()
    return search(_no_model, tree, [], _CANDIDATES, AverageBits(bits), scores=noise, solver=solver)


def _no_model(*_: typing.Any) -> typing.Any:
    raise AssertionError("the noise of weights is measured without a model")


def _keep(path: str, leaf: typing.Any) -> None:
    """The policy that changes nothing."""
