"""A run directory whose files were changed is refused in one line that names the file and the field."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from convatlas.errors import ConvatlasError, ModelFileError, RunError
from convatlas.train.checkpoint import SEAL
from convatlas.train.fit import prepare_run
from convatlas.train.recipe import Recipe
from convatlas.train.resume import open_run
from convatlas.train.settings import ExecutionOptions, RunOptions
from convatlas.train.state import Epoch


@pytest.fixture(scope="module")
def interrupted(rows_of_two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was interrupted in its second epoch of two steps."""
    folder = tmp_path_factory.mktemp("run") / "run"
    recipe = Recipe(epochs=3, batch=10, lr=0.01, optimizer="adamw", ema_decay=0.9)
    how: dict[str, Any] = {"recipe": recipe, "execution": ExecutionOptions(device="cpu", threads=1)}
    run = prepare_run(rows_of_two, "lenet1", out=folder, options=RunOptions(checkpoint_steps=1), **how)
    steps = run.steps()
    while not (isinstance(event := next(steps), Epoch)):
        pass
    next(steps)
    next(steps)  # the checkpoint of a step is written when the next one begins
    steps.close()  # type: ignore[attr-defined]
    assert event.number == 1
    assert open_run(folder).state.step == 3
    return folder


@pytest.fixture
def folder(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def seal(path: Path, whole: Any) -> None:
    """Write a checkpoint with a correct digest."""
    buffer = io.BytesIO()
    torch.save(whole, buffer)
    path.write_bytes(buffer.getvalue() + SEAL + hashlib.sha256(buffer.getvalue()).hexdigest().encode())


def test_a_sealed_checkpoint_is_accepted(folder: Path) -> None:
    path = folder / "checkpoint.pt"
    seal(path, torch.load(path, weights_only=True))
    assert open_run(folder).state.step == 3


@pytest.mark.parametrize("file", ["checkpoint.pt", "model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0])
def test_one_wrong_bit_is_noticed(folder: Path, file: str, share: float) -> None:
    path = folder / file
    data = bytearray(path.read_bytes())
    data[int(share * (len(data) - 1))] ^= 16
    path.write_bytes(data)
    with pytest.raises(ConvatlasError, match=rf"{file}: "):
        open_run(folder)


def test_a_missing_model_file_is_noticed_before_training(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"model\.safetensors: no such model file"):
        open_run(folder)


def test_the_checkpoint_of_weights_must_be_there(folder: Path) -> None:
    (folder / "checkpoint.pt").unlink()
    assert open_run(folder).state.step == 0
    config = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(config | {"weights": "some.safetensors"}))
    with pytest.raises(RunError, match=r"checkpoint\.pt: is missing, and with it the weights"):
        open_run(folder)


def changed(whole: Any, path: str, value: Any) -> Any:
    """Return nested data with a value at a path such as "state.step"; Ellipsis removes it."""
    *parents, last = path.split(".")
    inner = whole
    for parent in parents:
        inner = inner[int(parent) if parent.isdecimal() else parent]
    key = int(last) if last.isdecimal() else last
    if value is ...:
        del inner[key]
    else:
        inner[key] = value
    return whole


NAN = float("nan")

CHECKPOINTS: list[tuple[str, Any, str]] = [
    ("version", 2, "version must be <= 1"),
    ("version", "1", "version must be an integer"),
    ("network", ..., "missing or unknown: network"),
    ("extra", 1, "missing or unknown: extra"),
    ("network", None, "network must be a table of fields, got NoneType"),
    ("network", torch.zeros(2), r"network must be a table of fields, got a tensor \(2,\)"),
    ("network.x", torch.zeros(2), "network: the checkpoint is of another network; missing or unknown: x"),
    ("network.BIAS", torch.zeros(3), r"network.BIAS must be a tensor \(2,\) .*, got a tensor \(3,\)"),
    ("network.BIAS", torch.zeros(2).half(), "of torch.float32, got a tensor .* of torch.float16"),
    ("network.BIAS", [0.0, 0.0], "BIAS must be a tensor .*, got list"),
    ("ema", ..., "missing or unknown: ema"),
    ("ema.BIAS", 0, "ema.BIAS must be a tensor"),
    ("optimizer", None, "optimizer must be a table of fields, got NoneType"),
    ("optimizer.99", {}, r"optimizer\[99\]: there are \d+ parameters"),
    ("optimizer.0", 1, r"optimizer\[0\] must be a table of fields"),
    ("optimizer.0.exp_avg", ..., r"optimizer\[0\] must contain exp_avg, exp_avg_sq, step, got"),
    ("optimizer.0.exp_avg", torch.zeros(1), r"optimizer\[0\].exp_avg must be a tensor"),
    ("optimizer.0.step", -1, r"optimizer\[0\].step must be a tensor \(\) of torch.float32, got int"),
    ("state", [], r"state must be a table of fields, got list"),
    ("state.step", -1, "state: step must be an integer >= 0, got -1"),
    ("state.step", 1.5, "state: step must be an integer >= 0, got 1.5"),
    ("state.step", ..., "state: step is missing"),
    ("state.step", 0, "state: step must fit 1 of 3 epochs in history, of 2 steps each, got 0"),
    ("state.step", 5, "state: step must fit 1 of 3 epochs in history, of 2 steps each, got 5"),
    ("state.step", 10**30, "state: step must fit"),
    ("state.loss_sum", NAN, "state: loss_sum must be a number, got nan"),
    ("state.metric_sums", [1.0, 2.0], "state: metric_sums must have 1 numbers, got 2"),
    ("state.images", None, "state: images must be an integer"),
    ("state.history", [1], r"state: history\[0\] must be a table of fields"),
    ("state.history", "x", "state: history must be a list"),
    ("state.history", [], "best_epoch must be one of 0 epochs"),
    ("state.history.0.epoch", 7, r"history\[0\].epoch must be 1, got 7"),
    ("state.history.0.lr", "x", r"history\[0\].lr must be"),
    ("state.history.0.elapsed_s", ..., r"history\[0\] must have all columns, elapsed_s are missing"),
    ("state.best_epoch", 2, "best_epoch must be one of 1 epochs in history, got 2"),
    ("state.best_score", "x", "best_score must be a number or null, got 'x'"),
    ("state.best_score", None, "best_loss must be null without best_score"),
    ("state.finished", 1, "state: finished must be true or false"),
    ("state.unknown", 1, "state: unknown is not a field of State"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), CHECKPOINTS, ids=[f"{p}={v!r:.20}" for p, v, _ in CHECKPOINTS])
def test_a_changed_checkpoint_is_refused_by_field(folder: Path, path: str, value: Any, message: str) -> None:
    file = folder / "checkpoint.pt"
    whole = torch.load(file, weights_only=True)
    if "BIAS" in path:
        bias = [name for name in whole["network"] if name.endswith("bias")][-1]
        whole[path.split(".")[0]][bias] = value
        message = message.replace("BIAS", bias)
    else:
        changed(whole, path, value)
    seal(file, whole)
    with pytest.raises(RunError, match=rf"checkpoint\.pt: .*{message}"):
        open_run(folder)


@pytest.mark.parametrize("whole", [torch.zeros(3), None, [1], "x", 5], ids=repr)
def test_a_checkpoint_of_another_structure_is_refused(folder: Path, whole: Any) -> None:
    seal(folder / "checkpoint.pt", whole)
    with pytest.raises(RunError, match=r"checkpoint\.pt: checkpoint must be a table of fields"):
        open_run(folder)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


CONFIGS: list[tuple[str, Any, str]] = [
    ("seed", NAN, r"damaged \(numbers must be finite, got NaN\)"),
    ("recipe.lr", float("-inf"), r"damaged \(numbers must be finite, got -Infinity\)"),
    ("seed", ..., "seed is missing"),
    ("seed", True, "seed must be an integer"),
    ("recipe", 5, "recipe must be|recipe: must be"),
    ("recipe.epochs", -3, "epochs must be an integer >= 1, got -3"),
    ("recipe.batch", 0, "batch must be an integer >= 1, got 0"),
    ("recipe.augment", {}, "augment is not a field"),
    ("spec", None, "spec"),
    ("spec.type", "Unknown", "type must be the name of a known record type"),
    ("task.classes", ["a"], "task|classes"),
    ("task.classes", ["0", "2"], "task must be that of the data and the recipe"),
    ("versions", {"torch": 3}, "versions.torch must be a text"),
    ("versions", nested(400), "versions must be a table of fields"),
    ("options.checkpoint_seconds", -1, "checkpoint_seconds must be a number >= 0"),
    ("data_options.fold", [3, 2, 1], "fold must be a list of 2 items"),
    ("execution.memory_format", "auto", "memory_format must be one of"),
    ("preprocessing.mean", ["x"], r"mean\[0\] must be"),
    ("preprocessing.crop", 1, "preprocessing must give the network's 28 px"),
    ("preprocessing.resize", 2**31, "integers of preprocessing must be <= 1048576, got 2147483648"),
    ("spec.maps", [10**30, 4], r"integers of spec must be <= 1048576, got 10{30}"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), CONFIGS, ids=[f"{p}={v!r:.20}" for p, v, _ in CONFIGS])
def test_a_changed_config_is_refused_by_field(folder: Path, path: str, value: Any, message: str) -> None:
    file = folder / "run.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, value)))
    with pytest.raises(ConvatlasError, match=message):
        open_run(folder)


DAMAGES: list[Callable[[str], str]] = [
    lambda text: text[: len(text) // 2],
    lambda _: "[" * 100_000,
    lambda _: '{"seed":' * 50_000,
    lambda _: "[1]",
    lambda text: text.replace('"seed": 0', '"seed": ' + "9" * 5000),
    lambda _: "",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_config_is_one_line(folder: Path, damage: Callable[[str], str]) -> None:
    file = folder / "run.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(RunError, match=r"run\.json: ") as caught:
        open_run(folder)
    assert len(str(caught.value)) < 400
