"""Diagnostics of a training: once an epoch, one of its steps is measured, layer by layer.

The first step of a training is measured, and the step in the middle of every epoch. A step with measurements has the
same bits as one without. The measurements are part of the state of a training, so an interruption does not lose them;
diagnostics.csv has them, a row for each layer and step.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from convatlas.core.network import Network
from convatlas.errors import RunError
from convatlas.explanation.flow import Probe
from convatlas.explanation.statistics import LayerStatistics, MeasuredStep
from convatlas.system.files import write_text

STEP_COLUMNS = ("epoch", "step", "lr")
NUMBERS = (
    "activation_mean", "activation_std", "dead_share", "gradient_norm", "weight_norm", "update_ratio", "effective_rank",
    "max_rank",
)  # fmt: skip
DIAGNOSTICS_COLUMNS = (*STEP_COLUMNS, "path", "kind", *NUMBERS, "finite")
"""Columns of diagnostics.csv: those of `MeasuredStep`, then those of `LayerStatistics`."""

_HEADING = ",".join(DIAGNOSTICS_COLUMNS)

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


def lines_of(step: MeasuredStep) -> tuple[str, ...]:
    """Return the lines of diagnostics.csv of a step; numbers have 6 digits."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    for layer in step.layers:
        numbers = (getattr(layer, name) for name in NUMBERS)
        shown = ("" if number is None else f"{number:.6g}" for number in numbers)
        table.writerow((step.epoch, step.step, step.lr, layer.path, layer.kind, *shown, int(layer.finite)))
    return tuple(text.getvalue().split("\n")[:-1])


def steps_of(lines: Iterable[str]) -> tuple[MeasuredStep, ...]:
    """Return the measured steps of lines of diagnostics.csv. Raises ValueError for damaged ones."""
    try:
        values = list(csv.reader(lines))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    for number, row in enumerate(values, 1):
        if len(row) != len(DIAGNOSTICS_COLUMNS):
            raise ValueError(f"row {number} must have {len(DIAGNOSTICS_COLUMNS)} values, got {len(row)}")
    rows = [dict(zip(DIAGNOSTICS_COLUMNS, row, strict=True)) for row in values]
    return tuple(
        MeasuredStep(int(epoch), int(step), _finite(lr), tuple(map(_layer_of, group)))
        for (epoch, step, lr), group in groupby(rows, key=lambda row: tuple(row[name] for name in STEP_COLUMNS))
    )


def _layer_of(row: Mapping[str, str]) -> LayerStatistics:
    numbers = {name: _finite(row[name]) if row[name] else None for name in NUMBERS}
    max_rank = numbers.pop("max_rank")
    return LayerStatistics(
        row["path"], row["kind"], **numbers, max_rank=None if max_rank is None else int(max_rank),
        finite=bool(int(row["finite"])),
    )  # fmt: skip


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"numbers must be finite, got {number}")
    return number


class DiagnosticsFile:
    """Writes diagnostics.csv: all lines at first, so that it follows the checkpoint, afterwards only new ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = 0

    def write(self, lines: Sequence[str]) -> None:
        """Write the lines of a training so far."""
        if self._written:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write("".join(f"{line}\n" for line in lines[self._written :]))
        else:
            write_text(self.path, "".join(f"{line}\n" for line in (_HEADING, *lines)), flush=False)
        self._written = len(lines)


def read_diagnostics(path: Path) -> tuple[MeasuredStep, ...]:
    """Read diagnostics.csv. Raises RunError if it is unreadable, damaged, or has no measured step."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if file.readline().rstrip() != _HEADING:
                raise RunError(f"{path}: the columns must be {_HEADING}")
            steps = steps_of(file)
    except OSError as error:
        raise RunError(f"{path}: unreadable: {error.strerror or error}") from error
    except ValueError as error:
        raise RunError(f"{path}: damaged: {error}") from error
    if not steps:
        raise RunError(f"{path}: has no measured step")
    return steps
