"""Results on videos: metrics of the videos, and of their single clips."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convatlas.draw.frame_strip import frame_strip
from convatlas.tasks.classification.base import LabelResult
from convatlas.tasks.classification.multilabel import MultilabelResult
from convatlas.tasks.classification.single_label import ClassificationResult


def clip_metrics(clips: LabelResult) -> dict[str, float | int]:
    """Return the metrics of single clips: their number, the headline, and the top-5 accuracy of many classes."""
    numbers = clips.summary()
    return {"clips": clips.n, **{f"clip_{key}": numbers[key] for key in (clips.headline, "top5") if key in numbers}}


@dataclass(frozen=True, repr=False)
class VideoResult(ClassificationResult):
    """Mean probabilities (videos, classes) over the clips of each video. clips: the result of the single clips."""

    noun = "video"

    clips: ClassificationResult

    def summary(self) -> dict[str, float | int]:
        return {**super().summary(), **clip_metrics(self.clips)}

    def annotated(self, image: int, pixels: Tensor) -> Tensor:
        return frame_strip(pixels)


@dataclass(frozen=True, repr=False)
class MultilabelVideoResult(MultilabelResult):
    """Mean probabilities (videos, classes) over the clips of each video. clips: the result of the single clips."""

    noun = "video"

    clips: MultilabelResult

    def summary(self) -> dict[str, float | int]:
        return {**super().summary(), **clip_metrics(self.clips)}

    def annotated(self, image: int, pixels: Tensor) -> Tensor:
        return frame_strip(pixels)
