"""The floors of the house: imports go down, families do not know each other, and the front door is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import convatlas

ROOT = Path(convatlas.__file__).parent

# a room is a module of the package or a folder in it
FLOORS = {
    "errors": 0, "files": 0, "joins": 0, "specs": 0,
    "costs": 1, "preprocessing": 1, "keys": 1, "download": 1, "outline": 1, "remembered": 1, "devices": 1,
    "layers": 2, "tables": 2, "card": 2, "features": 2,
    "families": 3, "diagram": 3,
    "catalog": 4, "data": 4,
    "modelfile": 5, "tasks": 5, "scaling": 5, "comparing": 5, "timeline": 5,
    "weights": 6, "engines": 6,
    "train": 7, "predicting": 7, "quantizing": 7,
    "model": 8,
    "ledger": 9, "exporting": 9, "serving": 9, "benchmarking": 9,
    "cli": 10, "__main__": 10,
}  # fmt: skip
DOORS = {
    ("files", "errors"), ("joins", "errors"), ("specs", "errors"), ("specs", "joins"), ("__main__", "cli"),
    ("train", "convatlas"),
    ("remembered", "convatlas"),
}  # fmt: skip
"""(importer, imported) allowed although on one floor; training and what is remembered note the package's version."""

FOLDERS = {"layers", "data", "tasks", "engines", "train", "cli"}
"""Folders whose files may import each other."""

HEAVY = {"torch", "torchvision", "matplotlib", "sklearn"}

FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imports(tree: ast.AST, *, lazy: bool = True) -> Iterator[str]:
    """Yield the full names that a file imports; without `lazy`, only those imported when the file is."""
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


def room(name: str) -> str:
    """Return the room of a full name: "specs" for convatlas.core.spec.Spec, "convatlas" for the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "convatlas"


def read(file: Path) -> ast.AST:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def test_imports_are_found_wherever_they_stand() -> None:
    tree = ast.parse(
        "import a.b\nif c:\n    from d import e\ndef f():\n    import g\nif TYPE_CHECKING:\n    import h\n"
    )
    assert list(imports(tree)) == ["a.b", "d.e", "g", "h"]
    assert list(imports(tree, lazy=False)) == ["a.b", "d.e"]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_has_a_floor(file: Path) -> None:
    assert file.parts[0].removesuffix(".py") in FLOORS


def test_every_room_is_in_the_house() -> None:
    assert set(FLOORS) == {file.parts[0].removesuffix(".py") for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_down(file: Path) -> None:
    here = file.parts[0].removesuffix(".py")
    for name in imports(read(file)):
        if name.split(".")[0] != "convatlas":
            continue
        there = room(name)
        allowed = (
            (here, there) in DOORS
            or (here == there and here in FOLDERS)
            or (there in FLOORS and FLOORS[there] < FLOORS[here])
        )
        assert allowed, f"{file} (floor {FLOORS[here]}) imports {name} (floor {FLOORS.get(there, 'roof')})"


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] == "families"], ids=str)
def test_families_do_not_import_each_other(file: Path) -> None:
    assert not [name for name in imports(read(file)) if room(name) == "families"]


def test_front_door_imports_nothing_heavy() -> None:
    loaded = {name.split(".")[0] for name in imports(read(Path("__init__.py")), lazy=False)}
    assert loaded <= set(sys.stdlib_module_names)


def test_importing_convatlas_loads_no_heavy_library() -> None:
    script = f"import sys, convatlas; print(*({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_networks_that_are_only_counted_load_no_compiler() -> None:
    script = (
        "import sys; from convatlas.catalog import CATALOG, build_fresh\n"
        "for name in CATALOG: build_fresh(name, device='meta')\n"
        "print('torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize("name", convatlas.__all__)
def test_public_name_is_found(name: str) -> None:
    assert getattr(convatlas, name) is not None
    assert name in dir(convatlas)
