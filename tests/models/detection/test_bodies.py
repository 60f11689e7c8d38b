"""Every network of the catalog with enough strides is the body of a detector; the others are refused in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from convatlas.core.features import taps_by_stride
from convatlas.core.spec import Spec
from convatlas.errors import SpecError
from convatlas.models.catalog import CATALOG, build_fresh, resolve
from convatlas.models.detection.body import STRIDES, build_body
from convatlas.models.detection.rows import BoxHead, Proposals
from convatlas.models.families.rcnn import FasterRCNN
from tiny_networks import CLASSIFIERS, tiny
from torchvision_detectors import targets_of

FEW: dict[str, Any] = {
    "width": 16, "proposals": Proposals(before_nms=(20, 20), after_nms=(10, 10)),
    "boxes": BoxHead(units=(16, 16), samples=8, min_score=0.0, detections=5),
}  # fmt: skip

FAST = (
    "resnet18", "mobilenet_v3_small", "densenet121", "preact_resnet18", "nasnet_a_mobile", "boosted_resnet18",
    "squeezenet1_1", "convnext_tiny", "efficientnet_b0", "alexnet",
)  # fmt: skip


REFUSED = ("convnet1989", "lenet5", "nin_cifar10", "cifar_resnet20", "capsnet", "r3d_18")


def small(name: str) -> FasterRCNN:
    least = CATALOG[name].spec.minimum
    return FasterRCNN(tiny(name), **FEW, resolution=max(64, least), max_size=max(96, least))


def has_four_strides(spec: Spec) -> bool:
    with torch.device("meta"):
        return spec.reads == "images" and len(taps_by_stride(spec.build(classes=2, channels=3))) >= 4


def in_full(names: Sequence[str]) -> list[Any]:
    """Return all classifiers as parameters: these names, and the others with `-m slow`."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in CLASSIFIERS]


@pytest.mark.parametrize("name", in_full(FAST))
def test_body_makes_one_training_step_and_one_prediction(name: str) -> None:
    if not has_four_strides(tiny(name)):
        pytest.skip("fewer than four strides")
    torch.manual_seed(0)
    network: Any = build_fresh(small(name), classes=3, channels=3)
    images = [torch.rand(3, 60, 80), torch.rand(3, 100, 64)]
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    losses = network.train()(images, targets_of(images, 3))
    assert len(losses) == 4
    sum(losses.values()).backward()
    for path, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, path
    optimizer.step()
    with torch.no_grad():
        detections = network.eval()(images)
    assert [each["labels"].ndim for each in detections] == [1, 1]
    assert all(tensor.isfinite().all() for each in detections for tensor in each.values())


@pytest.mark.parametrize("name", in_full(REFUSED))
def test_networks_with_fewer_strides_are_refused(name: str) -> None:
    if has_four_strides(tiny(name)):
        pytest.skip("four or more strides")
    with torch.device("meta"), pytest.raises(SpecError, match=r"^body: must "):
        build_body(tiny(name), (), channels=3, least=2)


def test_levels_are_the_last_stages_at_strides_4_to_32() -> None:
    with torch.device("meta"):
        for name, count in (("resnet50", 4), ("efficientnet_b0", 4), ("squeezenet1_1", 3)):
            levels = build_body(CATALOG[name].spec, (), channels=3, least=2).levels
            assert [level.stride for level in levels] == list(STRIDES[:count])


def test_layers_of_the_head_become_a_last_stage_where_a_level_is_there() -> None:
    with torch.device("meta"):
        plain = build_body(CATALOG["mobilenet_v3_large"].spec, (), channels=3, least=2)
        mobile = build_body(CATALOG["mobilenet_v3_large"].spec, ("stages.5.0", "stages.6"), channels=3, least=2)
        dense = build_body(CATALOG["densenet121"].spec, (), channels=3, least=2)
    assert list(plain.network.stages._modules) == list("012345")
    assert [(level.channels, level.stride) for level in mobile.levels] == [(160, 32), (960, 32)]
    assert list(mobile.network.stages[6]._modules) == ["conv"]
    # norms and activations belong to the last map
    assert list(dense.network.stages._modules)[-1] == "4"
    assert dense.levels[-1].path == "stages.4"


def test_layers_behind_the_last_level_are_removed() -> None:
    with torch.device("meta"):
        body = build_body(CATALOG["resnet18"].spec, ("stages.0", "stages.1.0"), channels=3, least=2)
    assert list(body.network.stages._modules) == ["0", "1"]
    assert list(body.network.stages[1]._modules) == ["0"]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (("stages.9",), "levels must be layers before the head of ResNet, got 'stages.9'"),
        (("stages.2", "stages.1"), "levels must be in the order of the layers, got stages.2, stages.1"),
        (("stages.1",), "must have at least 2 strides"),
    ],
)
def test_wrong_levels_are_refused(levels: tuple[str, ...], message: str) -> None:
    with torch.device("meta"), pytest.raises(SpecError, match=message):
        build_body(CATALOG["resnet18"].spec, levels, channels=3, least=2)


def test_images_smaller_than_the_body_needs_are_padded() -> None:
    network: Any = build_fresh(small("inception_v3"), classes=3, channels=3).eval()
    with torch.no_grad():
        assert len(network([torch.rand(3, 20, 90)])) == 1
    batch = network.transform([torch.rand(3, 20, 90)])[0]
    assert batch.image_sizes == [(21, 96)]
    assert batch.tensors.shape == (1, 3, 96, 96)


def test_a_detector_is_no_body() -> None:
    with pytest.raises(SpecError, match="must be a classifier of images, got a FasterRCNN"):
        FasterRCNN(CATALOG["fasterrcnn_resnet18_fpn"].spec).build(classes=2, channels=3)


def test_a_detector_on_another_body_is_named_after_it() -> None:
    name, row = resolve(FasterRCNN(CATALOG["efficientnet_b0"].spec))
    assert name == "fasterrcnn-efficientnet_b0"
    assert row.card.title == "Faster R-CNN EfficientNet-B0"
    assert row.preprocessing.max_size == 1333
    assert row.classes == 90
