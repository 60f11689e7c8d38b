"""Parity: an image gets the same prediction from evaluate, predict, every engine, HTTP, exports and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_engines import IMAGES, ONE_OF_A_FAMILY, compute_float64, small_model
from test_serve import ask, running
from torch import Tensor

from convatlas.data.decode.pixels import read_image
from convatlas.engines.evaluation import eager_forward
from convatlas.engines.select import installed_engines
from convatlas.inference.export import export
from convatlas.inference.load import load
from convatlas.models.catalog import CATALOG
from convatlas.tasks.task import Prediction
from convatlas.weights import modelfile

MAX_DIFFERENCE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with smooth noise of different sizes as images of three classes."""
    place = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for i in range(5):
        (place / "abcdefg"[i % 3]).mkdir(exist_ok=True)
        small = random.integers(0, 256, (6 + i, 7, 3), dtype=np.uint8)
        size = (90 + 31 * i, 120)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(place / "abcdefg"[i % 3] / f"{i}.png")
    return place


def check_equal(found: list[dict[str, float]], expected: Tensor, classes: tuple[str, ...], tolerance: float) -> None:
    rows = torch.tensor([[row[name] for name in classes] for row in found])
    torch.testing.assert_close(rows, expected, atol=tolerance, rtol=0)
    top = expected.topk(2).values
    clear = top[:, 0] - top[:, 1] > 2 * tolerance
    assert torch.equal(rows.argmax(1)[clear], expected.argmax(1)[clear])


def probabilities_of(predictions: list[Prediction]) -> list[dict[str, float]]:
    assert not [p.error for p in predictions if p.error]
    return [p.to_plain()["probabilities"] for p in predictions]


def check_parity(name: str, folder: Path, tmp_path: Path, *, everything: bool) -> None:
    network, header = small_model(name)
    modelfile.write_model_file(tmp_path / "x.safetensors", network, header)
    model = load(tmp_path / "x.safetensors")
    files = sorted(folder.rglob("*.png"))
    steps = header.preprocessing
    pixels = torch.cat([steps.tta_views(read_image(file, steps.channels), "none") for file in files])
    expected, exact = (
        header.task.decode(outputs, header.calibration)
        for outputs in (eager_forward(network, steps)(pixels), compute_float64(network, header, pixels))
    )
    # deep networks in float32 differ more than that from the exact values
    tolerance = max(MAX_DIFFERENCE, 20 * float((exact - expected).abs().max()))

    def check(found: list[dict[str, float]]) -> None:
        check_equal(found, expected, header.classes, tolerance)

    check(probabilities_of([model.predict(file)[0] for file in files]))
    check(probabilities_of(model.predict(files, batch=3)))
    engines = [each for each in installed_engines() if each != "torch"]
    for engine in engines if name != "nin_imagenet" else ["onnxruntime"]:
        check(probabilities_of(model.using(engine, batch=2).predict(files)))
    exported = export(model, "onnx", tmp_path / "x.onnx", check=folder)
    check(probabilities_of(load(exported.path).predict(files)))
    if not everything:
        return
    with running(model) as port:
        responses = [ask(port, "/predict?top=9", file.read_bytes())[1]["predictions"][0] for file in files]
    check([response["probabilities"] for response in responses])
    process = subprocess.run(
        [sys.executable, "-m", "convatlas", "predict", tmp_path / "x.safetensors", folder, "--json", "--top", "9"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = {line["source"]: line for line in map(json.loads, process.stdout.splitlines())}
    check([lines[str(file)]["probabilities"] for file in files])


FAST = ("lenet5", "mobilenet_v2")


@pytest.mark.parametrize("name", FAST)
def test_predictions_are_equal_everywhere(name: str, folder: Path, tmp_path: Path) -> None:
    check_parity(name, folder, tmp_path, everything=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in IMAGES if name not in FAST])
def test_predictions_are_equal_for_the_rest_of_the_catalog(name: str, folder: Path, tmp_path: Path) -> None:
    check_parity(name, folder, tmp_path, everything=name in ONE_OF_A_FAMILY)


def test_labels_of_predictions_are_classes(folder: Path, tmp_path: Path) -> None:
    network, header = small_model("lenet5_modern")
    modelfile.write_model_file(tmp_path / "x.safetensors", network, header)
    model = load(tmp_path / "x.safetensors")
    row = CATALOG["lenet5_modern"]
    assert row.preprocessing.channels == header.preprocessing.channels
    for part in ("a", "b"):
        labels = [p.to_plain()["label"] for p in model.predict(sorted((folder / part).iterdir()))]
        assert set(labels) <= set(header.classes)
