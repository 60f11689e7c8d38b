"""Where else the numbers of a run go: TensorBoard, Weights & Biases, MLflow; none of them is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from convatlas.errors import RunError
from convatlas.system.download import offline
from convatlas.train.loop import Step

if TYPE_CHECKING:
    from convatlas.train.run import Run

EVERY = 20
"""Every so many steps loss and learning rate are told."""

Tell = Callable[[Mapping[str, float], int], None]
"""Takes numbers by name, and the step they belong to."""


def _tensorboard(run: Run) -> tuple[Tell, Callable[[], None]]:
    _installed("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    # what a stopped run told after its last checkpoint is told again
    writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.state.step)

    def tell(numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return tell, writer.close


def _wandb(run: Run) -> tuple[Tell, Callable[[], None]]:
    wandb = _installed("wandb")
    session = wandb.init(
        project="convatlas", name=run.folder.name, id=run.identity, resume="allow", dir=str(run.folder),
        config=run.config.to_plain(), mode="offline" if offline() else None,
    )  # fmt: skip
    return lambda numbers, step: session.log(dict(numbers), step=step), session.finish


def _mlflow(run: Run) -> tuple[Tell, Callable[[], None]]:
    mlflow = _installed("mlflow")
    mlflow.set_experiment("convatlas")
    mlflow.start_run(run_name=run.folder.name)
    mlflow.log_params({**run.config.recipe.to_plain(), "model": run.config.model, "data": run.dataset.name})
    return lambda numbers, step: mlflow.log_metrics(dict(numbers), step=step), mlflow.end_run


def _installed(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise RunError(f"log: {name} is not installed; pip install {name}") from None


LOGGERS: dict[str, Callable[[Run], tuple[Tell, Callable[[], None]]]] = {
    "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow,
}  # fmt: skip


class Log:
    """The loggers of a run, opened; numbers of steps go by the number of the step, those of epochs by its last one."""

    def __init__(self, run: Run, names: tuple[str, ...]) -> None:
        self.run = run
        self.opened = [LOGGERS[name](run) for name in names]

    def tell(self, event: Step | Mapping[str, float]) -> None:
        """Take a step, of which every 20th is told, or the row of an epoch."""
        if isinstance(event, Step):
            if event.number % EVERY == 0 and not event.skipped:
                self._all({"step/loss": event.loss, "step/lr": event.lr}, event.number)
        else:
            named = {f"epoch/{name}": value for name, value in event.items() if name != "epoch"}
            self._all(named, self.run.state.step - 1)

    def close(self) -> None:
        """Tell what the finished run measured, if it is, and close."""
        for split, result in self.run.results.items():
            self._all({f"{split}/{name}": value for name, value in result.summary().items()}, self.run.state.step)
        for _, close in self.opened:
            close()

    def _all(self, numbers: Mapping[str, float], step: int) -> None:
        for tell, _ in self.opened:
            tell(numbers, step)
