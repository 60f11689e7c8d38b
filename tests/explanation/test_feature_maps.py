"""The strongest feature maps of each stage, of every network."""

from __future__ import annotations

import pytest
import torch

from convatlas.core.network import feature_map, taps
from convatlas.draw.feature_maps import CAPTION, CELL, MapRow, plot_feature_maps, size_of_maps, to_gray
from convatlas.draw.style import new_figure
from convatlas.explanation.feature_figure import MAX_MAPS, WIDTH, draw_features
from convatlas.explanation.feature_maps import StageMaps, select_strongest, stage_maps, stage_paths, strength
from tiny_networks import build_tiny, of_each_kind


@of_each_kind()
def test_stem_and_stages_of_every_network(name: str) -> None:
    network, x = build_tiny(name)
    stages = stage_maps(network, x[:1], top=3)
    with torch.no_grad():
        outputs = {path: feature_map(y) for path, y in taps(network, stage_paths(network), x[:1]).items()}
    assert [stage.path for stage in stages] == [path for path, y in outputs.items() if y.ndim == x.ndim]
    for stage in stages:
        maps = outputs[stage.path][0]
        assert stage.count == len(maps)
        assert len(stage.maps) == min(3, len(maps))
        torch.testing.assert_close(stage.maps, maps[list(stage.channels)])
        assert list(stage.strengths) == sorted(stage.strengths, reverse=True)


def test_constant_maps_are_the_weakest() -> None:
    maps = torch.stack([torch.full((4, 4), 100.0), torch.eye(4), 3 * torch.eye(4)])
    assert select_strongest("stem", maps, 2).channels == (2, 1)
    assert strength(maps)[0] == 0
    assert select_strongest("stem", torch.tensor([[[1.0]], [[-5.0]]]), 1).channels == (1,)


def test_grays_use_the_whole_range() -> None:
    gray = to_gray(torch.tensor([[-3.0, 1.0], [0.0, 5.0]]))
    assert (gray.min(), gray.max()) == (0, 1)
    assert (to_gray(torch.full((2, 2), 7.0)) == 0).all()
    assert to_gray(torch.rand(5, 32, 40)).shape == (32, 3 * 40 + 2 * 2)
    assert to_gray(torch.rand(2, 4, 4)).shape == (32, 2 * 32 + 2)  # enlarged, so that the gap stays thin


@pytest.mark.parametrize(
    ("space", "share"), [((8, 8), 1), ((16, 8), 1), ((6, 8), 3 / 4), ((5, 8, 8), 1 / 3), ((2, 40, 80), 1 / 6)]
)
def test_maps_are_as_wide_as_their_cells_and_rows_have_no_empty_space(space: tuple[int, ...], share: float) -> None:
    rows = [MapRow("stem", torch.rand(3, *space), "abc"), MapRow("stages.0", torch.rand(2, *space), "de")]
    width, height = size_of_maps(rows)
    figure = new_figure(width, height)
    plot_feature_maps(figure, rows)
    assert len(figure.axes) == 5
    figure.draw_without_rendering()  # applies the aspect of the images
    shown = [axes.get_position() for axes in figure.axes]
    assert width == pytest.approx(CAPTION + 3 * CELL)
    for box in shown:
        assert box.height * height == pytest.approx(share * CELL, rel=0.1)
    assert shown[0].y0 - shown[3].y1 < 0.25 / height


def test_no_more_maps_are_drawn_than_are_legible() -> None:
    maps = StageMaps("stages.0", tuple(range(99)), torch.rand(99, 4, 4), 99, (1.0,) * 99)
    view = torch.zeros(3, 8, 8, dtype=torch.uint8)
    figure = draw_features("many", view, None, [maps], None, None, None)
    assert figure.get_size_inches()[0] == WIDTH
    assert len(figure.findobj(lambda artist: type(artist).__name__ == "AxesImage")) == 1 + MAX_MAPS
    notes = [text.get_text() for text in figure.findobj(lambda artist: type(artist).__name__ == "Text")]
    assert any(note.endswith("the first 12 of each stage shown") for note in notes)
