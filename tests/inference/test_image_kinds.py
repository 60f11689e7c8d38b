"""What may be given as an image, what is the error of one image alone, and outputs that are not finite."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from commands import Command
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.resampling import resize
from convatlas.engines.deploy import DeployModule
from convatlas.errors import DataError, ModelFileError, printable
from convatlas.inference.contents import EncodedFile
from convatlas.inference.model import Ensemble, Model
from convatlas.tasks.classification.base import ClassPrediction
from convatlas.train.run import Run


def probabilities(model: Model | Ensemble, images: Any, **how: Any) -> list[dict[str, float]]:
    predictions = model.predict(images, **how)
    assert all(isinstance(prediction, ClassPrediction) for prediction in predictions)
    assert not any(prediction.error for prediction in predictions), predictions
    return [dict(prediction.probabilities) for prediction in predictions]  # type: ignore[attr-defined]


def same(predictions: list[dict[str, float]], expected: dict[str, float], count: int = 1) -> bool:
    """Return whether there are `count` predictions equal to the expected one but for rounding."""
    return len(predictions) == count and all(each == pytest.approx(expected, abs=1e-6) for each in predictions)


CONTENTS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes, "bytearray": bytearray, "memoryview": memoryview, "BytesIO": io.BytesIO,
    "read-only memoryview": lambda data: memoryview(data).toreadonly(),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTENTS)
def test_the_bytes_of_a_file_are_one_image(model: Model, file: Path, kind: str) -> None:
    (expected,) = probabilities(model, file)
    make = CONTENTS[kind]
    assert same(probabilities(model, make(file.read_bytes())), expected)
    assert same(probabilities(model, [make(file.read_bytes()), file, make(file.read_bytes())]), expected, 3)
    ensemble = Ensemble((model, dataclasses.replace(model)))
    assert same(probabilities(ensemble, make(file.read_bytes())), expected)


def test_open_files_and_other_paths_are_one_image(
    model: Model, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,) = probabilities(model, file)
    with file.open("rb") as opened:
        (prediction,) = model.predict(opened)
        assert (prediction.source, prediction.probability) == (str(file), max(expected.values()))
    (entry,) = [entry for entry in os.scandir(file.parent) if entry.name == file.name]
    assert same(probabilities(model, entry), expected)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.png").write_bytes(file.read_bytes())
    assert same(probabilities(model, ["~/own.png"]), expected)


TYPES: dict[str, Callable[[Any], Any]] = {
    **{kind: lambda x, kind=kind: x.astype(kind) for kind in ("i2", "i4", "i8", "u4", "u8", ">i8", "f2", "f4", "f8")},
    "uint16": lambda x: x.astype("u2") * 257,
    "channels first": lambda x: np.moveaxis(x, -1, 0),
    "list": lambda x: x.tolist(),
    "tensor": lambda x: torch.tensor(x).permute(2, 0, 1),
    **{
        str(kind): lambda x, kind=kind: torch.tensor(x).permute(2, 0, 1).to(kind)
        for kind in (torch.int64, torch.int32, torch.bfloat16, torch.float16, torch.float64)
    },
    "a tensor with gradient": lambda x: torch.tensor(x).permute(2, 0, 1).float().requires_grad_(),
    "a negative view": lambda x: torch._neg_view(-torch.tensor(x).permute(2, 0, 1).float()),
    "shares with gradient": lambda x: torch.tensor(x).permute(2, 0, 1).div(255).requires_grad_(),
}


@pytest.mark.parametrize("kind", TYPES)
def test_the_type_does_not_change_the_prediction(model: Model, values: Any, kind: str) -> None:
    expected, got = probabilities(model, [values, TYPES[kind](values)])
    assert got == pytest.approx(expected, abs=1e-6)


def test_four_axes_are_many_images(model: Model, values: Any) -> None:
    (expected,) = probabilities(model, values)
    many = np.stack([values, values])
    for images in (many, np.moveaxis(many, -1, 1), torch.tensor(many).permute(0, 3, 1, 2)):
        assert same(probabilities(model, images), expected, 2)


class Closed(io.BytesIO):
    def read(self, *_: Any) -> bytes:
        raise ValueError("I/O operation on closed file")


WRONG: dict[str, Callable[[], Any]] = {
    "sparse": lambda: torch.eye(9)[None].to_sparse(),
    "meta": lambda: torch.empty(3, 9, 9, device="meta"),
    "complex": lambda: torch.zeros(3, 9, 9, dtype=torch.complex64),
    "quantized": lambda: torch.quantize_per_tensor(torch.rand(3, 9, 9), 0.1, 0, torch.qint8),
    "objects": lambda: np.full((9, 9, 3), None),
    "dates": lambda: np.zeros((9, 9, 3), "M8[s]"),
    "records": lambda: np.zeros((9, 9), "i4,f4"),
    "ragged": lambda: [[1, 2], [3]],
    "nothing": lambda: None,
    "an empty image": lambda: Image.new("RGBA", (0, 0)),
    "a number": lambda: 7,
    "a dictionary": lambda: {"a": 1},
    "a text file": lambda: io.StringIO("text"),
    "a closed file": Closed,
    "an empty file": io.BytesIO,
    "no bytes": lambda: b"",
    "rubbish": lambda: bytearray(b"rubbish"),
    "a name with a zero byte": lambda: "a\0b.png",
    "a long name": lambda: "x" * 5000,
    "dark uint16": lambda: np.full((9, 9, 3), 200, np.uint16),
    "wide integers": lambda: np.full((9, 9, 3), 2000),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrong", WRONG)
def test_one_image_that_fails_spoils_no_other(model: Model, values: Any, wrong: str) -> None:
    (expected,) = probabilities(model, values)
    first, second, third = model.predict([values, WRONG[wrong](), values])
    assert second.error
    assert "\n" not in second.error
    assert first.probability == third.probability == pytest.approx(max(expected.values()), abs=1e-6)


@pytest.mark.parametrize("name", ["a", "a\nb.png", "caf\udce9.png", "\x1b[31mred.png"])
def test_an_error_names_its_image_once(model: Model, name: str) -> None:
    (prediction,) = model.predict([name])
    assert prediction.error == f"{printable(name)}: no such file"
    with pytest.raises(DataError) as refused:
        model.predict(name)
    assert str(refused.value) == prediction.error
    (prediction,) = model.predict([EncodedFile(name, b"nothing")])
    assert prediction.error == f"{printable(name)}: not an image"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_short_memory_is_the_error_of_one_image(
    model: Model, values: Any, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(pixels: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if pixels.shape[-1] == 77:
            raise error
        return resize(pixels, *arguments, **options)

    monkeypatch.setattr("convatlas.core.preprocessing.resize", failing)
    first, second, third = model.predict([values, np.zeros((77, 77, 3), np.uint8), values])
    assert second.error == "image 1: cannot be read: out of memory"
    assert not first.error + third.error


@pytest.mark.parametrize("tta", ["none", "flip", "ten-crop"])
def test_thin_images_are_predicted(model: Model, tmp_path: Path, tta: Any) -> None:
    thin = np.full((1, 60_000, 3), 90, np.uint8)
    Image.fromarray(thin).save(tmp_path / "thin.png")
    square = np.full((40, 40, 3), 90, np.uint8)
    (expected,) = probabilities(model, square, tta=tta)
    assert same(probabilities(model, [thin, thin.swapaxes(0, 1), tmp_path / "thin.png"], tta=tta), expected, 3)


# --- outputs that are not finite


@pytest.fixture(params=[float("nan"), float("inf")])
def broken(model: Model, request: pytest.FixtureRequest) -> Model:
    """A model that computes NaN or infinity for bright images alone."""

    class Broken:
        name = "torch"

        def outputs(self, pixels: torch.Tensor) -> torch.Tensor:
            outputs = model.engine.outputs(pixels).clone()
            outputs[pixels.amax((1, 2, 3)) > 200, 1] = request.param
            return outputs

    return dataclasses.replace(model, engine_override=Broken())


GOOD, BRIGHT = np.full((40, 40, 3), 90, np.uint8), np.full((40, 40, 3), 250, np.uint8)


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_an_output_that_is_not_finite_is_an_error_of_its_image(model: Model, broken: Model, tta: Any) -> None:
    (expected,) = probabilities(model, GOOD, tta=tta)
    for predictor in (broken, Ensemble((broken, broken)), Ensemble((model, broken))):
        first, second, third = predictor.predict([GOOD, BRIGHT, GOOD], tta=tta)
        assert second.error == "image 1: the network computes NaN or infinity for this image"
        assert (second.text, second.probability) == ("", None)
        assert second.to_plain()["error"] == second.error
        assert first.probability == third.probability
        assert first.probability == pytest.approx(max(expected.values()))


def test_the_command_prints_json_and_csv_without_nan(
    convatlas: Command, colored: Run, broken: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convatlas.cli.use.on_engine", lambda *_, **__: broken)
    for name, image in (("a", GOOD), ("b", BRIGHT)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    names = [tmp_path / "a.png", tmp_path / "b.png"]

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    outcome = convatlas("predict", colored.model_file, *names, "--json")
    good, bad = [json.loads(line, parse_constant=refuse) for line in outcome.out.splitlines()]
    assert (outcome.code, list(bad)) == (2, list(good))
    assert (bool(good["label"]), bad["label"], bad["probabilities"]) == (True, None, {})
    rows = list(csv.DictReader(io.StringIO(convatlas("predict", colored.model_file, *names, "--csv").out)))
    assert [bool(row["label"]) for row in rows] == [True, False]
    assert {cell for name, cell in rows[1].items() if name not in ("source", "error")} == {""}
    assert "NaN or infinity" in rows[1]["error"]


def test_evaluation_does_not_count_what_is_not_finite(model: Model, images: Path) -> None:
    network = copy.deepcopy(model.module)
    with torch.no_grad():
        next(reversed(list(network.parameters())))[0] = float("nan")
    damaged = Model(network, dataclasses.replace(model.header, name="damaged"))
    with pytest.raises(ModelFileError, match=r"damaged: .* NaN or infinity for 36 of 36 images"):
        damaged.evaluate(images)


# --- rotation


def test_a_rotated_input_is_part_of_prediction_and_export(model: Model) -> None:
    steps = dataclasses.replace(model.header.preprocessing, rotation=180)
    assert (steps.resize - steps.crop) % 2 == 0  # so that the crop is in the center
    values = np.random.default_rng(0).integers(0, 256, (steps.resize, steps.resize, 3), dtype=np.uint8)
    rotated = Model(model.network, dataclasses.replace(model.header, preprocessing=steps))
    expected = probabilities(model, values[::-1, ::-1].copy())
    assert probabilities(rotated, values)[0] == pytest.approx(expected[0], abs=1e-6)
    pixels = steps.resize_and_crop(torch.tensor(values).permute(2, 0, 1))[None]
    with torch.inference_mode():
        decoded, _ = DeployModule(model.module.eval(), rotated.header)(pixels)
    assert dict(zip(model.classes, decoded[0].tolist(), strict=True)) == pytest.approx(expected[0], abs=1e-6)


def test_a_network_of_floats_refuses_image_files(model: Model, file: Path) -> None:
    steps: Preprocessing = dataclasses.replace(model.header.preprocessing, window=(0.0, 255.0))
    floats = Model(model.network, dataclasses.replace(model.header, preprocessing=steps))
    (prediction,) = floats.predict([file])
    assert prediction.error.endswith(
        "the network was trained on floats from 0 to 255, got uint8; give floats of that scale"
    )
    with pytest.raises(DataError):
        floats.evaluate(file.parents[2])
