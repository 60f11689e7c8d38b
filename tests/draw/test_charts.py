"""Charts and contact sheets of plain arrays, and what drawing leaves as it is."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from convatlas.draw import charts, style, ticks
from convatlas.draw.contact_sheet import MAX_PIXELS, Captioned, captioned_images, contact_sheet, overview
from convatlas.draw.diagram import diagram
from convatlas.draw.latency import Measured, trade_off
from convatlas.draw.names import numbered
from convatlas.draw.page_style import STYLE
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
    "confusion of many": lambda **how: charts.confusion(torch.eye(50).long(), [f"c{i}" for i in range(50)], **how),
    "precision_recall": lambda **how: charts.precision_recall(
        PROBABILITIES, TAGS, torch.tensor([0.9, 0.5, float("nan")]), CLASSES, **how
    ),
    "reliability": lambda **how: charts.reliability([(0.3, 0.2, 10), (0.9, 0.8, 40)], **how),
    "trade_off": lambda **how: trade_off(
        [Measured("a", "torch", 12.0, 70.0), Measured("b", "onnx", 20.0, 76.0)], x_title="ms", y_title="accuracy, %",
        **how
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


@pytest.fixture(autouse=True)
def _no_other_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may have fonts for any characters."""
    monkeypatch.setattr(style, "FALLBACK_FONTS", ())


every_drawing = pytest.mark.parametrize("name", DRAWINGS)


def test_unknown_suffix_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"figure\.gif: the suffix .* one of \.svg, \.png, \.pdf, got \.gif"):
        DRAWINGS["lr_finder"](path=str(tmp_path / "figure.gif"))
    assert not list(tmp_path.iterdir())


@every_drawing
def test_a_drawing_is_written_and_does_not_touch_the_session(name: str, tmp_path: Path) -> None:
    mpl.use("svg")
    had_pyplot = "matplotlib.pyplot" in sys.modules
    settings = {"text.usetex": True, "font.size": 40, "figure.constrained_layout.use": True}  # would fail or warn
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("error")
        before = dict(mpl.rcParams)
        assert isinstance(DRAWINGS[name](path=tmp_path / "figure.PNG"), Figure)
        assert dict(mpl.rcParams) == before
    assert [file.name for file in tmp_path.iterdir()] == ["figure.PNG"]
    with Image.open(tmp_path / "figure.PNG") as written:
        assert min(written.size) > 100
    assert mpl.get_backend().lower() == "svg"
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


NOTEBOOK = """
import sys, types, warnings
import matplotlib
inline = types.ModuleType("inline")
exec("from matplotlib.backends.backend_agg import FigureCanvasAgg as FigureCanvas", inline.__dict__)
sys.modules["inline"] = inline
matplotlib.use("module://inline")
import matplotlib.pyplot as plt
plt.style.use(["dark_background", "grayscale", {"axes.grid": True, "font.size": 20, "lines.marker": "s"}])
plt.plot([1, 2])
before = (matplotlib.get_backend(), dict(matplotlib.rcParams), plt.get_fignums(), list(warnings.filters))
from convatlas.draw import style
from convatlas.draw.latency import Measured, trade_off
figure = trade_off([Measured("a", "b", 2, 4)], x_title="x", y_title="y", path=sys.argv[1])
style.encode_for_page(figure)
assert "torch" not in sys.modules
assert before == (matplotlib.get_backend(), dict(matplotlib.rcParams), plt.get_fignums(), list(warnings.filters))
"""


def test_a_session_with_open_figures_and_a_style_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    subprocess.run([sys.executable, "-c", NOTEBOOK, path], check=True, timeout=120)
    trade_off([Measured("a", "b", 2, 4)], x_title="x", y_title="y", path=tmp_path / "plain.png")
    with Image.open(path) as styled, Image.open(tmp_path / "plain.png") as plain:
        assert styled.tobytes() == plain.tobytes()


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


