"""The figures of README.md and docs/ are what the commands of the pages draw today."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scripts import load_script

DOCS = Path(__file__).parents[2] / "docs"
MAX_DIFFERENCE = 1.5


@pytest.fixture(scope="module")
def figures() -> Any:
    """docs/figures.py as a module."""
    return load_script(DOCS / "figures.py")


def test_every_figure_of_the_pages_has_a_command(figures: Any) -> None:
    pages = [DOCS.parent / "README.md", *DOCS.glob("*.md")]
    links = {Path(link).name for page in pages for link in re.findall(r"!\[[^]]*\]\(([^)]+\.png)\)", page.read_text())}
    assert links == set(figures.COMMANDS) == {path.name for path in DOCS.glob("*.png")}


def test_figures_that_differ_are_noticed(figures: Any, tmp_path: Path) -> None:
    with Image.open(DOCS / "demo.png") as figure:
        figure.save(tmp_path / "same.png", dpi=(72, 72))
        red = figure.convert("RGB")
        red.paste((209, 73, 91), (1300, 450, 1500, 700))
        red.save(tmp_path / "other.png")
        figure.resize((100, 50)).save(tmp_path / "small.png")
    assert figures.difference(DOCS / "demo.png", tmp_path / "same.png") == 0
    assert figures.difference(DOCS / "demo.png", tmp_path / "other.png") > MAX_DIFFERENCE
    assert figures.difference(DOCS / "demo.png", tmp_path / "small.png") == 255


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in DOCS.glob("*.png")))
def test_the_figure_is_the_one_of_the_page(figures: Any, name: str, tmp_path: Path) -> None:
    assert figures.difference(DOCS / name, figures.draw(name, tmp_path)) < MAX_DIFFERENCE
