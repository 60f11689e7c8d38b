"""Experiment loggers: TensorBoard, Weights & Biases, MLflow. All are optional."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from convatlas.errors import RunError, brief, foreign_errors, printable
from convatlas.system.download import offline
from convatlas.system.extras import import_optional
from convatlas.tasks.result import Result

LoggerName = Literal["tensorboard", "wandb", "mlflow"]

LOG_EVERY_STEPS = 20
"""Interval, in steps, at which loss and learning rate are logged."""

LogMetrics = Callable[[Mapping[str, float], int], None]
"""(metrics by name, step) -> None."""

Logger = tuple[LogMetrics, Callable[[], None]]
"""A function that logs metrics, and one that closes the logger."""


@dataclass(frozen=True)
class RunIdentity:
    """The properties of a run that loggers use; their texts are printable.

    run_id: the same for a resumed run. config: as written to run.json. start_step: steps before it are logged already.
    """

    folder: Path
    run_id: str
    config: Mapping[str, Any]
    start_step: int


def _tensorboard(run: RunIdentity) -> Logger:
    import_optional("tensorboard", "tensorboard", where="log", error=RunError)
    from torch.utils.tensorboard import SummaryWriter

    # steps that an interrupted run logged after its last checkpoint are logged again
    writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.start_step)

    def log(metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def _wandb(run: RunIdentity) -> Logger:
    wandb = import_optional("wandb", "wandb", where="log", error=RunError)
    session = wandb.init(
        project="convatlas", name=printable(run.folder.name), id=run.run_id, resume="allow", dir=str(run.folder),
        config=dict(run.config), mode="offline" if offline() else None,
    )  # fmt: skip
    return lambda metrics, step: session.log(dict(metrics), step=step), session.finish


def _mlflow(run: RunIdentity) -> Logger:
    mlflow = import_optional("mlflow", "mlflow", where="log", error=RunError)
    mlflow.set_experiment("convatlas")
    mlflow.start_run(run_name=printable(run.folder.name))
    mlflow.log_params({**run.config["recipe"], "model": run.config["model"], "data": run.config["data"]})
    return lambda metrics, step: mlflow.log_metrics(dict(metrics), step=step), mlflow.end_run


LOGGERS: dict[str, Callable[[RunIdentity], Logger]] = {
    "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow,
}  # fmt: skip


def check_loggers(names: Iterable[LoggerName]) -> None:
    """Raise RunError for a logger whose library is not installed."""
    for name in names:
        import_optional(name, name, where="log", error=RunError)


def _printable(value: Any) -> Any:
    """Return plain data with texts that every service accepts: names of files and classes may not be UTF-8."""
    if isinstance(value, Mapping):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value


class Log:
    """The open loggers of a run. One that fails while the run trains is noted and closed; the training continues."""

    def __init__(self, run: RunIdentity, names: tuple[str, ...], note: Callable[[str], None]) -> None:
        """Open the loggers; raises RunError if one cannot start. note: called with a line about one that fails."""
        run = replace(run, config=_printable(run.config))
        self._note = note
        self._loggers: dict[str, Logger] = {}
        for name in names:
            with foreign_errors(f"log: {name}", RunError, "cannot be started"):
                self._loggers[name] = LOGGERS[name](run)

    def step(self, number: int, loss: float, lr: float) -> None:
        """Log a step; only every 20th is written."""
        if number % LOG_EVERY_STEPS == 0:
            self._log({"step/loss": loss, "step/lr": lr}, number)

    def epoch(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of an epoch, at its last step."""
        self._log({f"epoch/{name}": value for name, value in metrics.items() if name != "epoch"}, step)

    def close(self, results: Mapping[str, Result], step: int) -> None:
        """Log the metrics of a finished run, if there are any, and close the loggers."""
        for split, result in results.items():
            self._log({f"{split}/{name}": value for name, value in result.summary().items()}, step)
        for name, (_, close) in list(self._loggers.items()):
            self._guarded(name, close)

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, (log, _) in list(self._loggers.items()):
            self._guarded(name, partial(log, metrics, step))

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        """Call a logger; one that raises is not used any more."""
        try:
            call()
        except Exception as error:  # whatever a service raises, such as a lost connection
            self._loggers.pop(name)
            self._note(f"log: {name} failed and is not used any more ({type(error).__name__}: {brief(error)})")
