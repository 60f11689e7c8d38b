"""Export: files are written only if predictions are equal, are read by the same commands, and keep accuracy in int8."""

from __future__ import annotations

import json
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import convatlas as ca
from commands import Command, check_refused
from convatlas.engines import onnx_file, openvino_files
from convatlas.engines.deploy import describe_header
from convatlas.engines.onnxruntime import OnnxRuntimeEngine
from convatlas.errors import ConvatlasError, DataError, EngineError, ModelFileError
from convatlas.inference import export as exporting
from convatlas.inference.accuracy_change import AccuracyChange, AccuracyCheck
from convatlas.inference.export import export, path_beside
from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.inference.size_and_speed import SizeAndSpeed
from convatlas.tasks.known import MultilabelClassification
from convatlas.train.fit import fit
from convatlas.train.recipe import RECIPES
from convatlas.train.run import Run
from convatlas.train.settings import ExecutionOptions

pytest.importorskip("onnxruntime")

FORMATS = {"onnx": "x.onnx", "openvino": "x.xml", "torch-export": "x.pt2"}


@pytest.fixture(scope="module")
def model(trained: Run) -> Model:
    return load(trained.model_file)


@pytest.fixture(scope="module")
def exported(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of every format."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("exported")
    for to, name in FORMATS.items():
        result = export(model, to, folder / name)
        assert (result.parity.num_images, result.parity.num_same) == (64, 64)
        assert result.parity.max_difference < 1e-5
    return {to: folder / name for to, name in FORMATS.items()}


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_an_exported_file_has_the_same_predictions(exported: dict[str, Path], model: Model, to: str) -> None:
    again = load(exported[to])
    assert again.header == model.header
    whole, part = (each.evaluate("digits", split="test").result for each in (model, again))
    assert torch.equal(part.predicted, whole.predicted)
    torch.testing.assert_close(part.probabilities, whole.probabilities, atol=1e-4, rtol=0)
    with pytest.raises(EngineError, match="an exported file contains no network"):
        again.using("torch")


def test_a_file_of_torch_export_is_refused_by_load(exported: dict[str, Path]) -> None:
    with pytest.raises(ModelFileError, match="could run code"):
        load(exported["torch-export"])
    program = torch.export.load(exported["torch-export"]).module()
    probabilities, _ = program(torch.zeros(3, 1, 32, 32, dtype=torch.uint8))
    assert probabilities.sum(1).tolist() == pytest.approx([1, 1, 1])


PAGE = Path(__file__).parents[2] / "docs" / "inference.md"


@pytest.mark.parametrize("size", [(37, 50), (83, 30), (20, 20), (33, 47)])
def test_the_script_of_the_documentation_works_without_this_library(
    exported: dict[str, Path], size: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It knows only the file: preprocessing, roundings and classes are read from the metadata."""
    script, _ = [block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "onnx" in block]
    assert "import convatlas" not in script
    rule = describe_header(load(exported["onnx"]).header)["input"]
    assert all(text in rule for text in ("EXIF", "rounded down", "halves rounded to the even number", "antialiased"))
    image = Image.effect_noise(size, 80).convert("RGB")
    image.getexif()[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / "x.png", exif=image.getexif())
    monkeypatch.setattr(sys, "argv", ["predict_onnx.py", str(exported["onnx"]), str(tmp_path / "x.png")])
    exec(compile(script, str(PAGE), "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (prediction,) = load(exported["onnx"]).predict(tmp_path / "x.png", top=3)
    likely = prediction.to_plain()["probabilities"]
    assert [name for _, name in lines] == list(likely)
    assert [float(share.rstrip("%")) / 100 for share, _ in lines] == pytest.approx(list(likely.values()), abs=0.005)


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_exported_files_have_predictions_of_the_same_form(
    exported: dict[str, Path], to: str, tmp_path: Path, convatlas: Command
) -> None:
    Image.effect_noise((40, 30), 80).save(tmp_path / "x.png")
    files = [tmp_path / "x.png", tmp_path / "missing.png"]
    printed = convatlas("predict", exported[to], *files, "--json", "--top", 2, "--threshold", 0.9).out.splitlines()
    plain = load(exported[to]).predict(files, top=2, threshold=0.9).to_plain()
    assert [json.loads(line) for line in printed] == plain
    assert list(plain[0]) == ["source", "label", "labels", "probability", "probabilities", "error"]


def test_an_export_with_other_predictions_is_not_written(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class RoughEngine(OnnxRuntimeEngine):
        def decoded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            probabilities, outputs = super().decoded(pixels)
            return probabilities + 0.001, outputs

    monkeypatch.setattr(exporting, "OnnxRuntimeEngine", RoughEngine)
    with pytest.raises(EngineError, match=r"its predictions differ: .* nothing was written"):
        export(model, "onnx", tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_equally_probable_classes_may_be_swapped(model: Model) -> None:
    def swapped(pixels: Tensor) -> tuple[Tensor, Tensor]:
        outputs = model.engine.outputs(pixels)
        p = (outputs / model.header.calibration.temperature).softmax(1)
        return p + 1e-5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)), outputs

    pixels = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    assert exporting.compare(model, swapped, pixels, "x").num_same == 2


@pytest.mark.parametrize(
    ("to", "name", "options", "message"),
    [
        ("caffe", "x.onnx", {}, "the format must be one of onnx"),
        ("onnx", "x.bin", {}, "must end in .onnx"),
        ("onnx", "nowhere/x.onnx", {}, "nowhere does not exist"),
        ("onnx", "x.onnx", {"check": "nowhere"}, "no such folder"),
        ("torch-export", "x.pt2", {"int8": "digits"}, "int8 needs the format onnx or openvino"),
    ],
)
def test_impossible_exports_are_refused_before_anything_is_written(
    model: Model, tmp_path: Path, to: str, name: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConvatlasError, match=message):
        export(model, to, tmp_path / name, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_an_export_without_images_is_refused(colored: Run, images: Path, tmp_path: Path) -> None:
    """The model file knows only the name of its training folder, which does not lead to the folder."""
    with pytest.raises(DataError, match="--check"):
        export(load(colored.model_file), "onnx", tmp_path / "x.onnx")
    for check in (images, images / "val", next((images / "val/ant").iterdir())):
        parity = export(load(colored.model_file), "onnx", tmp_path / "x.onnx", check=check).parity
        assert parity.num_same == parity.num_images > 0


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_full_disk_leaves_nothing(model: Model, tmp_path: Path, full_disk: Any, to: str) -> None:
    pytest.importorskip("openvino")
    with full_disk(2**12), pytest.raises(ConvatlasError):
        export(model, to, tmp_path / FORMATS[to])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(24))
def test_damaged_openvino_files_are_refused(exported: dict[str, Path], tmp_path: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for suffix in (".xml", ".bin"):
        data = bytearray(exported["openvino"].with_suffix(suffix).read_bytes())
        if (seed % 2 == 0) == (suffix == ".xml"):
            place = int(torch.randint(0, len(data), (1,), generator=generator))
            data[place] ^= 1 + seed
            data = data[: len(data) // 2] if seed % 8 >= 6 else data
        (tmp_path / f"x{suffix}").write_bytes(data)
    with pytest.raises(ModelFileError, match=r"x\.xml"):
        openvino_files.read_model(tmp_path / "x.xml")


def test_a_missing_bin_file_is_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_bytes(exported["openvino"].read_bytes())
    with pytest.raises(ModelFileError, match=r"x\.bin: no such file"):
        load(tmp_path / "x.xml")


# --- int8


def change(loss: float) -> AccuracyChange:
    """Return a certain loss of an accuracy of 0.9."""
    return AccuracyChange(0.9, 0.9 - loss, 100, round(100 * loss), loss, loss)


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_int8_keeps_the_accuracy(model: Model, tmp_path: Path, to: str) -> None:
    pytest.importorskip("openvino")
    result = export(model, to, tmp_path / FORMATS[to], int8="digits", max_accuracy_drop=0.01)
    assert result.accuracy is not None
    assert not result.accuracy.is_loss_above(0.01)
    noise = [layer.signal_to_noise_db for layer in result.layers]
    assert noise == sorted(noise)
    assert len(noise) == 5
    assert load(result.path).evaluate("digits", split="test").result.score == pytest.approx(result.accuracy.int8)
    assert result.path.with_suffix(".bin" if to == "openvino" else ".onnx").stat().st_size < 110_000 < 61_706 * 4
    plain = json.loads(json.dumps(result.to_plain()))
    change = plain["accuracy_change"]
    assert change["float32"] - change["int8"] == change["drop"]
    assert plain["layer_noise"][0]["signal_to_noise_db"] == noise[0]
    assert [Path(file["path"]) for file in plain["files"]] == list(result.files)


def test_the_worst_layers_stay_in_float32_until_the_accuracy_suffices(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = iter([change(0.4), change(0.1), change(0.0)])  # with 0, 1 and 2 layers in float32
    monkeypatch.setattr(AccuracyCheck, "compare", lambda *_: next(changes))
    result = export(model, "onnx", tmp_path / "x.onnx", int8="digits", max_accuracy_drop=0.01)
    assert [layer.in_float32 for layer in result.layers] == [True, True, False, False, False]
    assert result.accuracy == change(0.0)
    _, graph = onnx_file.read_graph(tmp_path / "x.onnx")
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert result.layers[0].name in metadata["int8"]


def test_quantization_does_not_change_logging(model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export(model, "onnx", tmp_path / "x.onnx", int8="digits", max_accuracy_drop=0.05)
    assert logging.getLogger().manager.disable == logging.NOTSET
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_int8_with_too_little_accuracy_is_not_written(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AccuracyCheck, "compare", lambda *_: change(0.4))
    message = r"at most 0.5 pp, got 90.00% in float32, 50.00% in int8, a change of -40.00 pp .* nothing was written"
    with pytest.raises(EngineError, match=message) as error:
        export(model, "onnx", tmp_path / "x.onnx", int8="digits")
    assert "with 2 of 5 layers in float32" in str(error.value)  # at most half of them
    assert not list(tmp_path.iterdir())


def test_the_limit_and_the_gain_are_lines() -> None:
    allowed = AccuracyChange(0.93, 0.92, 153, 3, -0.002, 0.041)
    assert allowed.limit_text(0.005) == (
        "limit: a loss of 0.5 pp (0.8 of 153 images), exceeded if the whole interval is beyond it: not exceeded"
    )
    assert replace(allowed, low=0.02, metric="mean average precision").limit_text(0.01) == (
        "limit: a loss of 1 pp, exceeded if the whole interval is beyond it: exceeded"
    )
    assert SizeAndSpeed("onnxruntime", 8.5, 2.46, 4.5, 1.8).text() == (
        "float32 8.5 MiB, 4.50 ms; int8 2.5 MiB, 1.80 ms for one image on onnxruntime (2.5x)"
    )


def test_multilabel_models_are_exported(tmp_path: Path) -> None:
    """Probabilities do not sum to one, and the thresholds are in the header."""
    import numpy as np

    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (60, 28, 28), dtype=np.uint8), random.integers(0, 2, (60, 3))
    np.savez(tmp_path / "tags.npz", x=pixels, y=labels.astype(np.uint8))
    recipe = RECIPES["default"].replaced({"epochs": 1})
    run = fit(tmp_path / "tags.npz", "lenet5_modern", recipe=recipe, out=tmp_path / "run",
              execution=ExecutionOptions(device="cpu", threads=1))  # fmt: skip
    model = ca.load(run.model_file)
    assert isinstance(model.header.task, MultilabelClassification)
    result = export(model, "onnx", tmp_path / "x.onnx", check=tmp_path / "tags.npz")
    assert result.parity.max_difference < 1e-5
    assert ca.load(result.path).predict(pixels[0])[0].labels == model.predict(pixels[0])[0].labels


# --- the command


def test_the_command_writes_and_reads(
    convatlas: Command,
    trained: Run,
    tmp_path: Path,
    images: Path,
) -> None:
    file = tmp_path / "own.safetensors"
    file.write_bytes(trained.model_file.read_bytes())
    outcome = convatlas("export", file, "--to", "onnx")
    assert outcome.code == 0
    assert "same prediction for 64 of 64 images" in outcome.out
    assert f"{tmp_path / 'own.onnx'}: 0.2 MiB" in outcome.out
    plain = json.loads(
        convatlas("export", file, "--to", "onnx", "--int8", "digits", "--max-accuracy-drop", "5pp", "--json").out
    )
    assert plain["path"] == str(tmp_path / "own-int8.onnx")
    gain = plain["size_and_speed"]
    assert gain["int8_size_mib"] < gain["float32_size_mib"]
    assert min(gain["int8_latency_ms"], gain["float32_latency_ms"]) > 0
    left, right = (json.loads(convatlas("evaluate", f, "digits", "--json").out) for f in (file, tmp_path / "own.onnx"))
    assert left["num_errors"] == right["num_errors"]
    assert right["engine"].startswith("onnxruntime")
    assert convatlas("predict", tmp_path / "own.onnx", images / "val/ant").code == 0
    refused = convatlas("predict", tmp_path / "own.onnx", images / "val/ant", "--engine", "torch")
    check_refused(refused, "exported for onnxruntime")
    check_refused(convatlas("export", file, "--to", "caffe"), "caffe")
    check_refused(convatlas("export", file, "--to", "onnx", "--max-unreadable", "2"), "--max-unreadable")
    check_refused(convatlas("export", tmp_path / "own.onnx", "--to", "openvino"), "contains no network")


def test_default_path_of_an_export(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    assert path_beside(tmp_path / "a.safetensors", "openvino", int8=True) == tmp_path / "a-int8.xml"
    assert path_beside("resnet18@torchvision:V1", "onnx", int8=False) == Path("resnet18-torchvision-V1.onnx")
