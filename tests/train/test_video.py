"""Training on videos: exact resume, ranks, options, report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import convatlas as ca
from convatlas.errors import ConvatlasError, RunError
from convatlas.models.catalog import CATALOG
from convatlas.models.families.inflated import on_body
from convatlas.models.families.video_resnet import VideoResNet
from convatlas.tasks.known import VideoClassification
from convatlas.train.fit import fit, prepare_run
from convatlas.train.fit_command import fit_command
from convatlas.train.preview import preview
from convatlas.train.resume import open_run
from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions
from video_files import moving_square, write_video

pytest.importorskip("av")

TINY = VideoResNet(("3d",) * 4, (1,) * 4, (4, 4, 8, 8), stem=(4,), frames=4, resolution=16)
CLIPS = DataOptions(frames=4, frame_rate=10, clips=2)
PLAIN = ExecutionOptions(
    device="cpu", threads=1, memory_format="contiguous", precision="float32", fused_norms=False
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares that move left or right, equal frame by frame: 5 videos of each in train, 2 in val."""
    root = tmp_path_factory.mktemp("moves") / "moves"
    for split, numbers in (("train", range(5)), ("val", range(5, 7))):
        for number in numbers:
            frames = moving_square(24, 24, 32, seed=number, step=3)
            write_video(root / split / "right" / f"{number}.mp4", frames, rate=20)
            write_video(root / split / "left" / f"{number}.mp4", frames[::-1], rate=20)
    return root


def train(folder: Path, out: Path, **options: object) -> ca.Run:
    fields = {"epochs": 3, "batch": 4, "lr": 0.02, "flip": False, "mixup": 0.2, "random_erasing": 0.2, "jitter": 0.2}
    return fit(
        folder, TINY, out=out, weights="none", data_options=CLIPS, execution=PLAIN, progress=False, **fields | options
    )


def test_a_run_on_videos(folder: Path, tmp_path: Path) -> None:
    run = train(folder, tmp_path / "run", ema_decay=0.5, min_crop_area=0.5)
    assert type(run.task) is VideoClassification
    result = run.results["val"]
    assert result.n == 4
    assert result.summary()["clips"] == 8
    assert "videos wrong" in result.text()
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    assert config["preprocessing"]["sampling"] == {"frames": 4, "rate": 10, "clips": 2}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "4 val videos" in page
    assert "predict new videos" in page
    model = ca.load(tmp_path / "run")
    again = model.evaluate(folder)
    torch.testing.assert_close(again.result.probabilities, result.probabilities)  # norms are folded
    assert again.result.summary() == pytest.approx(result.summary(), abs=1e-4)


def test_an_interrupted_run_is_resumed_to_the_last_bit(folder: Path, tmp_path: Path) -> None:
    whole = train(folder, tmp_path / "whole")
    run = prepare_run(
        folder, TINY, out=tmp_path / "run", weights="none", data_options=CLIPS, execution=PLAIN, epochs=3, batch=4,
        lr=0.02, flip=False, mixup=0.2, random_erasing=0.2, jitter=0.2, options=RunOptions(checkpoint_steps=1),
    )  # fmt: skip
    for stop in (2, 5):
        steps = run.steps()
        for event in steps:
            if getattr(event, "number", -1) + 1 == stop:
                break
        steps.close()
        run = open_run(tmp_path / "run")
    run = ca.resume(tmp_path / "run", progress=False)
    assert [epoch.metrics for epoch in run.history] == [epoch.metrics for epoch in whole.history]
    ours, theirs = (load_file(each / "last.safetensors") for each in (tmp_path / "run", tmp_path / "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_direction_of_time_is_learned(folder: Path, tmp_path: Path) -> None:
    train(
        folder, tmp_path / "run", epochs=70, batch=5, optimizer="adamw", lr=0.01, mixup=0.0, random_erasing=0.0,
        jitter=0.0, max_shift=0,
    )  # fmt: skip
    model = ca.load(tmp_path / "run")
    dataset, _ = model.load_split(folder, split="train")
    clips = dataset.train.pixels[torch.arange(len(dataset.train))][:, 0]
    labels = dataset.train.targets.tensor("label")
    forward, backward = (model.engine.outputs(each).argmax(1) for each in (clips, clips.flip(1)))
    assert (forward == labels).float().mean() >= 0.9
    assert (backward == 1 - labels).float().mean() >= 0.9  # what goes left, backward in time goes right


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("resnet18", DataOptions(), "choose one that reads clips, such as"),
        ("resnet18", CLIPS, "frames, frame_rate, clips: must not be given, because the network reads images"),
        (TINY, DataOptions(frames=40), "a video must be at least as long as a clip, 40 frames"),
        (TINY, DataOptions(group_pattern="("), "group_pattern"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    folder: Path, tmp_path: Path, model: str | VideoResNet, options: DataOptions, message: str
) -> None:
    with pytest.raises(ConvatlasError, match=message) as caught:
        fit(folder, model, out=tmp_path / "run", weights="none", data_options=options, progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_clips_need_a_network_for_videos(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="clips: must not be given, because the network reads images, not videos"):
        fit("digits", "lenet5_modern", out=tmp_path / "run", data_options=DataOptions(clips=2), progress=False)


def test_clips_are_limited() -> None:
    with pytest.raises(RunError, match=r"frame_rate must be a number in \(0, 1000\] or null, got 1000000000.0"):
        DataOptions(frame_rate=1e9)
    with pytest.raises(RunError, match=r"clips must be an integer in \[1, 1000\] or null, got 10000"):
        DataOptions(clips=10_000)


def test_a_task_of_images_is_refused_as_such(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvatlasError, match="the data consists of videos, and the task detect needs images"):
        fit(folder, TINY, task="detect", out=tmp_path / "run", data_options=CLIPS, progress=False)


def test_the_command_of_a_run_has_its_clips_and_its_body(folder: Path, tmp_path: Path) -> None:
    options = DataOptions(resolution=16, frames=4, frame_rate=10.000025, clips=2, group_pattern=r"(\d+)\.mp4$")
    config = prepare_run(folder, TINY, out=tmp_path / "run", data_options=options, execution=PLAIN).config
    network = replace(on_body("inflated", CATALOG["cifar_resnet20"]), frames=4, resolution=16)
    config = replace(config, model="inflated-cifar_resnet20", spec=network)
    command = fit_command(config)
    assert "--model inflated --body cifar_resnet20 --weights none" in command
    assert "--frames 4 --frame-rate 10.000025 --clips 2 --group-pattern '(\\d+)\\.mp4$'" in command
    assert not fit_command(replace(config, data_options=replace(options, frames=None)))  # it would have other frames


def test_preview_shows_strips(folder: Path, tmp_path: Path) -> None:
    figure = preview(
        folder, TINY, weights="none", data_options=CLIPS, path=tmp_path / "preview.png", progress=False, flip=True
    )  # fmt: skip
    shapes = {image.get_array().shape for axes in figure.axes for image in axes.get_images()}
    assert shapes == {(16, 4 * 16 + 3 * 2, 3)}
