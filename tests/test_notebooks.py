"""The notebooks run from an empty directory, without internet access, and keep the outputs of today's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts import load_script

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).parents[1] / "notebooks"


EXECUTE = load_script(FOLDER / "execute.py")

LONG = ("2-fine-tune-your-folder", "3-compare-and-choose")
"""They take half a minute, and a minute and a half."""


def kinds(notebook: Any) -> list[list[str]]:
    """Return the kinds of output of each cell, such as text/html and image/png."""
    return [
        [", ".join(sorted(output.get("data", {"text": ""}))) for output in cell.get("outputs", ())]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LONG else [])
        for path in EXECUTE.NOTEBOOKS
    ],
)
def test_a_notebook_runs_and_shows_what_it_keeps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat

    monkeypatch.setenv("CONVATLAS_OFFLINE", "1")
    kept = nbformat.read(path, as_version=4)
    assert any("image/png" in kind for cell in kinds(kept) for kind in cell)
    assert kinds(EXECUTE.execute(path)) == kinds(kept)
