"""Detectors are trained, interrupted, resumed and evaluated as classifiers are."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import convatlas as ca
from convatlas.errors import DataError, RunError, SpecError
from convatlas.models.catalog import CATALOG
from convatlas.models.families.rcnn import on_body
from convatlas.tasks.targets import Batch
from convatlas.train.cross_validation import cross_validate
from convatlas.train.display import Display
from convatlas.train.fit import prepare_run
from convatlas.train.fit_command import fit_command
from convatlas.train.loop import train
from convatlas.train.optim import build_optimizer
from convatlas.train.resume import open_run
from convatlas.train.run import Run
from convatlas.train.settings import ExecutionOptions, RunOptions
from convatlas.train.state import Epoch
from convatlas.train.step import Step
from convatlas.weights.modelfile import read_header
from tiny_detection import TINY_SPECS, write_rectangles

pytestmark = pytest.mark.usefixtures("no_figures")

HOW: dict[str, Any] = {
    "weights": "none", "epochs": 2, "batch": 4, "lr": 0.02, "warmup": 0.0, "seed": 1,
    "execution": ExecutionOptions(
        device="cpu", threads=1, memory_format="channels_last", precision="float32", fused_norms=False
    ),
}  # fmt: skip

TERMS = ["train_class_loss", "train_box_loss", "train_objectness_loss", "train_rpn_box_loss"]


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rectangles(tmp_path_factory.mktemp("data") / "rectangles")


@pytest.fixture(scope="module")
def detector(rectangles: Path, no_figures: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two epochs."""
    return fit(rectangles, tmp_path_factory.mktemp("runs") / "whole")


def fit(data: Path, out: Path, task: str = "detect", **more: Any) -> Run:
    return ca.fit(data, TINY_SPECS[task], out=out, progress=False, **HOW | more)


def prepare(data: Path, out: Path, task: str = "detect", **more: Any) -> Run:
    return prepare_run(data, TINY_SPECS[task], out=out, **HOW | more)


def table(run: Run) -> list[dict[str, str]]:
    with (run.folder / "metrics.csv").open() as file:
        return [{name: row[name] for name in row if name != "elapsed_s"} for row in csv.DictReader(file)]


def test_every_term_of_the_loss_is_a_metric_of_an_epoch(detector: Run) -> None:
    for epoch in detector.history:
        assert sum(epoch.metrics[name] for name in TERMS) == pytest.approx(epoch.train_loss, rel=1e-5)
    assert list(table(detector)[0]) == [
        "epoch", "lr", "train_loss", "skipped", *TERMS, "val_box_ap", "best"
    ]  # fmt: skip
    assert detector.state.best_loss is None
    assert detector.state.best_score == max(epoch.metrics["val_box_ap"] for epoch in detector.history)


@pytest.mark.parametrize("task", ["segment", "keypoints"])
def test_masks_and_keypoints_are_trained_in_the_same_way(task: str, rectangles: Path, tmp_path: Path) -> None:
    run = prepare(rectangles, tmp_path / "run", task)
    step = next(event for event in run.steps() if isinstance(event, Step))
    assert len(step.metric_sums) == 5
    assert step.loss * step.batch.size == pytest.approx(sum(step.metric_sums), rel=1e-5)
    assert run.task.short_name == task


def test_an_interrupted_run_continues_to_the_same_bits(detector: Run, rectangles: Path, tmp_path: Path) -> None:
    options = RunOptions(checkpoint_steps=1)
    run = prepare(rectangles, tmp_path / "run", options=options)
    for stop in (1, 2, 99):  # a step in the middle of an epoch, its last step, and the end
        for event in run.steps():
            if isinstance(event, Step) and event.number + 1 == stop:
                break
        run = open_run(tmp_path / "run")
    assert table(run) == table(detector)
    ours, theirs = load_file(run.model_file), load_file(detector.model_file)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_ema_and_gradient_accumulation(rectangles: Path, tmp_path: Path) -> None:
    run = prepare(rectangles, tmp_path / "run", epochs=1, ema_decay=0.9, micro_batch=2)
    epoch = next(event for event in run.steps() if isinstance(event, Epoch))
    assert epoch.skipped == 0
    assert run.ema is not None
    own, mean = run.network.state_dict(), run.ema.network.state_dict()
    assert any(not torch.equal(own[name], mean[name]) for name in own)
    saved = load_file(run.model_file)
    assert all(torch.equal(saved[name], mean[name]) for name in saved)


