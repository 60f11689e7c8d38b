"""Experiment loggers: TensorBoard, Weights & Biases and MLflow get the metrics of steps and epochs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import convatlas as ca
from convatlas.errors import RunError
from convatlas.train.recipe import Recipe
from convatlas.train.resume import open_run
from convatlas.train.run import Event
from convatlas.train.settings import RunOptions
from convatlas.train.step import Step


def test_tensorboard_has_the_metrics_of_steps_and_epochs(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = RunOptions(log=("tensorboard",), checkpoint_steps=1)
    recipe = Recipe(epochs=3, batch=16, lr=0.01)

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.number == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ca.fit(images, "lenet5_modern", recipe=recipe, out=tmp_path / "run", options=options, on_event=stop)
    run = ca.resume(tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("epoch/val_accuracy")]
    assert logged == [(3 * epoch.number - 1, pytest.approx(epoch.metrics["val_accuracy"])) for epoch in run.history]
    assert [event.step for event in events.Scalars("step/loss")] == [0]
    assert events.Scalars("val/accuracy")[0].value == pytest.approx(run.results["val"].score)


class Recorder:
    """Replaces the client library of a service; records calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*values: Any, **named: Any) -> Recorder:
            self.calls.append((name, named or values))
            if name in ("log", "log_metrics"):
                self.calls.append(("step", named["step"]))
            return self

        return call


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_services_get_the_same_metrics(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, name, recorder)  # type: ignore[arg-type]
    recipe = Recipe(epochs=2, batch=16, lr=0.01)
    run = ca.fit(images, "lenet5_modern", recipe=recipe, out=tmp_path / "run", options=RunOptions(log=(name,)))
    names = [call for call, _ in recorder.calls]
    assert names[-1] in ("finish", "end_run")
    assert {step for call, step in recorder.calls if call == "step"} == {0, 2, 5, 6}
    assert len(run.history) == 2


def test_an_unknown_or_missing_logger_is_refused(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"log\[0\] must be one of tensorboard, wandb, mlflow, got 'comet'"):
        RunOptions(log=("comet",))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RunError, match="log: wandb is not installed; pip install wandb"):
        ca.fit(images, "lenet5_modern", out=tmp_path / "run", options=RunOptions(log=("wandb",)))


class Broken(Recorder):
    """A service whose connection is lost at a call."""

    def __init__(self, call: str) -> None:
        super().__init__()
        self.broken = call

    def __getattr__(self, name: str) -> Any:
        return self.fail if name == self.broken else super().__getattr__(name)

    def fail(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("connection lost\nretry later")


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("call", ["log_metrics", "end_run"])
def test_a_service_that_fails_does_not_end_the_training(
    rows_of_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", Broken(call))  # type: ignore[arg-type]
    run = ca.fit(
        rows_of_two, "lenet1", recipe=Recipe(epochs=2, batch=16, lr=0.01), out=tmp_path / "run", progress=False,
        options=RunOptions(log=("mlflow",)),
    )  # fmt: skip
    assert run.state.finished
    assert open_run(tmp_path / "run").state.notes == run.state.notes
    assert run.state.notes == ("log: mlflow failed and is not used any more (ConnectionError: connection lost)",)


def test_a_service_that_cannot_start_is_one_line(
    rows_of_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", Broken("start_run"))  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"log: mlflow: cannot be started \(connection lost\)"):
        ca.fit(rows_of_two, "lenet1", out=tmp_path / "run", options=RunOptions(log=("mlflow",)), progress=False)
