"""Charts and contact sheets of plain arrays, and what drawing leaves as it is."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from convatlas.draw import charts, style
from convatlas.draw.contact_sheet import MAX_PIXELS, Captioned, captioned_images, contact_sheet, overview
from convatlas.draw.diagram import diagram
from convatlas.draw.timeline import timeline
from convatlas.errors import InputError
from convatlas.models.catalog import build_fresh
from convatlas.tasks.table import Column

CLASSES = ["cat", "dog", "bird"]
COLUMNS = (
    Column("train_accuracy", "train error", ".2%", complement=True),
    Column("val_accuracy", "val error", ".2%", complement=True),
)
HISTORY = [
    {"epoch": i, "train_loss": 2 / i, "val_loss": 3 / i, "train_accuracy": 1 - 0.5 / i, "val_accuracy": 1 - 0.6 / i}
    for i in range(1, 6)
]
COUNTS = torch.tensor([[8, 1, 0], [2, 7, 0], [0, 0, 9]])
PROBABILITIES = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]])
TAGS = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 0, 1]])
RGB = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
GRAY = np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(24, 32)

DRAWINGS: dict[str, Callable[..., Figure]] = {
    "curves": lambda **how: charts.curves(HISTORY, COLUMNS, **how),
    "lr_finder": lambda **how: charts.lr_finder([1e-4, 1e-3, 1e-2], [2.0, 1.0, 3.0], 1e-3, **how),
    "confusion": lambda **how: charts.confusion(COUNTS, CLASSES, **how),
    "confusion of many": lambda **how: charts.confusion(torch.eye(40).long(), [f"c{i}" for i in range(40)], **how),
    "precision_recall": lambda **how: charts.precision_recall(
        PROBABILITIES, TAGS, torch.tensor([0.9, 0.5, float("nan")]), CLASSES, **how
    ),
    "reliability": lambda **how: charts.reliability([(0.3, 0.2, 10), (0.9, 0.8, 40)], **how),
    "latencies": lambda **how: charts.latencies(
        [("a", "torch", 12.0, 70.0), ("b", "onnx", 20.0, 76.0)], value="accuracy, %", **how
    ),
    "contact_sheet": lambda **how: contact_sheet([("cats\n3", [RGB, None, GRAY]), ("dogs\n1", iter([RGB]))], **how),
    "captioned_images": lambda **how: captioned_images([Captioned(RGB, "cat", "97 %  a.png")] * 7, **how),
    "overview": lambda **how: overview(
        torch.from_numpy(RGB).permute(2, 0, 1)[None].expand(4, -1, -1, -1), PROBABILITIES, torch.tensor([0, 2, 0, 2]),
        COUNTS, HISTORY, columns=COLUMNS, classes=CLASSES, title="overview", **how
    ),
    "diagram": lambda **how: diagram(build_fresh("lenet5", device="meta"), title="LeNet-5", **how),
    "timeline": lambda **how: timeline(**how),
}  # fmt: skip
every_drawing = pytest.mark.parametrize("name", DRAWINGS)


@every_drawing
def test_drawing_returns_a_figure_and_writes_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    figure = DRAWINGS[name](path=path)
    assert isinstance(figure, Figure)
    assert min(Image.open(path).size) > 100
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]


@every_drawing
def test_unknown_suffix_is_refused_with_the_known_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"figure\.gif: the suffix .* one of \.svg, \.png, \.pdf, got \.gif"):
        DRAWINGS[name](path=str(tmp_path / "figure.gif"))
    assert not list(tmp_path.iterdir())


@every_drawing
def test_the_backend_and_the_settings_of_the_caller_stay(name: str, tmp_path: Path) -> None:
    mpl.use("svg")
    before, had_pyplot = dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    DRAWINGS[name](path=tmp_path / "figure.PNG")
    assert mpl.get_backend().lower() == "svg"
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


@pytest.mark.parametrize("suffix", style.FORMATS)
def test_every_format_is_written(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"figure{suffix}"
    DRAWINGS["reliability"](path=path)
    assert path.stat().st_size > 1000


def lines(figure: Figure, axes: int) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in figure.axes[axes].lines}


def test_curves_draw_errors_in_percent() -> None:
    drawn = lines(charts.curves(HISTORY, COLUMNS), 1)
    assert drawn["val"] == pytest.approx([60, 30, 20, 15, 12])
    assert drawn["train"] == pytest.approx([50, 25, 50 / 3, 12.5, 10])


def test_curves_draw_the_metric_of_val_alone_if_train_has_another() -> None:
    history = [row | {"val_mAP": 0.1 * row["epoch"]} for row in HISTORY]
    figure = charts.curves(history, (COLUMNS[0], Column("val_mAP", "val mAP", ".2%")))
    drawn = lines(figure, 1)
    assert list(drawn) == ["val"]
    assert drawn["val"] == pytest.approx([10, 20, 30, 40, 50])
    assert figure.axes[1].get_title(loc="left") == "mAP, %"


def test_curves_of_a_run_without_val() -> None:
    history = [{"epoch": row["epoch"], "train_loss": row["train_loss"]} for row in HISTORY]
    assert list(lines(charts.curves(history, COLUMNS), 0)) == ["train"]


def shown(figure: Figure) -> list[Any]:
    return [image.get_array() for axes in figure.axes for image in axes.images]


def test_contact_sheet_shows_at_most_its_columns_and_leaves_gaps() -> None:
    figure = contact_sheet([("many", [RGB] * 9), ("gap", [None, GRAY])], columns=4)
    assert len(figure.axes) == 4 + 2
    assert len(shown(figure)) == 4 + 1


def test_large_images_are_shown_small() -> None:
    large = np.zeros((10 * MAX_PIXELS, 20, 3), np.uint8)
    (image,) = shown(contact_sheet([("large", [large])]))
    assert image.shape[0] == MAX_PIXELS
    assert image.base is None or image.base.size < large.size


NAMES = ["$$", "cost_$x_{1$", "$10-$20", "\\$", "\\frac{", "猫", "😀 cat", "caf\udce9", "a\nb\tc", "_x", "x" * 300, "",
         "\x1b[31mred"]  # fmt: skip


def nasty_drawings() -> dict[str, Figure]:
    n = len(NAMES)
    return {
        "confusion": charts.confusion(torch.ones(n, n), NAMES),
        "confusion of two": charts.confusion(torch.ones(2, 2), ["x" * 300, "$" * 9]),
        "precision_recall": charts.precision_recall(torch.rand(9, n), torch.ones(9, n), torch.rand(n), NAMES),
        "latencies": charts.latencies([(name, name, 1.0 + i, 1.0) for i, name in enumerate(NAMES)], value="accuracy"),
        "contact_sheet": contact_sheet([(f"{name}\n3", [RGB]) for name in NAMES]),
        "captioned_images": captioned_images([Captioned(RGB, name, name) for name in NAMES]),
        "diagram": diagram(build_fresh("lenet1", device="meta"), title="$$ 猫"),
        "overview": overview(
            torch.zeros(2, 3, 9, 9).byte(), torch.rand(2, n), torch.tensor([0, 1]), torch.ones(n, n), HISTORY,
            columns=COLUMNS, classes=NAMES, title="$$ 猫",
        ),
    }  # fmt: skip


def test_any_text_can_be_drawn_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, figure in nasty_drawings().items():
            assert len(style.encode(figure)) > 1000, name


def test_labels_are_one_line_of_characters_that_a_font_has() -> None:
    shown = ["$$", "cost_$x_{1$", "$10-$20", "\\$", "\\frac{", "\\u732b", "😀 cat", "caf\\xe9", "a b c", " _x"]
    assert [style.label(name).replace("\\$", "$") for name in NAMES[:3]] == shown[:3]
    assert [style.label(name) for name in NAMES[4:10]] == shown[4:]
    assert len(style.label("x" * 300, 24)) <= 24
    figure = charts.confusion(torch.ones(3, 3), NAMES[:3])
    style.encode(figure)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == [style.label(name) for name in NAMES[:3]]


def test_installed_fonts_have_what_the_default_font_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    letter = "\U0001d4d0"  # a script letter
    assert style.label(letter) == "\\U0001d4d0"
    monkeypatch.setattr(style, "FALLBACK_FONTS", ("Not Installed", "STIXGeneral"))
    assert style.label(letter) == letter
    figure = charts.confusion(torch.ones(2, 2), ["a", letter])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        style.encode(figure)
    assert figure.axes[0].get_xticklabels()[1].get_fontfamily() == ["sans-serif", "STIXGeneral"]