def test_norms_are_trained_from_random_weights_alone(detector: Run, rectangles: Path, tmp_path: Path) -> None:
    assert getattr(detector.config.spec, "norm") == "batch"  # noqa: B009
    again = fit(rectangles, tmp_path / "run", epochs=1, weights=detector.model_file)
    assert getattr(again.config.spec, "norm") == "batch"  # noqa: B009  # those of the file
    assert any(name.endswith("running_mean") for name in load_file(again.model_file))


def test_frozen_stages_are_never_trained(rectangles: Path, tmp_path: Path) -> None:
    run = prepare(rectangles, tmp_path / "run", epochs=1, frozen_stages=2)
    before = copy.deepcopy(run.network.state_dict())
    list(run.steps())
    trained = load_file(run.folder / "last.safetensors")
    changed = {name for name, tensor in trained.items() if not torch.equal(tensor, before[name])}
    assert not [name for name in changed if name.startswith(("stem.", "stages.0."))]
    assert [name for name in changed if name.startswith("stages.1.")]
    with pytest.raises(SpecError, match=r"frozen_stages must be <= 5 for this network .the stem and 4 stages., got 6"):
        prepare(rectangles, tmp_path / "other", frozen_stages=6)
    assert not (tmp_path / "other").exists()


# --- steps that are not finite


class Batches:
    """Stands for a BatchLoader: the same batch in every step."""

    def __init__(self, run: Run, batch: Batch, steps: int) -> None:
        self.batch, self.steps, self.task = batch, steps, run.task

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        yield from [self.batch] * (self.steps - start)


def steps_of(run: Run, batch: Batch, steps: int = 12) -> Iterator[Step]:
    loader: Any = Batches(run, batch, steps)
    optimizer = build_optimizer(run.config.recipe, run.network)
    names = [name.rsplit("/", 1)[-1] for name in run.dataset.train.names]
    return train(run.network, optimizer, loader, run.config.recipe, seed=0, names=names)


def test_an_image_that_is_not_finite_is_named(rectangles: Path, tmp_path: Path) -> None:
    run = prepare(rectangles, tmp_path / "run", epochs=1)
    batch = next(run.loader().epoch(0))
    inputs = list(batch.inputs)
    inputs[2] = inputs[2] * float("nan")
    batch = Batch(inputs, batch.targets, batch.indices, batch.size)
    bad = re.escape(run.dataset.train.names[int(batch.indices[2])].rsplit("/", 1)[-1])
    before = copy.deepcopy(run.network.state_dict())
    steps = steps_of(run, batch)
    step = next(steps)
    assert step.skipped
    assert re.fullmatch(rf"step 0 \(epoch 1\) is skipped: the loss is not finite in {bad}", step.remark)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.network.state_dict().items())
    with pytest.raises(RunError, match=rf"10 steps .* not finite, first in the input images, in {bad}; check the data"):
        list(steps)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("stages.1.0.sum.body.conv1.conv", r"the weights \(stages.1.0.*weight\), in train-"),
        ("head.neck.inner_blocks.0.0", "the output of head.neck.inner_blocks.0.0, in train-"),
    ],
)
def test_the_first_layer_that_is_not_finite_is_named(path: str, message: str, rectangles: Path, tmp_path: Path) -> None:
    run = prepare(rectangles, tmp_path / "run", epochs=1)
    layer = run.network.get_submodule(path)
    if path.startswith("stages"):
        layer.weight.data[0] = float("nan")  # type: ignore[operator]
    else:
        layer.register_forward_hook(lambda *values: values[2] * float("inf"))
    with pytest.raises(RunError, match=f"first in {message}"):
        list(steps_of(run, next(run.loader().epoch(0))))


