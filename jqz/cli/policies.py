"""Policies as they are written on a command line."""

from jqz._expression import parse
from jqz._policy import Policy
from jqz._scheme import Scheme


def policy_of(rules: list[str]) -> Policy:
    """A policy from rules as they are written on a command line.

    Raises:
      ValueError: a rule is no rule, or its scheme is none.

    >>> policy_of(["**/head=None", "Symmetric(bits=4)"])
    Policy({'**/head': None, '**': Symmetric(bits=4)})
    """
    found: dict[str, Scheme | None] = {}
    for rule in rules:
        glob, equals, text = rule.partition("=")
        if not equals or "(" in glob:
            glob, text = "**", rule
        glob = glob.strip()
        if glob in found:
            raise ValueError(f"--policy has two rules for {glob!r}. Use one.")
        found[glob] = None if text.strip() == "None" else parse(text.strip())
    return Policy(found)
