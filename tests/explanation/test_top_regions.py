"""Regions of a data set that excite a channel most."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convatlas.core.network import feature_map, taps
from convatlas.core.preprocessing import Preprocessing
from convatlas.errors import InputError
from convatlas.explanation.top_regions import TopRegions, find_top_regions
from convatlas.tasks.explained import Explained
from tiny_networks import build_tiny

LAYER = "stages.0"


@pytest.fixture(scope="module")
def explained() -> Explained:
    network, _ = build_tiny("mobilenet_v2")
    return Explained(network, Preprocessing(resize=48, crop=48, mean=(0.5,) * 3, std=(0.5,) * 3))


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randint(0, 256, (12, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def regions(explained: Explained, pixels: Tensor, size: int, top: int = 4) -> TopRegions:
    names = [f"image {i}" for i in range(len(pixels))]
    batches = ((names[i : i + size], pixels[i : i + size]) for i in range(0, len(pixels), size))
    return find_top_regions(explained, batches, LAYER, 2, top)


def test_largest_values_of_all_images(explained: Explained, pixels: Tensor) -> None:
    maps = feature_map(taps(explained.network, [LAYER], explained.inputs(pixels))[LAYER])[:, 2].detach()
    best = maps.flatten(1).amax(1).topk(4)
    found = regions(explained, pixels, 5)
    assert [each.source for each in found.regions] == [f"image {i}" for i in best.indices.tolist()]
    assert [each.value for each in found.regions] == pytest.approx(best.values.tolist())
    assert found.images == 12
    assert found.mean == pytest.approx(maps.flatten(1).amax(1).mean().item())
    first = found.regions[0]
    assert maps[int(best.indices[0])][first.unit] == best.values[0]
    (top, bottom), (left, right) = first.region
    assert torch.equal(first.crop, pixels[int(best.indices[0]), :, top : bottom + 1, left : right + 1])


def test_batches_do_not_matter_and_equal_values_keep_the_first_image(explained: Explained, pixels: Tensor) -> None:
    def summary(found: TopRegions) -> list[tuple[str, tuple[int, ...]]]:
        return [(each.source, each.unit) for each in found.regions]

    assert summary(regions(explained, pixels, 1)) == summary(regions(explained, pixels, 12))
    same = regions(explained, pixels[:1].expand(6, -1, -1, -1), 2, top=3)
    assert [each.source for each in same.regions] == ["image 0", "image 1", "image 2"]


def test_only_crops_are_kept(explained: Explained, pixels: Tensor) -> None:
    for each in regions(explained, pixels, 5).regions:
        assert each.crop.untyped_storage().nbytes() == each.crop.numel() < pixels[0].numel()


def test_a_channel_that_is_not_there(explained: Explained, pixels: Tensor) -> None:
    with pytest.raises(InputError, match=r"features: channel must be an integer in \[0, 7\] for stages.0, got 8"):
        find_top_regions(explained, [(["a"], pixels[:1])], LAYER, 8)
