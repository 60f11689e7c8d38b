"""The diagnosis of a run: the first layer that goes wrong, why, and what usually helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.core.table import Table
from convatlas.draw.layer_flow import FlowPanel, flow_over_time
from convatlas.explanation.causes import Cause, Extreme, find_causes, find_extremes
from convatlas.explanation.rules import TrainingFacts
from convatlas.explanation.statistics import LayerStatistics, MeasuredStep
from convatlas.tasks.table import pluralize
from convatlas.train.settings import RunConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STALLED = 0.98
"""The loss does not fall if that of the last epoch is above this share of that of the first one."""

PANELS = {
    "gradient_norm": "gradient norm", "update_ratio": "update-to-weight ratio", "dead_share": "share of dead units",
}  # fmt: skip
"""Statistics in the figure and their titles."""


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What the measured steps of a training say. Prints as text.

    name: of the run. steps: measured steps. facts: what the rules need. losses: the training loss of each epoch.
    skipped: number of steps that were not finite, in complete epochs.
    """

    name: str
    steps: tuple[MeasuredStep, ...]
    facts: TrainingFacts
    losses: tuple[float, ...] = ()
    skipped: int = 0

    @classmethod
    def of(
        cls, name: str, config: RunConfig, steps: tuple[MeasuredStep, ...], history: Sequence[Mapping[str, float]]
    ) -> Diagnosis:
        """Diagnose a run. history: the rows of metrics.csv."""
        return cls(
            name, steps, TrainingFacts(config.recipe.lr, len(config.task.classes)),
            losses=tuple(row["train_loss"] for row in history), skipped=sum(int(row["skipped"]) for row in history),
        )  # fmt: skip

    @cached_property
    def causes(self) -> tuple[Cause, ...]:
        """What goes wrong, the first cause first."""
        return find_causes(self.steps, self.facts)

    @cached_property
    def extremes(self) -> tuple[Extreme, ...]:
        """The most extreme numbers of the training, one for each rule."""
        return find_extremes(self.steps, self.facts)

    @property
    def stalls(self) -> bool:
        """Whether the training loss does not fall."""
        return len(self.losses) > 1 and self.losses[-1] > STALLED * self.losses[0]

    def verdict(self) -> str:
        """Return what goes wrong first, with reason and remedies, and what follows; or that nothing does."""
        if self.causes:
            first, *others = self.causes
            after = [f"then {cause.problem} (epoch {cause.epoch}): {cause.evidence}" for cause in others]
            return "\n".join([first.text(), *after])
        if self.stalls:
            return (
                f"no layer goes wrong, but the training loss does not fall: {self.losses[0]:.4g} in epoch 1, "
                f"{self.losses[-1]:.4g} in epoch {len(self.losses)}\n  what helps: --lr find; more epochs; a look at "
                "the labels (convatlas data check)"
            )
        return "nothing is wrong: every layer learns, and no number is beyond its threshold"

    def table(self) -> Table:
        """Return the most extreme numbers beside their thresholds."""
        rows = [
            (each.quantity.rstrip(",:"), f"{each.value:.2g}", each.layer, str(each.epoch), each.limit, each.usual)
            for each in self.extremes
        ]
        return Table(
            ("most extreme", "value", "layer", "epoch", "wrong", "usual"), tuple(rows), right=frozenset((1, 3))
        )

    def figure(self, path: str | Path | None = None) -> Figure:
        """Draw gradients, updates and dead units by layer and epoch; a cross marks where the first cause begins."""
        panels = [panel for name in PANELS if (panel := self._panel(name)) is not None]
        return flow_over_time(panels, [step.epoch for step in self.steps], path=path)

    def _panel(self, name: str) -> FlowPanel | None:
        tables = [{layer.path: layer for layer in step.layers} for step in self.steps]
        rows: dict[str, list[float | None]] = {}
        for path in tables[0]:
            values = [_number(table.get(path), name) for table in tables]
            if any(value is not None for value in values):
                rows[path] = values
        if not rows:
            return None
        marked = None
        if self.causes and self.causes[0].layer in rows:
            step = next(i for i, step in enumerate(self.steps) if step.step == self.causes[0].step)
            marked = list(rows).index(self.causes[0].layer), step
        return FlowPanel(PANELS[name], list(rows), list(rows.values()), logarithmic=name != "dead_share", marked=marked)

    def to_plain(self) -> dict[str, Any]:
        """Return verdict, causes and numbers as dicts, lists, numbers and strings."""
        return {
            "name": self.name, "verdict": self.verdict().splitlines()[0], "measured_steps": len(self.steps),
            "causes": [cause.to_plain() for cause in self.causes],
            "extremes": [asdict(extreme) for extreme in self.extremes], "epoch_losses": list(self.losses),
            "skipped_steps": self.skipped,
        }  # fmt: skip

    def __str__(self) -> str:
        epochs = pluralize(len(self.losses), "complete epoch")
        measured = f"{pluralize(len(self.steps), 'measured step')}, {epochs}"
        loss = f"; training loss {self.losses[0]:.4g} -> {self.losses[-1]:.4g}" if self.losses else ""
        skipped = f"; {pluralize(self.skipped, 'step')} not finite" if self.skipped else ""
        return f"{self.name}: {measured}{loss}{skipped}\n\n{self.verdict()}\n\n{self.table()}"

    def __repr__(self) -> str:
        return f"{self.name}: {self.verdict()}"


def _number(layer: LayerStatistics | None, name: str) -> float | None:
    return None if layer is None else getattr(layer, name)