def test_without_a_single_cause_the_images_of_the_batch_are_named(rectangles: Path, tmp_path: Path) -> None:
    run = prepare(rectangles, tmp_path / "run", epochs=1)
    next(run.network.stages.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    step = next(steps_of(run, next(run.loader().epoch(0))))
    name = r"train-\d\d.png"
    assert re.fullmatch(
        rf"step 0 \(epoch 1\) is skipped: the gradient is not finite in the batch of {name}, {name}, {name} and 1 more",
        step.remark,
    )


# --- task, recipe and network


def test_the_task_is_that_of_the_network(detector: Run, rectangles: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    Display(console, console, lambda *_: None).print_header(detector)
    assert "task: detect (object detection), as fasterrcnn-resnet18-custom predicts boxes\n" in shown.getvalue()
    assert "images: whole; short side 64 px, at most 96 px\nnorms of the body: trained\n" in shown.getvalue()
    named = prepare(rectangles, tmp_path / "run", task="detect")
    assert named.task == detector.task
    with pytest.raises(RunError, match=r"task segment needs a network for masks, and .* is one for boxes; choose mask"):
        prepare_run(rectangles, TINY_SPECS["detect"], task="segment", out=tmp_path / "a", **HOW)
    with pytest.raises(DataError, match=r"task must be one of classify, .*, got 'detection' .did you mean detect"):
        prepare_run(rectangles, TINY_SPECS["detect"], task="detection", out=tmp_path / "a", **HOW)
    with pytest.raises(DataError, match=r"task must be one of .*, got ''"):
        prepare_run(rectangles, TINY_SPECS["detect"], task="", out=tmp_path / "a", **HOW)
    with pytest.raises(RunError, match="resnet18: is a network for classes, and rectangles has keypoints; choose"):
        prepare_run(rectangles, "resnet18", out=tmp_path / "a", **HOW)
    with pytest.raises(DataError, match="digits: the data is for the task classify"):
        prepare_run("digits", TINY_SPECS["detect"], out=tmp_path / "a", **HOW)
    assert not (tmp_path / "a").exists()


def test_fields_that_a_task_cannot_use_are_refused(rectangles: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"mixup=0.2, cutmix=1.0 cannot be used for object detection; .*finetune-detec"):
        prepare(rectangles, tmp_path / "run", mixup=0.2, cutmix=1.0)
    with pytest.raises(SpecError, match=r"multi_scale=0.2 cannot be used for classification"):
        prepare_run("digits", "lenet5_modern", multi_scale=0.2, out=tmp_path / "run")


def test_the_number_of_keypoints_is_that_of_the_data(rectangles: Path, tmp_path: Path) -> None:
    run = prepare(rectangles, tmp_path / "run", "keypoints")
    assert getattr(run.config.spec, "points") == 2  # noqa: B009
    assert open_run(tmp_path / "run").config == run.config


def test_the_faults_of_annotations_are_in_run_and_model_file(rectangles: Path, tmp_path: Path) -> None:
    import json
    import shutil

    data = Path(shutil.copytree(rectangles, tmp_path / "data"))
    file = data / "train" / "_annotations.coco.json"
    plain = json.loads(file.read_text())
    plain["annotations"][0]["bbox"] = [5, 5, 0, 0]
    del plain["annotations"][0]["segmentation"], plain["annotations"][0]["keypoints"]
    file.write_text(json.dumps(plain))
    run = fit(data, tmp_path / "run", epochs=1)
    kinds = {fault.kind: fault for fault in run.config.annotation_faults}
    assert kinds["degenerate_boxes"].count == 1
    assert kinds["degenerate_boxes"].treatment == "drop"
    assert read_header(run.model_file).training.annotation_faults == run.config.annotation_faults
    assert open_run(run.folder).config == run.config


def test_a_command_repeats_the_training(detector: Run) -> None:
    assert fit_command(detector.config) == ""  # no command makes this network
    spec = on_body("fasterrcnn", CATALOG["resnet18"]).scaled(resolution=64)
    config = dataclasses.replace(detector.config, model="fasterrcnn-resnet18", spec=spec)
    words = "--model fasterrcnn --body resnet18 --task detect --weights none --recipe scratch-detection --epochs 2"
    assert words in fit_command(config)
    named = dataclasses.replace(config, model="fasterrcnn_resnet18_fpn")
    assert "--model fasterrcnn_resnet18_fpn --task detect" in fit_command(named)
    assert fit_command(dataclasses.replace(config, spec=dataclasses.replace(spec, width=32))) == ""
    small = on_body(CATALOG["fasterrcnn_resnet18_fpn"].spec, CATALOG["mobilenet_v2"]).scaled(resolution=64)
    config = dataclasses.replace(config, model="fasterrcnn-mobilenet_v2", spec=small)
    assert "--model fasterrcnn_resnet18_fpn --body mobilenet_v2 --task detect" in fit_command(config)


def test_folds_of_images_with_objects(rectangles: Path, tmp_path: Path) -> None:
    data = write_rectangles(tmp_path / "data", val=0)
    crossed = cross_validate(data, TINY_SPECS["detect"], folds=2, out=tmp_path / "folds", progress=False, **HOW)
    assert sum(run.results["val"].n for run in crossed.runs) == 8
    assert crossed.headline == "box_ap"
