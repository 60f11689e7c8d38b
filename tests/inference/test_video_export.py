"""Export, int8, engines and benchmarks of networks for videos: the same probabilities everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convatlas.engines.select import installed_engines
from convatlas.errors import DataError, EngineError
from convatlas.inference import benchmark, check_images, quantize
from convatlas.inference import export as exporting
from convatlas.inference.benchmark import plot_latency, write_csv
from convatlas.inference.check_images import load_check_images
from convatlas.inference.export import export
from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.weights.modelfile import write_model_file
from random_video_model import CLASSES, random_video_model
from video_files import moving_square, write_frames, write_video

pytest.importorskip("av")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

MAX_DIFFERENCE = 1e-5


@pytest.fixture(scope="module")
def model() -> Model:
    return random_video_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three videos of each class, of different sizes, rates and containers."""
    place = tmp_path_factory.mktemp("videos")
    for number in range(9):
        name = place / CLASSES[number % 3] / f"{number}{('.mp4', '.mkv', '.avi')[number // 3]}"
        name.parent.mkdir(exist_ok=True)
        codec = "mjpeg" if name.suffix == ".avi" else "libx264"
        frames = moving_square(12 + number, 32 + 2 * number, 48, seed=number)
        write_video(name, frames, rate=10 + 5 * (number % 2), codec=codec)
    return place


