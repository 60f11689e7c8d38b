"""The command `explain`: figures, pages, tables, JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commands import Command, check_refused
from convatlas.inference.load import load


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)


def test_one_image_gives_a_figure_and_a_few_lines(convatlas: Command, model_file: Path, images: Path) -> None:
    file = images / "val/bee/01.png"
    outcome = convatlas("explain", model_file, file, "--class", "bee", "--against", "ant")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].startswith(f"{file}: ")
    assert lines[1].startswith("hires-cam at stages.0 for bee and not ant, confidence 0.")
    assert lines[-1] == "01-explanation.png"
    assert Path("01-explanation.png").read_bytes().startswith(b"\x89PNG")


def test_several_images_give_a_page_and_a_table(convatlas: Command, model_file: Path, images: Path) -> None:
    files = sorted((images / "val/bee").iterdir())[:3]
    outcome = convatlas("explain", model_file, *files, "--no-faithfulness", "--layer", "stages.0")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].split()[:4] == ["image", "prediction", "explained", "method"]
    assert len(lines) == 1 + 3 + 1
    assert lines[-1] == "explanations.html"
    assert Path("explanations.html").read_text().count("<figure class=plot>") == (1 + 2) * 3
    figure = convatlas("explain", model_file, images / "val/bee/01.png", "--no-faithfulness", "--out", "page.html")
    assert figure.out.splitlines()[-1] == "page.html"
    assert sorted(path.name for path in Path().iterdir()) == ["explanations.html", "page.html"]


def test_json_is_one_line_for_each_image_and_writes_no_file(
    convatlas: Command, model_file: Path, images: Path, tmp_path: Path
) -> None:
    gone, file = tmp_path / "gone.png", images / "val/bee/01.png"
    outcome = convatlas("explain", model_file, gone, file, "--json")
    check_refused(outcome, "gone.png: no such file")
    first, second = map(json.loads, outcome.out.splitlines())
    assert (first["error"], first["heatmap"]) == (f"{gone}: no such file", None)
    explanation: Any = load(model_file).explain(file)
    assert second == explanation.to_plain()
    assert len(outcome.out) < 20_000
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--class", "bea"], ["class must be a class of the model", "did you mean bee"]),
        (["--class", "bee", "--against", "bee"], ["against must differ from the explained class"]),
        (["--layer", "stages.9"], ["stages.9", "did you mean stages"]),
        (["--method", "gradcam"], ["method must be", "grad-cam"]),
        (["--object", "1"], ["object must be 0, because the model is for classification"]),
        (["--object", "x"], ["--object: must be an integer >= 0"]),
        (["--out", "bee.jpg"], ["--out", ".png", ".html", "got .jpg"]),
        (["--out", "bee"], ["--out", "got none"]),
        (["--method", "occlusion", "--layer", "stem"], ["layer must be left out with occlusion"]),
    ],
)
@pytest.mark.parametrize("how", [[], ["--json"]])
def test_what_is_not_possible_is_one_line(
    convatlas: Command, model_file: Path, images: Path, arguments: list[str], named: list[str], how: list[str]
) -> None:
    outcome = convatlas("explain", model_file, images / "val/bee/01.png", *arguments, *how)
    check_refused(outcome, *named)
    assert outcome.out == ""
    assert list(Path().iterdir()) == []


def test_a_figure_shows_one_image(convatlas: Command, model_file: Path, images: Path) -> None:
    outcome = convatlas("explain", model_file, images / "val/bee", "--out", "bees.png")
    check_refused(outcome, "--out: a figure shows one image, got several", "bees.html")


def test_images_that_are_all_unreadable_give_no_file(convatlas: Command, model_file: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"\x89PNG")
    outcome = convatlas("explain", model_file, tmp_path / "a.png", tmp_path / "b.png")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 2
    check_refused(convatlas("explain", model_file, tmp_path / "a.png"), "a.png")
    assert list(Path().iterdir()) == []
