"""Diagnostics of a training: once an epoch, one of its steps is measured, layer by layer.

The first step of a training is measured, and the step in the middle of every epoch. A step with measurements has the
same bits as one without. The measurements are part of the state of a training, so an interruption does not lose them;
diagnostics.csv has them, a row for each layer and step.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from convatlas.core.network import Network
from convatlas.errors import RunError
from convatlas.explanation.flow import LayerStatistics, MeasuredStep, Probe

Row = Mapping[str, Any]

STEP_COLUMNS = ("epoch", "step", "lr")
NUMBERS = (
    "activation_mean", "activation_std", "dead_share", "gradient_norm", "weight_norm", "update_ratio", "effective_rank",
    "max_rank",
)  # fmt: skip
DIAGNOSTICS_COLUMNS = (*STEP_COLUMNS, "path", "kind", *NUMBERS, "finite")
"""Columns of diagnostics.csv: those of `MeasuredStep`, then those of `LayerStatistics`."""

LAST_SKIPPED = 5
"""Number of non-finite steps in a row after which the next step is measured, too: soon training may stop."""


@dataclass(frozen=True)
class Recorder:
    """Selects the steps that are measured. activations: False for compiled networks, in which hooks do not run."""

    steps_per_epoch: int
    activations: bool = True

    def probe(self, network: Network, number: int, skipped: int) -> Probe | None:
        """Return what measures step `number`, if it is to be. skipped: number of non-finite steps right before it."""
        middle = number % self.steps_per_epoch == self.steps_per_epoch // 2
        if number == 0 or middle or skipped == LAST_SKIPPED:
            return Probe(network, activations=self.activations)
        return None


def rows_of(step: MeasuredStep) -> tuple[Row, ...]:
    """Return the rows of diagnostics.csv of a step; numbers have 6 digits."""
    return tuple(
        {
            "epoch": step.epoch, "step": step.step, "lr": step.lr, "path": layer.path, "kind": layer.kind,
            **{name: _round(getattr(layer, name)) for name in NUMBERS}, "finite": int(layer.finite),
        }
        for layer in step.layers
    )  # fmt: skip


def _round(value: float | None) -> float | None:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def steps_of(rows: Sequence[Row]) -> tuple[MeasuredStep, ...]:
    """Return the measured steps of rows of the state, or of diagnostics.csv."""
    return tuple(
        MeasuredStep(int(epoch), int(step), float(lr), tuple(map(_layer_of, group)))
        for (epoch, step, lr), group in groupby(rows, key=lambda row: tuple(row[name] for name in STEP_COLUMNS))
    )


def _layer_of(row: Row) -> LayerStatistics:
    numbers = {name: None if row[name] in (None, "") else float(row[name]) for name in NUMBERS}
    max_rank = numbers.pop("max_rank")
    return LayerStatistics(
        str(row["path"]), str(row["kind"]), **numbers, max_rank=None if max_rank is None else int(max_rank),
        finite=bool(int(row["finite"])),
    )  # fmt: skip


def read_diagnostics(path: Path) -> tuple[MeasuredStep, ...]:
    """Read diagnostics.csv. Raises RunError if it is unreadable or damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            if tuple(table.fieldnames or ()) != DIAGNOSTICS_COLUMNS:
                raise RunError(f"{path}: the columns must be {', '.join(DIAGNOSTICS_COLUMNS)}")
            return steps_of(list(table))
    except OSError as error:
        raise RunError(f"{path}: unreadable: {error.strerror or error}") from error
    except (ValueError, TypeError, csv.Error) as error:  # TypeError: of a row without all columns
        raise RunError(f"{path}: damaged: {error}") from error
