"""Detectors in explanations: the class logits of a box, the maps of the body, and the object that is explained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from convatlas.core.network import taps
from convatlas.errors import DataError, SpecError
from convatlas.models.detection.variants import preprocessing_of
from convatlas.models.families.rcnn import FasterRCNN
from convatlas.tasks.detection.explained import ExplainedBox
from convatlas.tasks.detection.objects import Objects
from convatlas.tasks.explained import gradients
from convatlas.tasks.known import ObjectDetection
from convatlas.tasks.task import Calibration
from random_detectors import random_detector, smooth_image
from tiny_detection import TINY, TINY_SPECS

CLASSES = ("cat", "dog", "cow")
TASK = ObjectDetection(CLASSES)
SIZE = (60, 90)
SPEC = FasterRCNN(**TINY)
SINGLE: dict[str, Any] = TINY | {"neck": "single map", "anchors": ()}
BOX = (20.0, 10.0, 60.0, 50.0)


def objects(*rows: tuple[int, float]) -> Objects:
    """Return objects (label, score) at different places."""
    boxes = torch.tensor([[5.0 * i, 4.0, 5.0 * i + 20, 30.0] for i in range(len(rows))]).view(-1, 4)
    labels, scores = (torch.tensor([row[k] for row in rows]) for k in (0, 1))
    return Objects(SIZE, boxes, labels.long(), scores.float())


def explained_box(box: Any = BOX, spec: FasterRCNN = SPEC, size: tuple[int, int] = SIZE) -> ExplainedBox:
    return ExplainedBox(random_detector(spec), preprocessing_of(spec), box, size)


PIXELS = smooth_image(*SIZE)[None]


def test_the_most_probable_object_is_explained() -> None:
    score = TASK.score(objects((0, 0.3), (2, 0.9), (2, 0.5)))
    assert (score.label, score.index, score.size) == ("cow", 2, SIZE)
    assert score.box == (5.0, 4.0, 25.0, 30.0)


@pytest.mark.parametrize(
    ("label", "number", "left"), [(None, 1, 10.0), (None, 2, 0.0), ("cow", 1, 10.0), ("cat", 0, 0.0)]
)
def test_objects_are_numbered_by_their_scores(label: str | None, number: int, left: float) -> None:
    score = TASK.score(objects((0, 0.3), (2, 0.9), (2, 0.5)), label, "dog", number)
    assert score.box is not None
    assert score.box[0] == left
    assert score.against == "dog"


@pytest.mark.parametrize(
    ("label", "against", "number", "message"),
    [
        ("cat", None, 1, "object must be the number of an object of the class cat, got 1; there are 2 cow, 1 "),
        ("dog", None, 0, "an object of the class dog, got 0; there are 2 cow, 1 cat"),
        (None, None, 3, "object must be the number of an object, got 3; there are 2 cow, 1 cat"),
        ("cas", None, 0, r"class must be a class of the model \(cat, dog, cow\), got 'cas' \(did you mean cat"),
        (None, "cow", 0, "against must differ from the explained class, got 'cow'"),
    ],
)
def test_objects_and_classes_that_are_not_there(
    label: str | None, against: str | None, number: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        TASK.score(objects((0, 0.3), (2, 0.9), (2, 0.5)), label, against, number)


def test_an_image_without_objects() -> None:
    with pytest.raises(DataError, match="object must be the number of an object, got 0; there are no objects"):
        TASK.score(objects())


def test_outputs_are_the_logits_of_the_box() -> None:
    explained = explained_box()
    score = TASK.score(objects((1, 0.5)), None, "cat")
    with torch.no_grad():
        outputs = explained.outputs(explained.inputs(PIXELS.repeat(2, 1, 1, 1)))
    assert outputs.shape == (2, 1 + len(CLASSES))
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(TASK.logit(outputs, score), outputs[:, 2] - outputs[:, 1])
    p = outputs.softmax(1)
    torch.testing.assert_close(TASK.confidence(outputs, score, Calibration()), p[:, 2] / (p[:, 1] + p[:, 2]))
    only = TASK.score(objects((1, 0.5)))
    torch.testing.assert_close(TASK.confidence(outputs, only, Calibration()), p[:, 2])


@pytest.mark.parametrize("spec", [SPEC, TINY_SPECS["keypoints"], FasterRCNN(**SINGLE)])
def test_captured_maps_are_taps_and_have_the_gradients_of_the_whole_network(spec: FasterRCNN) -> None:
    explained = explained_box(spec=spec)
    network, inputs = explained.network, explained.inputs(PIXELS)
    visited: list[str] = []
    layers = [path for path in ("stages.1", "stages.2.0", "stages.2") if path in explained.paths]
    maps, outputs = explained.capture(inputs, layers, lambda path, _: visited.append(path))
    with torch.no_grad():
        torch.testing.assert_close(outputs, explained.outputs(inputs))
        inner = taps(network, layers, network.first_inputs(list(inputs)))
    assert set(network.levels) <= set(visited)
    for path in layers:
        torch.testing.assert_close(maps[path], inner[path])
    found = gradients(outputs[:, 1], {layers[-1]: maps[layers[-1]]})[layers[-1]]
    seen: list[Tensor] = []

    def watch(_: Any, __: Any, y: Tensor) -> Tensor:
        seen.append(y)
        return y.clone()  # a later layer may overwrite it

    with network.get_submodule(layers[-1]).register_forward_hook(watch):
        whole = explained.outputs(inputs)
    (expected,) = torch.autograd.grad(whole[:, 1].sum(), seen)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert found.abs().sum() > 0


@pytest.mark.parametrize(("side", "layer"), [(20, "stages.0"), (150, "stages.1"), (250, "stages.2"), (600, "stages.3")])
def test_the_default_layer_is_the_level_that_the_box_is_pooled_from(side: int, layer: str) -> None:
    spec = FasterRCNN(**TINY | {"resolution": 640, "max_size": 640})
    explained = explained_box((0.0, 0.0, float(side), float(side)), spec, (640, 640))
    assert explained.default_layer == layer
    single = explained_box(spec=FasterRCNN(**SINGLE, levels=("stages.2",)))
    assert single.default_layer == "stages.2"


def test_maps_are_shown_on_the_image_without_padding() -> None:
    """An image of 60 x 90 px is resized to 64 x 96 and padded to whole strides."""
    explained = explained_box()
    height, width = explained.network.first_inputs(list(explained.inputs(PIXELS))).shape[-2:]
    places = torch.arange(width).float().expand(1, height, width)
    view = explained.on_view(places, PIXELS)
    assert view.shape == (1, *SIZE)
    assert float(view.max()) == pytest.approx(95, abs=1)
    already = torch.rand(1, *SIZE)
    assert torch.equal(explained.on_view(already, PIXELS), already)


def test_layers_of_the_head_have_no_map() -> None:
    with pytest.raises(SpecError, match=r"layer must (be on the main path|have a map).*'head"):
        explained_box().capture(torch.rand(1, 3, *SIZE), ["head"])


def test_a_detector_is_explained_by_its_task() -> None:
    network = random_detector(SPEC)
    score = TASK.score(objects((1, 0.5)))
    explained = TASK.explained(network, preprocessing_of(SPEC), score)
    assert isinstance(explained, ExplainedBox)
    assert explained.box.tolist() == [list(score.box or ())]
    with pytest.raises(TypeError, match="the outputs depend on the box"):
        TASK.explained(network, preprocessing_of(SPEC))


def test_the_baseline_of_integrated_gradients_is_zero_after_the_transform() -> None:
    explained = explained_box()
    (image,) = explained.baseline(explained.inputs(PIXELS))
    batch, _ = explained.network.transform([image])
    assert float(batch.tensors.abs().max()) < 1e-6
