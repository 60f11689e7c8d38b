"""The task protocol, proven by a third task: one number for each image. Nothing outside of this file knows it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import convatlas as ca
from commands import Command
from convatlas.errors import DataError
from convatlas.tasks.prediction import Prediction
from convatlas.tasks.registry import TASKS, register
from convatlas.tasks.result import Result
from convatlas.tasks.table import Column, MetricTable
from convatlas.tasks.targets import Targets
from convatlas.tasks.task import Calibration, Criterion, SplitTargets, TableRows, Task
from convatlas.train.fit import prepare_run
from convatlas.train.resume import open_run
from convatlas.train.run import Run
from convatlas.train.state import Epoch
from convatlas.weights.modelfile import read_model_file


@dataclass(frozen=True, repr=False)
class ValuePrediction(Prediction):
    value: float = 0.0

    @property
    def text(self) -> str:
        return "" if self.error else f"{self.value:.3f}"

    def to_plain(self) -> dict[str, Any]:
        return super().to_plain() | {"value": None if self.error else self.value}


@dataclass(frozen=True, repr=False)
class RegressionResult(Result):
    predicted: Tensor
    target: Tensor
    loss: float

    headline = "mae"
    headline_name = "mean absolute error"

    @property
    def n(self) -> int:
        return len(self.target)

    @property
    def value(self) -> float:
        return float((self.predicted - self.target).abs().mean())

    @property
    def value_text(self) -> str:
        return f"{self.value:.4f}"

    @property
    def score(self) -> float:
        return -self.value

    def summary(self) -> dict[str, float | int]:
        return {"n": self.n, "mae": self.value, "loss": self.loss}

    def text(self) -> str:
        return f"mean absolute error {self.value_text} over {self.n} images"

    def table(self) -> MetricTable:
        columns = (Column("output", "output"), Column("n", "images"), Column("mae", "MAE", ".4f"))
        return MetricTable(columns, (("value", self.n, self.value),))

    def worst(self, limit: int) -> list[tuple[int, str, str]]:
        order = (self.predicted - self.target).abs().flatten().argsort(descending=True)[:limit].tolist()
        return [(i, f"{float(self.predicted[i]):.3f}", f"{float(self.target[i]):.3f}") for i in order]


@dataclass(frozen=True)
class Regression(Task):
    """One number for each image. Targets: value (n, 1) float32."""

    name = "regression"
    short_name = "regress"
    losses = ("squared", "absolute")
    progress_columns = (Column("train_mae", "train MAE", ".4f"), Column("val_mae", "val MAE", ".4f"))

    @classmethod
    def label_columns(cls, columns: Sequence[str], reserved: Sequence[str]) -> tuple[str, ...] | None:
        return ("value",) if "value" in columns else None

    @classmethod
    def from_table(
        cls, where: object, columns: Sequence[str], splits: Mapping[str, TableRows]
    ) -> tuple[Self, SplitTargets]:
        (column,) = columns
        values: dict[str, list[float]] = {split: [] for split in splits}
        for split, rows in splits.items():
            for row in rows:
                try:
                    values[split].append(float(row.cells[column]))
                except ValueError:
                    raise DataError(f"{where}: line {row.line}: value must be a number") from None
        targets = {split: Targets(value=torch.tensor(numbers)[:, None]) for split, numbers in values.items()}
        return cls(("value",)), targets

    def mix(self, first: Targets, second: Targets, weight: Tensor) -> Targets:
        return Targets(value=torch.lerp(second.tensor("value"), first.tensor("value"), weight[:, None]))

    def labels(self, targets: Targets) -> Tensor:
        return targets.tensor("value")

    def criterion(self, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> Criterion:
        return F.mse_loss if self.loss_name == "squared" else F.l1_loss

    def train_metric(self, outputs: Tensor, targets: Targets) -> Tensor:
        return (outputs - targets.tensor("value")).abs().mean(1)

    def decode(self, outputs: Tensor, calibration: Calibration) -> Tensor:
        return outputs * 1.0

    def evaluate(self, outputs: Tensor, targets: Targets, calibration: Calibration | None = None) -> RegressionResult:
        value = targets.tensor("value")
        return RegressionResult(outputs, value, float(F.mse_loss(outputs, value)))

    def predict(
        self, source: str, decoded: Tensor, calibration: Calibration, threshold: float | None = None
    ) -> ValuePrediction:
        return ValuePrediction(source, value=float(decoded[0]))

    def unreadable(self, source: str, error: str) -> ValuePrediction:
        return ValuePrediction(source, error)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    register(Regression)
    yield
    del TASKS["Regression"]


@pytest.fixture(scope="module")
def brightness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of gray images, whose value is their brightness."""
    folder = tmp_path_factory.mktemp("brightness")
    random = np.random.default_rng(0)
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "value", "split"])
        for i in range(60):
            value = random.uniform()
            pixels = np.clip(random.normal(255 * value, 8, (16, 16)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", f"{value:.4f}", "train" if i < 40 else "val" if i < 50 else "test"])
    return folder / "images.csv"


HOW: dict[str, Any] = {
    "recipe": ca.Recipe(epochs=12, batch=8, optimizer="adamw", lr=0.003, augment=ca.Augment(flip=True, mixup=0.2)),
    "data_options": ca.DataOptions(resolution=16),
    "execution": ca.ExecutionOptions(memory_format="channels_last", precision="float32"),
    "progress": False,
}


@pytest.fixture(scope="module")
def run(brightness: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return ca.fit(brightness, "cifar_resnet20", out=tmp_path_factory.mktemp("runs") / "run", **HOW)


def test_a_number_is_learned(run: Run) -> None:
    assert isinstance(run.task, Regression)
    assert run.task.loss_name == "squared"
    result = run.results["test"]
    assert isinstance(result, RegressionResult)
    assert result.value < 0.15  # uniform values are 0.25 away from their mean
    assert [set(epoch.metrics) for epoch in run.history] == [{"train_mae", "val_loss", "val_mae"}] * 12
    best = min(run.history, key=lambda epoch: (epoch.metrics["val_mae"], epoch.metrics["val_loss"]))
    assert run.state.best_epoch == best.number


def test_another_loss_of_the_task(brightness: Path, tmp_path: Path) -> None:
    run = ca.fit(brightness, "lenet5_modern", loss="absolute", epochs=1, out=tmp_path / "run",
                 data_options=ca.DataOptions(channels=1), progress=False)  # fmt: skip
    assert run.task.loss == "absolute"
    with pytest.raises(ca.ConvatlasError, match="loss must be one of squared, absolute for regression, got 'focal'"):
        ca.fit(brightness, "lenet5_modern", loss="focal", out=tmp_path / "other", progress=False)


def test_an_interrupted_run_is_resumed_to_the_last_bit(run: Run, brightness: Path, tmp_path: Path) -> None:
    how = {name: value for name, value in HOW.items() if name != "progress"}
    options = ca.RunOptions(checkpoint_steps=1)
    part = prepare_run(brightness, "cifar_resnet20", out=tmp_path / "run", options=options, **how)
    for event in part.steps():
        if not isinstance(event, Epoch) and event.number == 17:
            break
    resumed = ca.resume(tmp_path / "run", progress=False)
    for name, tensor in run.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def test_the_model_file_knows_the_task(run: Run) -> None:
    _, header = read_model_file(run.model_file)
    assert header.task == run.task
    assert header.metrics["test"]["mae"] == run.results["test"].value


def test_predict_and_evaluate(run: Run, brightness: Path, tmp_path: Path) -> None:
    model = ca.load(run.model_file)
    evaluation = model.evaluate(brightness)
    assert evaluation.split == "test"
    assert evaluation.result.value == pytest.approx(run.results["test"].value, abs=1e-5)
    (tmp_path / "text.png").write_text("no image")
    good, bad = model.predict([brightness.parent / "59.png", tmp_path / "text.png"], tta="flip")
    assert isinstance(good, ValuePrediction)
    assert good.to_plain() == {"source": str(brightness.parent / "59.png"), "error": None, "value": good.value}
    assert bad.error
    assert bad.to_plain() == {"source": str(tmp_path / "text.png"), "error": bad.error, "value": None}


def test_commands(run: Run, brightness: Path, convatlas: Command) -> None:
    image = brightness.parent / "59.png"
    line = json.loads(convatlas("predict", run.model_file, image, "--json").out)
    assert set(line) == {"source", "error", "value"}
    (row,) = csv.DictReader(io.StringIO(convatlas("predict", run.model_file, image, "--csv").out))
    assert (row["source"], row["error"], float(row["value"])) == (str(image), "", line["value"])
    assert f"{line['value']:.3f}" in convatlas("predict", run.model_file, image).out
    shown = convatlas("evaluate", run.model_file, brightness).out
    assert f"mean absolute error {run.results['test'].value:.3f}"[:24] in shown
    assert json.loads(convatlas("evaluate", run.model_file, brightness, "--json").out)["mae"] > 0


def test_the_report(run: Run) -> None:
    page = run.report_file.read_text()
    assert "mean absolute error" in page
    assert "<h2>Learning curves</h2>" in page
    assert "<h2>Most confident errors</h2>" in page


def test_other_data_is_refused(run: Run, images: Path) -> None:
    with pytest.raises(DataError, match="the data is for classification, the model was trained for regression"):
        ca.load(run.model_file).evaluate(images)


def test_open_run(run: Run) -> None:
    assert open_run(run.folder).task == run.task
