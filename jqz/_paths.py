"""Names of leaves and the globs that select them.

Linen's ``{'params': {'Dense_0': {'kernel': ...}}}``, an NNX state and a plain tree all give
names such as ``params/Dense_0/kernel``; NNX's trailing ``value`` is dropped.
"""

import difflib
import functools
import re
import typing
from collections.abc import Iterable

import jax

_NNX_TAILS = ("value", "raw_value")


def name(path: tuple[typing.Any, ...]) -> str:
    """A key path of ``jax.tree_util`` as a readable name.

    >>> import jax
    >>> [name(path) for path, _ in jax.tree_util.tree_leaves_with_path({"a": [1, {"b": 2}]})]
    ['a/0', 'a/1/b']
    """
    keys = list(path)
    if len(keys) > 1 and isinstance(keys[-1], jax.tree_util.GetAttrKey) and keys[-1].name in _NNX_TAILS:
        keys.pop()
    return "/".join(_key(k) for k in keys)


def _key(key: typing.Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


@functools.lru_cache(maxsize=4096)
def _regex(glob: str) -> re.Pattern[str]:
    out, i = [], 0
    while i < len(glob):
        if glob.startswith("**/", i):
            out.append("(?:.*/)?")
            i += 3
        elif glob.startswith("/**", i) and i + 3 == len(glob):
            out.append("(?:/.*)?")
            i += 3
        elif glob.startswith("**", i):
            out.append(".*")
            i += 2
        elif glob[i] == "*":
            out.append("[^/]*")
            i += 1
        elif glob[i] == "?":
            out.append("[^/]")
            i += 1
        elif glob[i] == "{" and "}" in glob[i:]:
            end = glob.index("}", i)
            out.append("(?:" + "|".join(re.escape(part) for part in glob[i + 1 : end].split(",")) + ")")
            i = end + 1
        else:
            out.append(re.escape(glob[i]))
            i += 1
    return re.compile("".join(out))


def matches(glob: str, path: str) -> bool:
    """Whether a glob selects a name. ``*`` stays inside a part, ``**`` crosses parts, ``{a,b}`` chooses.

    >>> matches("**/kernel", "kernel"), matches("**/kernel", "params/Dense_0/kernel")
    (True, True)
    >>> matches("*/kernel", "params/Dense_0/kernel")
    False
    """
    return _regex(glob).fullmatch(path) is not None


def product(scope: str, kind: str) -> str:
    """The name of a product without weights: where it stands, and what it is.

    >>> product("Encoder/Attention_0", "dot"), product("", "dot")
    ('Encoder/Attention_0/(dot)', '(dot)')
    """
    return f"{scope}/({kind})" if scope else f"({kind})"


def operand(name: str, side: int) -> str:
    """The name of an operand of such a product.

    >>> operand("Attention_0/(dot)#2", 1)
    'Attention_0/(dot rhs)#2'
    """
    head, _, tail = name.rpartition(")")
    return f"{head} {('lhs', 'rhs')[side] if side < 2 else f'arg{side}'}){tail}"


RESIDUAL = "(residual)"


def residual(name: str) -> str:
    """The name of what all readers but products read of an activation, by the site at which it is rounded.

    >>> residual("params/Conv_1/kernel#2")
    'params/Conv_1/kernel/(residual)#2'
    """
    path, mark, number = name.partition("#")
    return f"{path}/{RESIDUAL}{mark}{number}"


def names_product(name: str) -> bool:
    """Whether a name or glob is that of a product without weights, or of its operands: of their last part alone.

    Residuals are named likewise, since rules for all weights do not mean them.

    >>> names_product("**/(dot*)"), names_product("**")
    (True, False)
    """
    return name.rpartition("/")[2].startswith("(")


def nearest(glob: str, paths: Iterable[str], count: int = 3) -> list[str]:
    """The names most like a glob that selected nothing, for error messages."""
    plain = glob.replace("**/", "").replace("*", "")
    paths = list(paths)
    tails = {path: path[-max(len(plain), 1) :] for path in paths}
    return sorted(
        paths,
        key=lambda p: (
            -max(
                difflib.SequenceMatcher(None, plain, p).ratio(), difflib.SequenceMatcher(None, plain, tails[p]).ratio()
            )
        ),
    )[:count]
