"""Explanations of objects and of clips, from image or video to figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from convatlas.errors import ConvatlasError, DataError
from convatlas.explanation.explanation import Explanation
from convatlas.inference.model import Model
from convatlas.inference.options import PredictOptions
from convatlas.inference.videos import load_clips
from convatlas.models.families.rcnn import FasterRCNN
from random_detectors import header_for, random_detector, smooth_image
from random_video_model import random_video_model
from tiny_detection import TINY
from video_files import moving_square

SIZE = (60, 90)
IMAGE = smooth_image(*SIZE)


@pytest.fixture(scope="module")
def detector() -> Model:
    spec = FasterRCNN(**TINY)
    return Model(random_detector(spec), header_for(spec))


def explain(model: Model, image: Any, **how: Any) -> Explanation:
    found = model.explain(image, **{"faithfulness": False} | how)
    assert isinstance(found, Explanation)
    return found


@pytest.mark.parametrize("method", ["auto", "grad-cam", "layer-cam", "integrated-gradients", "occlusion"])
def test_a_box_is_explained_by_every_method(detector: Model, method: str) -> None:
    if method in ("integrated-gradients", "occlusion"):
        pytest.importorskip("captum")
    found = explain(detector, IMAGE, method=method, steps=4)
    assert found.heatmap.shape == SIZE
    assert 0 <= float(found.heatmap.min()) <= float(found.heatmap.max()) <= 1
    assert found.heatmap.any()
    assert torch.equal(found.view, IMAGE)
    plain = found.to_plain()
    assert found.method == ("hires-cam" if method == "auto" else method)
    assert len(plain["box"]) == 4
    assert found.label == detector.predict(IMAGE, threshold=0).to_plain()[0]["objects"][0]["label"]


def test_objects_have_explanations_of_their_own(detector: Model, tmp_path: Path) -> None:
    first, second = explain(detector, IMAGE, faithfulness=True), explain(detector, IMAGE, object=1)
    assert first.score is not None
    assert second.score is not None
    assert first.score.box != second.score.box
    assert not torch.equal(first.heatmap, second.heatmap)
    assert first.insertion is not None
    first.figure(tmp_path / "box.png")
    assert first.stages


def test_heat_maps_of_a_box_do_not_depend_on_other_objects_being_found(detector: Model) -> None:
    """The logits of the box are those of the box head, whatever the proposals are."""
    found = explain(detector, IMAGE)
    assert found.score is not None
    task, steps = detector.header.task, detector.header.preprocessing
    explained = task.explained(detector.module, steps, found.score)
    with torch.no_grad():
        logits = explained.outputs(explained.inputs(IMAGE[None]))
    confidence = task.confidence(logits, found.score, detector.header.calibration)
    assert 0 < float(confidence) < 1


def test_objects_and_classes_that_are_not_there(detector: Model) -> None:
    with pytest.raises(DataError, match="object must be the number of an object, got 99; there are "):
        explain(detector, IMAGE, object=99)
    with pytest.raises(ConvatlasError, match=r"class must be a class of the model .* got 'class 7'"):
        explain(detector, IMAGE, label="class 7")


VIDEO = moving_square(24)


def test_a_clip_has_a_heat_map_for_each_frame(tmp_path: Path) -> None:
    model = random_video_model()
    found = explain(model, VIDEO, faithfulness=True)
    assert found.heatmap.shape == (4, 16, 16)
    assert found.view.shape == (4, 3, 16, 16)
    assert len(found.grid) == 3
    assert found.insertion is not None
    figure = found.figure(tmp_path / "clip.png")
    assert figure is not None
    plain = found.to_plain()
    assert len(plain["heatmap"]) == found.grid[0]
    assert plain["prediction"]["seconds"] == pytest.approx(2.4)


def test_maps_of_clips_are_interpolated_over_time() -> None:
    model = random_video_model()
    layer = "stages.1"
    found = explain(model, VIDEO, layer=layer)
    task, steps = model.header.task, model.header.preprocessing
    explained = task.explained(model.module, steps)
    inputs = explained.inputs(found.view[None])
    assert found.score is not None
    maps, outputs = explained.capture(inputs, [layer])
    (gradient,) = torch.autograd.grad(task.logit(outputs, found.score).sum(), [maps[layer]])
    cam = (maps[layer] * gradient).sum(1).clamp(min=0).detach()
    expected = F.interpolate(cam[None] / cam.max(), (4, 16, 16), mode="trilinear")[0, 0]
    assert found.method == "hires-cam"
    assert found.grid == tuple(cam.shape[1:])
    torch.testing.assert_close(found.heatmap, expected / expected.max(), rtol=1e-4, atol=1e-5)


def test_the_clip_with_the_most_probable_class_is_explained() -> None:
    model = random_video_model()
    (views,) = load_clips(VIDEO, "video", [model.header.preprocessing], PredictOptions())
    assert isinstance(views.pixels, torch.Tensor)
    probabilities = model.header.task.decode(model.engine.outputs(views.pixels), model.header.calibration)
    for number, label in enumerate(model.classes):
        found = explain(model, VIDEO, label=label)
        assert torch.equal(found.view, views.pixels[int(probabilities[:, number].argmax())])


def test_multilabel_clips() -> None:
    model = random_video_model(multilabel=True)
    found = explain(model, VIDEO, label="wave", against="jump")
    assert found.score is not None
    assert found.score.text == "wave and not jump"
    assert found.heatmap.shape == (4, 16, 16)
