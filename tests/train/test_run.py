"""Runs: killed and resumed they equal uninterrupted ones to the last bit; what they write, yield and refuse."""

from __future__ import annotations

import csv
import gc
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import convatlas as ca
from convatlas.core.spec import Spec
from convatlas.data.dataset import Dataset
from convatlas.errors import DataError, MachineError, RunError
from convatlas.models.catalog import CATALOG
from convatlas.train import run_folder
from convatlas.train.fit import prepare_run
from convatlas.train.optim import build_optimizer
from convatlas.train.recipe import RECIPES
from convatlas.train.resume import open_run
from convatlas.train.run import Event, Run
from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions
from convatlas.train.state import Epoch
from convatlas.train.step import Step
from tiny_networks import tiny

HOW: dict[str, Any] = {"execution": ExecutionOptions(threads=1), "options": RunOptions(checkpoint_steps=4)}
STEPS = 2 * 18  # 2 epochs of 1,150 images in batches of 64
SYNCS = 18  # approximate number of files that such a run writes

CHILD = """
import os, signal, sys
from convatlas.train.fit import fit
from convatlas.train.settings import ExecutionOptions, RunOptions
from convatlas.train.step import Step

folder, where, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
model, overrides = sys.argv[4], eval(sys.argv[5])
synced, fsync = 0, os.fsync

def kill_at_sync(descriptor):
    global synced
    synced += 1
    if where == "file" and synced == number:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

def kill_at_step(event):
    if where == "step" and isinstance(event, Step) and event.number == number:
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = kill_at_sync
fit(
    "digits", model, recipe="default", **overrides, seed=3, out=folder, on_event=kill_at_step,
    execution=ExecutionOptions(threads=1), options=RunOptions(checkpoint_steps=4),
)
"""

PLANS: dict[str, tuple[str, dict[str, Any]]] = {
    "modern": ("lenet5_modern", {"epochs": 2}),
    "adamw": ("lenet5", {"epochs": 2, "optimizer": "adamw", "lr": 0.001, "loss": "lecun_map", "weight_decay": 0.01}),
    "all": ("lenet5_modern", {
        "epochs": 2, "micro_batch": 48, "ema_decay": 0.99, "grad_clip": 1.0, "label_smoothing": 0.1,
        "class_weight_power": 0.5, "head_epochs": 1, "layer_decay": 0.8, "min_crop_area": 0.5, "flip": True,
        "policy": "trivial", "jitter": 0.2, "random_erasing": 0.2, "mixup": 0.2, "cutmix": 1.0,
    }),
}  # fmt: skip


def fit(plan: str, folder: Path, **how: Any) -> Run:
    model, overrides = PLANS[plan]
    how = {"seed": 3, **HOW, **how}
    return ca.fit("digits", model, recipe="default", **overrides, out=folder, progress=False, **how)


