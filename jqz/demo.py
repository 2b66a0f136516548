"""The measurements behind ``jqz demo``: every scheme on a small network that reads handwritten digits.

It needs Flax, Optax and scikit-learn, whose ``load_digits`` holds 1797 images of 8 x 8 pixels: nothing is downloaded.
"""

import concurrent.futures
import dataclasses
import gzip
import inspect
import math
import typing
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

from jqz import schemes
from jqz._audit import audit
from jqz._granularity import PerAxis, PerTensor
from jqz._inference import quantized
from jqz._policy import Policy
from jqz._qtensor import QTensor, is_qtensor
from jqz._scheme import Scheme
from jqz._transform import bits_per_weight, fake_quantize, quantize, size_bytes

#: Schemes that are chosen by a format instead of a width, widest first.
FORMATS: dict[type[Scheme], dict[str, Scheme]] = {
    schemes.Float: {
        "Float(E4M3())": schemes.Float(schemes.E4M3()),
        "Float(E5M2())": schemes.Float(schemes.E5M2()),
        "Float(E2M3())": schemes.Float(schemes.E2M3()),
        "Float(E3M2())": schemes.Float(schemes.E3M2()),
        "Float(E2M1())": schemes.Float(schemes.E2M1()),
    },
    schemes.BlockFloat: {
        "BlockFloat: MXINT8": schemes.BlockFloat(schemes.Int8()),
        "BlockFloat: MXFP8": schemes.BlockFloat(schemes.E4M3()),
        "BlockFloat: MXFP6": schemes.BlockFloat(schemes.E2M3()),
        "BlockFloat: MXFP4": schemes.BlockFloat(schemes.E2M1()),
        "BlockFloat: NVFP4": schemes.BlockFloat(scale=schemes.E4M3Scale()),
    },
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure, and for how long to train."""

    seed: int = 0
    only: tuple[str, ...] = ()
    per_channel: bool = False
    widths: tuple[int, ...] = (8, 7, 6, 5, 4, 3, 2)
    float_epochs: int = 24
    tuning_epochs: int = 8
    batch: int = 64


QUICK = Settings(widths=(8, 4, 2), float_epochs=8, tuning_epochs=1)


class Row(typing.NamedTuple):
    """A scheme to measure, under the heading of its class."""

    group: str
    label: str
    scheme: Scheme | None


@dataclasses.dataclass(frozen=True)
class Result:
    """A measured row. Accuracies and agreement are fractions of the test images; sizes are those of the weights.

    Attributes:
      group: the heading.
      label: the scheme, in short.
      scheme: its constructor call; None for the float network.
      accuracy: of the float network with rounded weights.
      trained_accuracy: after straight-through training from the float weights.
      bits_per_weight: stored bits for each weight, grids included.
      packed_bytes: packed codes and grids.
      gzip_bytes: the packed codes alone, gzipped.
      sqnr_db: signal to quantization noise of the weights; None where nothing is lost.
      agreement: how often integer inference, on these weights, chooses the class that the float network chooses.
      integer: whether all products of that inference ran on integers; else some ran on decoded weights.
    """

    group: str
    label: str
    scheme: str | None
    accuracy: float
    trained_accuracy: float
    bits_per_weight: float
    packed_bytes: int
    gzip_bytes: int
    sqnr_db: float | None
    agreement: float | None
    integer: bool


class Stage(typing.NamedTuple):
    """What is being done now, for a progress display."""

    text: str


def names() -> list[str]:
    """The schemes that ``Settings.only`` may name."""
    return [cls.__name__ for cls in schemes.CATALOGUE]


def rows(settings: Settings) -> list[Row]:
    """The schemes to measure: those of the catalogue at every width that they have, then a chain.

    >>> [row.label for row in rows(Settings(only=("Symmetric",), widths=(8, 4)))]
    ['Symmetric(8)', 'Symmetric(4)', 'Symmetric(8) >> PowerOfTwo(4)']

    Raises:
      ValueError: ``settings.only`` names no scheme.
    """
    unknown = [name for name in settings.only if name not in names()]
    if unknown:
        raise ValueError(f"got {', '.join(unknown)}, wanted some of {', '.join(names())}.")
    out = [
        Row(cls.__name__, label, _per_channel(scheme) if settings.per_channel else scheme)
        for cls in schemes.CATALOGUE
        if not settings.only or cls.__name__ in settings.only
        for label, scheme in _variants(cls, settings.widths)
    ]
    first = schemes.Symmetric(bits=8)
    chained = (_per_channel(first) if settings.per_channel else first) >> schemes.PowerOfTwo(bits=4)
    return [*out, Row("chain", "Symmetric(8) >> PowerOfTwo(4)", chained)]


def _variants(cls: type[Scheme], widths: Sequence[int]) -> Iterator[tuple[str, Scheme]]:
    """What a class offers at these widths, under a short label."""
    build = typing.cast(Callable[..., Scheme], cls)
    if cls in FORMATS:
        yield from ((label, scheme) for label, scheme in FORMATS[cls].items() if scheme.bits in widths)
    elif "bits" not in inspect.signature(cls).parameters:
        yield f"{cls.__name__}()", build()
    else:
        for bits in widths:
            try:
                yield f"{cls.__name__}({bits})", build(bits=bits)
            except ValueError:  # a width that this scheme does not have
                continue


def _per_channel(scheme: Scheme) -> Scheme:
    if scheme.granularity != PerTensor():
        return scheme
    return dataclasses.replace(typing.cast(typing.Any, scheme), granularity=PerAxis(-1))


class Network(nn.Module):
    """A convolution and a dense layer: 9392 parameters.

    Ten classes in sixteen logits: so padded, a row of codes of any width fills whole bytes.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits of images (batch, 8, 8, 1)."""
        x = nn.relu(nn.Conv(16, (3, 3), padding="VALID")(images))
        return nn.Dense(16)(x.reshape((x.shape[0], -1)))


def _logits(network: Network, variables: typing.Any, images: jax.Array) -> jax.Array:
    return typing.cast(jax.Array, network.apply(variables, images))


class Digits(typing.NamedTuple):
    """Images (count, 8, 8, 1) in [0, 1] and their labels; a quarter is held out for the test."""

    images: jax.Array
    labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


def digits(seed: int) -> Digits:
    """The data set, shuffled and split."""
    raw = typing.cast(typing.Any, load_digits())
    order = np.random.default_rng(seed).permutation(len(raw.target))
    images = jnp.asarray(raw.images[order, :, :, None] / 16, jnp.float32)
    labels = jnp.asarray(raw.target[order], jnp.int32)
    held = len(order) // 4
    return Digits(images[held:], labels[held:], images[:held], labels[:held])


Rounding = Callable[[typing.Any, jax.Array], typing.Any]  # (params, bits) -> params


def _with_bits(scheme: Scheme, bits: typing.Any) -> Scheme:
    return dataclasses.replace(typing.cast(typing.Any, scheme), bits=bits)


def _kind(scheme: Scheme | None) -> Scheme | None:
    """What rows must share to share a branch of the compiled program."""
    return _with_bits(scheme, 8) if scheme is not None and isinstance(scheme, schemes.TRACED_BITS) else scheme


def _rounding(kind: Scheme | None) -> Rounding:
    """Rounded weights and their straight-through derivatives.

    These are elementwise, so that they can be had beside the values, and no gradient need be taken
    through the choice of a branch, which would keep what every branch remembers.
    """

    def rounded(params: typing.Any, bits: jax.Array) -> typing.Any:
        if kind is None:
            return params
        scheme = _with_bits(kind, bits) if isinstance(kind, schemes.TRACED_BITS) else kind
        return fake_quantize(params, Policy({"**/kernel": scheme}))

    def pair(params: typing.Any, bits: jax.Array) -> typing.Any:
        values, pull = jax.vjp(lambda params: rounded(params, bits), params)
        return values, pull(jax.tree.map(jnp.ones_like, values))[0]

    return pair


class Training:
    """Straight-through training under any of some schemes, by one compiled program."""

    def __init__(self, settings: Settings, chosen: Sequence[Row], data: Digits, network: Network, params: typing.Any):
        self._settings = settings
        self._epoch = len(data.labels) // settings.batch
        self._branches: dict[typing.Any, int] = {}
        for scheme in (None, *(row.scheme for row in chosen)):
            self._branches.setdefault(_kind(scheme), len(self._branches))
        choices = [_rounding(kind) for kind in self._branches]
        adam = optax.scale_by_adam()

        def loss(values: typing.Any, batch: jax.Array) -> jax.Array:
            logits = _logits(network, values, data.images[batch])
            return optax.softmax_cross_entropy_with_integer_labels(logits, data.labels[batch]).mean()

        def fit(params, branch, bits, batches, steps, rate):
            def step(i, carry):
                params, _, state = carry
                values, slopes = jax.lax.switch(branch, choices, params, bits)
                grads = jax.tree.map(jnp.multiply, jax.grad(loss)(values, batches[i]), slopes)
                with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
                    updates, state = adam.update(grads, state)
                now = rate * (1 - i / jnp.maximum(steps, 1))
                return jax.tree.map(lambda p, u: p - now * u, params, updates), values, state

            # one more step, whose rate is 0, rounds the weights that the last one made
            return jax.lax.fori_loop(0, steps + 1, step, (params, params, adam.init(params)))[:2]

        self._fit = jax.jit(fit).lower(*self._arguments(params, None, 0, 0)).compile()

    def __call__(self, params: typing.Any, scheme: Scheme | None, epochs: int, rate: float) -> typing.Any:
        """The parameters after some epochs at a rate that falls to 0, and these parameters rounded."""
        return self._fit(*self._arguments(params, scheme, epochs * self._epoch, rate))

    def _arguments(self, params, scheme: Scheme | None, steps: int, rate: float) -> typing.Any:
        rng = np.random.default_rng((self._settings.seed, steps))
        size = self._settings.batch * self._epoch
        longest = max(self._settings.float_epochs, self._settings.tuning_epochs)
        epochs = [rng.permutation(size) for _ in range(longest + 1)]
        batches = np.concatenate(epochs).reshape(-1, self._settings.batch).astype(np.int32)
        bits = np.int32(8 if scheme is None else scheme.bits)
        return params, np.int32(self._branches[_kind(scheme)]), bits, batches, np.int32(steps), np.float32(rate)


def study(settings: Settings) -> Iterator[Stage | Result]:
    """Trains the network, then measures the float row and every other; yields what it does and what it found.

    Compiling takes longer than running here, so it goes on in the background: first the training step with a
    branch for each scheme, beside it the coding of one row after the other.

    Raises:
      ValueError: as ``rows``.
    """
    chosen = rows(settings)
    workers = concurrent.futures.ThreadPoolExecutor(2)
    try:
        yield from _study(settings, chosen, workers)
    finally:
        workers.shutdown(cancel_futures=True)


def _study(settings: Settings, chosen: Sequence[Row], workers: concurrent.futures.Executor) -> Iterator[Stage | Result]:
    yield Stage("train the float network")
    data, network = digits(settings.seed), Network()
    params = network.init(jax.random.key(settings.seed), data.images[:1])
    compiling = workers.submit(Training, settings, chosen, data, network, params)
    params, _ = Training(settings, (), data, network, params)(params, None, settings.float_epochs, 4e-3)
    predict = jax.jit(lambda values: jnp.argmax(_logits(network, values, data.test_images), -1))
    classes = np.asarray(predict(params))
    coding = [workers.submit(_coded, row.scheme, network, params, data.test_images, classes) for row in chosen]

    yield Stage(f"compile a training step for {len(chosen)} schemes")
    train = compiling.result()

    def accuracies(scheme: Scheme | None) -> tuple[float, float]:
        """After training, and after straight-through training from there."""
        rounded = (train(params, scheme, epochs, 2e-3)[1] for epochs in (0, settings.tuning_epochs))
        after, through = (float(np.mean(np.asarray(predict(r)) == np.asarray(data.test_labels))) for r in rounded)
        return after, through

    yield Stage("float32")
    yield _result(Row("float", "float32", None), accuracies(None), _uncoded(params))
    for row, coded in zip(chosen, coding, strict=True):
        yield Stage(row.label)
        yield _result(row, accuracies(row.scheme), coded.result())


def _result(row: Row, accuracies: tuple[float, float], coded: "Coded") -> Result:
    scheme = None if row.scheme is None else repr(row.scheme)
    return Result(row.group, row.label, scheme, *accuracies, **coded._asdict())


class Coded(typing.NamedTuple):
    """The columns of a row that follow from the codes of its weights; see ``Result``."""

    bits_per_weight: float
    packed_bytes: int
    gzip_bytes: int
    sqnr_db: float | None
    agreement: float | None
    integer: bool


def _uncoded(params: typing.Any) -> Coded:
    weights = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
    raw = b"".join(np.asarray(w).tobytes() for w in weights)
    return Coded(bits_per_weight(weights), size_bytes(weights), _gzipped(raw), None, None, False)


def _coded(
    scheme: Scheme | None, network: Network, params: typing.Any, images: jax.Array, classes: np.ndarray
) -> Coded:
    qparams = quantize(params, Policy({"**/kernel": scheme}))
    leaves = zip(jax.tree.leaves(qparams, is_leaf=is_qtensor), jax.tree.leaves(params), strict=True)
    pairs = [(q, np.asarray(w, np.float64)) for q, w in leaves if isinstance(q, QTensor)]
    coded = [q for q, _ in pairs]
    noise = sum(float(np.sum((np.asarray(q.dequantize()) - w) ** 2)) for q, w in pairs)
    signal = sum(float(np.sum(w**2)) for _, w in pairs)
    # not compiled: a single batch is over sooner than a program for it is made
    infer = quantized(network.apply, inputs=schemes.Symmetric(bits=8))
    report = audit(network.apply, inputs=schemes.Symmetric(bits=8))(qparams, images)
    return Coded(
        bits_per_weight(coded),
        size_bytes(coded),
        _gzipped(b"".join(np.asarray(q.payload).tobytes() for q in coded)),
        10 * math.log10(signal / noise) if noise else None,
        float(np.mean(np.asarray(infer(qparams, images)).argmax(-1) == classes)),
        all(product.how == "int8" for product in report.products),
    )


def _gzipped(raw: bytes) -> int:
    return len(gzip.compress(raw, 9, mtime=0))
