import dataclasses
import string

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jqz import _paths

PARTS = st.text(string.ascii_lowercase[:3] + "_0", min_size=1, max_size=3)
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
SETTINGS = hypothesis.settings(deadline=None, derandomize=True, database=None, max_examples=200)


def _matches(glob, path):
    """What the docstring says, by recursion instead of a regular expression."""
    if not glob:
        return not path
    if glob.startswith("**/"):
        rest = glob[3:]
        return _matches(rest, path) or any(_matches(rest, path[i + 1 :]) for i, c in enumerate(path) if c == "/")
    if glob == "/**":
        return not path or path[0] == "/"
    if glob.startswith("**"):
        return any(_matches(glob[2:], path[i:]) for i in range(len(path) + 1))
    if glob[0] == "*":
        end = path.find("/") if "/" in path else len(path)
        return any(_matches(glob[1:], path[i:]) for i in range(end + 1))
    if glob[0] == "?":
        return bool(path) and path[0] != "/" and _matches(glob[1:], path[1:])
    if glob[0] == "{" and "}" in glob:
        end = glob.index("}")
        return any(
            path.startswith(choice) and _matches(glob[end + 1 :], path[len(choice) :])
            for choice in glob[1:end].split(",")
        )
    return bool(path) and path[0] == glob[0] and _matches(glob[1:], path[1:])


@st.composite
def _globs(draw):
    part = st.one_of(
        PARTS,
        st.just("*"),
        st.just("**"),
        st.just("?"),
        PARTS.map(lambda p: p + "*"),
        PARTS.map(lambda p: "*" + p),
        st.lists(PARTS, min_size=1, max_size=3).map(lambda choices: "{" + ",".join(choices) + "}"),
    )
    return "/".join(draw(st.lists(part, min_size=1, max_size=4)))


@SETTINGS
@hypothesis.given(_globs(), PATHS)
def test_globs_mean_what_they_say(glob, path):
    assert _paths.matches(glob, path) == _matches(glob, path)


@SETTINGS
@hypothesis.given(PATHS)
def test_every_path_matches_itself_and_its_tails(path):
    last = path.rsplit("/", 1)[-1]
    for glob in (path, "**", f"**/{last}", f"{path}/**", "/".join("*" * (path.count("/") + 1)), f"{path[0]}**"):
        assert _paths.matches(glob, path)
    for glob in (f"{path}/*", f"{path}x", f"*/{path}", "", f"{path[:-1]}"):
        assert not _paths.matches(glob, path)


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("**/kernel", ["kernel", "a/kernel", "a/b/kernel"], ["a/kernel2", "mykernel", "kernel/a"]),
        ("*/kernel", ["a/kernel"], ["kernel", "a/b/kernel"]),
        ("dec/**", ["dec", "dec/a", "dec/a/b"], ["decoder/a", "a/dec"]),
        ("**/Dense_?/kernel", ["x/Dense_0/kernel"], ["x/Dense_10/kernel", "Dense_/kernel"]),
        ("**/{q,k,v}_proj/**", ["l/0/q_proj/kernel", "v_proj/bias"], ["o_proj/kernel", "l/qk_proj/kernel"]),
        ("a.b/[c]", ["a.b/[c]"], ["axb/c"]),  # only *, ? and braces are special
        ("{a", ["{a"], ["a"]),
    ],
)
def test_examples(glob, yes, no):
    assert [path for path in [*yes, *no] if _paths.matches(glob, path)] == yes


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Layer:
    kernel: jax.Array
    rest: dict


def test_names_of_plain_trees():
    tree = {
        "params": {"Dense_0": {"kernel": 1.0}},
        "list": [2.0, (3.0, None)],
        "numbers": {7: 4.0},
        "layer": _Layer(5.0, {"b": 6.0}),
    }
    assert {_paths.name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)} == {
        "params/Dense_0/kernel": 1.0,
        "list/0": 2.0,
        "list/1/0": 3.0,
        "numbers/7": 4.0,
        "layer/kernel": 5.0,
        "layer/rest/b": 6.0,
    }
    assert _paths.name(()) == ""


class _Model(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 3, rngs=rngs)
        self.more = nnx.List([nnx.Linear(3, 3, use_bias=False, rngs=rngs)])


def test_names_of_nnx_states_and_modules():
    model = _Model(nnx.Rngs(0))
    wanted = {"first/kernel", "first/bias", "more/0/kernel"}
    for tree in (model, nnx.state(model), nnx.to_pure_dict(nnx.state(model))):
        assert {_paths.name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)} == wanted
    assert _paths.name(jax.tree_util.tree_leaves_with_path({"value": jnp.ones(1)})[0][0]) == "value"


def test_nearest_names_come_first():
    paths = ["params/Dense_0/kernel", "params/Dense_0/bias", "params/Conv_0/kernel", "batch_stats/mean"]
    assert _paths.nearest("**/Dense0/kernel", paths)[0] == "params/Dense_0/kernel"
    assert _paths.nearest("**/biases", paths)[0] == "params/Dense_0/bias"
    assert _paths.nearest("stats/mean", paths)[0] == "batch_stats/mean"
    assert len(_paths.nearest("**/x", paths)) == 3
    assert _paths.nearest("**/x", []) == []
