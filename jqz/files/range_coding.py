"""Entropy coding: codes that are not equally frequent take fewer bits than they are wide."""

import dataclasses
import math
import operator
import typing
import zlib

import numpy as np

from jqz import _packing

#: Symbols that are coded in one call; they take four bytes each while they are.
CHUNK = 2**20


class Packed(typing.NamedTuple):
    """What an array of codes is without its bytes: all that the decoder must be told.

    ``shape`` is that of the codes and ``dtype`` that of the payload; ``bits`` are those of its whole elements where
    the codes are not packed, and ``length`` is None.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    bits: int
    length: int | None


@typing.final
@dataclasses.dataclass(frozen=True)
class Entropy:
    """Codes of each tensor by how often they occur: a static range coder of the constriction library.

    n codes that occur n_i times take sum_i n_i log2(n / n_i) bits, their zeroth-order entropy, and a table of the n_i,
    rounded as finely as pays, of two to six bits a level: together within 1 % of the entropy in nets of 270,000
    weights. A tensor that would not shrink stays packed. Use it for files to send or keep; such a tensor is decoded by
    ``load`` at once, not when something touches it.

    >>> import jqz
    >>> jqz.Symmetric(bits=4), jqz.files.Entropy()
    (Symmetric(bits=4), Entropy())

    References: arXiv:2201.01741 (constriction).
    """

    def encode(self, payload: np.ndarray, packed: Packed) -> np.ndarray | None:
        """The bytes that a payload becomes, or None where that gains nothing."""
        stream = _library().queue
        symbols = _symbols(payload, packed)
        counts = np.bincount(symbols, minlength=2**packed.bits)
        start, counts = _turned(counts)
        if not symbols.size:
            return None
        encoder, table = stream.RangeEncoder(), _Table(0, 0)
        if len(counts) > 1:
            table = _best_table(counts)
            steps = table.steps(counts)
            encoder.encode(np.diff(steps, prepend=0).astype(np.int32), table.model())
            model = _model(table.counts(steps))
            for at in range(0, symbols.size, CHUNK):
                part = symbols[at : at + CHUNK].astype(np.int32)
                encoder.encode((part - start) & (2**packed.bits - 1), model)
        words = encoder.get_compressed().astype("<u4").tobytes()
        head = _varints([zlib.crc32(payload.tobytes()), start, len(counts), *table])
        missing = _least(symbols.nbytes) - len(head) - len(words)
        coded = np.frombuffer(head + words + bytes(4 * max(0, -(-missing // 4))), np.uint8)
        return coded if coded.nbytes < payload.nbytes else None

    def decode(self, coded: np.ndarray, packed: Packed) -> np.ndarray:
        """The payload that was encoded.

        Raises:
          ValueError: the bytes are not those of such an array.
        """
        size = math.prod(packed.shape)
        dtype = np.dtype(np.uint8 if packed.bits <= 8 else np.uint16)
        if coded.nbytes < _least(size * dtype.itemsize):
            raise ValueError(f"{coded.nbytes} bytes declare codes of shape {packed.shape}: too many to be true.")
        (checksum, start, levels, fine, spread), at = _read_varints(coded, 5)
        if not 1 <= levels <= 2**packed.bits or start >= 2**packed.bits or fine not in _FINE or spread >= _SPREADS:
            raise ValueError(
                f"a table of {levels} levels from {start} by {fine, spread} does not fit {packed.bits} bits."
            )
        if (coded.nbytes - at) % 4:
            raise ValueError("its last word is cut.")
        symbols = np.zeros(size, dtype)
        if levels > 1:
            decoder = _library().queue.RangeDecoder(np.frombuffer(coded[at:].tobytes(), "<u4").astype(np.uint32))
            table = _Table(fine, spread)
            steps = np.cumsum(decoder.decode(table.model(), levels), dtype=np.int64)
            if steps.min() < 0 or steps.max() >= _MOST or not steps.any():
                raise ValueError("its table is damaged.")
            model = _model(table.counts(steps))
            for first in range(0, size, CHUNK):
                part = symbols[first : first + CHUNK]
                part[:] = decoder.decode(model, len(part))
        symbols = (symbols + symbols.dtype.type(start)) & symbols.dtype.type(2**packed.bits - 1)
        codes = symbols.reshape(packed.shape)
        payload = codes.view(packed.dtype) if packed.length is None else _packing.pack(codes, packed.bits)
        payload = np.asarray(payload)
        if zlib.crc32(payload.tobytes()) != checksum:
            raise ValueError("its checksum is another.")
        return payload


def _least(size_bytes: int) -> int:
    """The fewest bytes that so many unpacked ones may come from: it bounds the memory that a hostile file can ask for.

    What needs fewer, being nearly all of one value, is followed by zeros.
    """
    return max(0, -(-(size_bytes - 2**16) // 256))


def _symbols(payload: np.ndarray, packed: Packed) -> np.ndarray:
    """Codes as unsigned numbers in one row, signs in two's complement."""
    if packed.length is not None:
        return np.asarray(_packing.unpack(payload, packed.bits, packed.length, np.uint8)).reshape(-1)
    return payload.reshape(-1).view(np.uint8 if payload.itemsize == 1 else np.uint16)