def test_curves_draw_the_terms_of_a_loss() -> None:
    terms = {"train_box_loss": 0.3, "train_mask_loss": 0.7}
    history = [row | terms | {"val_mask_ap": 0.1 * row["epoch"]} for row in HISTORY]
    columns = (
        Column("train_box_loss", "box"), Column("train_mask_loss", "mask"), Column("val_mask_ap", "val mask AP", ".2%")
    )  # fmt: skip
    figure = charts.curves(history, columns)
    assert list(lines(figure, 0)) == ["train", "val", "box", "mask"]
    assert lines(figure, 0)["mask"] == [0.7] * len(HISTORY)
    assert list(lines(figure, 1)) == ["val"]
    assert figure.axes[1].get_title(loc="left") == "mask AP, %"


def test_curves_of_a_run_without_val() -> None:
    history = [{"epoch": row["epoch"], "train_loss": row["train_loss"]} for row in HISTORY]
    assert list(lines(charts.curves(history, COLUMNS), 0)) == ["train"]


def test_curves_mark_the_best_epoch_and_show_the_learning_rate() -> None:
    history = [row | {"best": int(row["epoch"] in (1, 3)), "lr": 0.1 / row["epoch"]} for row in HISTORY]
    axes = charts.curves(history, COLUMNS).axes
    assert [text.get_text() for text in axes[0].texts] == ["best"]
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["train", "val"]
    assert axes[0].get_xlabel() == "epoch (dotted: learning rate, at most 0.1)"
    assert [list(line.get_xdata()) for line in axes[1].lines if len(line.get_xdata()) == 2] == [[3, 3]]
    without_val = [{"epoch": 1, "train_loss": 1.0, "best": 1}, {"epoch": 2, "train_loss": 0.5, "best": 1}]
    assert not charts.curves(without_val, COLUMNS).axes[0].texts


def labeled_ticks(axis: Any) -> list[str]:
    return [text for text in (tick.get_text() for tick in axis.get_ticklabels(which="both")) if text]


@given(
    st.floats(1e-12, 1e9), st.one_of(st.floats(1, 2), st.floats(1, 100), st.floats(1, 1e15)),
    st.lists(st.floats(0, 1), max_size=4),
)  # fmt: skip
def test_any_range_has_two_to_eight_ticks_in_plain_numbers(low: float, ratio: float, between: list[float]) -> None:
    axes = Figure().add_subplot()
    values = [low, low * ratio, *(low * ratio**share for share in between)]
    ticks.set_log_axis(axes.yaxis, values)
    texts = labeled_ticks(axes.yaxis)
    assert 2 <= len(texts) <= 8
    assert len(set(texts)) == len(texts)
    bottom, top = axes.get_ylim()
    prefixes = str.maketrans({"k": "e3", "M": "e6", "G": "e9"})
    numbers = [float(text.translate(prefixes)) for text in texts]
    assert all(bottom * 0.999 <= number <= top * 1.001 for number in numbers)
    assert numbers == pytest.approx(axes.get_yticks(), rel=1e-5)
    assert bottom <= min(values) * 1.000001
    assert top >= max(values) * 0.999999
    if top / bottom > 10**2:
        assert {text.strip("0.")[:1] for text in texts} == {"1"}


@settings(max_examples=8)
@given(st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=6), st.floats(0.001, 1))
def test_no_tick_of_a_learning_curve_covers_another(losses: list[float], share: float) -> None:
    history = [{"epoch": i, "train_loss": losses[0] + share * loss} for i, loss in enumerate(losses, 1)]
    figure = charts.curves(history, ())
    style.encode(figure)
    boxes = sorted(
        (tick.get_window_extent() for tick in figure.axes[0].get_yticklabels() if tick.get_text()), key=lambda b: b.y0
    )
    assert 2 <= len(boxes) <= 8
    assert all(below.y1 < above.y0 for below, above in pairwise(boxes))


@pytest.mark.parametrize("losses", [[0.0, 1.0], [-1.0, 2.0], [5e-324, 1e308], [float("nan"), 1.0], [float("inf")] * 2])
def test_odd_losses_are_drawn(losses: list[float]) -> None:
    figure = charts.curves([{"epoch": i, "train_loss": loss} for i, loss in enumerate(losses, 1)], ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        style.encode(figure)


def luminance(color: Any) -> float:
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgba(color)[:3]]
    return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]


