"""The plot of an embedding: markers that differ without colors, and what is shown of many labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convatlas.draw.embedding import COLORS, MARKERS, draw_embedding


def drawn(labels: list[str]) -> tuple[Any, list[str]]:
    """Return the axes, and the texts of the legend."""
    places = np.random.default_rng(0).normal(size=(len(labels), 2))
    axes = draw_embedding(places, labels, (0.4, 0.2), title="title").axes[0]
    legend = axes.get_legend()
    return axes, [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_each_label_has_a_marker_of_its_own() -> None:
    labels = [f"class {i}" for i in range(12)] * 3
    axes, texts = drawn(labels)
    assert len(MARKERS) == len(COLORS) == 12
    shapes = {tuple(map(tuple, points.get_paths()[0].vertices.round(4))) for points in axes.collections}
    assert len(shapes) == 12
    assert texts[0] == "class 0 (3)"
    assert axes.get_xlabel() == "first principal component, 40.0% of the variance"


@pytest.mark.parametrize(
    ("labels", "texts"),
    [
        (["a", "a", "b"], ["a (2)", "b (1)"]),
        (["a", "", "b", ""], ["a (1)", "b (1)", "without label (2)"]),
        (["", ""], []),
        ([f"c{i:02}" for i in range(13)] + ["c01"], ["c01 (2)", "12 other labels (12)"]),
    ],
)
def test_legend(labels: list[str], texts: list[str]) -> None:
    assert drawn(labels)[1] == texts
