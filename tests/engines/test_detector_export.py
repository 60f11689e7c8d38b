"""Exported detectors find the objects of the model, are read by the same commands, and by other programs."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from commands import Command, check_refused
from convatlas.data.decode.pixels import read_image
from convatlas.engines.onnxruntime import OnnxRuntimeEngine
from convatlas.errors import EngineError, ModelFileError
from convatlas.inference.detector_parity import DetectorParity, compare_detectors
from convatlas.inference.export import ExportResult, export
from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.models.catalog import CATALOG
from convatlas.models.families.rcnn import FasterRCNN
from convatlas.tasks.detection.prediction import DetectionPrediction
from convatlas.weights.modelfile import write_model_file
from random_detectors import header_for, random_detector, smooth_image
from tiny_detection import TINY_SPECS

pytest.importorskip("onnxruntime")

PAGE = Path(__file__).parents[2] / "docs" / "inference.md"
PHOTOS = Path(__file__).parents[2] / "../shared/data/coco_tiny/val10"
SIZES = [(60, 90), (41, 150), (64, 64)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(SIZES):
        Image.fromarray(smooth_image(*size, seed=number).permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return folder


def random_model(spec: FasterRCNN) -> Model:
    return Model(random_detector(spec), header_for(spec))


def objects_in(model: Model, image: Path, threshold: float) -> Any:
    (prediction,) = model.predict(image, threshold=threshold)
    assert isinstance(prediction, DetectionPrediction)
    return prediction.objects


def small(kind: str) -> FasterRCNN:
    """Return a detector that is exported in a few seconds."""
    spec = replace(TINY_SPECS[kind], neck="single map", anchors=((16, 32, 64),))
    return replace(spec, boxes=replace(spec.boxes, detections=100))


@pytest.fixture(scope="module")
def exported(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, ExportResult]:
    model = random_model(small("segment"))
    return model, export(model, "onnx", tmp_path_factory.mktemp("exported") / "x.onnx", check=photos)


def test_the_file_has_the_objects_of_the_model(exported: tuple[Model, ExportResult], photos: Path) -> None:
    model, result = exported
    parity = result.parity
    assert isinstance(parity, DetectorParity)
    assert parity.num_images == len(SIZES) + 3  # two halves, and one image in which nothing is found
    assert parity.num_same == parity.num_objects > 10
    assert "same class, box and score" in parity.text()
    again = load(result.path)
    assert again.header == model.header
    for file in sorted(photos.iterdir()):
        ours, theirs = (objects_in(each, file, 0.3) for each in (model, again))
        assert len(ours) == len(theirs)
        torch.testing.assert_close(theirs.scores, ours.scores, atol=1e-4, rtol=0)


def test_an_image_without_objects_has_empty_results(exported: tuple[Model, ExportResult]) -> None:
    engine = load(exported[1].path).engine
    assert isinstance(engine, OnnxRuntimeEngine)
    found = engine.detect(smooth_image(30, 40), score_threshold=1.0)
    shapes = {name: tuple(values.shape) for name, values in found.items()}
    assert shapes == {"boxes": (0, 4), "labels": (0,), "scores": (0,), "masks": (0, 1, 30, 40)}


def test_the_script_of_the_documentation_reads_a_detector(
    exported: tuple[Model, ExportResult], photos: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    script = PAGE.read_text().partition("### Detectors")[2].partition("```python\n")[2].partition("```")[0]
    assert "import convatlas" not in script
    model, result = exported
    image = photos / "0.png"
    monkeypatch.setattr(sys, "argv", ["detect_onnx.py", str(result.path), str(image)])
    exec(compile(script, str(PAGE), "exec"), {})
    lines = re.findall(r"(\d\.\d\d)  (class \d)  box", capsys.readouterr().out)
    objects = objects_in(model, image, 0.5)
    assert lines == [
        (f"{score:.2f}", model.classes[label])
        for score, label in zip(objects.scores.tolist(), objects.labels.tolist(), strict=True)
    ]
    assert lines


def test_other_formats_and_int8_are_refused_before_a_file_is_written(tmp_path: Path, convatlas: Command) -> None:
    model = random_model(small("detect"))
    assert model.network is not None
    file = tmp_path / "x.safetensors"
    write_model_file(file, model.network, model.header)
    for arguments in (["openvino"], ["torch-export"], ["onnx", "--int8", "digits"]):
        outcome = convatlas("export", file, "--to", *arguments)
        check_refused(outcome, "a detector can be exported to onnx in float32 only")
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]


class Custom(torch.nn.Module):
    """Computes with an operator that has no form in ONNX."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.special.bessel_j1(x)


def test_a_body_that_onnx_cannot_express_is_refused(tmp_path: Path, photos: Path) -> None:
    model = random_model(small("detect"))
    model.module.stem.append(Custom())
    with pytest.raises(EngineError, match=r"^random: cannot be exported to ONNX \(.*\)$"):
        export(model, "onnx", tmp_path / "x.onnx", check=photos)
    assert not list(tmp_path.iterdir())


def test_an_export_with_other_objects_is_not_written(exported: tuple[Model, ExportResult], photos: Path) -> None:
    engine = OnnxRuntimeEngine(exported[1].path.read_bytes())
    other = random_model(replace(small("segment"), resolution=80))
    images = [read_image(file, 3) for file in sorted(photos.iterdir())]
    with pytest.raises(EngineError, match=r"its objects differ: .*; nothing was written"):
        compare_detectors(other, engine, images)


def test_a_file_with_other_results_is_refused(exported: tuple[Model, ExportResult], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(exported[1].path)
    graph.graph.output[0].name, graph.graph.output[2].name = "scores", "boxes"
    from convatlas.engines.onnx_file import add_checksum

    add_checksum(graph)
    path = tmp_path / "swapped.onnx"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(ModelFileError, match="the inputs and outputs must be"):
        load(path)


@pytest.mark.slow
@pytest.mark.parametrize("body", ["", "mobilenet_v3_small"])
@pytest.mark.parametrize("kind", TINY_SPECS)
def test_every_kind_of_detector_is_exported(kind: str, body: str, photos: Path, tmp_path: Path) -> None:
    spec = replace(TINY_SPECS[kind], body=CATALOG[body].spec) if body else TINY_SPECS[kind]
    spec = replace(spec, boxes=replace(spec.boxes, detections=100))
    result = export(random_model(spec), "onnx", tmp_path / "x.onnx", check=photos)
    assert isinstance(result.parity, DetectorParity)
    assert result.parity.num_same >= 0.99 * result.parity.num_objects
    plain = json.loads(json.dumps(result.to_plain()))
    assert plain["parity"]["num_same"] == result.parity.num_same
    assert load(result.path).header.spec == spec


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"the images are not there ({PHOTOS})")
@pytest.mark.parametrize("name", [name for name, row in CATALOG.items() if row.spec.predicts != "classes"])
def test_every_detector_of_the_catalog_is_exported(name: str, tmp_path: Path) -> None:
    spec = CATALOG[name].spec
    assert isinstance(spec, FasterRCNN)
    files = sorted(PHOTOS.glob("*.jpg"))[:2]
    folder = tmp_path / "photos"
    folder.mkdir()
    for file in files:
        (folder / file.name).symlink_to(file.resolve())
    result = export(random_model(spec), "onnx", tmp_path / "x.onnx", check=folder)
    assert load(result.path).header.spec == spec
