"""Damaged and hostile files, made from sound ones."""

import contextlib
import copy
import json
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np

import jqz

#: What a hostile writer puts in the place of a number, a name or a node.
HOSTILE = (
    *(0, 1, -1, 7, 2**31, 2**48, 2**63, -(2**63), 10**30, 0.5, 1e308, True, None, "", "x", "float64", "uint8", "bool"),
    *([], [0], [-1], [2**40, 2**40], [2**62], [1] * 70, [[]], {}, {"array": "w"}, {"dict": [["a", None]]}),
    *("Symmetric(bits=1)", "Symmetric(bits=3)", "Identity()", "Symmetric(bits=8, granularity=PerGroup(1000000000))"),
    *("Symmetric(bits=8, range=MSE(1000000000))", "Codebook(bits=2)", "PowerOfTwo(bits=4) >> Ternary()", "Binary()"),
    *("Symmetric(bits=8, granularity=PerAxis(100))", "__import__('os').abort()", "Float()", "BlockFloat()", "(" * 300),
)


def sound(folder):
    """Files that save wrote, by name."""
    x = np.random.default_rng(0).normal(size=(12, 9)).astype(np.float32)
    four, eight = jqz.Symmetric(bits=4), jqz.Symmetric(bits=8)
    wide = np.random.default_rng(1).normal(size=(64, 48)).astype(np.float32)
    policy = jqz.Policy(eight, inputs=eight)
    stats = jqz.observe(lambda p, x: x @ p["w"], policy)({"w": x}, jnp.ones((2, 12)))
    trees = {
        "floats": {"w": x, "b": [x[0], (1, None, 2.5)], "h": x.astype(np.float16)},
        "codes": {"w": jqz.quantize(x, four), "v": jqz.quantize(x, eight >> jqz.PowerOfTwo(bits=4)), "b": x[0]},
        "coded": {"w": jqz.quantize(wide, four), "v": jqz.quantize(wide, eight)},
        "learnable": jqz.learnable({"w": x}, jqz.Symmetric(bits=3, gradient=jqz.gradients.LSQ())),
        "sites": jqz.calibrate(stats, policy),
        "keys": {"k": jax.random.split(jax.random.key(0), 2), "i": np.arange(3), "n": {}},
    }
    for name, tree in trees.items():
        compress = jqz.files.Entropy() if name == "coded" else None
        jqz.save(folder / f"{name}.safetensors", tree, {"name": name}, compress=compress)
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in trees}


@contextlib.contextmanager
def damaged(kind, rng, path):
    """A file, or one file of a folder, is a mutant within the block, and sound again after it."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size) or [path]
    victim = files[rng.integers(len(files))]
    sound = victim.read_bytes()
    victim.write_bytes(kind(rng, sound))
    try:
        yield
    finally:
        victim.write_bytes(sound)


def flipped(rng, data):
    """One to eight bits turned over."""
    out = bytearray(data)
    for at in rng.integers(8 * len(out), size=rng.integers(1, 9)):
        out[at // 8] ^= 1 << (at % 8)
    return bytes(out)


def cut(rng, data):
    """The beginning alone, or with something after the end."""
    if rng.random() < 0.2:
        return data + rng.bytes(int(rng.integers(1, 100)))
    return data[: rng.integers(len(data))]


def bomb(rng, data):
    """A header that claims another length."""
    length = int.from_bytes(data[:8], "little")
    claimed = (0, 1, length - 1, length + 1, len(data) - 8, 2**23, 2**31, 2**40, 2**63, 2**64 - 1)
    return int(claimed[rng.integers(len(claimed))]).to_bytes(8, "little") + data[8:]


def stained(rng, data):
    """A run of bytes replaced: zeros, ones, noise, or bytes from elsewhere in the file."""
    size = int(rng.integers(1, 33))
    at, other = rng.integers(len(data), size=2)
    stain = (bytes(size), b"\xff" * size, rng.bytes(size), data[other : other + size])[rng.integers(4)]
    return data[:at] + stain + data[at + size :]


def edited(rng, data):
    """A value of the header replaced; its lengths are right."""
    header, body = _parts(data)
    _edit(rng, header)
    return _joined(header, body)


def forged(rng, data):
    """One to three values of the tree's document replaced; all checksums are right."""
    header, body = _parts(data)
    own = header["__metadata__"]
    document = json.loads(own["jqz"])
    for _ in range(rng.integers(1, 4)):
        _edit(rng, document)
    own["jqz"] = json.dumps(document)
    return _joined(sealed(header), body)


def noisy(rng, data):
    """Arrays replaced by noise, which no checksum covers where they are not entropy-coded."""
    header, body = _parts(data)
    out = bytearray(body)
    for at in rng.integers(len(out), size=32) if out else ():
        out[at] = rng.integers(256)
    return _joined(header, bytes(out))


KINDS = (flipped, cut, bomb, stained, edited, forged, noisy)


def sealed(header):
    """The header with the checksum that its document has."""
    own = {name: value for name, value in header["__metadata__"].items() if name != "jqz.crc32"}
    checksum = str(zlib.crc32(json.dumps(sorted(own.items())).encode()))
    return {**header, "__metadata__": {**own, "jqz.crc32": checksum}}


def reason(error):
    """What an error says, without names and numbers."""
    text = re.sub(r"^[^:]*: ('[^']*'|\"[^\"]*\"): ", "", str(error))
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+|[\[(].*[\])]", "_", text)[:60]


def _parts(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _joined(header, body):
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + body


def _places(node):
    """Every (container, key) of a JSON value."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


def _edit(rng, node):
    places = list(_places(node))
    if not places:
        return
    container, key = places[rng.integers(len(places))]
    deed = rng.integers(4)
    if deed == 0:
        other, name = places[rng.integers(len(places))]
        container[key] = copy.deepcopy(other[name])
    elif deed == 1:
        del container[key]
    elif deed == 2 and isinstance(container[key], str) and container[key]:
        text = container[key]
        at = int(rng.integers(len(text)))
        container[key] = text[:at] + chr(rng.integers(32, 127)) + text[at + 1 :]
    else:
        container[key] = copy.deepcopy(HOSTILE[rng.integers(len(HOSTILE))])
