"""Every experiment on made-up results: it has a verdict, and a figure that is legible in black and white; and the
verdicts in docs."""

from __future__ import annotations

import io
import json
import zlib
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from matplotlib.container import Container
from matplotlib.text import Text
from PIL import Image

from convatlas.draw.style import encode
from convatlas.experiments import registry
from convatlas.experiments.experiment import VERDICTS, Experiment, Size
from convatlas.experiments.page import index, numbers
from convatlas.experiments.results import Results, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

GRAY = 30
"""Largest difference of red, green and blue of a pixel of the figures' own dark and light grays."""


class MadeUp(dict[str, float]):
    """Metrics of a trial: whatever it is asked for has a value from 0.3 to 0.7, which trial and name determine."""

    def __init__(self, key: str, names: tuple[str, ...]) -> None:
        self.key = key
        super().__init__({name: self[name] for name in names})

    def __missing__(self, name: str) -> float:
        return 0.3 + 0.4 * zlib.crc32(f"{self.key} {name}".encode()) / 2**32


CURVES = tuple(f"{name}_{epoch:03}" for name in ("loss", "error") for epoch in (1, 2, 3))
"""Metrics that the figures list instead of asking for them."""


@cache
def made_up(name: str, size: Size) -> tuple[Experiment, Results]:
    """Return an experiment, and results of all its trials, those that depend on results included."""
    found = registry.find(name)
    rows: dict[str, Row] = {}
    while True:
        trials = list(found.trials(size, Results(tuple(rows.values()))))
        new = {
            trial.key: Row(trial.arm, trial.seed, trial.settings, MadeUp(trial.key, (*found.metrics, *CURVES)))
            for trial in trials if trial.key not in rows
        }  # fmt: skip
        assert len({trial.key for trial in trials}) == len(trials)
        if not new:
            return found, Results(tuple(rows.values()))
        rows |= new


@pytest.mark.parametrize("name", registry.names())
def test_every_experiment_is_complete(name: str) -> None:
    found = registry.find(name)
    assert found.name == name
    for text in (found.title, found.claim, found.source, found.protocol, found.criterion, found.would_change):
        assert text.strip()
        assert "\n\n\n" not in text


@pytest.mark.parametrize("size", ["smoke", "default", "full"])
@pytest.mark.parametrize("name", registry.names())
def test_there_is_a_verdict(name: str, size: Size) -> None:
    found, results = made_up(name, size)
    json.dumps([dict(row.settings) for row in results])
    verdict = found.judge(results)
    assert verdict.word in VERDICTS
    assert verdict.reason.endswith(".")
    assert verdict.effects
    if size == "smoke":  # one seed proves nothing
        assert not any(effect.is_positive or effect.is_negative for effect in verdict.effects)
        assert verdict.word != "confirmed"
    elif size == "default":
        assert min(effect.seeds for effect in verdict.effects) >= 3
    table = numbers(found, results)
    assert len(table.columns) == 2 + len(found.metrics)
    assert {row[0] for row in table.rows} == set(results.arms)


@pytest.mark.parametrize("name", registry.names())
def test_the_figure_is_legible_in_black_and_white(name: str) -> None:
    found, results = made_up(name, "default")
    figure = found.draw(results)
    pixels = drawn(figure)
    assert (pixels < 128).all(2).any()
    assert int(np.ptp(pixels, axis=2).max()) <= GRAY
    for axes in figure.axes:
        handles, texts = axes.get_legend_handles_labels()
        styles = {style_of(handle) for handle in handles}
        assert len(styles) == len(set(texts)) == len(handles), texts
    check_texts(figure)


def drawn(figure: Figure) -> NDArray[np.int16]:
    """Return a small image of a figure, (h, w, 3)."""
    with Image.open(io.BytesIO(encode(figure, dpi=50))) as image:
        return np.asarray(image.convert("RGB"), np.int16)


def style_of(handle: Any) -> tuple[object, ...]:
    """Return what tells a line of a legend from others without color."""
    line = handle[0] if isinstance(handle, Container) else handle
    filled = line.get_fillstyle() != "none" and line.get_markerfacecolor() not in ("none", "white")
    return line.get_linestyle(), line.get_marker(), filled


def check_texts(figure: Figure) -> None:
    """Check that no text is cut off, or lies over another one."""
    figure.draw_without_rendering()
    page = figure.bbox.padded(1)
    boxes = {text: Text.get_window_extent(text) for text in visible_texts(figure)}
    for text, box in boxes.items():
        assert page.contains(*box.min), text.get_text()
        assert page.contains(*box.max), text.get_text()
    for (text, box), (other, beside) in combinations(boxes.items(), 2):
        assert not box.padded(-1).overlaps(beside.padded(-1)), (text.get_text(), other.get_text())


def visible_texts(figure: Figure) -> list[Text]:
    """Return the texts of a figure, without labels of ticks outside the axes, which are not drawn."""
    outside = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low <= tick.get_loc() <= high or not tick.get_visible():
                    outside |= {tick.label1, tick.label2}
    return [
        text for text in figure.findobj(Text)
        if isinstance(text, Text) and text not in outside and text.get_visible() and text.get_text().strip()
    ]  # fmt: skip


DOCS = Path(__file__).parents[2] / "docs" / "experiments"


@pytest.mark.parametrize("file", sorted(DOCS.glob("*.json")), ids=lambda file: file.stem)
def test_the_verdict_in_docs_is_that_of_the_numbers_in_docs(file: Path) -> None:
    plain = json.loads(file.read_text(encoding="utf-8"))
    rows = (Row(row["arm"], row["seed"], row["settings"], row["metrics"]) for row in plain["rows"])
    verdict = registry.find(file.stem).judge(Results(tuple(rows)))
    assert (verdict.word, verdict.reason) == (plain["verdict"], plain["reason"])
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    assert f"**Verdict: {verdict.word}.** {verdict.reason}\n" in page
    assert plain["size"] == "default"


def test_the_table_in_docs_is_that_of_the_verdicts() -> None:
    assert (DOCS / "README.md").read_text(encoding="utf-8") == index(DOCS)
