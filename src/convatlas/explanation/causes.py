"""The first layer that goes wrong in a training, why, and what usually helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convatlas.explanation.rules import RULES, Rule, TrainingFacts, Value
from convatlas.explanation.statistics import MeasuredStep
from convatlas.tasks.table import pluralize


@dataclass(frozen=True)
class Cause:
    """What goes wrong.

    layer: the first one with the problem. epoch, step: the first measured step from which on it is there; epoch 0 is
    initialization. evidence: the number, with the threshold. reason: why it happens. remedies: what usually helps.
    """

    problem: str
    layer: str
    epoch: int
    step: int
    evidence: str
    reason: str
    remedies: tuple[str, ...]

    def text(self) -> str:
        """Return the cause in a few lines."""
        when = f"epoch {self.epoch}, step {self.step:,}" if self.epoch else "at initialization"
        lines = [f"{self.problem}, first in {self.layer} ({when})", f"  {self.evidence}", f"  why: {self.reason}"]
        return "\n".join([*lines, f"  what helps: {'; '.join(self.remedies)}"])

    def to_plain(self) -> dict[str, Any]:
        """Return the cause as dicts, lists, numbers and strings."""
        return asdict(self) | {"remedies": list(self.remedies)}


def find_causes(steps: Sequence[MeasuredStep], facts: TrainingFacts) -> tuple[Cause, ...]:
    """Return what goes wrong in the measured steps, the earliest first; of one step, a cause before its effects."""
    causes = [cause for rule in RULES if (cause := _apply(rule, steps, facts)) is not None]
    return tuple(sorted(causes, key=lambda cause: cause.step))


def _apply(rule: Rule, steps: Sequence[MeasuredStep], facts: TrainingFacts) -> Cause | None:
    first: tuple[MeasuredStep, list[Value], int] | None = None
    for step in steps:
        values = rule.measure(step, facts)
        wrong = [(path, value) for path, value in values if rule.applies_to(value)]
        if wrong and first is None:
            first = step, wrong, len(values)
        if values and not wrong and rule.lasting:
            first = None
    if first is None:
        return None
    step, wrong, count = first
    worst = (max if rule.above else min)(wrong, key=lambda each: each[1])
    others = f"; beyond it in {len(wrong)} of {pluralize(count, 'layer')}" if len(wrong) > 1 else ""
    evidence = f"{rule.quantity} {worst[1]:.2g} ({worst[0]}); wrong {rule.limit}{others}; {rule.usual}"
    return Cause(rule.problem, wrong[0][0], step.epoch, step.step, evidence, rule.reason, rule.remedies)


@dataclass(frozen=True)
class Extreme:
    """The most extreme number of one rule over all measured steps. limit: the threshold in words."""

    quantity: str
    value: float
    layer: str
    epoch: int
    limit: str
    usual: str


def find_extremes(steps: Sequence[MeasuredStep], facts: TrainingFacts) -> tuple[Extreme, ...]:
    """Return for each rule the most extreme number of the training, whether it is beyond the threshold or not."""
    return tuple(extreme for rule in RULES if (extreme := _extreme(rule, steps, facts)) is not None)


def _extreme(rule: Rule, steps: Sequence[MeasuredStep], facts: TrainingFacts) -> Extreme | None:
    values = [(value, path, step.epoch) for step in steps for path, value in rule.measure(step, facts)]
    if not values:
        return None
    value, path, epoch = (max if rule.above else min)(values, key=lambda each: each[0])
    return Extreme(rule.quantity, value, path, epoch, rule.limit, rule.usual)
