"""parse(repr(scheme)) == scheme, and nothing but schemes is read."""

import dataclasses
import inspect

import pytest

import jqz
from jqz import gradients, ranges, rounding, schemes, ste
from jqz._expression import classes_of, parse

LISTED = [scheme for variants in schemes.CATALOGUE.values() for scheme in variants]
CHAINS = [
    jqz.Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4),
    jqz.Symmetric(bits=8) >> jqz.PowerOfTwo(bits=6) >> jqz.Ternary(),
]
FIELDS = [
    *(jqz.Symmetric(rounding=one) for one in (rounding.HalfAway(), rounding.Stochastic())),
    jqz.Symmetric(range=ranges.Given(-float("inf"), 1e-30)),
    jqz.Asymmetric(
        bits=4, granularity=jqz.PerAxis((0, -1)), anchor=schemes.Offset(), gradient=gradients.LSQ(batch_axes=(0,))
    ),
    jqz.Binary(estimator=ste.ApproxSign()),
    jqz.Binary(estimator=schemes.ThroughMean(ste.Identity())),
    jqz.Identity(),
]


@pytest.mark.parametrize("scheme", [*LISTED, *CHAINS, *FIELDS], ids=repr)
def test_repr_reads_back(scheme):
    assert parse(repr(scheme)) == scheme
    assert type(parse(repr(scheme))) is type(scheme)


def _with_defaults():
    """Every public type that may stand in a field of a scheme and needs no arguments."""
    for room in (schemes, ranges, rounding, ste, gradients):
        for name, cls in vars(room).items():
            if name.startswith("_") or not inspect.isclass(cls) or inspect.isabstract(cls):
                continue
            fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
            if dataclasses.is_dataclass(cls) and all(f.default is not f.default_factory for f in fields):
                yield cls


@pytest.mark.parametrize("cls", [cls for cls in _with_defaults() if not issubclass(cls, jqz.Scheme)])
def test_every_public_type_of_a_field_is_known(cls):
    assert parse(f"Holder(field={cls()!r})", [Holder]) == Holder(cls())


@dataclasses.dataclass(frozen=True)
class Holder(jqz.Scheme):
    field: object = None
    bits: int = 8
    granularity: jqz.Granularity = jqz.PerTensor()

    def calibrate(self, x):
        return ()

    def encode(self, x, grid):
        return x

    def decode(self, codes, grid):
        return codes


def test_names_may_be_written_out():
    wanted = jqz.Symmetric(bits=4, range=ranges.MSE(80))
    assert parse("jqz.Symmetric(4, range=jqz.ranges.MSE(80))") == wanted
    assert parse("schemes.Symmetric(4, range=ranges.MSE(80))") == wanted
    assert parse("jqz.Identity()") == jqz.Identity()
    assert parse("Binary(estimator=ste.Identity())") == jqz.Binary(estimator=ste.Identity())


def test_classes_of_a_scheme():
    scheme = Holder(ranges.OCTAV()) >> jqz.Ternary()
    assert {Holder, ranges.OCTAV, jqz.Ternary, jqz.PerTensor} <= classes_of(scheme)
    assert parse(repr(scheme), classes_of(scheme)) == scheme


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Symetric(bits=4)", "Did you mean Symmetric"),
        ("Symmetric", "parentheses"),
        ("Symmetric(bits=40)", "wanted an integer from"),
        ("Symmetric(bitz=4)", "bitz"),
        ("Symmetric(bits=4", "no expression"),
        ("Symmetric(bits=4) + Ternary()", "no scheme"),
        ("Symmetric(*(4,))", "no argument"),
        ("Symmetric(**{'bits': 4})", "unpacks"),
        ("Symmetric(bits=__import__('os').getpid())", "no name"),
        ("__import__('os')", "unknown"),
        ("os.path.Symmetric()", "no name"),
        ("(lambda: 1)()", "no name"),
        ("PerTensor()", "unknown"),
        ("Binary(estimator=[x for x in ()])", "no argument"),
        ("Codebook(bits=2) >> 3", "no scheme"),
        ("Symmetric(" * 3000 + ")" * 3000, "no expression"),
        ("Symmetric(bits=" + "9" * 5000 + ")", "no expression"),
        ("Symmetric(bits=4)" + " " * 2**16, "characters"),
        ("Symmetric(\0)", "no expression"),
    ],
)
def test_refusals(text, why):
    with pytest.raises(ValueError, match=why):
        parse(text)