def contrast(a: Any, b: Any) -> float:
    dark, bright = sorted((luminance(a), luminance(b)))
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("paper", [style.PAPER, style.DARK[style.PAPER]])
def test_text_on_every_cell_of_a_confusion_matrix_is_readable(paper: str) -> None:
    n = 12
    counts = torch.full((n, n), 0.0)
    for row in range(n):  # shares from 0 to 100 % on the diagonal and beside it
        counts[row, row], counts[row, (row + 1) % n] = 100 * row / (n - 1), 100 - 100 * row / (n - 1)
    axes = charts.confusion(counts.round().long(), [f"c{i}" for i in range(n)]).axes[0]
    cells = {(round(patch.get_x() + 0.47), round(patch.get_y() + 0.47)): patch for patch in axes.patches}
    assert len(axes.texts) == 2 * n - 2
    for text in axes.texts:
        patch = cells[tuple(map(round, text.get_position()))]
        opacity = patch.get_alpha()
        blend = [
            opacity * c + (1 - opacity) * p for c, p in zip(to_rgba(patch.get_facecolor()), to_rgba(paper), strict=True)
        ]
        ink = style.DARK.get(text.get_color(), text.get_color()) if paper != style.PAPER else text.get_color()
        assert contrast(ink, blend) > 3.5, text.get_text()


def test_text_on_pages_is_readable() -> None:
    colors = dict(re.findall(r"--(\w+): (#\w{6})", STYLE.split("@media")[0]))
    dark = dict(re.findall(r"--(\w+): (#\w{6})", STYLE.split("@media")[1]))
    assert set(colors) == set(dark) >= {"paper", "card"}
    for scheme in (colors, dark):
        for name in ("ink", "note", "right", "wrong"):
            assert min(contrast(scheme[name], scheme[paper]) for paper in ("paper", "card")) >= 4.5, name


@pytest.mark.parametrize(("n", "first"), [(21, "c0"), (41, "5")])
def test_a_confusion_matrix_has_names_or_numbers_from_one(n: int, first: str) -> None:
    axes = charts.confusion(torch.eye(n).long(), [f"c{i}" for i in range(n)]).axes[0]
    assert not axes.texts
    assert axes.get_xlim() == (0.5, n + 0.5)
    assert axes.get_ylim() == (n + 0.5, 0.5)
    labels = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    assert next(label.get_text() for place, label in labels if place > 0.5) == first
    assert axes.images[0].get_array()[0, :, 3].tolist() == [1.0] + [0.0] * (n - 1)


