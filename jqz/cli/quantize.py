"""``jqz quantize``: a file of floats becomes a file of codes, one tensor at a time."""

import argparse
import functools
import os
import threading
import time
import typing
from collections.abc import Callable

import jax
import numpy as np

from jqz import files
from jqz._policy import Decision, resolve
from jqz._qtensor import QTensor, encode
from jqz._scheme import Scheme
from jqz._transform import at, quantize
from jqz.cli import output, trees
from jqz.cli.policies import policy_of
from jqz.files import lazy
from jqz.files.lazy import Lazy

EXAMPLES = """\
  jqz quantize net.safetensors small.safetensors --policy "Symmetric(bits=4, granularity=PerGroup(32))"
  jqz quantize net.npz out.safetensors --policy "**/head/*=None" --policy "**=Symmetric(bits=8)"
  jqz quantize net.safetensors net.gguf --policy "Symmetric(bits=8, granularity=PerGroup(32, axis=-1))"
  jqz quantize in.msgpack out.safetensors --policy "**/kernel=Symmetric(bits=4) >> PowerOfTwo(bits=4)" --entropy
"""

_DESCRIPTION = f"""\
Codes the tensors of a file by a policy and writes what jqz.load reads. A rule is GLOB=SCHEME, the first that matches a
tensor decides, None leaves it float; a scheme alone is for all weights. A scheme is written as Python shows it.
One tensor is in memory at a time, whatever the size of the file, but for .msgpack and old .pth.
{trees.FILES[0].upper() + trees.FILES[1:]}; the result is .safetensors, or .gguf for Q4_0 and Q8_0.
"""

#: Bytes of tensors that are read while others are computed.
_ROOM = 2**25


def add(commands: typing.Any) -> None:
    """The verb and its arguments."""
    about = "code the weights of a file"
    parser = output.verb(commands, "quantize", about, _DESCRIPTION, EXAMPLES, trees.told(run))
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT")
    parser.add_argument("--policy", action="append", required=True, metavar="RULE", help="GLOB=SCHEME; repeatable")
    parser.add_argument("--entropy", action="store_true", help="code the codes by how often they occur")


def run(arguments: argparse.Namespace) -> int:
    """Streams the file through the policy."""
    started = time.perf_counter()
    room = files.format_of(arguments.target)
    if room not in (files.safetensors, files.gguf):
        raise ValueError(f"{arguments.target!r} cannot hold codes. Use a file that ends in .safetensors or .gguf.")
    if room is files.gguf and arguments.entropy:
        raise ValueError("--entropy is for .safetensors. Leave it out.")
    policy = policy_of(arguments.policy)
    tree = files.scan(arguments.source)
    decisions, treedef = resolve("quantize", policy, tree)
    tensors = [d for d in decisions if hasattr(d.leaf, "dtype")]
    before = sum(trees.value_bytes(trees.plain(d.leaf)) for d in decisions if hasattr(d.leaf, "dtype"))
    chosen = [d for d in decisions if d.scheme is not None]
    sizes = [trees.value_bytes(d.leaf) for d in chosen]

    def work(job: int) -> list[np.ndarray]:
        return _coded(chosen[job])

    with (
        output.progress("quantize", before) as advance,
        lazy.Ahead(work, sizes, max(sizes, default=0) + _ROOM) as ahead,
    ):
        waiting = iter([_Deferred(d, i, ahead, advance).tensor() for i, d in enumerate(chosen)])
        leaves = [d.leaf if d.scheme is None else next(waiting) for d in decisions]
        coded_tree = treedef.unflatten(leaves)
        if room is files.gguf:
            room.write(arguments.target, coded_tree)
        else:
            compress = files.Entropy() if arguments.entropy else None
            files.save(arguments.target, coded_tree, files.metadata_of(arguments.source), compress=compress)
    coded = [leaf for d, leaf in zip(decisions, leaves, strict=True) if d.scheme is not None]
    facts = {
        "file": arguments.target,
        "tensors": len(tensors),
        "quantized": len(coded),
        "bytes_before": before,
        "bytes": os.path.getsize(arguments.target),
        "bits_per_quantized_weight": 8 * sum(map(trees.stored_bytes, coded)) / max(sum(q.size for q in coded), 1),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if arguments.json:
        output.emit(facts)
    else:
        output.say(
            f"{facts['file']}: {facts['quantized']} of {facts['tensors']} tensors in codes of "
            f"{facts['bits_per_quantized_weight']:.2f} bits, {before:,} -> {facts['bytes']:,} bytes, "
            f"{facts['seconds']:.1f} s"
        )
    return 0


class _Deferred:
    """A tensor whose parts are made together when the first of them is written, and then let go."""

    def __init__(self, decision: Decision, job: int, ahead: lazy.Ahead[list[np.ndarray]], advance: Callable[..., None]):
        self.decision, self.job, self.ahead, self.advance = decision, job, ahead, advance
        self.made: dict[int, np.ndarray] = {}

    def tensor(self) -> QTensor:
        leaf, scheme = self.decision.leaf, typing.cast(Scheme, self.decision.scheme)
        with at("quantize", self.decision.path, leaf):
            structs, structure = jax.tree.flatten(_shapes(scheme, leaf.shape, np.dtype(leaf.dtype)))
        parts = [Lazy(s.shape, np.dtype(s.dtype), functools.partial(self.part, i)) for i, s in enumerate(structs)]
        return structure.unflatten(parts)

    def part(self, i: int) -> np.ndarray:
        if not self.made:
            self.made.update(enumerate(self.ahead.take(self.job)))
            self.advance(self.decision.path, trees.value_bytes(self.decision.leaf))
        return self.made.pop(i)


def _coded(decision: Decision) -> list[np.ndarray]:
    """Reads a tensor and codes it."""
    array, scheme = trees.whole(decision.leaf), typing.cast(Scheme, decision.scheme)
    with _one_at_a_time(scheme, array.shape, array.dtype):  # what compiles for the one is there for the next
        try:
            coded = quantize({"weight": array}, lambda *_: scheme)["weight"]  # one name: one program for each shape
        except ValueError:
            coded = quantize({decision.path: array}, lambda *_: scheme)[decision.path]  # says which
        return [np.asarray(part) for part in jax.tree.leaves(coded)]


@functools.lru_cache(maxsize=1024)
def _one_at_a_time(*program: typing.Any) -> threading.Lock:
    return threading.Lock()


@functools.lru_cache(maxsize=1024)
def _shapes(scheme: Scheme, shape: tuple[int, ...], dtype: np.dtype) -> QTensor:
    struct = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))
    try:
        return jax.eval_shape(lambda x: encode(x, scheme), struct)
    except AttributeError as error:  # granularity=MSE(): no constructor looks at the type of a field
        raise ValueError(f"--policy: {scheme!r} has a field of another type ({error}).") from error
