"""The plan of the house: who may import whom, how large a room may be, what stands in the front door."""

import ast
import inspect
import pathlib
import subprocess
import sys
import types

import pytest

import jqz

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = {str(path.relative_to(ROOT / "jqz").with_suffix("")): path for path in sorted((ROOT / "jqz").rglob("*.py"))}

#: From the ground up. A room imports from lower floors only. ``x/*`` is every file of a package, x its __init__.
FLOORS = (
    # 0: what stands on jax alone
    ("_ste", "_granularity", "_packing", "_paths", "_ranges", "_rounding", "_exponents", "_powers", "_gradients"),
    ("_fixed_point", "_allocator", "_capabilities", "_measures", "_budgets", "_solvers", "lowerings/dot"),
    ("lowerings/*",),
    ("lowerings",),
    # 1: the contract, and tools that schemes share
    ("_scheme", "_levels", "_input_groups"),
    ("_minifloat", "_clustering", "_observer", "_rescaling"),
    ("_histogram", "_requant"),
    # 2: schemes, and what stores their codes
    ("_qtensor", "schemes/*"),
    ("_learnable", "schemes", "nnabla"),
    # 3: which scheme where; the walk
    ("_policy", "_values", "_stacked", "_expression", "_samples", "_sensitivity"),
    ("_walk",),
    ("_interpret", "_pending"),
    ("_evaluate", "_steps"),
    ("_flow", "_blocks"),
    ("_prepare",),
    # 4: the verbs on trees; rules of the walk
    ("_transform", "_activations", "_masks", "_rows"),
    ("_sites",),
    ("kernels/*", "observers/*"),
    ("kernels", "observers"),
    # 5: everything that users compose
    (
        "_inference",
        "_graph",
        "_layers",
        "_descent",
        "_soft_rounding",
        "files/range_coding",
        "files/lazy",
        "files/atomic",
    ),
    ("files/tree", "files/names"),
    ("files/safetensors",),
    ("_audit",),
    ("_nodes", "_complete", "_runtime", "_loops_in_c"),  # what exporters share
    ("_sources", "_litert"),
    ("_islands",),
    ("_operators",),
    ("_target",),
    ("_channels",),
    ("_carriers",),
    ("_links",),
    ("algorithms/*", "training/*", "analysis/*", "files/*", "export/*"),
    ("analysis/report",),
    ("algorithms", "training", "analysis", "files", "export"),
    ("_convert", "_lowered", "_search"),
    # 6: the command
    ("demo", "cli/output"),
    ("cli/trees", "cli/policies"),
    ("cli/*",),
    ("cli",),
    ("cli/__main__",),
    ("",),
)


def _name(room):
    return room.removesuffix("__init__").rstrip("/")


def _floor(room):
    name = _name(room)
    own = [floor for floor, names in enumerate(FLOORS) if name in names]
    shared = [floor for floor, names in enumerate(FLOORS) if name == room and f"{name.rpartition('/')[0]}/*" in names]
    if own or shared:
        return (own or shared)[0]
    raise AssertionError(f"jqz/{room}.py stands on no floor: add it to FLOORS.")


def _imports(room):
    """The rooms that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(ROOMS[room].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _as_room(dotted):
    """'jqz.schemes.symmetric.Narrow' -> 'schemes/symmetric'; None for what is not of the house."""
    parts = dotted.split(".")
    if parts[0] != "jqz":
        return None
    for end in range(len(parts), 0, -1):
        path = "/".join(parts[1:end])
        for room in (path, f"{path}/__init__".lstrip("/")):
            if room in ROOMS:
                return room
    raise AssertionError(dotted)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_to_a_lower_floor(room):
    for dotted in _imports(room):
        other = _as_room(dotted)
        if other is not None and other != room:
            assert _floor(other) < _floor(room), f"jqz/{room}.py imports {dotted}, which is not below it"


#: Rooms that may need more than jax and numpy: what optimises, draws, writes foreign files, and the command.
RICH = ("algorithms", "training", "analysis", "files", "export", "demo", "cli")


@pytest.mark.parametrize("room", [room for room in ROOMS if room.split("/")[0] not in RICH])
def test_core_needs_jax_and_numpy_alone(room):
    outside = {dotted.split(".")[0] for dotted in _imports(room)} - {"jqz", *sys.stdlib_module_names}
    allowed = {"jax", "numpy", "ml_dtypes"}  # jax itself depends on ml_dtypes
    assert outside <= allowed, f"jqz/{room}.py imports {outside - allowed}"


def test_no_file_is_longer_than_400_lines():
    files = [path for folder in ("jqz", "tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    long = {str(path.relative_to(ROOT)): n for path in files if (n := path.read_text().count("\n")) > 400}
    assert len(files) > 20
    assert not long


def test_examples_are_short():
    long = {path.name: n for path in (ROOT / "examples").glob("*.py") if (n := path.read_text().count("\n")) > 80}
    assert not long


def test_import_is_light():
    program = """
