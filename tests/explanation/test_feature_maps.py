"""The strongest feature maps of each stage, of every network."""

from __future__ import annotations

import torch

from convatlas.core.network import feature_map, taps
from convatlas.draw.feature_maps import MapRow, feature_maps, to_gray
from convatlas.explanation.feature_maps import select_strongest, stage_maps, stage_paths, strength
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
    assert to_gray(torch.rand(5, 4, 4)).shape == (4, 3 * 4 + 2 * 2)


def test_figure_has_a_cell_for_each_map() -> None:
    rows = [MapRow("stem, 8 channels", torch.rand(3, 4, 4), ["a", "b", "c"]), MapRow("s", torch.rand(2, 2, 2), "de")]
    assert len(feature_maps(rows).findobj(lambda artist: type(artist).__name__ == "AxesImage")) == 5
