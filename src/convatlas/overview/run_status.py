"""The state of a run directory: how far its training has come, its files, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convatlas.train.resume import read_progress
from convatlas.train.run_folder import (
    CHECKPOINT,
    CONFIG,
    CURVES,
    DIAGNOSTICS,
    LAST,
    LOCK,
    LR_FINDER,
    METRICS,
    MODEL,
    REPORT,
    UNREADABLE,
    is_locked,
)
from convatlas.train.settings import RunConfig, read_config
from convatlas.train.state import State

FILES = {
    MODEL: "weights of the best epoch",
    LAST: "weights of the last epoch",
    CHECKPOINT: "state of the training",
    CONFIG: "configuration",
    METRICS: "metrics of each epoch",
    DIAGNOSTICS: "statistics of layers, one step of each epoch",
    REPORT: "report",
    CURVES: "learning curves",
    LR_FINDER: "curve of the learning-rate finder",
    UNREADABLE: "images that were skipped",
}
"""Files of a run directory and what they contain."""


@dataclass(frozen=True)
class RunStatus:
    """A run directory.

    training: whether a process is training the run now.
    """

    folder: Path
    config: RunConfig
    state: State
    training: bool

    @property
    def epochs(self) -> int:
        """Number of complete epochs."""
        return len(self.state.history)

    @property
    def status(self) -> str:
        """The state in one word: training, finished, interrupted, or started (nothing was trained yet)."""
        if self.training:
            return "training"
        if self.state.finished:
            return "finished"
        return "interrupted" if self.state.step else "started"

    def describe(self) -> str:
        """Return the state in words."""
        of = f"{self.epochs} of {self.config.recipe.epochs} epochs"
        best = f"; best epoch {self.state.best_epoch}" if self.state.best_epoch else ""
        return f"{self.status} after {of} ({self.state.step:,} steps){best}"

    @property
    def commands(self) -> dict[str, str]:
        """The commands to go on with: purpose -> command."""
        if self.training:
            return {}
        if self.state.finished:
            return {"predict": f"convatlas predict {self.folder} {self.config.task.noun.upper()}S"}
        commands = {"continue": f"convatlas resume {self.folder}"}
        if self.epochs:
            commands["end here"] = f"convatlas finish {self.folder}"
        return commands

    @property
    def files(self) -> dict[str, int]:
        """The files and their sizes in bytes."""
        return {name: (self.folder / name).stat().st_size for name in FILES if (self.folder / name).is_file()}

    def to_plain(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {
            "status": self.status, "epochs": self.epochs, "planned_epochs": self.config.recipe.epochs,
            "step": self.state.step, "best_epoch": self.state.best_epoch or None,
            "elapsed_s": round(self.state.seconds, 2), "data": self.config.data, "notes": list(self.state.notes),
            "files": [{"path": name, "size_mib": size / 2**20} for name, size in self.files.items()],
            "commands": self.commands,
        }  # fmt: skip


def read_status(folder: Path) -> RunStatus:
    """Read the state of a run directory without changing it; raises RunError if it is not one, or damaged."""
    return RunStatus(folder, read_config(folder), read_progress(folder), is_locked(folder / LOCK))
