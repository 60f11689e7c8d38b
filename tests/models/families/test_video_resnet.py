"""Residual networks for clips: equal to torchvision's class in every cell, and the control of single frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.video import resnet as theirs

from convatlas.core.network import taps
from convatlas.errors import SpecError
from convatlas.models.catalog import CATALOG, build_fresh, stats
from convatlas.models.families.video_resnet import FAMILY, VideoResNet, hara
from convatlas.models.families.video_resnet import torchvision as rules
from convatlas.models.keys import remap_keys
from upstream import scramble, without_init

TINY = VideoResNet(("3d",) * 4, (1, 1, 1, 1), (4, 8, 8, 16), (4,), frames=6, resolution=24)
MAKERS = {"3d": theirs.Conv3DSimple, "2d": theirs.Conv3DNoTemporal, "2+1d": theirs.Conv2Plus1D}


def plain_stem(frames: int, *, pool: bool = False) -> Callable[[], nn.Module]:
    """Return a builder of a stem with torchvision's names."""

    def build() -> nn.Module:
        conv = nn.Conv3d(3, 64, (frames, 7, 7), (1, 2, 2), (frames // 2, 3, 3), bias=False)
        layers: list[nn.Module] = [conv, nn.BatchNorm3d(64), nn.ReLU()]
        return nn.Sequential(*layers, *([nn.MaxPool3d(3, 2, 1)] if pool else []))

    return build


def outputs(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = network.eval()(x)
    return y


@pytest.mark.parametrize(
    ("spec", "stem"),
    [
        (VideoResNet(("2d",) * 4, (1, 1, 1, 1), stem_frames=1), plain_stem(1)),
        (VideoResNet(("3d",) * 4, (1, 1, 1, 1), block="bottleneck", stem_frames=7, stem_pool=True),
         plain_stem(7, pool=True)),
        (VideoResNet(("3d", "2d", "2d", "2+1d"), (2, 1, 1, 1), block="bottleneck"), plain_stem(3)),
        (VideoResNet(("2+1d",) * 4, (1, 1, 1, 1), block="bottleneck", stem=(45, 64)), theirs.R2Plus1dStem),
    ],
)  # fmt: skip
def test_outputs_are_those_of_torchvisions_class(spec: VideoResNet, stem: Any) -> None:
    block: Any = theirs.Bottleneck if spec.block == "bottleneck" else theirs.BasicBlock
    with without_init():
        peer = theirs.VideoResNet(block, [MAKERS[kind] for kind in spec.kinds], list(spec.depths), stem, 5)
    scramble(peer)
    mine = build_fresh(spec, classes=5, channels=3)
    mine.load_state_dict(remap_keys(peer.state_dict(), rules(spec), mine.state_dict()))
    x = torch.randn(2, 3, 4, 20, 20)
    expected = outputs(peer, x)
    assert expected.std() > 0
    assert torch.equal(outputs(mine, x), expected)


@pytest.mark.parametrize("name", ["r3d_34", "r3d_50"])
def test_checkpoints_of_hara_have_the_names_of_two_dimensional_resnets(name: str) -> None:
    """They are those of torchvision's ResNets, with kernels of five axes."""
    with torch.device("meta"):
        peer = torchvision.models.get_model(f"resnet{name[-2:]}", num_classes=400).state_dict()
    expected = build_fresh(name, device="meta").state_dict()
    inflated = {
        key: tensor.unsqueeze(2).repeat(1, 1, tensor.shape[-1], 1, 1) if tensor.ndim == 4 else tensor
        for key, tensor in peer.items()
    }
    assert remap_keys(inflated, hara(CATALOG[name].spec), expected).keys() == expected.keys()  # type: ignore[arg-type]


def test_the_network_of_single_frames_does_not_see_their_order() -> None:
    torch.manual_seed(0)
    network = build_fresh(replace(TINY, kinds=("2d",) * 4, stem_frames=1), classes=3, channels=3)
    x = torch.randn(1, 3, 6, 24, 24)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    maps = taps(network.eval(), ["stages.3"], x)["stages.3"]
    assert isinstance(maps, Tensor)
    assert maps.shape[2] == 6
    shuffled = taps(network, ["stages.3"], x[:, :, order])["stages.3"]
    torch.testing.assert_close(shuffled, maps[:, :, order])
    torch.testing.assert_close(outputs(network, x[:, :, order]), outputs(network, x))


def test_the_other_networks_see_the_direction_of_time() -> None:
    for kinds in (("3d",) * 4, ("3d", "2d", "2d", "2d"), ("2+1d",) * 4):
        network = build_fresh(replace(TINY, kinds=kinds), classes=3, channels=3)
        x = torch.randn(1, 3, 6, 24, 24)
        assert (outputs(network, x) - outputs(network, x.flip(2))).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "millions"), [("f_r2d_18", 11.4), ("mc3_18", 11.7), ("r3d_18", 33.4)]
)  # fmt: skip
def test_parameters_are_those_that_the_paper_prints(name: str, millions: float) -> None:
    """Tran et al. 2018, table 1. Theirs has R(2+1)D with 33.3 million; torchvision's shares a width in each block."""
    assert round(stats(name).parameters / 1e6, 1) == millions


def test_small_networks_have_nearly_equal_numbers_of_parameters() -> None:
    numbers = [stats(name).parameters for name in FAMILY.variants if name.endswith("small")]
    assert len(numbers) == 3
    assert max(numbers) / min(numbers) < 1.08


def test_a_network_reads_clips_of_its_frames_and_says_so() -> None:
    for name, row in FAMILY.variants.items():
        spec, sampling = row.spec, row.preprocessing.sampling
        assert spec.reads == row.preprocessing.reads == "clips", name
        assert sampling is not None
        assert spec.input_shape(3) == (3, sampling.frames, spec.resolution, spec.resolution)
    assert CATALOG["r3d_18"].preprocessing.width == 171
    assert CATALOG["r3d_18_small"].preprocessing.width == 98


@pytest.mark.parametrize("changes", [{"frames": 1}, {"resolution": 1}, {"frames": 1, "resolution": 1}])
def test_smallest_clips(changes: dict[str, int]) -> None:
    for spec in (TINY, replace(TINY, stem_pool=True, stem_frames=7), replace(TINY, kinds=("2+1d",) * 4, stem=(3, 4))):
        network = build_fresh(spec.replaced(changes), classes=3, channels=3)
        assert outputs(network, torch.randn(2, *network.input_shape)).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "VideoResNet: frames must be an integer >= 1, got 0"),
        ({"resolution": 0}, "VideoResNet: resolution must be"),
        ({"stem": ()}, "stem must have 1 width, or 2 if it is split, got 0"),
        ({"stem_frames": 4}, "stem_frames must be odd, got 4"),
        ({"block": "wide"}, "block must be one of basic, bottleneck"),
        ({"depths": (1, 1)}, r"depths must have one value for each of 4 widths, got \(1, 1\)"),
    ],
)  # fmt: skip
def test_wrong_cells_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        TINY.replaced(changes)
