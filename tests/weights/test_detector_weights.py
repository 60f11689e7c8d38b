"""Weights of detectors: torchvision's files, other classes and keypoints, and the weights of a body."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

import convatlas as ca
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec
from convatlas.errors import WeightsError
from convatlas.models.catalog import build_fresh, resolve
from convatlas.models.families.rcnn import FasterRCNN, KeypointRCNN
from convatlas.tasks.known import Classification, task_for
from convatlas.train import initial_weights
from convatlas.weights import pretrained
from convatlas.weights.build import build
from convatlas.weights.detector import networks_with_weights
from convatlas.weights.modelfile import Header, write_model_file
from convatlas.weights.open import open_weights, published_weights
from convatlas.weights.pretrained import Weights, list_weights
from tiny_networks import tiny

BODY = tiny("resnet18")
SMALL: dict[str, Any] = {"resolution": 64, "max_size": 96, "width": 16}
DETECTOR = FasterRCNN(BODY, **SMALL)


def save(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path)
    return path


def test_torchvision_state_dict_with_and_without_its_classes(tmp_path: Path) -> None:
    """91 classes of torchvision, with the background, are 90; with another number the predictor is random."""
    peer = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=91
    )
    state = {k: v for k, v in peer.state_dict().items() if "num_batches" not in k}
    file = save(state, tmp_path / "tv.pth")
    whole = build("fasterrcnn_mobilenet_v3_large_320_fpn", classes=90, weights=file)
    assert torch.equal(
        whole.state_dict()["head.roi_heads.box_predictor.cls_score.weight"],
        state["roi_heads.box_predictor.cls_score.weight"],
    )
    three = build("fasterrcnn_mobilenet_v3_large_320_fpn", classes=3, weights=file).state_dict()
    assert three["head.roi_heads.box_predictor.cls_score.weight"].shape[0] == 4
    assert three["head.roi_heads.box_predictor.bbox_pred.weight"].shape[0] == 16
    kept = [key for key in whole.state_dict() if "box_predictor" not in key]
    assert all(torch.equal(whole.state_dict()[key], three[key]) for key in kept)


def test_torchvision_detector_with_trained_norms(tmp_path: Path) -> None:
    """Built without pretrained weights, torchvision's body has batch norms, and its file their counters."""
    peer = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3
    )
    network = build("fasterrcnn_mobilenet_v3_large_320_fpn", weights=save(peer.state_dict(), tmp_path / "tv.pth"))
    assert isinstance(network.spec, FasterRCNN)
    assert (network.spec.norm, network.spec.eps) == ("batch", 1e-5)
    images = [torch.rand(3, 40, 50)]
    with torch.no_grad():
        ours, theirs = network.eval()(images), peer.eval()(images)
    assert all(torch.equal(ours[0][key], theirs[0][key]) for key in ("boxes", "labels", "scores"))


def test_published_weights_are_read_from_torchvision() -> None:
    weights, *_ = list_weights("maskrcnn_resnet50_fpn")
    assert (len(weights.classes), weights.classes[0], weights.preprocessing.is_whole) == (90, "person", True)
    assert task_for(weights.spec, weights.classes).short_name == "segment"
    keypoints, *_ = list_weights("keypointrcnn_resnet50_fpn")
    assert keypoints.classes == ("person",)
    assert task_for(keypoints.spec, keypoints.classes).to_plain()["skeleton"]["names"][0] == "nose"


@pytest.fixture(scope="module")
def body() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_fresh(BODY, classes=5, channels=3).state_dict()


def check_body(spec: Spec, checkpoint_tensors: Any, body: dict[str, Tensor]) -> None:
    state = build_fresh(spec, classes=2, channels=3).state_dict()
    expected = {key for key in state if not key.startswith("head.")}
    assert checkpoint_tensors.keys() == expected
    assert all(torch.equal(tensor, body[key]) for key, tensor in checkpoint_tensors.items())


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_checkpoint_of_the_body(tmp_path: Path, body: dict[str, Tensor], norm: Any) -> None:
    spec = FasterRCNN(BODY, norm=norm, eps=0.0, **SMALL)
    name, row = resolve(spec)
    checkpoint = open_weights(save(body, tmp_path / "body.pth"), spec, name=name, row=row)
    assert checkpoint.num_classes == 0
    assert checkpoint.preprocessing.is_whole
    assert checkpoint.spec_for(spec) == FasterRCNN(BODY, norm=norm, **SMALL)
    check_body(spec, checkpoint.tensors, body)
    network = build(spec, classes=2, weights=tmp_path / "body.pth")
    key = "stages.1.0.sum.body.conv1.conv.weight"
    assert torch.equal(network.state_dict()[key], body[key])


def test_model_file_of_the_body_brings_its_normalization(tmp_path: Path, body: dict[str, Tensor]) -> None:
    network = build_fresh(BODY, classes=5, channels=3)
    network.load_state_dict(body)
    size = BODY.resolution
    steps = Preprocessing(resize=size, crop=size, mean=(0.5,) * 3, std=(0.25,) * 3)
    header = Header("resnet18-custom", Classification(tuple("abcde")), BODY, steps)
    write_model_file(tmp_path / "body.safetensors", network, header)
    name, row = resolve(DETECTOR)
    checkpoint = open_weights(tmp_path / "body.safetensors", DETECTOR, name=name, row=row)
    assert checkpoint.cells["mean"] == (0.5,) * 3
    assert checkpoint.cells["std"] == (0.25,) * 3
    check_body(DETECTOR, checkpoint.tensors, body)


