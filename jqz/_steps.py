"""Parameters of the steps of a scan, each under a path of its own: what a scan stacks, layers have one by one."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

#: Between a path and the number of a step; no path of a tree holds it.
_MARK = "\0"


def step_of(path: str, step: int) -> str:
    """The path of what one step of a scan gets of a parameter, or of a step of an outer scan."""
    return f"{path}{_MARK}{step}"


def whole_path(path: str) -> str:
    """The parameter that a path is a step of, or is."""
    return path.split(_MARK)[0]


def steps_in(path: str) -> tuple[int, ...]:
    """The numbers of the steps, the outermost scan first; none for a parameter that is no step of one."""
    return tuple(map(int, path.split(_MARK)[1:]))


def parts(leaves: Mapping[str, jax.Array], paths: Iterable[str]) -> dict[str, jax.Array]:
    """The leaves of these paths, cut from the parameters that they are steps of."""
    return {path: leaves[whole_path(path)][steps_in(path)] if steps_in(path) else leaves[path] for path in paths}


def joined(leaves: Mapping[str, jax.Array], changed: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The parameters that other values for some paths make of ``leaves``."""
    out = {path: leaf for path, leaf in changed.items() if not steps_in(path)}
    stacks: dict[str, np.ndarray] = {}
    for path in changed.keys() - out.keys():
        name = whole_path(path)
        stacks.setdefault(name, np.array(out.get(name, leaves[name])))[steps_in(path)] = changed[path]
    return {**out, **{name: jnp.asarray(stack) for name, stack in stacks.items()}}
