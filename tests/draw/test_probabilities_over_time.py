"""Plots of probabilities over the time of videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb

from convatlas.draw.probabilities_over_time import LINES, VideoProbabilities, probabilities_over_time
from convatlas.errors import InputError


def video(name: str, count: int, *classes: str, step: float = 1.0) -> VideoProbabilities:
    """Return a video in which each class has its highest probability at another time; the first class the highest."""
    probabilities = {
        each: [(0.9 - 0.05 * number) if i % len(classes) == number else 0.01 for i in range(count)]
        for number, each in enumerate(classes)
    }
    return VideoProbabilities(name, [step * (i + 0.5) for i in range(count)], probabilities)


def lines_of(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.get_lines()}


def test_each_video_has_a_panel_with_its_most_probable_classes(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    figure = probabilities_over_time(
        [video("a.mp4", 20, *"abcdefg"), video("b_$x.mp4", 300, "b", "_c"), video("c", 1, "a")], path=path
    )
    first, second, third = figure.axes
    assert list(lines_of(first)) == list("abcde")
    assert set(lines_of(second)) == {"b", " _c"}
    assert [axes.get_title("left") for axes in figure.axes] == ["a.mp4", r"b_\$x.mp4", "c"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["seconds", "minutes", "seconds"]
    for panel in (second, third):
        for name, line in lines_of(panel).items():
            assert name not in lines_of(first) or line.get_marker() == lines_of(first)[name].get_marker()
    assert list(lines_of(third)["a"].get_xdata()) == [0.5]
    assert all(0 < len(axes.get_xticks()) < 20 for axes in figure.axes)
    assert "<svg" in path.read_text()


def test_lines_of_a_panel_differ_without_color() -> None:
    figure = probabilities_over_time([video("a", 9, *"abcde"), video("b", 9, *"fghab"), video("c", 9, *"ijkld")])
    for axes in figure.axes:
        assert len({line.get_marker() for line in axes.get_lines()}) == len(axes.get_lines()) == 5
    for how in ("linestyle", "marker", "color"):
        assert len({str(line[how]) for line in LINES}) == len(LINES)
    brightness = [sum(to_rgb(line["color"])) for line in LINES]
    assert max(brightness) - min(brightness) > 1


def test_the_suffix_must_be_one_of_a_drawing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="suffix of a drawing must be one of"):
        probabilities_over_time([video("a", 3, "a")], path=tmp_path / "a.txt")
