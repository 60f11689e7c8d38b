"""Compare the accuracy of two networks on the same images or videos, with the interval of the difference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convatlas.data.dataset import Images
from convatlas.engines.evaluation import Forward, compute_outputs
from convatlas.inference.predict import check_finite
from convatlas.tasks.table import pluralize
from convatlas.tasks.task import Calibration, Task

BATCH = 16
"""Number of images in a batch."""

GROUPS = 20
"""Maximum number of groups of the jackknife."""

CONFIDENCE = 0.9
"""Of the interval. Its lower end is the bound of a one-sided test at the 5 % level."""


@dataclass(frozen=True)
class AccuracyChange:
    """The headline metric of two networks on the same images or videos, such as the accuracy in [0, 1].

    num_changed: number of the `num_images` images, or videos, with another prediction.
    low, high: the 90 % interval of the loss, float32 - int8. note: see `Result.note`. metric: its name. noun: what is
    counted.
    """

    float32: float
    int8: float
    num_images: int
    num_changed: int
    low: float
    high: float
    note: str = ""
    metric: str = "accuracy"
    noun: str = "image"

    @property
    def loss(self) -> float:
        """The loss of the headline metric; negative for a gain."""
        return self.float32 - self.int8

    def is_loss_above(self, limit: float) -> bool:
        """Return whether there is evidence for a loss above a limit: the whole interval is above it.

        A difference of one image is never evidence, however few images there are.
        """
        return self.low > limit + 1e-9

    def text(self) -> str:
        """Return the change in one line."""
        change, low, high = (f"{100 * end:+.2f}" for end in (self.int8 - self.float32, -self.high, -self.low))
        return (
            f"{self.float32:.2%} in float32, {self.int8:.2%} in int8, a change of {change} pp (90 % interval "
            f"{low} to {high}), {self.num_changed:,} of {self.num_images:,} predictions changed"
            f"{self.note and f'; {self.note}'}"
        )

    def limit_text(self, limit: float) -> str:
        """Return in one line which loss was allowed, in images where the metric counts images."""
        number = f" ({limit * self.num_images:.1f} of {pluralize(self.num_images, self.noun)})"
        images = number if self.metric == "accuracy" else ""
        exceeded = self.is_loss_above(limit)
        return (
            f"limit: a loss of {100 * limit:g} pp{images}, exceeded if the whole interval is beyond it: "
            f"{'exceeded' if exceeded else 'not exceeded'}"
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the change as plain data."""
        return {
            "n": self.num_images, "float32": self.float32, "int8": self.int8, "drop": self.loss,
            "metric": self.metric, "drop_low": self.low, "drop_high": self.high, "num_changed": self.num_changed,
            "note": self.note or None,
        }  # fmt: skip


@dataclass(frozen=True)
class AccuracyCheck:
    """Labeled images or videos on which a changed network is compared with the original one, `forward`."""

    images: Images
    task: Task
    forward: Forward
    calibration: Calibration

    def outputs(self, forward: Forward) -> Tensor:
        """Return the outputs (n, [clips,] outputs) of a network. Raises ModelFileError if they are not finite."""
        outputs: Tensor = compute_outputs(forward, self.images, batch=BATCH if self.task.reads == "images" else 0)
        check_finite(outputs, "int8", self.task.noun)
        return outputs

    def compare(self, before: Tensor, after: Tensor) -> AccuracyChange:
        """Compare outputs (n, [clips,] outputs); the interval is that of a jackknife over up to 20 random groups.

        The difference is computed without each group in turn, so that any metric has an interval (Tukey 1958; Efron
        and Tibshirani 1993, chapter 11). One more changed image is added to its variance, without which an interval of
        few changed images is too narrow (Agresti and Min 2005).
        """
        everything = torch.arange(len(before))
        first, second = self._score(before, everything), self._score(after, everything)
        loss, margin = first - second, self._margin(before, after)
        result = self.task.evaluate(before, self.images.targets, self.calibration)
        return AccuracyChange(
            first, second, len(before), self._num_changed(before, after), loss - margin, loss + margin, result.note,
            result.headline_name or result.headline, result.noun,
        )  # fmt: skip

    def _margin(self, before: Tensor, after: Tensor) -> float:
        """Return half the width of the interval; 1 if the images are too few for the metric without a group."""
        count = min(GROUPS, len(before))
        groups = torch.randperm(len(before), generator=torch.Generator().manual_seed(0)) % count
        parts = [(groups != group).nonzero().flatten() for group in range(count if count > 1 else 0)]
        losses = [self._score(before, part) - self._score(after, part) for part in parts]
        if not losses or not all(map(math.isfinite, losses)):
            return 1.0
        mean = math.fsum(losses) / count
        variance = (count - 1) / count * math.fsum((loss - mean) ** 2 for loss in losses)
        return _t_quantile(count - 1) * math.sqrt(variance + 1 / len(before) ** 2)

    def _score(self, outputs: Tensor, part: Tensor) -> float:
        return self.task.evaluate(outputs[part], self.images.targets.take(part), self.calibration).score

    def _num_changed(self, before: Tensor, after: Tensor) -> int:
        texts = [self._predict(outputs) for outputs in (before, after)]
        return sum(left != right for left, right in zip(*texts, strict=True))

    def _predict(self, outputs: Tensor) -> list[str]:
        decoded = self.task.decode(outputs, self.calibration)
        return [self.task.predict("", row, self.calibration).text for row in decoded]


def _t_quantile(degrees: int) -> float:
    """Return the quantile of Student's t distribution that bounds the interval above."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))