def prepare(folder: Path, model: str = "lenet1", recipe: str = "lecun1998", **how: Any) -> Run:
    return prepare_run("digits", model, recipe=recipe, out=folder, **HOW | how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directories of uninterrupted runs."""
    folders = {}
    for plan in PLANS:
        folders[plan] = tmp_path_factory.mktemp(plan) / "run"
        fit(plan, folders[plan])
    return folders


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / run_folder.METRICS).open() as file:
        return [{key: value for key, value in row.items() if key != "elapsed_s"} for row in csv.DictReader(file)]


def same_run(a: Path, b: Path) -> bool:
    for file in (run_folder.MODEL, run_folder.LAST):
        left, right = load_file(a / file), load_file(b / file)
        if left.keys() != right.keys() or not all(torch.equal(left[name], right[name]) for name in left):
            return False
    return metrics(a) == metrics(b)


def kill_and_resume(folder: Path, plan: str, where: str, number: int) -> None:
    model, overrides = PLANS[plan]
    arguments = [str(folder), where, str(number), model, repr(overrides)]
    child = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert ca.resume(folder).state.finished


@pytest.mark.parametrize(
    ("plan", "where", "number"),
    [
        ("modern", "step", STEPS - 1),
        ("adamw", "file", 9),
        ("all", "step", 25),
    ],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    whole: dict[str, Path], tmp_path: Path, plan: str, where: str, number: int
) -> None:
    kill_and_resume(tmp_path / "run", plan, where, number)
    assert same_run(tmp_path / "run", whole[plan])
    assert not list((tmp_path / "run").glob(".*part")), "a killed write left its temporary file behind"


@pytest.mark.slow
@pytest.mark.parametrize("point", range(30))
def test_runs_killed_at_thirty_random_points_equal_uninterrupted_ones(
    whole: dict[str, Path], tmp_path: Path, point: int
) -> None:
    chosen = random.Random(point)
    plan = chosen.choice(list(PLANS))
    where, number = chosen.choice([("step", chosen.randrange(STEPS)), ("file", chosen.randint(2, SYNCS))])
    kill_and_resume(tmp_path / "run", plan, where, number)
    assert same_run(tmp_path / "run", whole[plan])


def test_opening_the_run_again_every_few_steps_changes_nothing(whole: dict[str, Path], tmp_path: Path) -> None:
    model, overrides = PLANS["modern"]
    folder = tmp_path / "run"
    options = RunOptions(checkpoint_steps=1)
    run = prepare(folder, model, "default", **overrides, seed=3, options=options)
    opened = 0
    while not run.state.finished:
        steps = run.steps()
        for _, _event in zip(range(5), steps, strict=False):
            pass
        steps.close()  # type: ignore[attr-defined]
        run = open_run(folder)
        opened += 1
    assert opened > 8
    assert same_run(folder, whole["modern"])


def test_the_seed_decides_the_result(whole: dict[str, Path], tmp_path: Path) -> None:
    fit("modern", tmp_path / "same")
    fit("modern", tmp_path / "other", seed=4)
    assert same_run(tmp_path / "same", whole["modern"])
    assert not same_run(tmp_path / "other", whole["modern"])


def test_the_interval_of_checkpoints_does_not_change_the_result(whole: dict[str, Path], tmp_path: Path) -> None:
    fit("modern", tmp_path / "run", options=RunOptions(checkpoint_seconds=0.0))
    assert same_run(tmp_path / "run", whole["modern"])


def test_the_time_of_the_caller_is_not_that_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caller_s = 0.0
    clock = time.perf_counter
    monkeypatch.setattr("convatlas.train.run.time.perf_counter", lambda: clock() + caller_s)
    run = prepare(tmp_path / "run", epochs=2)
    for _ in run.steps():
        caller_s += 1e6
    assert 0 < run.state.seconds < 1e6


def test_the_model_file_holds_the_history_of_its_weights(whole: dict[str, Path]) -> None:
    model = ca.load(whole["modern"] / run_folder.MODEL)
    training = model.header.training
    config = json.loads((whole["modern"] / run_folder.CONFIG).read_text())
    assert training.seed == 3
    assert training.recipe["epochs"] == 2
    assert training.fingerprint == config["fingerprint"]
    assert training.versions["torch"] == torch.__version__
    assert model.header.metrics["test"]["n"] == 359
    for split in ("test", "val"):
        result: Any = model.evaluate("digits", split=split).result
        assert result.accuracy == model.header.metrics[split]["accuracy"]


def test_without_a_val_split_the_last_epoch_is_the_best(tmp_path: Path) -> None:
    run = ca.fit(
        "digits", "lenet1", recipe="lecun1998", epochs=2, out=tmp_path / "run",
        data_options=DataOptions(val_share=0), **HOW,
    )  # fmt: skip
    assert run.dataset.val is None
    assert len(run.dataset.train) == 1438
    assert set(run.results) == {"test"}
    best, last = load_file(run.model_file), load_file(tmp_path / "run" / run_folder.LAST)
    assert all(torch.equal(best[name], last[name]) for name in best)


def test_a_nonfinite_loss_ends_the_run_with_step_and_layer(tmp_path: Path) -> None:
    overrides = {"lr": 1e6, "schedule": "constant", "epochs": 1}
    run = prepare(tmp_path / "run", "lenet5_modern", "default", **overrides)
    with pytest.raises(RunError, match=r"10 steps up to step \d+ \(epoch 1\) were not finite, first in the .*"):
        list(run.steps())
    assert not run.model_file.exists()


def test_checkpoints_are_loaded_without_running_code(whole: dict[str, Path]) -> None:
    checkpoint = torch.load(whole["modern"] / run_folder.CHECKPOINT, weights_only=True)
    assert checkpoint["state"]["finished"]


def test_every_event_is_passed_in_order(tmp_path: Path) -> None:
    events: list[Event] = []
    fit("modern", tmp_path / "run", on_event=events.append)
    assert [event.number for event in events if isinstance(event, Step)] == list(range(STEPS))
    epochs = [event for event in events if isinstance(event, Epoch)]
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert epochs == open_run(tmp_path / "run").history
    assert [Epoch.from_plain(epoch.to_plain()) for epoch in epochs] == epochs
    assert {*epochs[0].metrics} == {"train_accuracy", "val_loss", "val_accuracy"}


def test_resume_refuses_a_folder_that_is_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a run directory \(there is no run\.json\)"):
        ca.resume(tmp_path)


def test_a_resumed_run_has_the_versions_that_changed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    prepare(folder)
    assert open_run(folder).changed_versions == {}
    config = json.loads((folder / run_folder.CONFIG).read_text())
    config["versions"]["torch"] = "1.0"
    (folder / run_folder.CONFIG).write_text(json.dumps(config))
    assert open_run(folder).changed_versions == {"torch": ("1.0", torch.__version__)}


def test_only_one_process_trains_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    steps = prepare(folder).steps()
    next(steps)
    with pytest.raises(RunError, match="another process is training this run"):
        next(open_run(folder).steps())
    steps.close()  # type: ignore[attr-defined]
    next(open_run(folder).steps())


def test_a_run_can_be_finished_early(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run")
    with pytest.raises(RunError, match="before the end of the first epoch"):
        run.finish()
    for event in run.steps():
        if isinstance(event, Epoch):
            break
    run.finish()
    assert run.results["test"].summary() == ca.load(run.model_file).header.metrics["test"]


def test_an_epoch_interrupted_before_its_evaluation_is_evaluated_first(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", recipe="default", epochs=1)
    for event in run.steps():
        if isinstance(event, Step) and event.number == STEPS // 2 - 1:
            break
    assert [event.number for event in run.steps() if isinstance(event, Epoch)] == [1]
    assert run.state.finished


def test_a_spec_can_be_trained(tmp_path: Path) -> None:
    spec = ca.spec("lenet5_modern").scaled(width=0.5)
    run = ca.fit("digits", spec, recipe="default", epochs=1, out=tmp_path / "run", **HOW)
    assert ca.load(run.model_file).header.spec == spec


@pytest.mark.parametrize("kind", ["capsules", "auxiliary heads", "boosted", "small stem"])
def test_networks_with_parts_for_training_only_are_resumed_and_saved(kind: str, tmp_path: Path) -> None:
    specs: dict[str, Spec] = {
        "capsules": replace(ca.spec("capsnet_reduced"), conv=8, types=2, decoder=(8, 8)),  # type: ignore[type-var]
        "auxiliary heads": replace(ca.spec("googlenet").scaled(width=0.1, resolution=32), auxiliary=True),  # type: ignore[type-var]
        "boosted": ca.spec("boosted_cifar_resnet20").scaled(width=0.5, depth=0.3),
        "small stem": ca.spec("resnet18").scaled(width=0.1, depth=0.5),
    }
    how: dict[str, Any] = {
        "recipe": "sabour2017" if kind == "capsules" else "default", "epochs": 1, "batch": 128,
        "data_options": DataOptions(stem="cifar" if kind == "small stem" else "default"), **HOW,
    }  # fmt: skip
    folders = [tmp_path / name for name in ("whole", "interrupted")]
    ca.fit("digits", specs[kind], out=folders[0], **how)
    for event in prepare_run("digits", specs[kind], out=folders[1], **how).steps():
        if isinstance(event, Step) and event.number == 6:
            break
    ca.resume(folders[1])
    assert same_run(*folders)
    predictions: list[Any] = ca.load(folders[0] / run_folder.MODEL).predict(torch.zeros(1, 32, 32, dtype=torch.uint8))
    assert len(predictions[0].probabilities) == 10


def test_networks_for_clips_need_videos(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a network that reads clips needs videos"):
        ca.fit("digits", "r3d_18", out=tmp_path / "run", **HOW)
    assert not (tmp_path / "run").exists()


def test_resume_refuses_changed_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path / "run", recipe="default", epochs=1)
    monkeypatch.setattr(Dataset, "fingerprint", lambda _: "other")
    with pytest.raises(RunError, match=r"digits: is not the data that .* was started with"):
        ca.resume(tmp_path / "run")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_resume_refuses_a_truncated_checkpoint(whole: dict[str, Path], tmp_path: Path, share: float) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole["modern"], folder)
    checkpoint = folder / run_folder.CHECKPOINT
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(share * len(data))])
    with pytest.raises(RunError, match=r"checkpoint\.pt: the checkpoint is damaged"):
        ca.resume(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "config: version must be <= 1, got 2; upgrade convatlas to read it"),
        ({"seed": -1}, r"config: seed must be an integer in \[0, 4294967295\], got -1"),
        ({"unheard": 1}, "config: unheard is not a field of RunConfig"),
        ({"task": {"type": "Unheard"}}, "config.task: type must be .*got 'Unheard'"),
        ({"execution": {"threads": 0}}, "config.execution: threads must be an integer >= 1 or null, got 0"),
        ({"data_options": {"fold": [1]}}, "config.data_options: fold must be a list of 2 items or null"),
    ],
)
def test_resume_refuses_a_changed_config_by_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    prepare(tmp_path / "run")
    path = tmp_path / "run" / run_folder.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=rf"run\.json: {message}"):
        ca.resume(tmp_path / "run")


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000, "\udcff"], ids=repr)
def test_resume_refuses_a_damaged_config(tmp_path: Path, text: str) -> None:
    prepare(tmp_path / "run")
    (tmp_path / "run" / run_folder.CONFIG).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RunError, match=r"run\.json: damaged"):
        ca.resume(tmp_path / "run")


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True])
def test_a_seed_is_an_integer_of_32_bits(tmp_path: Path, seed: Any) -> None:
    with pytest.raises(RunError, match=rf"seed must be an integer in \[0, 4294967295\], got {seed!r}"):
        ca.fit("digits", "lenet1", seed=seed, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExecutionOptions(threads=0), "ExecutionOptions: threads must be an integer >= 1 or null, got 0"),
        (lambda: RunOptions(checkpoint_seconds=-1.0), "checkpoint_seconds must be a number >= 0, got -1.0"),
        (lambda: RunOptions(checkpoint_seconds=float("inf")), "checkpoint_seconds must be a number >= 0, got inf"),
        (lambda: RunOptions(checkpoint_steps=-1), "checkpoint_steps must be an integer >= 0, got -1"),
        (lambda: DataOptions(val_share=1.0), r"val_share must be a number in \[0, 1\), got 1.0"),
        (lambda: DataOptions(max_unreadable=1.5), r"max_unreadable must be a number in \[0, 1\], got 1.5"),
    ],
)
def test_impossible_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RunError, match=message):
        make()


def test_an_unknown_device_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="device: abacus is not available on this machine"):
        ca.fit("digits", "lenet1", out=tmp_path / "run", execution=ExecutionOptions(device="abacus"))
    assert not (tmp_path / "run").exists()


def test_missing_data_leaves_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder"):
        ca.fit(tmp_path / "nowhere", "lenet1", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["convnext_tiny", "resnet18", "convnet1989", "densenet121"])
def test_only_weights_are_decayed(name: str) -> None:
    """Biases and the parameters of norms are not, whatever their shape."""
    network = tiny(name).build(classes=3, channels=1 if name == "convnet1989" else 3)
    names = {id(parameter): path for path, parameter in network.named_parameters()}
    decayed, others = build_optimizer(RECIPES["default"], network).param_groups
    assert all(path.endswith("weight") for path in (names[id(p)] for p in decayed["params"]))
    left = {names[id(p)].rpartition(".")[2] for p in others["params"] if p.ndim != 1}
    assert left <= {"bias"}


def test_dropout_of_wide_resnets_is_before_the_second_convolution() -> None:
    spec = replace(tiny("wrn28_10"), dropout=0.3)  # type: ignore[type-var]
    block = spec.build(classes=3, channels=3).get_submodule("stages.0.0")
    names = [name.rpartition(".")[2] for name, layer in block.named_modules() if not list(layer.children())]
    assert names[names.index("conv1") : names.index("conv1") + 5] == ["conv1", "norm", "act", "drop", "conv"]


FEATURES: dict[str, list[Any]] = {
    "optimizer": ["sgd", "adamw", "rmsprop"], "schedule": ["constant", "cosine", "onecycle", "wsd"],
    "micro_batch": [0, 40], "grad_clip": [0.0, 0.5], "label_smoothing": [0.0, 0.1],
    "class_weight_power": [0.0, 1.0], "ema_decay": [0.0, 0.9], "head_epochs": [0, 1], "layer_decay": [1.0, 0.7],
    "freeze_bn_stats": [False, True], "shuffle": [True, False],
    "min_crop_area": [0.0, 0.4], "flip": [False, True], "max_shift": [0, 2], "policy": ["none", "trivial", "rand"],
    "jitter": [0.0, 0.3], "random_erasing": [0.0, 0.5], "mixup": [0.0, 0.4], "cutmix": [0.0, 1.0],
    "dropout": [0.0, 0.3], "drop_path": [0.0, 0.2],
}  # fmt: skip


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in FEATURES.items()}),
    kill=st.integers(1, 34), every=st.integers(1, 6), seed=st.integers(0, 99),
)  # fmt: skip
def test_runs_with_any_features_interrupted_anywhere_equal_uninterrupted_ones(
    chosen: dict[str, Any], kill: int, every: int, seed: int, tmp_path: Path
) -> None:
    spec = CATALOG["cifar_resnet20"].spec.scaled(width=0.25, depth=0.3, resolution=16)
    folders = [tmp_path / f"{name}{next(COUNTER)}" for name in ("whole", "interrupted")]
    how: dict[str, Any] = {
        "recipe": "default", "epochs": 2, "lr": 0.01, **chosen, "seed": seed,
        "execution": ExecutionOptions(threads=1, device="cpu"),
        "options": RunOptions(checkpoint_steps=every, checkpoint_seconds=1e6),
    }  # fmt: skip
    ca.fit("digits", spec, out=folders[0], **how)
    steps = prepare_run("digits", spec, out=folders[1], **how).steps()
    for _ in range(kill):  # steps after the last checkpoint are lost, as when the process is killed
        next(steps)
    del steps
    gc.collect()
    ca.resume(folders[1])
    assert same_run(*folders)


COUNTER = itertools.count()
