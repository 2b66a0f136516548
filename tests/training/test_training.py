"""What the public names of ``jqz.training`` owe their readers."""

import inspect

import pytest

import jqz.training


def test_catalogue_is_complete_and_sorted():
    assert len(set(jqz.training.__all__)) == len(jqz.training.__all__)
    public = {name for name, value in vars(jqz.training).items() if name[0] != "_" and not inspect.ismodule(value)}
    assert public == set(jqz.training.__all__)


@pytest.mark.parametrize("name", jqz.training.__all__)
def test_name_is_documented(name):
    value = getattr(jqz.training, name)
    doc = inspect.getdoc(value) or ""
    assert doc.split("\n\n")[0].rstrip().endswith((".", ":", "::")), f"{name}: the docstring begins with {doc[:80]!r}"
    assert not doc.startswith(f"{name}("), f"{name} has the dataclass's own docstring"
    if inspect.isfunction(value):
        assert ">>> " in doc, f"{name} has no example"
