"""One image gets one answer: in training, evaluate, predict, on every engine, over HTTP, exported, elsewhere."""

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

from convatlas.data.dataset import Images
from convatlas.engines.select import ENGINES, installed
from convatlas.inference.export import export
from convatlas.inference.model import load
from convatlas.inference.predict import Prediction
from convatlas.models.catalog import CATALOG
from convatlas.tasks.classification.evaluate import evaluate, plainly
from convatlas.tasks.classification.losses import CRITERIA
from convatlas.weights import modelfile

CLOSE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of images, more or less: smooth noise of different sizes."""
    place = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for i in range(5):
        (place / "abcdefg"[i % 3]).mkdir(exist_ok=True)
        small = random.integers(0, 256, (6 + i, 7, 3), dtype=np.uint8)
        size = (90 + 31 * i, 120)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(place / "abcdefg"[i % 3] / f"{i}.png")
    return place


def agree(left: list[dict[str, float]], right: Tensor, classes: tuple[str, ...], close: float = CLOSE) -> None:
    found = torch.tensor([[row[name] for name in classes] for row in left])
    torch.testing.assert_close(found, right, atol=close, rtol=0)
    top = right.topk(2).values
    clear = top[:, 0] - top[:, 1] > 2 * close
    assert torch.equal(found.argmax(1)[clear], right.argmax(1)[clear])


def told(predictions: list[Prediction]) -> list[dict[str, float]]:
    assert not [p.error for p in predictions if p.error]
    return [p.probabilities for p in predictions]


def check(name: str, folder: Path, tmp_path: Path, *, everything: bool) -> None:
    network, header = sealed(name)
    modelfile.write_model_file(tmp_path / "x.safetensors", network, header)
    model = load(tmp_path / "x.safetensors")
    files = sorted(folder.rglob("*.png"))
    steps, criterion = header.preprocessing, CRITERIA[header.criterion]
    pixels = torch.cat([steps.tta_views(_read(file, steps.channels), "none") for file in files])
    images = Images(pixels, torch.zeros(len(files), dtype=torch.long), list(map(str, files)))
    classes = header.classes
    trained = evaluate(plainly(network, steps), images, criterion, temperature=header.temperature).probabilities
    exact = criterion.probabilities(exactly(network, header, pixels) / header.temperature)
    close = max(CLOSE, 20 * float((exact - trained).abs().max()))  # of deep networks, float32 itself is further away
    agree(told([model.predict(file)[0] for file in files]), trained, classes, close)
    agree(told(model.predict(files, batch=3)), trained, classes, close)
    engines = [each for each in ENGINES if each not in ("torch", "compile") and installed(each)]
    for engine in engines if name != "nin_imagenet" else ["onnxruntime"]:
        agree(told(model.using(engine, batch=2).predict(files)), trained, classes, close)
    made = export(model, "onnx", tmp_path / "x.onnx", check=folder)
    agree(told(load(made.path).predict(files)), trained, classes, close)
    if not everything:
        return
    with running(model) as port:
        answers = [ask(port, "/predict?top=9", file.read_bytes())[1]["predictions"][0] for file in files]
    agree([answer["probabilities"] for answer in answers], trained, classes, close)
    fresh = subprocess.run(
        [sys.executable, "-m", "convatlas", "predict", tmp_path / "x.safetensors", folder, "--json"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    lines = {line["source"]: line for line in map(json.loads, fresh.stdout.splitlines())}
    agree([lines[str(file)]["probabilities"] for file in files], trained, classes, close)


def _read(file: Path, channels: int) -> Tensor:
    from convatlas.data.decode.pixels import read_image

    return read_image(file, channels)


@pytest.mark.parametrize("name", ["lenet5", "mobilenet_v2", "capsnet"])
def test_one_image_gets_one_answer_everywhere(name: str, folder: Path, tmp_path: Path) -> None:
    check(name, folder, tmp_path, everything=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in IMAGES if name not in ("lenet5", "mobilenet_v2", "capsnet")])
def test_one_image_gets_one_answer_for_all_of_the_catalog(name: str, folder: Path, tmp_path: Path) -> None:
    check(name, folder, tmp_path, everything=name in ONE_OF_A_FAMILY)


def test_evaluate_on_a_folder_says_the_same_as_predict(folder: Path, tmp_path: Path) -> None:
    network, header = sealed("lenet5_modern")
    modelfile.write_model_file(tmp_path / "x.safetensors", network, header)
    model = load(tmp_path / "x.safetensors")
    row = CATALOG["lenet5_modern"]
    assert row.preprocessing.channels == header.preprocessing.channels
    for part in ("a", "b"):
        labels = [p.label for p in model.predict(sorted((folder / part).iterdir()))]
        assert set(labels) <= set(header.classes)
