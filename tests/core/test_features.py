"""Taps by stage and stride, freezing, groups by depth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convatlas.core.features import feature_info, taps_at_strides
from convatlas.core.network import Network, feature_map, tap_paths, taps
from convatlas.errors import SpecError
from convatlas.models.catalog import CATALOG, build_fresh
from convatlas.train.optim import param_groups_by_depth
from tiny_networks import build_tiny, every_network, of_each_kind


@every_network
def test_places_are_taps_of_that_shape(name: str) -> None:
    network, x = build_tiny(name)
    found = feature_info(network)
    kept = taps(network, [place.path for place in found], x)
    for place in found:
        assert tuple(feature_map(kept[place.path]).shape[1:]) == (place.channels, *place.spatial)


@every_network
def test_head_is_the_output(name: str) -> None:
    network, x = build_tiny(name)
    with torch.no_grad():
        assert torch.equal(taps(network, ["head"], x)["head"], network(x))


@pytest.mark.parametrize(
    ("name", "strides", "channels"),
    [
        ("resnet50", [4, 8, 16, 32], [256, 512, 1024, 2048]),
        ("vgg16", [2, 4, 8, 16, 32], [64, 128, 256, 512, 512]),
        ("mobilenet_v2", [2, 4, 8, 16, 32], [16, 24, 32, 96, 320]),
        ("efficientnet_b0", [8, 16, 32], [40, 112, 320]),
        ("densenet121", [4, 8, 16, 32], [256, 512, 1024, 1024]),
        ("convnext_tiny", [4, 8, 16, 32], [96, 192, 384, 768]),
        ("inception_v3", [8, 16, 32], [288, 768, 2048]),
        ("nasnet_a_mobile", [8, 16, 32], [264, 528, 1056]),
        ("r3d_18", [2, 4, 8, 16], [64, 128, 256, 512]),
    ],
)
def test_strides_name_the_maps_that_detectors_want(name: str, strides: list[int], channels: list[int]) -> None:
    network = build_fresh(name, device="meta").eval()
    kept = taps(network, taps_at_strides(network, strides), torch.zeros(1, *network.input_shape, device="meta"))
    assert [feature_map(y).shape[1] for y in kept.values()] == channels


def test_a_stride_inside_the_stem_is_found_and_an_unknown_one_refused() -> None:
    network = build_fresh("resnet18", device="meta")
    assert taps_at_strides(network, [2])[0].startswith("stem.")
    with pytest.raises(SpecError, match=r"stride of 3 px; its strides are \[2, 4, 8, 16, 32\]"):
        taps_at_strides(network, [3])


def test_what_a_tap_keeps_is_not_overwritten_by_the_activation_behind_it() -> None:
    network, x = build_tiny("resnet18")
    kept = taps(network, ["stages.0.0.sum", "stages.0.0"], x)
    assert float(kept["stages.0.0.sum"].detach().min()) < 0
    assert torch.equal(kept["stages.0.0.sum"].relu(), kept["stages.0.0"])


# --- freezing


@every_network
def test_frozen_parts_neither_learn_nor_count(name: str) -> None:
    network, x = build_tiny(name)
    network.freeze("stages.0").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    _, loss = network.loss(x, torch.tensor([0, 1]), F.cross_entropy)
    loss.backward()
    optimizer.step()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert not [key for key in changed if key.startswith(("stem.", "stages.0."))]
    assert changed


def test_thawed_parts_learn_again() -> None:
    network = build_fresh("resnet18").freeze("stages.2")
    assert not network.stem.training
    network.freeze(None)
    assert network.stem.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_freezing_reaches_inside_a_stage_and_refuses_what_is_not_there() -> None:
    network = build_fresh("resnet18").freeze("stages.1.0")
    learning = {path for path, parameter in network.named_parameters() if parameter.requires_grad}
    assert {path.split(".")[1] for path in learning if path.startswith("stages.1.")} == {"1"}
    assert not any(path.startswith(("stem.", "stages.0.", "stages.1.0.")) for path in learning)
    with pytest.raises(SpecError, match="stages"):
        network.freeze("stages.9")


# --- groups


@every_network
def test_groups_by_depth_hold_every_parameter_once(name: str) -> None:
    network, _ = build_tiny(name)
    groups = param_groups_by_depth(network)
    held = [parameter for _, parameters in groups for parameter in parameters]
    assert len(held) == len({id(p) for p in held}) == len(list(network.parameters()))
    paths = [path for path, _ in groups]
    assert [path for path in tap_paths(network) if path in paths] == paths


def test_auxiliary_heads_learn_with_the_head() -> None:
    spec = replace(CATALOG["googlenet"].spec, auxiliary=True)  # type: ignore[type-var]
    groups = dict(param_groups_by_depth(build_fresh(spec, device="meta")))
    assert len(groups["head"]) == 2 + 2 * 7


# --- small stems

SMALL = [name for name, row in CATALOG.items() if "small_stem" in getattr(row.spec, "backbone", row.spec).hints()]


@of_each_kind(SMALL)
@pytest.mark.parametrize("size", [28, 64])
def test_small_stem_keeps_the_size_of_small_images(name: str, size: int) -> None:
    network = build_fresh(name, classes=10, stem="cifar", resolution=size, device="meta").eval()
    assert network.input_shape[1:] == (size, size)
    own = build_fresh(name, classes=10, device="meta")
    small, full = (next(p.stride for p in feature_info(n) if p.path == "stem") for n in (network, own))
    spec = CATALOG[name].spec
    assert small < full or getattr(spec, "small_stem", False) or getattr(spec, "backbone", spec).small_stem
    assert network(torch.zeros(2, 3, size, size, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("name", sorted({type(row.spec): name for name, row in CATALOG.items()}.values()))
def test_small_stem_is_offered_or_refused(name: str) -> None:
    if name in SMALL:
        assert isinstance(build_fresh(name, stem="cifar", device="meta"), Network)
    else:
        with pytest.raises(SpecError, match="no small stem"):
            build_fresh(name, stem="cifar", device="meta")


@every_network
@pytest.mark.parametrize("channels", [1, 13])
def test_any_number_of_channels_and_classes(name: str, channels: int) -> None:
    network = build_fresh(name, classes=5, channels=channels, device="meta").eval()
    assert network(torch.zeros(2, *network.input_shape, device="meta")).shape == (2, 5)
    assert network.input_shape[0] == channels


def test_stem_that_is_no_stem_is_refused() -> None:
    with pytest.raises(SpecError, match="stem must be one of"):
        build_fresh("resnet18", stem="tiny")  # type: ignore[arg-type]


def test_sum_adds_in_place_only_into_tensors_of_its_own() -> None:
    from convatlas.core.compose import Chain, Sum

    x = torch.randn(2, 3, 4, 4)
    kept = x.clone()
    for first in (nn.Identity(), nn.ReLU(), Chain(nn.BatchNorm2d(3), nn.Sigmoid())):
        Sum(first, nn.Identity())(x)
        assert torch.equal(x, kept)
    tree = Sum(Chain(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), nn.Identity())
    tree(x.requires_grad_()).sum().backward()
    assert torch.equal(x, kept)
    relu = Sum(Chain(nn.Conv2d(3, 3, 1), nn.ReLU()), nn.Identity())
    relu(x).square().sum().backward()  # a ReLU's output is needed on the way back
