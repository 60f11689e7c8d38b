"""The architecture: imports go down, no file is part of a circle, and `import convatlas` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import convatlas

ROOT = Path(convatlas.__file__).parent

FLOORS = (
    ("_version", "errors"), ("system",), ("core",), ("layers",), ("models",), ("draw",), ("tasks",), ("data",),
    ("weights",), ("engines",), ("explanation",), ("inference", "train"), ("search", "experiments", "overview"),
    ("cli", "workbench", "__main__"),
)  # fmt: skip
"""Packages by floor, the lowest first. A module imports from lower floors and from its own package."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

ENTRY_POINTS = {"__main__": "cli"}
"""`python -m convatlas` is the command line."""

PUBLIC = {"search"}
"""Packages whose names are public, such as `ca.search.explore`; their modules do not import the package itself."""

HEAVY = {"torch", "torchvision", "matplotlib", "sklearn"}


def module_name(file: Path) -> str:
    """Return "core.cost" for core/cost.py, "core" for core/__init__.py."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(ROOT.rglob("*.py")) if file != ROOT / "__init__.py"}


def imports(tree: ast.AST, *, lazy: bool = True) -> Iterator[str]:
    """Yield the full names that a file imports: anywhere, under TYPE_CHECKING too, or only when it is loaded."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif lazy or not (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        ):
            yield from imports(node, lazy=lazy)


def read(file: Path) -> ast.AST:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported_modules(file: Path) -> set[str]:
    """Return the modules of the package that a file imports."""
    found = set()
    for name in imports(read(file)):
        package, _, inner = name.partition(".")
        if package == "convatlas":
            longest = max((m for m in MODULES if inner == m or inner.startswith(m + ".")), key=len, default="")
            assert longest, f"{file}: {name} imports the package itself, which would be a circle"
            found.add(longest)
    return found


GRAPH = {name: imported_modules(file) for name, file in MODULES.items()}


def test_imports_are_found_wherever_they_stand() -> None:
    tree = ast.parse(
        "import a.b\nif c:\n    from d import e\ndef f():\n    import g\nif TYPE_CHECKING:\n    import h\n"
    )
    assert list(imports(tree)) == ["a.b", "d.e", "g", "h"]
    assert list(imports(tree, lazy=False)) == ["a.b", "d.e"]


def test_every_room_has_a_floor() -> None:
    assert {name.split(".")[0] for name in MODULES} <= set(FLOOR)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    room = name.split(".")[0]
    for other in GRAPH[name]:
        there = other.split(".")[0]
        down = FLOOR[there] < FLOOR[room] or there == room or ENTRY_POINTS.get(room) == there
        assert down, f"{name} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[there]})"


def test_no_file_is_part_of_a_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


def test_packages_import_nothing() -> None:
    """An __init__.py that imported its modules would make each of them depend on all others."""
    packages = [name for name, file in MODULES.items() if file.name == "__init__.py" and name not in PUBLIC]
    assert len(packages) > 10
    assert not [name for name in packages if GRAPH[name]]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("models.families.")])
def test_families_do_not_import_each_other(name: str) -> None:
    assert not [other for other in GRAPH[name] if other.startswith("models.families.")]


def test_tests_mirror_the_tree() -> None:
    """Every folder of tests is a folder of the package."""
    tests = Path(__file__).parent
    folders = {folder.relative_to(tests) for folder in tests.rglob("*") if folder.is_dir()}
    ours = {folder for folder in folders if folder.parts and folder.name not in ("__pycache__", ".hypothesis")}
    assert not [folder for folder in ours if "__pycache__" not in folder.parts and not (ROOT / folder).is_dir()]


def test_importing_convatlas_loads_nothing_heavy() -> None:
    script = f"import sys, convatlas; print(*({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_networks_that_are_only_counted_load_no_compiler() -> None:
    script = (
        "import sys; from convatlas.models.catalog import CATALOG, build_fresh\n"
        "for name, row in CATALOG.items():\n"
        "    if row.spec.predicts == 'classes': build_fresh(name, device='meta')\n"
        "print({'torch._dynamo', 'torchvision'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("name", convatlas.__all__)
def test_public_name_is_found(name: str) -> None:
    assert getattr(convatlas, name) is not None
    assert name in dir(convatlas)
