"""Trainings whose steps are measured: the same bits as without, after interruptions too, for every task and plan."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import convatlas as ca
from convatlas.errors import DivergedError, RunError
from convatlas.overview.diagnose import diagnose_run
from convatlas.train.diagnostics import DIAGNOSTICS_COLUMNS, Recorder, lines_of, read_diagnostics, steps_of
from convatlas.train.fit import prepare_run
from convatlas.train.resume import open_run, read_progress
from convatlas.train.run import Run
from convatlas.train.run_folder import DIAGNOSTICS, METRICS
from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions
from convatlas.train.step import Step
from tiny_detection import TINY_SPECS, write_rectangles
from tiny_networks import tiny
from video_files import moving_square, write_video

pytestmark = pytest.mark.usefixtures("no_figures")

PLAIN = ExecutionOptions(
    device="cpu", threads=1, memory_format="contiguous", precision="float32", fused_norms=False
)  # fmt: skip
FUSED = ExecutionOptions(device="cpu", threads=1, memory_format="channels_last", precision="float32")
BFLOAT16 = ExecutionOptions(device="cpu", threads=1, memory_format="channels_last", precision="bfloat16")
BLOCKED = ExecutionOptions(device="cpu", threads=1, memory_format="mkldnn", precision="float32")
ACCUMULATED: dict[str, Any] = {"micro_batch": 3, "ema_decay": 0.9, "grad_clip": 1.0, "head_epochs": 1, "mixup": 0.2}


def fit(data: object, model: Any, out: Path, *, diagnostics: bool = True, **more: Any) -> Run:
    how: dict[str, Any] = {"epochs": 2, "batch": 8, "weights": "none", "seed": 3, "execution": PLAIN, **more}
    options = RunOptions(checkpoint_steps=2, diagnostics=diagnostics)
    return ca.fit(data, model, out=out, progress=False, options=options, **how)


def weights(run: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(run / name) for name in ("model.safetensors", "last.safetensors")]


def check_same_weights(data: object, model: Any, folder: Path, **more: Any) -> Run:
    """Train with and without diagnostics; check that the weights are the same, and return the measured run."""
    measured = fit(data, model, folder / "measured", **more)
    fit(data, model, folder / "plain", diagnostics=False, **more)
    assert not (folder / "plain" / DIAGNOSTICS).exists()
    for ours, theirs in zip(weights(folder / "measured"), weights(folder / "plain"), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    return measured


def check_same_bits(data: object, model: Any, folder: Path, **more: Any) -> Run:
    """Check that the weights are the same, and that everything is measured; return the measured run."""
    measured = check_same_weights(data, model, folder, **more)
    steps = read_diagnostics(folder / "measured" / DIAGNOSTICS)
    assert all(layer.finite for step in steps for layer in step.layers)
    assert any(layer.update_ratio for step in steps for layer in step.layers)
    assert any(layer.effective_rank for step in steps for layer in step.layers)
    return measured


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("lenet5_modern", {"execution": BLOCKED, "epochs": 1}),
        ("lenet5_modern", ACCUMULATED),
        pytest.param("cifar_resnet20", {"execution": FUSED}, marks=slow),
        pytest.param("cifar_resnet20", ACCUMULATED, marks=slow),
        pytest.param("mobilenet_v3_small", {"execution": BFLOAT16}, marks=slow),
        pytest.param("googlenet", {"epochs": 1}, marks=slow),
    ],
)
def test_classifiers(name: str, more: dict[str, Any], rows_of_two: Path, tmp_path: Path) -> None:
    run = check_same_bits(rows_of_two, tiny(name), tmp_path, **more)
    steps = read_diagnostics(tmp_path / "measured" / DIAGNOSTICS)
    assert [step.step for step in steps] == [0, *(n * run.steps_per_epoch + 1 for n in range(len(run.history)))]
    measured = {layer.path for layer in steps[-1].layers if layer.activation_std is not None}
    assert measured == {layer.path for layer in steps[-1].layers}
    assert not any(path.startswith("auxiliary") for path in measured)


@slow
def test_many_labels(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (24, 3))
    pixels = np.random.default_rng(1).integers(0, 255, (24, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "labels.npz", x=pixels, y=labels)
    check_same_bits(tmp_path / "labels.npz", "lenet5_modern", tmp_path)


@slow
@pytest.mark.parametrize("task", ["detect", "keypoints"])
def test_detectors(task: str, tmp_path: Path) -> None:
    data = write_rectangles(tmp_path / "data")
    run = check_same_bits(data, TINY_SPECS[task], tmp_path, task=task, batch=4, micro_batch=2, lr=0.02)
    paths = {layer.path for layer in read_diagnostics(run.folder / DIAGNOSTICS)[-1].layers if layer.gradient_norm}
    assert any(path.startswith("stages") for path in paths)
    assert any(path.startswith("head") for path in paths)


@slow
def test_clips(tmp_path: Path) -> None:
    for number in range(8):
        frames = moving_square(24, 24, 32, seed=number, step=3)
        write_video(tmp_path / "moves" / ("right", "left")[number % 2] / f"{number}.mp4", frames, rate=20)
    options = DataOptions(resolution=24, frames=4, frame_rate=10, clips=1, val_share=0.25)
    check_same_bits(tmp_path / "moves", tiny("r3d_18_small"), tmp_path, batch=4, data_options=options)


@slow
def test_compiled_networks_have_statistics_of_weights_and_gradients(rows_of_two: Path, tmp_path: Path) -> None:
    execution = replace(PLAIN, compiled=True)
    check_same_weights(rows_of_two, "lenet5_modern", tmp_path, execution=execution, epochs=1)
    found = diagnose_run(tmp_path / "measured")
    for step in found.steps:
        assert all(layer.gradient_norm and layer.update_ratio and layer.weight_norm for layer in step.layers)
        assert not any(layer.activation_std or layer.dead_share or layer.effective_rank for layer in step.layers)
    found.figure(tmp_path / "flow.png")


def test_own_modules(rows_of_two: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    check_same_bits(rows_of_two, module, tmp_path, data_options=DataOptions(resolution=28))


def test_after_a_stop_at_any_step_the_table_is_that_of_the_whole_run(rows_of_two: Path, tmp_path: Path) -> None:
    whole = fit(rows_of_two, "lenet5_modern", tmp_path / "whole")
    table = (whole.folder / DIAGNOSTICS).read_bytes()
    assert whole.total_steps == 6  # of which 0, 1 and 4 are measured
    for stop in (0, 1, 3, 4):
        run = prepare_run(
            rows_of_two, "lenet5_modern", epochs=2, batch=8, weights="none", seed=3, execution=PLAIN,
            out=tmp_path / str(stop), options=RunOptions(checkpoint_steps=2, checkpoint_seconds=1e9),
        )  # fmt: skip
        for event in run.steps():
            if isinstance(event, Step) and event.number == stop:
                break  # without a checkpoint of this step, as after kill -9
        check_consistent(run.folder)
        again = open_run(run.folder)
        for _ in again.steps():
            pass
        assert (run.folder / DIAGNOSTICS).read_bytes() == table
        check_consistent(run.folder)


def check_consistent(folder: Path) -> None:
    """Every epoch of metrics.csv has a row in diagnostics.csv, which is at most one epoch ahead."""
    epochs = {step.epoch for step in read_diagnostics(folder / DIAGNOSTICS)}
    complete: set[int] = set()
    if (folder / METRICS).exists():
        with (folder / METRICS).open() as file:
            complete = {int(row["epoch"]) for row in csv.DictReader(file)}
    assert complete <= epochs <= {*complete, len(complete) + 1}


def test_rows_are_read_back(rows_of_two: Path, tmp_path: Path) -> None:
    run = fit(rows_of_two, "lenet5_modern", tmp_path / "run")
    steps = read_diagnostics(run.folder / DIAGNOSTICS)
    state = read_progress(run.folder)
    assert steps_of(state.diagnostics) == steps
    assert tuple(line for step in steps for line in lines_of(step)) == state.diagnostics
    heading, *lines = (run.folder / DIAGNOSTICS).read_text().splitlines()
    assert tuple(heading.split(",")) == DIAGNOSTICS_COLUMNS
    assert tuple(lines) == state.diagnostics
    damaged = tmp_path / "damaged.csv"
    for text in (
        "a,b\n1,2\n",
        ",".join(DIAGNOSTICS_COLUMNS) + "\n1,2\n",
        ",".join(DIAGNOSTICS_COLUMNS) + "\n" + "x," * 13 + "x\n",
        ",".join(DIAGNOSTICS_COLUMNS) + "\n" + lines[0].replace("stem", "st\rem"),
        ",".join(DIAGNOSTICS_COLUMNS) + "\n" + ",".join(("1", "0", "nan", *lines[0].split(",")[3:])),
        ",".join(DIAGNOSTICS_COLUMNS) + "\n",
    ):
        damaged.write_text(text)
        with pytest.raises(RunError, match=r"damaged\.csv: ") as caught:
            read_diagnostics(damaged)
        assert "\n" not in str(caught.value)


def test_the_first_step_the_middle_of_epochs_and_a_row_of_failures_are_measured() -> None:
    network = ca.build("lenet5_modern")
    recorder = Recorder(5)
    assert [n for n in range(12) if recorder.probe(network, n, 0)] == [0, 2, 7]
    assert [n for n in range(3) if Recorder(1).probe(network, n, 0)] == [0, 1, 2]
    assert [skipped for skipped in range(10) if recorder.probe(network, 1, skipped)] == [5]
    probe = Recorder(5, activations=False).probe(network, 0, 0)
    assert probe is not None
    with probe:
        assert not any(layer._forward_hooks for layer in network.modules())
    assert [layer.path for layer in probe.statistics()] == ["stem.c1", "stages.0.c3", "head.c5", "head.f6", "head.out"]


def test_a_training_that_diverges_in_its_first_epoch_is_diagnosed(rows_of_two: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        fit(rows_of_two, "lenet5_modern", tmp_path / "run", epochs=20, lr=1e6, loss="squared_error")
    found = diagnose_run(tmp_path / "run")
    assert found.causes[0].problem == "updates too large"
    assert "loss or gradients not finite" in {cause.problem for cause in found.causes}
    json.dumps(found.to_plain(), allow_nan=False)


def test_a_loss_that_does_not_fall_is_no_success(rows_of_two: Path, tmp_path: Path) -> None:
    run = fit(rows_of_two, "lenet5_modern", tmp_path / "run", lr=3e-4)
    verdict = diagnose_run(run.folder).verdict()
    assert "the training loss does not fall" in verdict
    assert "nothing is wrong" not in verdict


def test_runs_without_measurements_are_refused(rows_of_two: Path, tmp_path: Path) -> None:
    fit(rows_of_two, "lenet5_modern", tmp_path / "off", epochs=1, diagnostics=False)
    with pytest.raises(RunError, match="--no-diagnostics"):
        diagnose_run(tmp_path / "off")
    prepare_run(rows_of_two, "lenet5_modern", out=tmp_path / "new")
    with pytest.raises(RunError, match="no step was trained"):
        diagnose_run(tmp_path / "new")
    with pytest.raises(RunError, match="not a run directory"):
        diagnose_run(tmp_path)
