"""The report of a run is one file that tells what the run measured."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from convatlas.train.fit import fit
from convatlas.train.recipe import RECIPES
from convatlas.train.run import Run
from convatlas.train.run_folder import REPORT
from convatlas.train.settings import Settings


class Page(HTMLParser):
    """The text, the images and the addresses of a page; refuses what is not closed."""

    VOID = frozenset(("meta", "img", "br"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.sources: list[str] = []
        self.loader(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def page(run: Run) -> Page:
    return Page((run.folder / REPORT).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["trained", "colored"])
def test_the_report_tells_what_was_measured_and_needs_no_other_file(name: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(name)
    shown = page(run)
    for split, result in run.results.items():
        assert split in shown.texts
        assert f"{result.accuracy:.2%}" in shown.text
    assert all(label in shown.text for label in run.config.classes)
    assert run.config.fingerprint in shown.text
    assert ("flatters" in shown.text) == (name == "colored")  # it has no test split
    assert all(source.startswith("data:image/png;base64,") for source in shown.sources)
    for source in shown.sources:
        assert Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size > (7, 7)


def test_the_surest_mistakes_are_shown(trained: Run) -> None:
    result = trained.results["test"]
    wrong = result.predicted != result.labels
    shown = page(trained)
    assert len(shown.sources) == 3 + min(24, int(wrong.sum()))
    sure = [float(share) for share in re.findall(r"(\d+\.\d)%\s+is", shown.text)]
    assert sure == sorted(sure, reverse=True)
    assert sure[0] == pytest.approx(100 * float(result.confidence[wrong].max()), abs=0.06)


def test_names_are_text_and_broken_files_are_listed(own_images: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (own_images / split / "ant").rename(own_images / split / "<b>&ant")
    (own_images / "train" / "bee" / "00.jpg").write_bytes(b"no image")
    settings = Settings(threads=1, device="cpu", max_unreadable=0.1)
    recipe = RECIPES["default"].replaced({"epochs": 1})
    run = fit(own_images, "lenet5_modern", recipe=recipe, out=tmp_path / "run", settings=settings)
    shown = page(run)
    assert "<b>&ant" in shown.text
    assert "1 images could not be read" in shown.text
    assert "not an image" in shown.texts