@pytest.fixture(scope="module")
def exported(model: Model, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of every format."""
    place = tmp_path_factory.mktemp("exported")
    paths = {"onnx": place / "x.onnx", "openvino": place / "x.xml", "torch-export": place / "x.pt2"}
    with pytest.MonkeyPatch.context() as patch:
        for to, path in paths.items():
            result = export(model, to, path, check=folder)
            patch.setattr(exporting, "export_graph", lambda *_: onnx.load(paths["onnx"]))  # not a second time
            assert (result.parity.num_images, result.parity.num_same) == (16, 16)
            assert result.parity.max_difference < MAX_DIFFERENCE
            assert result.parity.text().startswith("same prediction for 16 of 16 clips; ")
    return paths


def probabilities(model: Model, files: list[Path], **how: Any) -> Tensor:
    predictions = [each.to_plain()["probabilities"] for each in model.predict(files, **how)]
    return torch.tensor([[row[name] for name in CLASSES] for row in predictions])


def test_a_video_gets_the_same_prediction_everywhere(model: Model, exported: dict[str, Path], folder: Path) -> None:
    files = sorted(folder.rglob("*.*"))
    expected = model.evaluate(folder)
    order = [Path(name) for name in expected.prepared.names]
    assert sorted(order) == files
    models = [model, load(exported["onnx"]), load(exported["openvino"])]
    for each in models:
        assert (probabilities(each, order) - expected.result.probabilities).abs().max() < MAX_DIFFERENCE
        assert (probabilities(each, order, batch=1) - expected.result.probabilities).abs().max() < MAX_DIFFERENCE
        result = each.evaluate(folder).result
        assert (result.probabilities - expected.result.probabilities).abs().max() < MAX_DIFFERENCE
        assert result.clips.n == 3 * len(files)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*installed_engines(), "compile", "auto"])
def test_engines_have_the_same_predictions(model: Model, folder: Path, engine: str) -> None:
    files = sorted(folder.rglob("*.*"))
    found = probabilities(model.using(engine, batch=4), files)
    assert (found - probabilities(model, files)).abs().max() < MAX_DIFFERENCE


def test_a_file_of_torch_export_takes_any_number_of_clips(exported: dict[str, Path]) -> None:
    program = torch.export.load(exported["torch-export"]).module()
    for count in (1, 3):
        found, _ = program(torch.zeros(count, 4, 3, 16, 16, dtype=torch.uint8))
        assert found.sum(1).tolist() == pytest.approx([1] * count)


# --- the videos on which an export is compared


def test_videos_are_named_as_files_folders_parts_and_data_sets(model: Model, folder: Path, tmp_path: Path) -> None:
    write_frames(tmp_path / "frames", moving_square(9))
    (tmp_path / "list.csv").write_text(f"path,label\n{folder}/clap/0.mp4,clap\n{folder}/jump/1.mp4,jump\n")
    named = {
        folder / "clap" / "0.mp4": 3, f"{folder}/clap/0.mp4#t=0.2,0.8": 3, tmp_path / "frames": 3,
        f"{tmp_path}/frames#fps=10": 3, folder / "clap": 9, tmp_path / "list.csv": 6,
    }  # fmt: skip
    for check, count in named.items():
        pixels = load_check_images(model, check, 0.0, None)
        assert pixels.shape == (count, 4, 3, 16, 16), check
        assert pixels.dtype == torch.uint8


def test_clips_are_taken_evenly(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_images, "MAX_PARITY_CLIPS", 4)
    assert len(load_check_images(model, folder, 0.0, None)) == 4


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("short.mp4", r"all videos are unreadable \(.*short\.mp4: .*lower --frames.*pass videos with --check"),
        ("broken.mp4", r"all videos are unreadable \(.*broken\.mp4: .*pass videos with --check"),
        ("none.mp4", r"none\.mp4.*; pass videos with --check"),
    ],
)
def test_videos_that_cannot_be_read_are_refused(model: Model, name: str, reason: str, tmp_path: Path) -> None:
    write_video(tmp_path / "short.mp4", moving_square(2))
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 99)
    with pytest.raises(DataError, match=reason) as refused:
        export(model, "onnx", tmp_path / "x.onnx", check=tmp_path / name)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "x.onnx").exists()


def test_without_training_data_videos_must_be_named(model: Model, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"random: needs videos to compare the predictions on; pass videos with --check"
    ):
        export(model, "onnx", tmp_path / "x.onnx")


def test_an_export_with_other_predictions_is_not_written(
    model: Model, exported: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    other = replace(random_video_model(seed=1), header=model.header)
    clips = load_check_images(model, folder, 0.0, None)
    with pytest.raises(EngineError, match=r"predictions differ: the same class for \d+ of 16 clips"):
        exporting.compare(other, load(exported["onnx"]).engine.decoded, clips, "onnx")


# --- int8


def test_a_graph_is_quantized_with_clips(
    model: Model, exported: dict[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        exporting, "export_graph", lambda *_: quantize.import_optional("onnx", "").load(exported["onnx"])
    )
    result = export(model, "onnx", tmp_path / "x.onnx", int8=folder, max_accuracy_drop=0.9)
    assert result.accuracy is not None
    assert result.accuracy.num_images == 9
    assert "of 9 videos)" in result.accuracy.limit_text(0.9)
    assert "for one clip on onnxruntime" in result.size_and_speed.text()
    assert len(result.layers) == 13
    assert min(layer.signal_to_noise_db for layer in result.layers) > 5
    found = load(tmp_path / "x.onnx").evaluate(folder, split="all").result.probabilities
    expected = model.evaluate(folder, split="all").result.probabilities
    assert 0 < (found - expected).abs().max() < 0.2


def test_a_clip_counts_as_its_frames() -> None:
    assert quantize.in_frames(torch.empty(9, 3, 8, 8), 8) == 8
    assert [quantize.in_frames(torch.empty(9, frames, 3, 8, 8), 8) for frames in (1, 4, 8, 16)] == [8, 2, 1, 1]


# --- benchmarks


def test_clips_are_measured(model: Model, folder: Path, tmp_path: Path) -> None:
    write_model_file(tmp_path / "model.safetensors", model.module, model.header)
    rows = benchmark._measure(str(tmp_path / "model.safetensors"), "torch", (2,), 0.01, None, str(folder))
    (row,) = rows
    assert (row.reads, row.batch, row.engine, row.image_px, row.metric) == ("clips", 2, "torch", None, "accuracy")
    assert row.per_second == pytest.approx(2000 / row.p50_ms)
    assert "videos wrong" in str(row.evaluation)
    write_csv(rows, tmp_path / "rows.csv")
    assert ",clips," in (tmp_path / "rows.csv").read_text()
    plot_latency(rows, tmp_path / "x.svg")
    assert "milliseconds for 2 clips" in (tmp_path / "x.svg").read_text()
    plot_latency([replace(row, batch=1)], tmp_path / "x.svg")
    assert "milliseconds per clip " in (tmp_path / "x.svg").read_text()