def _turned(counts: np.ndarray) -> tuple[int, np.ndarray]:
    """The counts without the longest run of levels that do not occur, and the level that follows that run.

    Levels lie in a circle, as two's complement has it: the run is the unused middle of signed codes.
    """
    used = np.flatnonzero(counts)
    if not used.size:
        return 0, counts[:1]
    gaps = np.diff(np.append(used, used[0] + len(counts)))
    start = int(used[(int(np.argmax(gaps)) + 1) % used.size])
    return start, np.roll(counts, -start)[: len(counts) - int(gaps.max()) + 1]


#: Steps of a table are fewer: 41 powers of two, 256 steps each.
_MOST = 2**14
_FINE = range(9)
_SPREADS = 32


class _Table(typing.NamedTuple):
    """How counts are stored: rounded to ``fine`` bits after their first one, as differences of such steps' numbers.

    The differences are coded under a Laplace distribution of scale 2**(spread / 2 - 2). Rounded counts cost little:
    a count that is wrong by a share d costs d**2 / 2 of its codes' nats.
    """

    fine: int
    spread: int

    def steps(self, counts: np.ndarray) -> np.ndarray:
        """The numbers of the nearest steps below; 0 for 0 alone."""
        _, exponents = np.frexp(counts.astype(np.float64))
        shifts = np.maximum(exponents - 1 - self.fine, 0)
        return (shifts.astype(np.int64) << self.fine) + (counts >> shifts)

    def counts(self, steps: np.ndarray) -> np.ndarray:
        """The counts that steps stand for: the middle of those that have this step."""
        shifts = np.maximum((steps >> self.fine) - 1, 0)
        low = (steps - (shifts << self.fine)) << shifts
        return low + ((1 << shifts) - 1) / 2

    def model(self) -> typing.Any:
        """The distribution of differences."""
        return _library().model.QuantizedLaplace(-_MOST, _MOST, 0.0, 2.0 ** (self.spread / 2 - 2))


def _best_table(counts: np.ndarray) -> _Table:
    """The one under which table and codes take the fewest bits, nearly."""
    used, best = counts > 0, (math.inf, _Table(0, 0))
    for fine in _FINE:
        table = _Table(fine, 0)
        steps = table.steps(counts)
        rounded = table.counts(steps)
        share = rounded[used] / rounded.sum()
        magnitude = np.abs(np.diff(steps, prepend=0)).mean() + 0.05
        spread = int(np.clip(np.rint(2 * np.log2(magnitude) + 4), 0, _SPREADS - 1))
        bits = -(counts[used] * np.log2(share)).sum() + len(counts) * np.log2(2 * math.e * max(magnitude, 0.25))
        best = min(best, (float(bits), _Table(fine, spread)))
    return best[1]


def _model(counts: np.ndarray) -> typing.Any:
    return _library().model.Categorical(counts / counts.sum(), perfect=False)


def _library() -> typing.Any:
    try:
        import constriction
    except ImportError as error:
        raise ImportError("entropy coding needs constriction. Use pip install 'jqz[files]'.") from error
    return typing.cast(typing.Any, constriction).stream


def _varints(numbers: list[int]) -> bytes:
    """Seven bits a byte, low ones first; the high bit says that more follow."""
    out = bytearray()
    for number in numbers:
        rest = operator.index(number)
        while rest >= 128:
            out.append(rest % 128 + 128)
            rest //= 128
        out.append(rest)
    return bytes(out)


def _read_varints(stored: np.ndarray, count: int) -> tuple[list[int], int]:
    raw = stored[: 10 * count].tobytes()
    numbers, place = [], 0
    for _ in range(count):
        number, shift = 0, 0
        while True:
            if place >= len(raw) or shift > 63:
                raise ValueError("its head is cut.")
            byte = raw[place]
            place += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        numbers.append(number)
    return numbers, place
