"""Which scheme each leaf of a tree gets."""

import dataclasses
import typing
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jqz import _paths
from jqz._learnable import is_whole
from jqz._qtensor import QTensor, is_qtensor
from jqz._scheme import Scheme

Rule = Scheme | None
#: What the verbs accept where they ask for a policy.
PolicyLike = typing.Any

#: Leaves of these names hold per-channel numbers, also where scanned layers stack them to rank 2.
FLOAT_NAMES = frozenset({"bias", "scale", "mean", "var", "offset", "gamma", "beta", "running_mean", "running_var"})


@typing.final
@dataclasses.dataclass(frozen=True, init=False)
class Policy:
    """Rules from path globs to schemes; the first glob that matches a leaf decides, None leaves it float.

    ``*`` stays inside one part of a path, ``**`` crosses parts, ``{a,b}`` chooses. Leaves of rank 0
    and 1, and those named as biases, norms and statistics are, stay float unless a rule's last part
    names them (``"**/bias"`` does, ``"**"`` does not). Integer leaves are never touched, and a rule that names
    nothing else is an error.

    Args:
      rules: ``{glob: Scheme or None}`` for weights.
      inputs: ``{glob: Scheme or None}`` or a Scheme for what meets a weight in a dot or convolution, by the
        weight's path; used by the functions that quantize activations. Products of two activations, as in
        attention, stay float unless a rule names them: ``"**/(dot*)"`` does, ``"**"`` does not. On static grids
        a residual reads the codes that a product reads; ``"**/(residual)"`` gives it codes of its own.

    Raises:
      TypeError: a rule is neither a Scheme nor None; (by the verbs) a rule names leaves of integers alone.
      ValueError: (by the verbs) a rule matches nothing; the message names the nearest paths.

    >>> import jqz
    >>> policy = jqz.Policy({"**/head/kernel": None, "**/kernel": jqz.Symmetric(bits=4)})
    >>> policy.scheme_at("encoder/Dense_0/kernel"), policy.scheme_at("head/kernel")
    (Symmetric(bits=4), None)
    """

    rules: tuple[tuple[str, Rule], ...]
    inputs: tuple[tuple[str, Rule], ...] = ()

    def __init__(self, rules: Mapping[str, Rule] | Scheme, inputs: Mapping[str, Rule] | Scheme | None = None):
        object.__setattr__(self, "rules", _rules("Policy", rules))
        object.__setattr__(self, "inputs", _rules("Policy(inputs=...)", {} if inputs is None else inputs))

    def scheme_at(self, path: str) -> Rule:
        """The scheme of the first rule that matches a path, or None."""
        return next((scheme for glob, scheme in self.rules if _paths.matches(glob, path)), None)

    def input_at(self, path: str) -> Rule:
        """The scheme of what meets the weight at a path, or of an operand of a product without weights, or None.

        Such an operand (``scope/(dot lhs)``), or a residual (``path/(residual)``), takes the rules that name it:
        those whose last part begins with "(".
        """
        named = _paths.names_product(path)
        rules = (rule for rule in self.inputs if not named or _paths.names_product(rule[0]))
        return next((scheme for glob, scheme in rules if _paths.matches(glob, path)), None)

    def __repr__(self) -> str:
        inputs = f", inputs={dict(self.inputs)!r}" if self.inputs else ""
        return f"Policy({dict(self.rules)!r}{inputs})"


def _rules(who: str, rules: typing.Any) -> tuple[tuple[str, Rule], ...]:
    if isinstance(rules, Scheme):
        rules = {"**": rules}
    if not isinstance(rules, Mapping):
        raise TypeError(
            f'{who}: got {rules!r}, wanted a dict of rules. Use Policy({{"**/kernel": Symmetric(bits=8)}}).'
        )
    for glob, scheme in rules.items():
        if not isinstance(glob, str) or not (scheme is None or isinstance(scheme, Scheme)):
            raise TypeError(
                f"{who}: rule {glob!r} maps to {scheme!r}, wanted a Scheme or None. "
                'Use {"**/kernel": Symmetric(bits=8)}; a class needs its parentheses.'
            )
    return tuple(rules.items())


class Decision(typing.NamedTuple):
    """A leaf, its path, and the scheme that a policy gives it."""

    path: str
    leaf: typing.Any
    scheme: Rule