def test_captions_do_not_reach_their_neighbors() -> None:
    figure = captioned_images([Captioned(RGB, name) for name in ("n" * 300, "a long name of a class " * 3, "cat")])
    style.encode(figure)
    boxes = [text.get_window_extent() for text in figure.texts if text.get_text()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_a_confusion_matrix_is_scaled_by_row_with_counts_and_shares() -> None:
    axes = charts.confusion(torch.tensor([[93, 7, 0], [1, 99, 0], [0, 0, 0]]), CLASSES).axes[0]
    assert [text.get_text() for text in axes.texts] == ["93", "93%", "7", "7%", "1", "1%", "99", "99%"]
    opacities = {patch.get_xy(): patch.get_alpha() for patch in axes.patches}
    assert opacities[0.53, 0.53] == pytest.approx(1.0, abs=0.05)
    assert opacities[1.53, 0.53] < 0.2
    assert {patch.get_facecolor()[:3] for patch in axes.patches} >= {
        to_rgba(style.RIGHT_CELL)[:3], to_rgba(style.WRONG_CELL)[:3],
    }  # fmt: skip


def test_reliability_begins_at_chance_and_shows_counts() -> None:
    figure = charts.reliability([(0.6, 0.5, 4), (0.9, 0.8, 1234)], start=0.5)
    assert figure.axes[0].get_xlim()[0] == pytest.approx(0.48)
    assert [text.get_text() for text in figure.axes[1].texts] == ["4", "1,234"]


def test_the_learning_rate_finder_marks_the_minimum() -> None:
    axes = charts.lr_finder([1e-4, 1e-3, 1e-2], [2.0, 1.0, 3.0], 1e-4).axes[0]
    assert [text.get_text() for text in axes.texts] == ["minimum 0.001", "chosen 0.0001"]


def test_labels_of_equally_fast_models_do_not_cover_each_other() -> None:
    points = [Measured(f"runs/{name}", "openvino", 3.2 + 0.01 * i, 93.0 + 0.01 * i) for i, name in enumerate("abc")]
    figure = trade_off(points, x_title="ms", y_title="accuracy, %")
    style.encode(figure)
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert axes.get_xlim()[1] > 1.99 * axes.get_xlim()[0]


def shown(figure: Figure) -> list[Any]:
    return [image.get_array() for axes in figure.axes for image in axes.images]


def test_sheets_are_as_wide_as_their_images() -> None:
    assert contact_sheet([("two", [RGB, RGB])]).get_figwidth() < contact_sheet([("nine", [RGB] * 9)]).get_figwidth()
    assert captioned_images([Captioned(RGB, "a")] * 2).get_figwidth() == pytest.approx(3.8)
    strip = np.zeros((64, 6 * 64, 3), np.uint8)
    wide = captioned_images([Captioned(strip, "a"), Captioned(None, "b")])
    place = wide.axes[0].get_position()
    assert place.width * wide.get_figwidth() / (place.height * wide.get_figheight()) == pytest.approx(6)
    assert len(contact_sheet([]).axes) == len(captioned_images([]).axes) == 0


def test_long_captions_are_wrapped() -> None:
    (text,) = contact_sheet([("near duplicates\ntrain/reptile, validation/reptile", [RGB])]).texts
    assert text.get_text() == "near duplicates\ntrain/reptile,\nvalidation/reptile"
    caption, note = captioned_images([Captioned(RGB, "a class with quite a long name", "97 %  file.png")]).texts
    assert caption.get_text() == "a class with quite a\nlong name"
    assert note.get_text() == "97 %  file.png"


def test_wrong_predictions_of_the_overview_have_a_frame() -> None:
    axes = DRAWINGS["overview"]().axes
    colors = [each.spines["left"].get_edgecolor() for each in axes if each.images]
    assert [color == to_rgba(style.WRONG) for color in colors] == [False, False, True, False]


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
        "trade_off": trade_off(
            [Measured(name, name, 1.0 + i, 1.0) for i, name in enumerate(NAMES)], x_title="ms", y_title="accuracy, %"
        ),
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


def test_names_that_no_font_has_are_numbered_with_a_legend() -> None:
    classes = ["cat", "猫", "😀 \u732b", "dog"]
    figure = charts.confusion(torch.ones(4, 4), classes)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["cat", "#2", "#3", "dog"]
    assert [text.get_text() for text in figure.texts] == ["#2  \\u732b\n#3  😀 \\u732b"]
    assert numbered(classes) == {"#2": "猫", "#3": "😀 猫"}
    assert numbered(["cat", "dog"]) == {}
    sheet = contact_sheet([("猫\n3", [RGB]), ("鳥\n4", [RGB]), ("猫\n5", [RGB])])
    assert [text.get_text() for text in sheet.texts] == ["#1\n3", "#2\n4", "#1\n5", "#1  \\u732b\n#2  \\u9ce5"]
    mixed = captioned_images([Captioned(RGB, "cat 90%, 猫 と 10%", "7% 鳥.png")])
    assert [text.get_text() for text in mixed.texts[:2]] == ["cat 90%, #1 10%", "7% #2"]
    many = charts.precision_recall(
        torch.rand(9, 30), torch.ones(9, 30), torch.arange(30), [f"猫{i}" for i in range(30)]
    )
    (legend,) = many.texts
    assert legend.get_text().splitlines() == [f"#{i + 1}  \\u732b{i}" for i in range(10)]  # those with a color
    sheet = contact_sheet([(f"猫{i}", [RGB]) for i in range(30)])
    assert sheet.texts[-1].get_text().endswith("and 18 more")


def test_names_that_are_equal_after_shortening_are_numbered() -> None:
    classes = [f"the same beginning of a name, {i} in it, and the same end of it" for i in range(2)]
    figure = charts.confusion(torch.ones(3, 3), ["cat", *classes])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["cat", "#2", "#3"]
    assert numbered(["cat", *classes]) == {"#2": classes[0], "#3": classes[1]}


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