def test_weights_of_another_body_are_refused(tmp_path: Path) -> None:
    other = build_fresh(tiny("vgg11"), classes=5, channels=3).state_dict()
    name, row = resolve(DETECTOR)
    with pytest.raises(WeightsError, match="does not fit this FasterRCNN"):
        open_weights(save(other, tmp_path / "other.pth"), DETECTOR, name=name, row=row)


def test_a_detector_of_other_keypoints_keeps_all_but_the_last_layer(tmp_path: Path) -> None:
    five, two = (KeypointRCNN(BODY, points=points, **SMALL) for points in (5, 2))
    network = build_fresh(five, classes=1, channels=3)
    row = resolve(five)[1]
    header = Header("keypoints", task_for(five, ("dog",)), five, row.preprocessing)
    write_model_file(tmp_path / "five.safetensors", network, header)
    name, row = resolve(two)
    checkpoint = open_weights(tmp_path / "five.safetensors", two, name=name, row=row)
    missing = network.state_dict().keys() - checkpoint.tensors.keys()
    assert missing == {f"head.roi_heads.keypoint_predictor.kps_score_lowres.{name}" for name in ("weight", "bias")}
    assert build(two, classes=1, weights=tmp_path / "five.safetensors").spec == two


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> dict[str, Weights]:
    """Published weights of a detector and of its body, by the names of their networks."""
    known = {"fasterrcnn_resnet50_fpn": "COCO_V1", "resnet50": "IMAGENET1K_V2"}
    published = {
        name: Weights(name, "torchvision", tag, "", "", f"{name}.pth", resolve(name)[1].preprocessing, ("a", "b"))
        for name, tag in known.items()
    }
    read = lambda network, *_: [published[network]] if network in published else []  # noqa: E731
    monkeypatch.setitem(pretrained._RECORDS, "torchvision", read)
    monkeypatch.setitem(pretrained._RECORDS, "timm", lambda *_: [])
    return published


def test_names_of_weights_of_a_detector_and_its_body(records: dict[str, Weights]) -> None:
    name = "fasterrcnn_resnet50_fpn"
    spec = ca.spec(name)
    assert list(networks_with_weights(spec, name)) == [name, "resnet50"]
    for text in ("DEFAULT", "torchvision", "torchvision:COCO_V1", f"{name}@torchvision:COCO_V1"):
        assert published_weights(text, spec, name) == records[name]
    for text in ("torchvision:IMAGENET1K_V2", "resnet50@torchvision:IMAGENET1K_V2"):
        assert published_weights(text, spec, name) == records["resnet50"]
    custom = FasterRCNN(ca.spec("resnet50"))
    assert published_weights("torchvision", custom, resolve(custom)[0]) == records["resnet50"]
    with pytest.raises(WeightsError, match="are weights of resnet18, not of fasterrcnn_resnet50_fpn or resnet50"):
        published_weights("resnet18@torchvision:A", spec, name)


def test_auto_prefers_the_detector_to_its_body(records: dict[str, Weights], monkeypatch: pytest.MonkeyPatch) -> None:
    name, at_hand = "fasterrcnn_resnet50_fpn", set(records)
    monkeypatch.setattr(initial_weights, "_is_at_hand", lambda weights: weights.network in at_hand)
    choose = lambda: initial_weights.choose_weights("auto", ca.spec(name), network=name).name  # noqa: E731
    assert choose() == records[name].name
    at_hand.remove(name)
    assert choose() == records["resnet50"].name


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_the_file_states_the_number_of_keypoints(tmp_path: Path, norm: Any) -> None:
    """A state dict of a number of keypoints that is neither that of the network nor that of its row."""
    five, two = (KeypointRCNN(BODY, points=points, **SMALL) for points in (5, 2))
    state = build_fresh(five.replaced({"norm": norm}), classes=1, channels=3).state_dict()
    network = build(two, classes=1, weights=save(state, tmp_path / "five.pth"))
    assert isinstance(network.spec, KeypointRCNN)
    assert (network.spec.points, network.spec.norm) == (2, norm)
    built = network.state_dict()
    other = {key for key, tensor in built.items() if not torch.equal(tensor, state.get(key, tensor))}
    assert other == set() or all("kps_score_lowres" in key for key in other)
    assert torch.equal(built["head.neck.layer_blocks.0.0.weight"], state["head.neck.layer_blocks.0.0.weight"])


def test_weights_of_a_body_need_the_number_of_classes(tmp_path: Path, body: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"body\.pth: weights of the body, ResNet, alone; give classes"):
        build(DETECTOR, weights=save(body, tmp_path / "body.pth"))


def test_a_model_file_of_another_type_of_network_is_named_by_its_type(tmp_path: Path) -> None:
    spec = tiny("vgg11")
    steps = Preprocessing(resize=spec.resolution, crop=spec.resolution, mean=(0.5,) * 3, std=(0.25,) * 3)
    network = build_fresh(spec, classes=2, channels=3)
    write_model_file(tmp_path / "vgg.safetensors", network, Header("vgg", Classification(("a", "b")), spec, steps))
    with pytest.raises(WeightsError, match=r"got another network: type VGG instead of ResNet$"):
        build(DETECTOR, classes=2, weights=tmp_path / "vgg.safetensors")