def resolve(who: str, policy: PolicyLike, tree: typing.Any) -> tuple[list[Decision], typing.Any]:
    """Applies a policy to a tree: a decision for each leaf, and the tree's structure.

    ``policy`` is a Policy, a dict of rules, one Scheme, a callable ``(path, leaf) -> Scheme | None``, or a tree
    of the same structure with Scheme or None leaves.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_whole)
    named = [(_paths.name(path), leaf) for path, leaf in flat]
    if isinstance(policy, Mapping) and policy and all(isinstance(k, str) and "*" in k for k in policy):
        policy = Policy(typing.cast(Mapping[str, Rule], policy))
    if isinstance(policy, type):
        raise TypeError(f"{who}: got the class {policy.__name__}, wanted a policy. Use {policy.__name__}(...).")
    if isinstance(policy, Scheme) and len(named) == 1 and named[0][0] == "":
        schemes: list[Rule] = [policy]  # one array: no rule of thumb stands between it and its scheme
    elif isinstance(policy, Policy | Scheme):
        schemes = _by_rules(who, policy if isinstance(policy, Policy) else Policy(policy), named)
    elif callable(policy) and not _is_tree_of_schemes(policy, treedef):
        schemes = [typing.cast(Callable[[str, typing.Any], Rule], policy)(path, leaf) for path, leaf in named]
    else:
        schemes = _by_tree(who, policy, treedef)
    for (path, leaf), scheme in zip(named, schemes, strict=True):
        if scheme is not None and not isinstance(scheme, Scheme):
            raise TypeError(f"{who}: the policy gives {path!r} {scheme!r}, wanted a Scheme or None.")
        if scheme is not None and is_qtensor(leaf):
            raise ValueError(f"{who}: {path!r} is quantized already ({leaf.scheme!r}). Use dequantize first.")
    return [Decision(path, leaf, s) for (path, leaf), s in zip(named, schemes, strict=True)], treedef


def _by_rules(who: str, policy: Policy, named: list[tuple[str, typing.Any]]) -> list[Rule]:
    used: dict[str, bool] = {}  # by rule: whether it matches anything that has codes
    schemes: list[Rule] = []
    for path, leaf in named:
        hits = [(glob, scheme) for glob, scheme in policy.rules if _paths.matches(glob, path)]
        used |= {glob: used.get(glob, False) or isinstance(leaf, QTensor) or _is_floating(leaf) for glob, _ in hits}
        glob, scheme = hits[0] if hits else ("", None)
        schemes.append(scheme if scheme is not None and _takes(glob, path, leaf) else None)
    for glob, scheme in policy.rules:
        if glob not in used and glob != "**":
            near = _paths.nearest(glob, (path for path, _ in named))
            raise ValueError(
                f"{who}: rule {glob!r} matches none of {len(named)} leaves. "
                f"Nearest paths: {', '.join(map(repr, near)) or 'none, the tree is empty'}. "
                "Use one of these, or remove the rule."
            )
        if scheme is not None and not used.get(glob, True):
            for path, leaf in named:
                if _names(glob, path) and _paths.matches(glob, path):
                    raise TypeError(
                        f"{who}: rule {glob!r} names nothing but what has no codes: {path!r} is "
                        f"{getattr(leaf, 'dtype', type(leaf).__name__)}, wanted a floating dtype. "
                        "Use x.astype(jnp.float32), or remove the rule."
                    )
    return schemes


def _takes(glob: str, path: str, leaf: typing.Any) -> bool:
    if isinstance(leaf, QTensor) or not _is_floating(leaf):
        return False
    return _names(glob, path) or (leaf.ndim >= 2 and path.rsplit("/", 1)[-1] not in FLOAT_NAMES)


def _is_floating(leaf: typing.Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _names(glob: str, path: str) -> bool:
    """Whether a rule's last part says more of the leaf than that it is one."""
    tail = glob.rsplit("/", 1)[-1]
    return tail.strip("*?") != "" and _paths.matches(tail, path.rsplit("/", 1)[-1])


def _is_tree_of_schemes(policy: PolicyLike, treedef: typing.Any) -> bool:
    """Whether a callable is such a tree: an Equinox module of schemes is both."""
    try:
        leaves = treedef.flatten_up_to(policy)
    except (ValueError, TypeError):
        return False
    return all(leaf is None or isinstance(leaf, Scheme) for leaf in leaves)


def _by_tree(who: str, policy: PolicyLike, treedef: typing.Any) -> list[Rule]:
    try:
        return treedef.flatten_up_to(policy)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{who}: got {policy!r}, wanted a Policy, a Scheme, a callable, or a tree of "
            f"structure {treedef} with a Scheme or None at each leaf. "
            'Use Policy({"**/kernel": Symmetric(bits=8)}).'
        ) from error
