"""Detectors as networks: inputs and outputs, seeds, sizes, taps, frozen layers, folded norms, other channels."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.features import feature_info
from convatlas.core.network import feature_map, taps
from convatlas.engines.folding import fold_norms
from convatlas.errors import InputError, SpecError
from convatlas.layers.frozen_norm import FrozenBatchNorm2d
from convatlas.models.catalog import build_fresh
from convatlas.models.families.rcnn import FasterRCNN, KeypointRCNN, MaskRCNN
from convatlas.models.families.resnet import ResNet
from torchvision_detectors import SMALL, targets_of

TINY: dict[str, Any] = {**SMALL, "body": ResNet("basic", (1, 1, 1, 1), (8, 16, 24, 32), 8), "width": 16}
KINDS = (FasterRCNN, MaskRCNN, KeypointRCNN)


def detector(kind: type[FasterRCNN] = FasterRCNN, *, channels: int = 3, **cells: Any) -> Any:
    torch.manual_seed(0)
    return build_fresh(kind(**(TINY | cells)), classes=3, channels=channels)


def images_of_sizes(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


IMAGES = images_of_sizes((60, 80), (100, 50), (64, 64))


def losses(network: Any, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = network.train()(images, targets)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_have_the_form_of_torchvision(kind: type[FasterRCNN]) -> None:
    with torch.no_grad():
        first, *others = detector(kind).eval()(IMAGES)
    count = len(first["boxes"])
    assert len(others) == 2
    assert 0 < count <= 10
    assert set(first["labels"].tolist()) <= {1, 2, 3}
    assert first["boxes"].shape == (count, 4)
    assert (first["boxes"] >= 0).all()
    assert (first["boxes"] <= torch.tensor([80, 60, 80, 60])).all()
    if kind is MaskRCNN:
        assert first["masks"].shape == (count, 1, 60, 80)
    if kind is KeypointRCNN:
        assert first["keypoints"].shape == (count, 17, 3)
        assert first["keypoints_scores"].shape == (count, 17)


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_objects_train(kind: type[FasterRCNN]) -> None:
    network = detector(kind)
    found = losses(network, IMAGES[:1], targets_of(IMAGES[:1], 3))
    assert all(loss.isfinite() for loss in found.values())
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in network.parameters())


def seeded(targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [target | {"seed": 10 + i} for i, target in enumerate(targets)]


def test_seeds_make_the_choice_independent_of_the_global_generator() -> None:
    network, targets = detector(), targets_of(IMAGES, 3)
    results = []
    for start in (1, 2):
        torch.manual_seed(start)
        results.append(losses(network, IMAGES, seeded(targets)))
        torch.manual_seed(start)
        results.append(losses(network, IMAGES, targets))
    assert all(torch.equal(results[0][key], results[2][key]) for key in results[0])
    assert any(not torch.equal(results[1][key], results[3][key]) for key in results[1])


def test_seeds_make_the_choice_of_an_image_independent_of_its_batch() -> None:
    network, targets = detector().train(), seeded(targets_of(IMAGES, 3))
    sampler = network.head.rpn.fg_bg_sampler
    labels = [torch.randint(-1, 2, (900,)) for _ in targets]
    sampler.seeds = [10, 11, 12]
    together = sampler(labels)
    for i in (2, 0, 1):
        sampler.seeds = [10 + i]
        (positive,), (negative,) = sampler([labels[i]])
        assert torch.equal(positive, together[0][i])
        assert torch.equal(negative, together[1][i])
        assert positive.sum() + negative.sum() == 256
    sampler.seeds = [None, 11]
    assert torch.equal(sampler(labels[:2])[1][1], together[1][1])


def test_both_samplers_draw_differently() -> None:
    network = detector()
    labels, choices = [torch.zeros(900)], []
    for sampler in (network.head.rpn.fg_bg_sampler, network.head.roi_heads.fg_bg_sampler):
        sampler.seeds, sampler.batch_size_per_image = [5], 64
        choices.append(sampler(labels)[1][0])
    assert not torch.equal(*choices)


def test_seeds_may_have_64_bits() -> None:
    sampler = detector().head.rpn.fg_bg_sampler
    for seed in (2**64 - 1, -1, 0):
        sampler.seeds = [seed]
        assert sampler([torch.zeros(900)])[1][0].sum() == 256


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_have_equal_outputs(copied: Any) -> None:
    network = detector(MaskRCNN).eval()
    with torch.no_grad():
        ours, theirs = network(IMAGES), copied(network)(IMAGES)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(ours, theirs, strict=True) for key in a)


def test_a_target_states_the_short_side_of_its_image() -> None:
    network, targets = detector().train(), targets_of(IMAGES, 3)
    targets[0]["short_side"] = 48  # type: ignore[assignment]
    batch, resized = network.transform(IMAGES, targets)
    assert batch.image_sizes == [(48, 64), (96, 48), (64, 64)]
    torch.testing.assert_close(resized[0]["boxes"], targets[0]["boxes"] * 0.8)
    assert network.transform.min_size == (64,)


def test_missing_targets_are_refused() -> None:
    with pytest.raises(InputError, match="targets: must be given in training mode"):
        detector().train()(IMAGES)


def test_levels_are_taps() -> None:
    network = detector().eval()
    batch = network.transform(IMAGES)[0].tensors
    inner = taps(network, network.levels, batch)
    assert network.levels == ("stages.0", "stages.1", "stages.2", "stages.3")
    for path, found in zip(network.levels, network.maps(batch), strict=True):
        assert torch.equal(feature_map(inner[path]), found)
    assert [info.stride for info in feature_info(network)] == [4, 4, 8, 16, 32]


def test_hooks_on_stages_are_called() -> None:
    network, shapes = detector().eval(), []
    network.stages[1].register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape)))
    with torch.no_grad():
        network(IMAGES[2:])
    assert shapes == [(1, 16, 8, 8)]


def test_frozen_stages_do_not_train() -> None:
    network = detector(norm="batch").freeze("stages.1")
    before = copy.deepcopy(network.state_dict())
    sum(losses(network, IMAGES, targets_of(IMAGES, 3)).values()).backward()  # type: ignore[union-attr]
    for name, parameter in network.named_parameters():
        frozen = name.startswith(("stem.", "stages.0.", "stages.1."))
        assert (parameter.grad is None) == frozen, name
    changed = {
        name.split(".norm")[0] for name, tensor in network.state_dict().items() if not tensor.equal(before[name])
    }
    assert changed
    assert all(name.startswith(("stages.2", "stages.3")) for name in changed)


def test_groups_by_depth_have_every_parameter_once() -> None:
    network = detector()
    groups = network.groups_by_depth()
    assert [path for path, _ in groups] == ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"]
    assert sum(len(parameters) for _, parameters in groups) == len(list(network.parameters()))


@pytest.mark.parametrize("cells", [{"norm": "frozen"}, {"norm": "batch", "neck_norm": True}])
def test_folded_norms_give_equal_outputs_up_to_rounding(cells: dict[str, Any]) -> None:
    network = detector(MaskRCNN, **cells).eval()
    for layer in network.modules():
        if isinstance(layer, FrozenBatchNorm2d | nn.BatchNorm2d):
            layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            layer.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
    folded = fold_norms(network)
    assert not any(isinstance(layer, FrozenBatchNorm2d | nn.BatchNorm2d) for layer in folded.modules())
    with torch.no_grad():
        batch = network.transform(IMAGES)[0].tensors
        for ours, other in zip(network.maps(batch), folded.maps(batch), strict=True):  # type: ignore[operator]
            torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)
        assert len(folded(IMAGES)) == 3


def test_other_numbers_of_channels_average_the_normalization() -> None:
    network = detector(channels=1)
    assert network.transform.image_mean == [pytest.approx(0.449, abs=1e-3)]
    assert network.input_shape == (1, 64, 64)
    with torch.no_grad():
        assert len(network.eval()([torch.rand(1, 60, 80)])) == 1


def test_frozen_norms_are_those_of_torchvision() -> None:
    from torchvision.ops import FrozenBatchNorm2d as Theirs

    ours, theirs = FrozenBatchNorm2d(6, eps=1e-3), Theirs(6, eps=1e-3)
    for tensor in ours.state_dict().values():
        tensor.uniform_(0.5, 1.5)
    theirs.load_state_dict(ours.state_dict())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(2, 6, 5, 4)
    assert torch.equal(ours(x), theirs(x))


def test_a_single_map_has_all_anchors_on_one_level() -> None:
    network = detector(neck="single map", levels=("stages.2",))
    assert list(network.head.pyramid(network.maps(torch.zeros(1, 3, 64, 64)))) == ["0"]
    assert len(network.stages) == 3
    assert network.head.rpn.anchor_generator.sizes == ((128,),)
    assert (
        losses(network, IMAGES, targets_of(IMAGES, 3)).keys()
        == losses(detector(), IMAGES, targets_of(IMAGES, 3)).keys()
    )


def test_a_detector_without_classes_is_refused() -> None:
    with pytest.raises(SpecError, match="classes must be >= 1 for a detector"):
        build_fresh(FasterRCNN(**TINY), classes=0)


def test_scales_of_regions_do_not_depend_on_the_first_batch() -> None:
    network, other = detector().eval(), detector().eval()
    with torch.no_grad():
        other([torch.rand(3, 300, 40)])  # much padding
        expected, found = network(IMAGES), other(IMAGES)
    assert network.head.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(expected, found, strict=True))


BOXES = torch.tensor([[1.0, 1.0, 30.0, 30.0]])
TARGET: dict[str, Any] = {"boxes": BOXES, "labels": torch.tensor([1])}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 40, 60), r"images: must be a list of tensors \(3, h, w\), got \(3, 40, 60\)"),
        (None, "images: must be a list of tensors .* got NoneType"),
        (
            [torch.zeros(3, 40, 60, dtype=torch.uint8)],
            r"images\[0\]: must be float32 .* got uint8; divide pixels by 255",
        ),
        ([torch.rand(3, 40, 60), torch.rand(1, 40, 60)], r"images\[1\]: must have the shape \(3, h, w\), got \(1, 40"),
        ([torch.rand(1, 3, 40, 60)], r"images\[0\]: must have the shape"),
        ([torch.rand(3, 40, 60).numpy()], r"images\[0\]: must be a tensor \(3, h, w\), got ndarray"),
        ([torch.rand(3, 0, 60)], "must keep a pixel of its short side .* got 60 x 0 px"),
        ([torch.rand(3, 2, 4000)], "must keep a pixel of its short side .* got 4000 x 2 px"),
    ],
)
def test_wrong_images_are_refused(images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        detector().eval()(images)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (FasterRCNN, {"boxes": None}, "boxes must be a tensor, got nothing"),
        (FasterRCNN, {"boxes": torch.rand(1, 5)}, r"boxes must have the shape \(k, 4\), got \(1, 5\)"),
        (FasterRCNN, {"boxes": BOXES * float("nan")}, "boxes must have x1 < x2 and y1 < y2, got .nan"),
        (FasterRCNN, {"boxes": BOXES[:, [0, 1, 0, 3]]}, "boxes must have x1 < x2 and y1 < y2, got .1.0, 1.0, 1.0"),
        (FasterRCNN, {"labels": torch.tensor([0])}, r"labels must be in \[1, 3\], because 0 is the background, got 0"),
        (FasterRCNN, {"labels": torch.tensor([4])}, r"labels must be in \[1, 3\]"),
        (FasterRCNN, {"labels": torch.tensor([1, 2])}, r"labels must have the shape \(1,\), got \(2,\)"),
        (FasterRCNN, {"labels": torch.tensor([1.0])}, "labels must be int64, got float32"),
        (FasterRCNN, {"short_side": 0}, "short_side must be an integer >= 1, got 0"),
        (FasterRCNN, {"seed": 1.5}, "seed must be an integer, got 1.5"),
        (MaskRCNN, {}, "masks must be a tensor, got nothing"),
        (MaskRCNN, {"masks": torch.ones(1, 9, 9)}, r"masks must have the shape \(1, 60, 80\), got \(1, 9, 9\)"),
        (KeypointRCNN, {"keypoints": torch.ones(1, 4, 3)}, r"keypoints must have the shape \(1, 17, 3\), got"),
        (KeypointRCNN, {"keypoints": torch.ones(1, 17, 3).long()}, "keypoints must be finite floats"),
    ],
)
def test_wrong_targets_are_refused(kind: type[FasterRCNN], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"targets\[0\]: {message}"):
        detector(kind).train()(IMAGES[:1], [TARGET | changes])


@pytest.mark.parametrize(
    ("targets", "got"), [([TARGET], "1"), ([], "0"), (TARGET, "dict"), ([TARGET, BOXES], "Tensor")]
)
def test_there_is_one_target_for_each_image(targets: Any, got: str) -> None:
    with pytest.raises(InputError, match=f"targets.*, got {got}$"):
        detector().train()(IMAGES[:2], targets)


def test_no_images_and_tiny_images() -> None:
    network = detector().eval()
    with torch.no_grad():
        assert network([]) == []
        assert [len(each) for each in network([torch.rand(3, 1, 1), IMAGES[0]])] == [3, 3]
    with pytest.raises(InputError, match="images: must be at least one in training mode, got none"):
        network.train()([], [])


def test_other_types_than_float32_are_refused_but_work_under_autocast() -> None:
    network = detector().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert len(network.head.pyramid(network.maps(torch.rand(1, 3, 64, 64)))["0"]) == 1
    with pytest.raises(InputError, match="network: must be float32, got bfloat16"):
        network.bfloat16()(IMAGES)


def test_the_head_has_no_outputs_of_a_single_layer() -> None:
    network = detector().eval()
    with pytest.raises(SpecError, match="forward_from: RCNN does not run in sequence"):
        network.forward_from("stem", torch.rand(1, 8, 16, 16))
    with pytest.raises(SpecError, match="no tap 'head' on the main path of this RCNN"):
        taps(network, ["head"], torch.rand(1, 3, 64, 64))
