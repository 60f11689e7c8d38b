"""The state of a training: what changes besides the weights and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from convatlas.core.record import Bounds, Record, at_least, between
from convatlas.errors import RunError, listed
from convatlas.tasks.result import Result
from convatlas.train.diagnostics import steps_of

FINITE = Bounds()

MIN_RANKED_IMAGES = 100
"""Number of val images from which epochs are compared by their score rather than by their loss."""


@dataclass(frozen=True)
class Epoch:
    """The metrics of an epoch.

    number: from 1 on. metrics: the task's training metrics, and the loss, if it has one, and epoch metrics of val, by
    name.
    skipped: number of non-finite steps. elapsed_s: seconds of training so far. best: whether it is the best so far.
    """

    number: int
    lr: float
    train_loss: float
    skipped: int
    elapsed_s: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: bool = False

    def describe(self) -> str:
        """Return the epoch in a few words, for a progress bar."""
        return f"epoch {self.number}, loss {self.train_loss:.4f}"

    def to_plain(self) -> dict[str, float]:
        """Return the epoch as a row of metrics.csv."""
        return {
            "epoch": self.number, "lr": self.lr, "train_loss": self.train_loss, "skipped": self.skipped,
            **self.metrics, "elapsed_s": self.elapsed_s, "best": int(self.best),
        }  # fmt: skip

    @classmethod
    def from_plain(cls, row: Mapping[str, float]) -> Epoch:
        """Read what `to_plain` returned."""
        metrics = {name: value for name, value in row.items() if name not in EPOCH_COLUMNS}
        return cls(
            int(row["epoch"]), row["lr"], row["train_loss"], int(row["skipped"]), row["elapsed_s"], metrics,
            bool(row["best"]),
        )  # fmt: skip


EPOCH_COLUMNS = ("epoch", "lr", "train_loss", "skipped", "elapsed_s", "best")
"""Columns of metrics.csv besides the metrics of the task."""


@dataclass
class State(Record):
    """What changes while training, besides weights and optimizer. It is validated when it is read from a checkpoint.

    step: the next step. loss_sum, metric_sums, images: sums over the epoch so far, without the `skipped` steps.
    consecutive_skips: number of non-finite steps up to the last one. ema_steps: number of updates of the EMA.
    history: one row of metrics.csv for each epoch. diagnostics: the lines of diagnostics.csv.
    best_epoch, best_score, best_loss: of the val split, so far; scores are None before the first epoch and without a
        val split; best_loss also for a task without a val loss.
    seconds: time spent in training steps. finished: whether both model files are complete.
    threads: number of CPU threads of the next step, if it is adapted to other processes; 0 for that of run.json.
    other_load: share of the cores that other processes used when the threads were measured.
    notes: what went wrong without an effect on the training: loggers, figures, the report.
    """

    error = RunError

    step: Annotated[int, at_least(0)] = 0
    loss_sum: Annotated[float, FINITE] = 0.0
    metric_sums: tuple[Annotated[float, FINITE], ...] = ()
    images: Annotated[int, at_least(0)] = 0
    skipped: Annotated[int, at_least(0)] = 0
    consecutive_skips: Annotated[int, at_least(0)] = 0
    ema_steps: Annotated[int, at_least(0)] = 0
    history: tuple[Mapping[str, int | float], ...] = ()  # counts stay integers in metrics.csv
    diagnostics: tuple[str, ...] = ()
    best_epoch: Annotated[int, at_least(0)] = 0
    best_score: float | None = None
    best_loss: Annotated[float, FINITE] | None = None
    seconds: Annotated[float, at_least(0)] = 0.0
    finished: bool = False
    threads: Annotated[int, at_least(0)] = 0
    other_load: Annotated[float, between(0, 1)] = 0.0
    notes: tuple[str, ...] = ()

    def check(self, where: object, steps_per_epoch: int, epochs: int, metrics: int) -> None:
        """Raise RunError that names `where` if fields contradict each other or the training.

        metrics: number of training metrics.
        """
        for number, row in enumerate(self.history, 1):
            missing = [column for column in EPOCH_COLUMNS if column not in row]
            if missing:
                raise RunError(f"{where}: history[{number - 1}] must have all columns, {listed(missing)} are missing")
            if row["epoch"] != number:
                raise RunError(f"{where}: history[{number - 1}].epoch must be {number}, got {row['epoch']}")
        try:
            steps_of(self.diagnostics)
        except ValueError as error:
            raise RunError(f"{where}: diagnostics must be lines of diagnostics.csv: {error}") from error
        done = len(self.history)
        if self.best_epoch > done or (done and not self.best_epoch):
            raise RunError(f"{where}: best_epoch must be one of {done} epochs in history, got {self.best_epoch}")
        if self.metric_sums and len(self.metric_sums) != metrics:
            raise RunError(f"{where}: metric_sums must have {metrics} numbers, got {len(self.metric_sums)}")
        if self.best_score is None and self.best_loss is not None:
            raise RunError(f"{where}: best_loss must be null without best_score, got {self.best_loss}")
        if self.finished and not done:
            raise RunError(f"{where}: finished must be false before the end of the first epoch")
        # between the last step of an epoch and its evaluation, the epoch is not in the history yet
        if not 0 <= self.step - done * steps_per_epoch <= steps_per_epoch or self.step > epochs * steps_per_epoch:
            raise RunError(
                f"{where}: step must fit {done} of {epochs} epochs in history, of {steps_per_epoch} steps each, got "
                f"{self.step}"
            )

    @property
    def epochs_begun(self) -> int:
        """Number of epochs of which at least one step is done."""
        return len(self.history) + bool(self.images or self.skipped)

    def is_best(self, result: Result) -> bool:
        """Return whether a result on val is better than that of the best epoch so far.

        The score decides, then the loss. On fewer images than `MIN_RANKED_IMAGES`, one of which is worth more than a
        percentage point, the loss decides. Without a loss, the score decides alone; while it is 0, later epochs are
        better, because a network learns before its average precision is above 0.
        """
        if self.best_score is None:
            return True
        if result.loss is None or self.best_loss is None:
            return result.score > self.best_score or result.score == self.best_score == 0
        if result.n < MIN_RANKED_IMAGES:
            return result.loss < self.best_loss
        return (result.score, -result.loss) > (self.best_score, -self.best_loss)

    def start_epoch(self) -> None:
        """Set the sums over the epoch to zero."""
        self.loss_sum, self.metric_sums, self.images, self.skipped = 0.0, (), 0, 0

    def note(self, text: str) -> None:
        """Record something that went wrong without an effect on the training."""
        if text not in self.notes:
            self.notes = (*self.notes, text)
