"""Explanations by models: images of every kind, classes, layers and methods, videos, detectors, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import convatlas as ca
from convatlas.core.ragged import Inputs
from convatlas.errors import ConvatlasError, DataError, EngineError, InputError, SpecError
from convatlas.explanation.explanation import Explanation
from convatlas.explanation.page import Explanations
from convatlas.inference.model import Ensemble, Model
from convatlas.models.detection.variants import preprocessing_of
from convatlas.models.families.rcnn import FasterRCNN
from convatlas.tasks.known import MultilabelClassification, ObjectDetection
from convatlas.weights.modelfile import Header
from random_detectors import random_detector, smooth_image
from random_video_model import random_video_model
from tiny_detection import TINY
from video_files import moving_square, write_video


class OnlyOutputs:
    """The engine of an exported file: outputs, no gradients."""

    name = "onnxruntime"

    def __init__(self, model: Model) -> None:
        self.engine = model.engine

    def outputs(self, pixels: Inputs) -> Any:
        return self.engine.outputs(pixels)


def explain(model: Model, image: Any, **how: Any) -> Explanation:
    found = model.explain(image, **how)
    assert isinstance(found, Explanation)
    return found


def test_the_predicted_class_is_explained_with_curves_and_feature_maps(model: Model, file: Path) -> None:
    found, prediction = explain(model, file), model.predict(file)[0]
    assert found.label == prediction.text == found.prediction.text
    assert found.prediction.probability == pytest.approx(prediction.probability, abs=1e-5)
    size = model.header.preprocessing.resolution
    assert found.heatmap.shape == (size, size)
    assert found.view.shape == model.header.preprocessing.item_shape
    assert 0 <= float(found.heatmap.min()) <= float(found.heatmap.max()) <= 1
    assert found.insertion is not None
    assert found.faithfulness is not None
    assert float(found.faithfulness.heatmap.deletion[0]) == pytest.approx(prediction.probability, abs=1e-4)
    assert [stage.path for stage in found.stages] == ["stem", "stages.0"]
    assert found.layer in found.text()


def test_many_images_give_the_explanations_of_each_alone(model: Model, images: Path, tmp_path: Path) -> None:
    files = sorted((images / "val/ant").iterdir())[:3]
    gone = tmp_path / "gone.png"
    found = ca.explain(model, [*files[:2], gone, files[2]], faithfulness=False)
    assert isinstance(found, Explanations)
    assert [each.error for each in found] == ["", "", f"{gone}: no such file", ""]
    for file, each in zip(files, (found[0], found[1], found[3]), strict=True):
        torch.testing.assert_close(each.heatmap, explain(model, file, faithfulness=False).heatmap)
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        model.explain(gone)


@pytest.mark.parametrize("method", ["hires-cam", "layer-cam"])
def test_classes_differences_and_layers_can_be_chosen(model: Model, file: Path, method: str) -> None:
    bee, ant, difference = (
        explain(model, file, faithfulness=False, method=method, layer=("stem", "stages.0"), **how)
        for how in ({"label": "bee"}, {"label": "ant"}, {"label": "bee", "against": "ant"})
    )
    assert bee.layer == "stem, stages.0"
    assert bee.label == difference.label == "bee"
    assert difference.score is not None
    assert difference.score.text == "bee and not ant"
    assert not torch.equal(bee.heatmap, ant.heatmap)
    assert not torch.equal(bee.heatmap, difference.heatmap)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"label": "bea"}, DataError, r"explain: class must be a class .*got 'bea' \(did you mean bee"),
        ({"label": "bee", "against": "bee"}, DataError, "against must differ from the explained class"),
        ({"against": "dog"}, DataError, "against must be a class of the model"),
        ({"layer": "stages.9"}, SpecError, r"got 'stages\.9' \(did you mean stages\."),
        ({"layer": "head.out"}, SpecError, r"layer must have a map, got 'head.out'"),
        ({"object": 1}, DataError, "object must be 0, because the model is for classification, got 1"),
        ({"object": -1}, InputError, "object must be an integer >= 0, got -1"),
        ({"method": "gradcam"}, InputError, r"method must be .*grad-cam"),
        ({"method": "occlusion", "layer": "stages.0"}, InputError, "layer must be left out with occlusion"),
        ({"layer": None}, InputError, "layers must be a list, each item a text, got None"),
        ({"layer": 3}, InputError, "layers must be a list, each item a text, got 3"),
        ({"steps": 0}, InputError, "steps must be an integer >= 1, got 0"),
    ],
)
def test_what_cannot_be_explained_is_one_line(
    model: Model, file: Path, how: dict[str, Any], error: type[ConvatlasError], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.explain([file], **how)


def test_an_exported_file_is_explained_by_occlusion_alone(model: Model, file: Path) -> None:
    pytest.importorskip("captum")
    exported = dataclasses.replace(model, network=None, engine_override=OnlyOutputs(model))
    with pytest.raises(EngineError, match="method must be occlusion for an exported file, which has no gradients"):
        exported.explain(file)
    found = explain(exported, file, method="occlusion")
    own = explain(model, file, method="occlusion", faithfulness=False)
    torch.testing.assert_close(found.heatmap, own.heatmap)
    assert found.stages == ()
    assert found.insertion is not None


def test_an_ensemble_is_refused(model: Model, file: Path) -> None:
    with pytest.raises(InputError, match="explain: must be a single model, got an Ensemble; explain each"):
        ca.explain(Ensemble((model, model)), file)  # type: ignore[arg-type]


def test_a_class_of_a_multi_label_model(model: Model, file: Path) -> None:
    header = dataclasses.replace(model.header, task=MultilabelClassification(model.classes))
    multilabel = Model(model.network, header)
    found = explain(multilabel, file, label="cat")
    probability = multilabel.predict(file, threshold=0.0)[0].probabilities["cat"]  # type: ignore[attr-defined]
    assert found.faithfulness is not None
    assert float(found.faithfulness.heatmap.insertion[-1]) == pytest.approx(probability, abs=1e-4)


def test_weights_are_randomized_on_request(model: Model, file: Path) -> None:
    found = explain(model, file, faithfulness=False, randomize=True)
    assert found.randomization is not None
    assert next(iter(found.randomization.correlations)) == "head"
    assert found.randomization.verdict in found.text()


def test_the_clip_of_a_video_in_which_the_class_is_most_probable_is_explained(tmp_path: Path) -> None:
    pytest.importorskip("av")
    write_video(tmp_path / "a.mp4", moving_square(40, seed=1), rate=20)
    model = random_video_model()
    found, prediction = explain(model, tmp_path / "a.mp4"), model.predict(tmp_path / "a.mp4")[0]
    assert found.prediction.to_plain() == prediction.to_plain()
    assert found.label == prediction.text
    assert found.heatmap.shape == (4, 16, 16)
    assert found.view.shape == (4, 3, 16, 16)
    clips = [each.prediction.probabilities[found.label or ""] for each in model.predict(
        tmp_path / "a.mp4", every=0.1)[0].moments]  # type: ignore[attr-defined]  # fmt: skip
    assert found.faithfulness is not None
    assert min(clips) < float(found.faithfulness.heatmap.deletion[0]) <= max(clips) + 1e-3
    with pytest.raises(DataError, match="must be a class of the model"):
        model.explain(tmp_path / "a.mp4", label="run")


def test_the_box_of_a_detector_is_explained() -> None:
    classes, spec = ("cat", "dog", "cow"), FasterRCNN(**TINY)
    model = Model(random_detector(spec), Header("random", ObjectDetection(classes), spec, preprocessing_of(spec)))
    image = smooth_image(60, 90)
    objects = model.predict(image)[0]
    found = explain(model, image, object=1)
    assert found.score is not None
    assert found.score.box == pytest.approx(objects.boxes[1])  # type: ignore[attr-defined]
    assert found.label == objects.labels[1]  # type: ignore[attr-defined]
    assert found.heatmap.shape == (60, 90)
    assert found.view.shape == (3, 60, 90)
    assert found.to_plain()["box"] == pytest.approx(objects.boxes[1])  # type: ignore[attr-defined]
    assert found.insertion is not None
    with pytest.raises(DataError, match="object must be the number of an object, got 1000"):
        explain(model, image, object=1000)
