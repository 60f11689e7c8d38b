"""The worked examples of the documentation work: the code that they show is run."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from convatlas.core.cost import cost
from convatlas.draw.diagram import diagram
from convatlas.errors import SpecError
from convatlas.models.index import SESSION_NAMES
from convatlas.models.register import unregister
from convatlas.train import report
from scripts import load_script

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "adding-an-architecture.md"
OWN = DOCS / "own-networks.md"
EXAMPLES = load_script(DOCS / "examples.py")


@pytest.fixture(scope="module")
def example() -> Any:
    """The family file that the page shows, as a module."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module = ModuleType("example_family")
    sys.modules[module.__name__] = module
    exec(compile("\n\n".join(blocks), str(PAGE), "exec"), module.__dict__)
    return module


@pytest.mark.parametrize(("name", "layers", "millions"), [("vovnet39", 39, 22.6), ("vovnet57", 57, 36.6)])
def test_example_is_the_network_of_the_paper(example: Any, name: str, layers: int, millions: float) -> None:
    with torch.device("meta"):
        network = example.FAMILY.variants[name].spec.build(classes=1000, channels=3)
    assert cost(network).parameters == pytest.approx(millions * 1e6, rel=0.01)
    assert cost(network).output.depth == layers + 1  # they count the convolutions
    assert diagram(network, title=name) is not None


def test_example_knows_its_smallest_image_and_scales(example: Any) -> None:
    spec = example.FAMILY.variants["vovnet27_slim"].spec.scaled(width=0.25, resolution=29)
    assert spec.build(classes=4, channels=3).eval()(torch.zeros(2, 3, 29, 29)).shape == (2, 4)
    with pytest.raises(SpecError, match=r"resolution must be >= 29 px"):
        spec.scaled(resolution=28)


def test_page_on_own_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "report", lambda _: "report")  # figures take longer than the training
    monkeypatch.setattr(report.charts, "curves", lambda *_, path: path.touch())
    page = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", page)  # class names of the page are those of a script
    blocks = re.findall(r"```(python|text)\n(.*?)```", OWN.read_text(encoding="utf-8"), re.DOTALL)
    printed = io.StringIO()
    try:
        for kind, text in blocks:
            if kind == "python":
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    exec(compile(text, str(OWN), "exec"), page.__dict__)
            else:  # what follows from a training depends on the machine
                numbers = re.compile(r"\d+\.\d+%, \d+ of|\b20\d\d\b")
                assert numbers.sub("#", printed.getvalue().strip()) == numbers.sub("#", text.strip())
    finally:
        for name in list(SESSION_NAMES):
            unregister(name)


@pytest.mark.slow
@pytest.mark.parametrize("page", EXAMPLES.PAGES, ids=lambda page: page.name)
def test_commands_print_what_the_page_shows(page: Path) -> None:
    if not EXAMPLES.DATA.is_dir():
        pytest.skip("the data sets are missing")
    assert EXAMPLES.check(page) == []
