"""The chart that compares models: colors, names, intervals, axes that do not enlarge noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.cbook import pts_to_poststep
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.path import Path

from convatlas.draw import style
from convatlas.draw.latency import Measured, trade_off


def test_engines_have_colors_and_models_one_name_and_one_interval() -> None:
    points = [
        Measured(name, engine, milliseconds, y, 1.2 * milliseconds, y - 3, min(100, y + 3))
        for name, x, y in (("a", 9.0, 99.0), ("b", 30.0, 90.0))
        for engine, milliseconds in (("torch", x), ("openvino", x / 2))
    ]
    axes: Any = trade_off(points, x_title="milliseconds", y_title="accuracy, %").axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["torch", "openvino"]
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
    assert axes.get_ylim()[1] < 100.2
    solid = [line for line in axes.lines if line.get_linestyle() == "-"]
    vertical = [line for line in solid if len(set(line.get_xdata())) == 1]
    assert [float(line.get_xdata()[0]) for line in vertical] == [4.5, 15.0]
    assert len({tick.get_fontsize() for tick in (*axes.get_xticklabels(), *axes.get_yticklabels())}) == 1


def test_noise_is_not_enlarged_and_names_do_not_cover_each_other() -> None:
    points = [Measured(f"runs/{name}", "torch", 3.2 + 0.01 * i, 93 + 0.01 * i) for i, name in enumerate("abcdef")]
    figure = trade_off(points, x_title="milliseconds", y_title="accuracy, %")
    style.encode(figure)
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert high >= 2 * low
    assert axes.get_ylim()[1] - axes.get_ylim()[0] >= 5
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_name_does_not_cover_the_whisker() -> None:
    figure = trade_off([Measured("network", "torch", 9.0, 94.0, 12.0)], x_title="milliseconds", y_title="accuracy, %")
    style.encode(figure)
    (axes,) = figure.axes
    (name,) = axes.texts
    whisker = next(line for line in axes.lines if list(line.get_xdata()) == [9.0, 12.0])
    assert not name.get_window_extent().overlaps(whisker.get_window_extent().padded(1))


def test_dots_have_the_color_of_the_name_and_lines_are_below_it() -> None:
    points = [
        Measured(f"runs/{'long-' * 12}{i} (lenet5_modern)", engine, x * factor, 90.0 + i)
        for i, x in enumerate((3_000, 61_000, 11_000_000))
        for engine, factor in (("torch", 1.0), ("onnxruntime", 0.9))
    ]
    figure = trade_off(points, x_title="parameters", y_title="accuracy, %")
    style.encode(figure)
    (axes,) = figure.axes
    (front,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    steps = Path(axes.transData.transform(np.transpose(pts_to_poststep(*front.get_xydata().T))))
    for i, text in enumerate(axes.texts):
        dots = [each for each in axes.collections if 90.0 + i in each.get_offsets()[:, 1]]
        colors = {tuple(each.get_facecolor()[0][:3]) for each in dots}
        assert colors == {to_rgb(text.get_color())}
        assert text.get_zorder() > front.get_zorder()
        assert text.get_bbox_patch().get_facecolor() == to_rgba(style.PAPER)
        assert text.get_text().startswith("runs/long-")
        assert text.get_text().endswith(f"{i} (lenet5_modern)")
        assert not steps.intersects_bbox(text.get_window_extent(), filled=False)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1k", "10k", "100k", "1M", "10M"]


def test_without_a_front_no_line_connects_models() -> None:
    points = [Measured("a", "", 1.0, 5.0), Measured("b", "", 2.0, 9.0)]
    assert not trade_off(points, x_title="ms", y_title="accuracy, %", with_front=False).axes[0].lines


def test_numbers_of_parameters_begin_at_zero_and_have_no_front() -> None:
    points = [Measured("a", "torch", 1.0, 5.0), Measured("b", "torch", 2.0, 9.0)]
    (axes,) = trade_off(points, x_title="milliseconds", y_title="parameters, millions").axes
    assert axes.get_ylim()[0] == 0
    assert not axes.lines
