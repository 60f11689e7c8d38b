"""Export: written only if it answers the same, read again by the same command, 8-bit within what may be lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import convatlas as ca
from commands import Command, check_refused
from convatlas.engines import onnx_graph, openvino_files
from convatlas.errors import ConvatlasError, DataError, EngineError, ModelFileError
from convatlas.inference import export as exporting
from convatlas.inference import quantize
from convatlas.inference.export import Parity, export
from convatlas.inference.model import Model, load
from convatlas.tasks.classification.losses import CRITERIA
from convatlas.train.fit import fit
from convatlas.train.recipe import RECIPES
from convatlas.train.run import Run
from convatlas.train.settings import Settings

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
        made = export(model, to, folder / name)
        assert (made.parity.images, made.parity.same) == (64, 64)
        assert made.parity.difference < 1e-5
    return {to: folder / name for to, name in FORMATS.items()}


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_an_exported_file_is_read_again_and_gives_the_same(exported: dict[str, Path], model: Model, to: str) -> None:
    again = load(exported[to])
    assert again.header == model.header
    whole, part = (each.evaluate("digits", split="test").result for each in (model, again))
    assert torch.equal(part.predicted, whole.predicted)
    torch.testing.assert_close(part.probabilities, whole.probabilities, atol=1e-4, rtol=0)
    with pytest.raises(EngineError, match="an exported file holds no network"):
        again.using("torch")


def test_a_file_of_torch_export_is_not_opened_here(exported: dict[str, Path]) -> None:
    with pytest.raises(ModelFileError, match="could run code"):
        load(exported["torch-export"])
    program = torch.export.load(exported["torch-export"]).module()
    probabilities, _ = program(torch.zeros(3, 1, 32, 32, dtype=torch.uint8))
    assert probabilities.sum(1).tolist() == pytest.approx([1, 1, 1])


def test_a_graph_works_without_this_library(exported: dict[str, Path], model: Model) -> None:
    """What somebody does who has ONNX Runtime alone."""
    script = (
        "import sys, json, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1])\n"
        "said = session.get_modelmeta().custom_metadata_map\n"
        "pixels = numpy.full((2, 1, 32, 32), 7, numpy.uint8)\n"
        "p = session.run(['probabilities'], {'pixels': pixels})[0]\n"
        "assert 'convatlas' not in sys.modules and 'torch' not in sys.modules\n"
        "print(json.dumps([json.loads(said['classes']), p[0].tolist()]))\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, exported["onnx"]], capture_output=True, text=True, check=True, timeout=120
    )
    classes, found = json.loads(told.stdout)
    assert classes == list(model.classes)
    outputs = model.engine.outputs(torch.full((1, 1, 32, 32), 7, dtype=torch.uint8))
    assert found == pytest.approx((outputs / model.header.temperature).softmax(1)[0].tolist(), abs=1e-5)


def test_what_does_not_answer_like_the_network_is_not_written(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = exporting._of_onnx

    def rough(data: bytes) -> Any:
        run = exact(data)
        return lambda pixels: (run(pixels)[0] + 0.001, run(pixels)[1])

    monkeypatch.setattr(exporting, "_of_onnx", rough)
    with pytest.raises(EngineError, match=r"does not answer like the network.* nothing was written"):
        export(model, "onnx", tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_classes_that_are_as_good_as_equal_may_change_places(model: Model) -> None:
    def swapped(pixels: Tensor) -> tuple[Tensor, Tensor]:
        outputs = model.engine.outputs(pixels)
        p = (outputs / model.header.temperature).softmax(1)
        return p + 1e-5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)), outputs

    pixels = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    assert exporting.compared(model, swapped, pixels, "x").same == 2


@pytest.mark.parametrize(
    ("to", "name", "how", "told"),
    [
        ("caffe", "x.onnx", {}, "choose one of onnx"),
        ("onnx", "x.bin", {}, "ends in .onnx"),
        ("onnx", "nowhere/x.onnx", {}, "there is no folder"),
        ("onnx", "x.onnx", {"check": "nowhere"}, "no such folder"),
        ("torch-export", "x.pt2", {"int8": "digits"}, "torch-export is float32"),
    ],
)
def test_impossible_exports_are_refused_before_anything_is_written(
    model: Model, tmp_path: Path, to: str, name: str, how: dict[str, str], told: str
) -> None:
    with pytest.raises(ConvatlasError, match=told):
        export(model, to, tmp_path / name, **how)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_without_images_an_export_asks_for_them(colored: Run, images: Path, tmp_path: Path) -> None:
    """The folder of the training is known by its name alone, which means nothing elsewhere."""
    with pytest.raises(DataError, match="--check"):
        export(load(colored.model_file), "onnx", tmp_path / "x.onnx")
    for check in (images, images / "val", next((images / "val/ant").iterdir())):
        made = export(load(colored.model_file), "onnx", tmp_path / "x.onnx", check=check)
        assert made.parity.same == made.parity.images > 0


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_full_disk_leaves_nothing(model: Model, tmp_path: Path, full_disk: Any, to: str) -> None:
    pytest.importorskip("openvino")
    with full_disk(2**12), pytest.raises(ConvatlasError):
        export(model, to, tmp_path / FORMATS[to])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(24))
def test_a_damaged_pair_of_openvino_is_refused(exported: dict[str, Path], tmp_path: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for suffix in (".xml", ".bin"):
        data = bytearray(exported["openvino"].with_suffix(suffix).read_bytes())
        if (seed % 2 == 0) == (suffix == ".xml"):
            place = int(torch.randint(0, len(data), (1,), generator=generator))
            data[place] ^= 1 + seed
            data = data[: len(data) // 2] if seed % 8 >= 6 else data
        (tmp_path / f"x{suffix}").write_bytes(data)
    with pytest.raises(ModelFileError, match=r"x\.xml"):
        openvino_files.opened(tmp_path / "x.xml")


def test_half_a_pair_is_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_bytes(exported["openvino"].read_bytes())
    with pytest.raises(ModelFileError, match=r"x\.bin: no such file"):
        load(tmp_path / "x.xml")


# --- 8 bits


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_eight_bits_keep_the_accuracy_that_was_asked_for(model: Model, tmp_path: Path, to: str) -> None:
    pytest.importorskip("openvino")
    made = export(model, to, tmp_path / FORMATS[to], int8="digits", max_accuracy_drop=0.01)
    assert made.parity.accuracy is not None
    before, after = made.parity.accuracy
    assert after >= before - 0.01
    assert [layer.decibels for layer in made.layers] == sorted(layer.decibels for layer in made.layers)
    assert len(made.layers) == 5
    assert load(made.path).evaluate("digits", split="test").result.accuracy == pytest.approx(after)
    assert made.path.with_suffix(".bin" if to == "openvino" else ".onnx").stat().st_size < 110_000 < 61_706 * 4


def test_the_worst_layers_stay_in_float32_until_enough_is_kept(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.5, 0.8, 0.9])  # of the network, then with 0, 1 and 2 layers in float32
    monkeypatch.setattr(quantize.Gate, "score", lambda *_: next(scores))
    made = export(model, "onnx", tmp_path / "x.onnx", int8="digits", max_accuracy_drop=0.01)
    assert [layer.kept for layer in made.layers] == [True, True, False, False, False]
    assert made.parity.accuracy == (0.9, 0.9)
    _, graph = onnx_graph.opened(tmp_path / "x.onnx")
    said = {entry.key: entry.value for entry in graph.metadata_props}
    assert made.layers[0].name in said["int8"]


def test_what_loses_too_much_is_not_written(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.9] + [0.5] * 9)
    monkeypatch.setattr(quantize.Gate, "score", lambda *_: next(scores))
    with pytest.raises(EngineError, match=r"int8: 90.00% becomes 50.00% .* nothing was written"):
        export(model, "onnx", tmp_path / "x.onnx", int8="digits")
    assert not list(tmp_path.iterdir())


def test_images_of_several_classes_are_exported(tmp_path: Path) -> None:
    """Their probabilities are of each class by itself, and their thresholds are in the header."""
    import numpy as np

    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (60, 28, 28), dtype=np.uint8), random.integers(0, 2, (60, 3))
    np.savez(tmp_path / "tags.npz", x=pixels, y=labels.astype(np.uint8))
    recipe = RECIPES["default"].replaced({"epochs": 1})
    run = fit(tmp_path / "tags.npz", "lenet5_modern", recipe=recipe, out=tmp_path / "run",
              settings=Settings(device="cpu", threads=1))  # fmt: skip
    model = ca.load(run.model_file)
    assert CRITERIA[model.header.criterion].several
    made = export(model, "onnx", tmp_path / "x.onnx", check=tmp_path / "tags.npz")
    assert made.parity.difference < 1e-5
    assert ca.load(made.path).predict(pixels[0])[0].labels == model.predict(pixels[0])[0].labels


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
    assert "64 of 64 images with the same answer" in outcome.out
    assert f"{tmp_path / 'own.onnx'}: 0.2 MiB" in outcome.out
    told = json.loads(convatlas("export", file, "--to", "onnx", "--int8", "digits", "--most-lost", 5, "--json").out)
    assert told["path"] == str(tmp_path / "own-int8.onnx")
    left, right = (json.loads(convatlas("evaluate", f, "digits", "--json").out) for f in (file, tmp_path / "own.onnx"))
    assert left["errors"] == right["errors"]
    assert right["engine"].startswith("onnxruntime")
    assert convatlas("predict", tmp_path / "own.onnx", images / "val/ant").code == 0
    refused = convatlas("predict", tmp_path / "own.onnx", images / "val/ant", "--engine", "torch")
    check_refused(refused, "exported for onnxruntime")
    check_refused(convatlas("export", file, "--to", "caffe"), "caffe")
    check_refused(convatlas("export", tmp_path / "own.onnx", "--to", "openvino"), "holds no network")


def test_parity_is_plain_data() -> None:
    assert Parity(3, 3, 0.0).accuracy is None
