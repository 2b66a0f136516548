"""Reads a scheme from its repr, which is its constructor call; nothing is evaluated.

The grammar is that of Python: calls of known names, ``>>`` between schemes, numbers, strings, tuples, None, True,
False, inf and nan. A name may be written out: ``jqz.ranges.MSE(80)``.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import typing
from collections.abc import Iterable, Mapping

from jqz import _gradients, _granularity, _input_groups, _ranges, _rounding, _scheme, _ste, schemes
from jqz._scheme import Chain, Identity, Scheme, chain

#: Characters of an expression. A codebook of 256 given levels takes 6000.
LONGEST = 2**16

Names = Mapping[str, type]

#: What may stand before a name, as in ``ranges.MSE(80)``.
_NAMESPACES = {"schemes": schemes, "ranges": _ranges, "rounding": _rounding, "gradients": _gradients, "ste": _ste}


def parse(text: str, classes: Iterable[type] = ()) -> Scheme:
    """The scheme that an expression stands for: ``parse(repr(scheme)) == scheme``.

    Args:
      text: such as ``Symmetric(bits=8) >> PowerOfTwo(bits=4)``.
      classes: schemes of your own, and types of your own that stand in their fields.

    Raises:
      ValueError: the expression is not of this grammar, a name is unknown, or a constructor refuses its arguments.

    >>> parse("Symmetric(bits=4, granularity=PerAxis(-1)) >> PowerOfTwo(bits=4)")
    Symmetric(bits=4, granularity=PerAxis(-1)) >> PowerOfTwo(bits=4)
    """
    if len(text) > LONGEST:
        raise ValueError(f"the scheme has {len(text)} characters, wanted at most {LONGEST}.")
    try:
        found = _Reader(text, classes).scheme(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"{_short(text)} is no expression ({error}). Use Symmetric(bits=4), as repr shows it."
        ) from None
    if not isinstance(found, Scheme):
        raise ValueError(f"{_short(text)} is {found!r}, wanted a scheme. Use Symmetric(bits=4).")
    return found


def classes_of(value: typing.Any) -> set[type]:
    """The types of a scheme and of all that stands in its fields."""
    if isinstance(value, tuple):
        return set().union(*map(classes_of, value))
    if not dataclasses.is_dataclass(value):
        return set()
    inner = (classes_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    return {type(value)}.union(*inner)


@functools.cache
def _public() -> tuple[Names, Names]:
    """Schemes, and the types of their fields: apart, since ``Identity`` is both a scheme and an estimator."""
    named: dict[str, type] = {}
    for room in (_granularity, _input_groups, _scheme, *_NAMESPACES.values()):
        for name, cls in vars(room).items():
            known = inspect.isclass(cls) and dataclasses.is_dataclass(cls) and not inspect.isabstract(cls)
            if known and cls is not Chain and not name.startswith("_"):
                named |= {name: cls} | {f"{space}.{name}": cls for space, of in _NAMESPACES.items() if of is room}
    whole = {name: cls for name, cls in named.items() if issubclass(cls, Scheme)}
    return {**whole, "Identity": Identity}, {name: cls for name, cls in named.items() if name not in whole}


class _Reader:
    """The walk over a syntax tree."""

    def __init__(self, text: str, classes: Iterable[type]):
        own, public = {cls.__name__: cls for cls in classes}, _public()
        self.text = text
        self.schemes = {**public[0], **{name: cls for name, cls in own.items() if issubclass(cls, Scheme)}}
        self.parts = {**self.schemes, **public[1], **own}

    def scheme(self, node: ast.expr) -> typing.Any:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift):
            return self.built(node, chain, [self.scheme(node.left), self.scheme(node.right)], {})
        if isinstance(node, ast.Call):
            return self.call(node, self.schemes)
        raise self.refusal(node, "is no scheme. Use Symmetric(bits=4): a call, with its parentheses")

    def argument(self, node: ast.expr) -> typing.Any:
        if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool | int | float | str)):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            number = self.argument(node.operand)
            if isinstance(number, int | float):
                return -number if isinstance(node.op, ast.USub) else number
        if isinstance(node, ast.Tuple):
            return tuple(map(self.argument, node.elts))
        if isinstance(node, ast.Name) and node.id in ("inf", "nan"):
            return float(node.id)
        if isinstance(node, ast.Call):
            return self.call(node, self.parts)
        if isinstance(node, ast.BinOp):
            return self.scheme(node)
        raise self.refusal(node, "is no argument. Use a number, a tuple, None or a call, as repr shows them")

    def call(self, node: ast.Call, names: Names) -> typing.Any:
        name = self.name(node.func)
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"Did you mean {near[0]}? A" if near else "A"
            raise self.refusal(node.func, f"is unknown. {hint} class of your own is passed as schemes=[{name}]")
        if any(keyword.arg is None for keyword in node.keywords):
            raise self.refusal(node, "unpacks a dict. Write its arguments out")
        named = {str(keyword.arg): self.argument(keyword.value) for keyword in node.keywords}
        return self.built(node, names[name], list(map(self.argument, node.args)), named)

    def name(self, node: ast.expr) -> str:
        written = ast.unparse(node)
        *space, name = written.removeprefix("jqz.").split(".")
        if not all(part.isidentifier() for part in (*space, name)) or not set(space) <= set(_NAMESPACES):
            raise self.refusal(node, "is no name. Use Symmetric(bits=4)")
        return ".".join((*space, name))

    def built(self, node: ast.expr, make: typing.Any, args: list[typing.Any], named: dict[str, typing.Any]):
        try:
            return make(*args, **named)
        except Exception as error:  # a constructor meets arguments of any type here
            raise self.refusal(node, f"is refused: {error}") from error

    def refusal(self, node: ast.expr, why: str) -> ValueError:
        part = ast.unparse(node)
        place = "" if part == self.text else f"in {_short(self.text)}: "
        return ValueError(f"{place}{_short(part)} {why}{'' if why.endswith('.') else '.'}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:197] + "...")
