"""A run that is killed and resumed is the run that never was."""

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
from convatlas.errors import DataError, RunError
from convatlas.models.catalog import CATALOG
from convatlas.train import run_folder
from convatlas.train.fit import reopen, start
from convatlas.train.loop import Step
from convatlas.train.recipe import RECIPES
from convatlas.train.settings import Settings
from tiny_networks import tiny

SETTINGS = Settings(threads=1, checkpoint_steps=4)
STEPS = 2 * 18  # 2 epochs of 1,150 images in batches of 64
SYNCS = 18  # files that such a run writes, roughly

CHILD = """
import os, signal, sys
from convatlas.train.recipe import RECIPES
from convatlas.data.dataset import Dataset
from convatlas.train.settings import Settings
from convatlas.train.loop import Step
from convatlas.train.run import fit

folder, where, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
model, changes = sys.argv[4], eval(sys.argv[5])
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
recipe = RECIPES["default"].replaced(changes)
settings = Settings(threads=1, checkpoint_steps=4)
fit("digits", model, recipe=recipe, seed=3, out=folder, settings=settings, watch=kill_at_step)
"""

PLANS = {
    "modern": ("lenet5_modern", {"epochs": 2}),
    "adamw": ("lenet5", {"epochs": 2, "optimizer": "adamw", "lr": 0.001, "loss": "map", "weight_decay": 0.01}),
    "all": ("lenet5_modern", {
        "epochs": 2, "micro_batch": 48, "ema_decay": 0.99, "grad_clip": 1.0, "label_smoothing": 0.1, "class_weight_power": 0.5, "head_epochs": 1,
        "layer_decay": 0.8, "min_crop_area": 0.5, "flip": True, "policy": "trivial", "jitter": 0.2, "random_erasing": 0.2, "mixup": 0.2,
        "cutmix": 1.0,
    }),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The uninterrupted runs."""
    folders = {}
    for name, (model, changes) in PLANS.items():
        folders[name] = tmp_path_factory.mktemp(name) / "run"
        recipe = RECIPES["default"].replaced(changes)
        ca.fit("digits", model, recipe=recipe, seed=3, out=folders[name], settings=SETTINGS)
    return folders


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / run_folder.METRICS).open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def same_run(a: Path, b: Path) -> bool:
    for file in (run_folder.MODEL, run_folder.LAST):
        left, right = load_file(a / file), load_file(b / file)
        if left.keys() != right.keys() or not all(torch.equal(left[name], right[name]) for name in left):
            return False
    return metrics(a) == metrics(b)


def kill_and_resume(folder: Path, plan: str, where: str, number: int) -> None:
    model, changes = PLANS[plan]
    arguments = [str(folder), where, str(number), model, repr(changes)]
    child = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert ca.resume(folder).state.finished


@pytest.mark.parametrize(
    ("plan", "where", "number"),
    [
        ("modern", "step", 17),
        ("modern", "step", STEPS - 1),
        ("modern", "file", 9),
        ("adamw", "step", 30),
        ("all", "step", 10),
        ("all", "step", 25),
    ],
)
def test_killed_and_resumed_equals_never_stopped(
    whole: dict[str, Path], tmp_path: Path, plan: str, where: str, number: int
) -> None:
    kill_and_resume(tmp_path / "run", plan, where, number)
    assert same_run(tmp_path / "run", whole[plan])
    assert not list((tmp_path / "run").glob(".*part")), "a killed write left its temporary file behind"


@pytest.mark.slow
@pytest.mark.parametrize("point", range(30))
def test_thirty_random_kill_points_are_bit_equal(whole: dict[str, Path], tmp_path: Path, point: int) -> None:
    chosen = random.Random(point)
    plan = chosen.choice(list(PLANS))
    where, number = chosen.choice([("step", chosen.randrange(STEPS)), ("file", chosen.randint(2, SYNCS))])
    kill_and_resume(tmp_path / "run", plan, where, number)
    assert same_run(tmp_path / "run", whole[plan])


def test_stopping_after_every_step_changes_nothing(whole: dict[str, Path], tmp_path: Path) -> None:
    """The process lives on, but every step is taken by a run that was opened anew from its checkpoint."""
    model, changes = PLANS["modern"]
    folder = tmp_path / "run"
    current = start(
        "digits",
        model,
        recipe=RECIPES["default"].replaced(changes),
        seed=3,
        out=folder,
        settings=Settings(threads=1, checkpoint_steps=1),
    )
    opened = 0
    while not current.state.finished:
        steps = current.steps()
        for _, _event in zip(range(5), steps, strict=False):
            pass
        steps.close()
        current = reopen(folder)
        opened += 1
    assert opened > 8
    assert same_run(folder, whole["modern"])


def test_seed_decides_the_result(whole: dict[str, Path], tmp_path: Path) -> None:
    model, changes = PLANS["modern"]
    recipe = RECIPES["default"].replaced(changes)
    ca.fit("digits", model, recipe=recipe, seed=3, out=tmp_path / "same", settings=SETTINGS)
    ca.fit("digits", model, recipe=recipe, seed=4, out=tmp_path / "other", settings=SETTINGS)
    assert same_run(tmp_path / "same", whole["modern"])
    assert not same_run(tmp_path / "other", whole["modern"])


def test_where_checkpoints_are_written_does_not_matter(whole: dict[str, Path], tmp_path: Path) -> None:
    model, changes = PLANS["modern"]
    often = Settings(threads=1, checkpoint_seconds=0.0)
    ca.fit("digits", model, recipe=RECIPES["default"].replaced(changes), seed=3, out=tmp_path / "run", settings=often)
    assert same_run(tmp_path / "run", whole["modern"])


def test_the_sealed_file_tells_how_it_came_about(whole: dict[str, Path]) -> None:
    model = ca.load(whole["modern"] / run_folder.MODEL)
    training = model.header.training
    assert training["seed"] == 3
    assert training["recipe"]["epochs"] == 2
    assert training["fingerprint"] == json.loads((whole["modern"] / run_folder.CONFIG).read_text())["fingerprint"]
    assert training["versions"]["torch"] == torch.__version__
    assert model.header.metrics["test"]["images"] == 359
    assert model.evaluate("digits")[1].accuracy == model.header.metrics["test"]["accuracy"]
    assert model.evaluate("digits", split="val")[1].accuracy == model.header.metrics["val"]["accuracy"]


def test_without_a_val_split_the_last_epoch_is_taken(tmp_path: Path) -> None:
    settings = Settings(threads=1, val_share=0)
    finished = ca.fit(
        "digits", "lenet1", recipe=RECIPES["lecun1998"].replaced({"epochs": 2}), out=tmp_path / "run", settings=settings
    )
    assert finished.dataset.val is None
    assert len(finished.dataset.train) == 1438
    assert set(finished.results) == {"test"}
    best, last = load_file(finished.model_file), load_file(tmp_path / "run" / run_folder.LAST)
    assert all(torch.equal(best[name], last[name]) for name in best)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_layer(tmp_path: Path) -> None:
    recipe = RECIPES["default"].replaced({"lr": 1e6, "schedule": "constant", "epochs": 1})
    current = start("digits", "lenet5_modern", recipe=recipe, out=tmp_path / "run", settings=SETTINGS)
    with pytest.raises(RunError, match=r"10 steps up to step \d+ \(epoch 1\) were not finite, first in the .*"):
        list(current.steps())
    assert not (tmp_path / "run" / run_folder.MODEL).exists()


def test_checkpoints_load_without_running_code(whole: dict[str, Path]) -> None:
    checkpoint = torch.load(whole["modern"] / run_folder.CHECKPOINT, weights_only=True)
    assert checkpoint["state"]["finished"]


def test_every_event_is_yielded_in_order(tmp_path: Path) -> None:
    events: list[Step | dict[str, float]] = []
    recipe = RECIPES["default"].replaced({"epochs": 2})
    ca.fit("digits", "lenet5_modern", recipe=recipe, out=tmp_path / "run", settings=SETTINGS, watch=events.append)
    steps = [event.number for event in events if isinstance(event, Step)]
    assert steps == list(range(STEPS))
    assert [event["epoch"] for event in events if isinstance(event, dict)] == [1, 2]


def test_resume_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a run"):
        ca.resume(tmp_path)


def test_a_resumed_run_tells_which_versions_changed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start("digits", "lenet1", recipe=RECIPES["lecun1998"], out=folder, settings=SETTINGS)
    assert reopen(folder).changed_versions == {}
    config = json.loads((folder / run_folder.CONFIG).read_text())
    config["versions"]["torch"] = "1.0"
    (folder / run_folder.CONFIG).write_text(json.dumps(config))
    assert reopen(folder).changed_versions == {"torch": ("1.0", torch.__version__)}


def test_two_processes_do_not_train_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = start("digits", "lenet1", recipe=RECIPES["lecun1998"], out=folder, settings=SETTINGS)
    steps = first.steps()
    next(steps)
    with pytest.raises(RunError, match="another process is training this run"):
        next(reopen(folder).steps())
    steps.close()
    next(reopen(folder).steps())


def test_a_run_that_is_stopped_early_can_be_finished(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    current = start("digits", "lenet1", recipe=RECIPES["lecun1998"], out=folder, settings=SETTINGS)
    with pytest.raises(RunError, match="before the end of the first epoch"):
        current.finish()
    for event in current.steps():
        if isinstance(event, dict):
            break
    current.finish()
    assert current.results["test"].summary() == ca.load(current.model_file).header.metrics["test"]


def test_an_epoch_whose_end_was_not_reached_is_ended_first(tmp_path: Path) -> None:
    recipe = RECIPES["default"].replaced({"epochs": 1})
    current = start("digits", "lenet1", recipe=recipe, out=tmp_path / "run", settings=SETTINGS)
    for event in current.steps():
        if isinstance(event, Step) and event.number == STEPS // 2 - 1:
            break
    assert [event["epoch"] for event in current.steps() if isinstance(event, dict)] == [1]
    assert current.state.finished


def test_a_spec_can_be_fitted(tmp_path: Path) -> None:
    spec = ca.spec("lenet5_modern").scaled(width=0.5)
    recipe = RECIPES["default"].replaced({"epochs": 1})
    finished = ca.fit("digits", spec, recipe=recipe, out=tmp_path / "run", settings=SETTINGS)
    assert ca.load(finished.model_file).header.spec == spec


@pytest.mark.parametrize("kind", ["capsules", "auxiliary heads", "boosted", "small stem"])
def test_networks_with_parts_for_training_alone_resume_and_seal(kind: str, tmp_path: Path) -> None:
    specs: dict[str, Spec] = {
        "capsules": replace(ca.spec("capsnet_reduced"), conv=8, types=2, decoder=(8, 8)),  # type: ignore[type-var]
        "auxiliary heads": replace(ca.spec("googlenet").scaled(width=0.1, resolution=32), auxiliary=True),  # type: ignore[type-var]
        "boosted": ca.spec("boosted_cifar_resnet20").scaled(width=0.5, depth=0.3),
        "small stem": ca.spec("resnet18").scaled(width=0.1, depth=0.5),
    }
    recipe = RECIPES["sabour2017" if kind == "capsules" else "default"].replaced({"epochs": 1, "batch": 128})
    settings = Settings(threads=1, checkpoint_steps=4, stem="small" if kind == "small stem" else "own")
    folders = [tmp_path / name for name in ("whole", "stopped")]
    ca.fit("digits", specs[kind], recipe=recipe, out=folders[0], settings=settings)
    stopped = start("digits", specs[kind], recipe=recipe, out=folders[1], settings=settings)
    for event in stopped.steps():
        if isinstance(event, Step) and event.number == 6:
            break
    ca.resume(folders[1])
    assert same_run(*folders)
    answer = ca.load(folders[0] / run_folder.MODEL).predict(torch.zeros(1, 32, 32, dtype=torch.uint8))
    assert len(answer[0].probabilities) == 10


def test_clips_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="r3d_18: reads clips"):
        ca.fit("digits", "r3d_18", out=tmp_path / "run", settings=SETTINGS)
    assert not (tmp_path / "run").exists()


def test_resume_refuses_changed_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES["default"].replaced({"epochs": 1})
    start("digits", "lenet1", recipe=recipe, out=tmp_path / "run", settings=SETTINGS)
    monkeypatch.setattr(Dataset, "fingerprint", lambda _: "other")
    with pytest.raises(RunError, match=r"digits: the data changed"):
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


def test_resume_refuses_a_damaged_config(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start("digits", "lenet1", recipe=RECIPES["lecun1998"], out=folder, settings=SETTINGS)
    (folder / run_folder.CONFIG).write_text("{")
    with pytest.raises(RunError, match=r"run\.json: damaged"):
        ca.resume(folder)


def test_an_unknown_device_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"device 'abacus'"):
        ca.fit("digits", "lenet1", out=tmp_path / "run", settings=Settings(device="abacus"))
    assert not (tmp_path / "run").exists()


def test_a_missing_folder_leaves_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder"):
        ca.fit(tmp_path / "nowhere", "lenet1", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["convnext_tiny", "resnet18", "convnet1989", "densenet121"])
def test_only_weights_decay(name: str) -> None:
    """Biases, gains and norms do not, whatever their shape."""
    network = tiny(name).build(classes=3, channels=1 if name == "convnet1989" else 3)
    names = {id(parameter): path for path, parameter in network.named_parameters()}
    decaying, others = RECIPES["default"].build_optimizer(network).param_groups
    assert all(path.endswith("weight") for path in (names[id(p)] for p in decaying["params"]))
    left = {names[id(p)].rpartition(".")[2] for p in others["params"] if p.ndim != 1}
    assert left <= {"bias"}


def test_dropout_of_wide_resnets_stands_before_the_second_convolution() -> None:
    spec = replace(tiny("wrn28_10"), dropout=0.3)
    block = spec.build(classes=3, channels=3).get_submodule("stages.0.0")
    names = [name.rpartition(".")[2] for name, layer in block.named_modules() if not list(layer.children())]
    assert names[names.index("conv1") : names.index("conv1") + 5] == ["conv1", "norm", "act", "drop", "conv"]


FEATURES = {
    "optimizer": ["sgd", "adamw", "rmsprop"], "schedule": ["constant", "cosine", "onecycle"], "micro_batch": [0, 40],
    "grad_clip": [0.0, 0.5], "label_smoothing": [0.0, 0.1], "class_weight_power": [0.0, 1.0], "ema_decay": [0.0, 0.9], "head_epochs": [0, 1],
    "layer_decay": [1.0, 0.7], "freeze_bn_stats": [False, True], "shuffle": [True, False], "min_crop_area": [0.0, 0.4],
    "flip": [False, True], "max_shift": [0, 2], "policy": ["none", "trivial", "rand"], "jitter": [0.0, 0.3],
    "random_erasing": [0.0, 0.5], "mixup": [0.0, 0.4], "cutmix": [0.0, 1.0], "dropout": [0.0, 0.3], "drop_path": [0.0, 0.2],
}  # fmt: skip


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in FEATURES.items()}),
    kill=st.integers(1, 34), every=st.integers(1, 6), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_features_stopped_anywhere_end_equal_to_the_bit(
    chosen: dict[str, Any], kill: int, every: int, seed: int, tmp_path: Path
) -> None:
    spec = CATALOG["cifar_resnet20"].spec.scaled(width=0.25, depth=0.3, resolution=16)
    recipe = RECIPES["default"].replaced({"epochs": 2, "lr": 0.01, **chosen})
    folders = [tmp_path / f"{name}{next(COUNTER)}" for name in ("whole", "stopped")]
    how = Settings(threads=1, checkpoint_steps=every, checkpoint_seconds=1e6, device="cpu")
    ca.fit("digits", spec, recipe=recipe, seed=seed, out=folders[0], settings=how)
    steps = start("digits", spec, recipe=recipe, seed=seed, out=folders[1], settings=how).steps()
    for _ in range(kill):  # what was not written is lost, as when the process is killed
        next(steps)
    del steps
    gc.collect()
    ca.resume(folders[1])
    assert same_run(*folders)


COUNTER = itertools.count()