import sys, jax, jax.numpy, numpy
before = set(sys.modules)
import jqz
added = {name for name in set(sys.modules) - before}
heavy = {"flax", "optax", "chex", "matplotlib", "rich", "sklearn", "scipy", "onnx", "equinox",
    "safetensors", "constriction"} & {
    name.split(".")[0] for name in added}
strangers = sorted(name for name in added if name.split(".")[0] != "jqz")
print(sorted(heavy), len(strangers), strangers[:20])
assert not heavy and len(strangers) < 60
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def _names():
    """The public names that are not namespaces."""
    return {name: value for name in jqz.__all__ if not isinstance(value := getattr(jqz, name), types.ModuleType)}


def test_front_door_is_narrow():
    assert len(_names()) <= 45
    assert len(set(jqz.__all__)) == len(jqz.__all__)
    public = {name for name in vars(jqz) if not name.startswith("_")}
    modules = {name for name in public if isinstance(getattr(jqz, name), types.ModuleType)}
    assert public - modules <= set(jqz.__all__), "a public name is missing from __all__"


@pytest.mark.parametrize("name", _names())
def test_public_name_has_an_example(name):
    doc = inspect.getdoc(getattr(jqz, name)) or ""
    first = doc.split("\n\n")[0]
    assert first.rstrip().endswith((".", ":", "::")), f"{name}: the docstring begins with {first!r}"
    assert ">>> " in doc, f"{name} has no example"


NAMESPACES = [name for name in jqz.__all__ if isinstance(getattr(jqz, name), types.ModuleType)]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_names_in_namespaces_are_documented(namespace):
    module = getattr(jqz, namespace)
    for name, value in vars(module).items():
        own = getattr(value, "__module__", "").startswith("jqz.") and (inspect.isclass(value) or callable(value))
        if own and not name.startswith("_"):
            doc = inspect.getdoc(value) or ""
            assert doc, f"{namespace}.{name} has no docstring"
            assert not doc.startswith(f"{name}("), f"{namespace}.{name} has the dataclass's own docstring"


@pytest.mark.parametrize("room", ROOMS)
def test_manners(room):
    """Only the command prints; only _ste defines derivatives; no logarithms on power-of-two grids."""
    for node in ast.walk(ast.parse(ROOMS[room].read_text())):
        called = node.func if isinstance(node, ast.Call) else node
        name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
        where = f"jqz/{room}.py:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and name == "print":
            assert _floor(room) >= _floor("demo"), f"{where} prints"
        if isinstance(called, ast.Attribute) and name in ("custom_vjp", "custom_jvp", "custom_gradient"):
            assert room == "_ste", f"{where} defines a derivative; put it in _ste.py"
        if isinstance(node, ast.Call) and name in ("log2", "exp2"):
            assert _floor(room) > _floor("schemes"), f"{where}: {name} is not exact; use frexp and ldexp"


SCHEMES = [room for room in ROOMS if room.startswith("schemes/") and not room.endswith("__init__")]


@pytest.mark.parametrize("room", SCHEMES)
def test_every_scheme_is_listed_and_tested(room):
    module = "jqz." + room.replace("/", ".")
    listed = [cls for cls in jqz.schemes.CATALOGUE if cls.__module__ == module]
    assert listed, f"no class of {module} is in jqz.schemes.CATALOGUE"
    for cls in listed:
        assert getattr(jqz, cls.__name__) is cls, f"jqz.{cls.__name__} is missing"
        assert getattr(jqz.schemes, cls.__name__) is cls
        assert all(isinstance(variant, cls) for variant in jqz.schemes.CATALOGUE[cls])
    assert (ROOT / "tests" / "schemes" / f"test_{room.split('/')[1]}.py").exists(), f"{room} has no test file"


def test_catalogue_lists_variants_that_differ():
    for cls, variants in jqz.schemes.CATALOGUE.items():
        assert len(variants) >= 2, f"{cls.__name__} has fewer than two variants"
        assert len(set(variants)) == len(variants)


def test_top_level_holds_what_everyone_expects():
    run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    top = {line.split("/")[0] for line in run.stdout.splitlines()}
    expected = {"pyproject.toml", "jqz", "tests", "examples", "benchmarks", "README.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} <= expected
