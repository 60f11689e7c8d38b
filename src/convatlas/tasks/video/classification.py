"""Classification of videos: a network classifies clips, and a video gets the mean of their probabilities."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from convatlas.draw.frame_strip import frame_strip
from convatlas.tasks.classification.base import ClassPrediction, LabelResult, LabelTask
from convatlas.tasks.classification.multilabel import MultilabelClassification, MultilabelResult
from convatlas.tasks.classification.single_label import Classification, ClassificationResult
from convatlas.tasks.registry import register
from convatlas.tasks.targets import Targets
from convatlas.tasks.task import Calibration
from convatlas.tasks.video.prediction import VideoPrediction
from convatlas.tasks.video.result import MultilabelVideoResult, VideoResult


class ClipTask(LabelTask):
    """What tasks of videos share. Outputs of a split are (videos, clips, classes); in training (clips, classes)."""

    reads = "clips"
    noun = "video"
    options = frozenset(("ensemble", "top", "every", "plot"))

    def annotated(self, targets: Targets, image: int, pixels: Tensor) -> Tensor:
        return frame_strip(pixels)

    def decode(self, outputs: Tensor, calibration: Calibration) -> Tensor:
        """Return probabilities (n, classes): of clips (n, classes), or the means over the clips (n, clips, classes)."""
        if outputs.ndim == 2:
            return super().decode(outputs, calibration)
        clips: Tensor = super().decode(outputs.flatten(0, 1), calibration).unflatten(0, outputs.shape[:2])
        return clips.mean(1)

    def evaluate(self, outputs: Tensor, targets: Targets, calibration: Calibration | None = None) -> LabelResult:
        calibration, labels = calibration or Calibration(), targets.tensor("label")
        clip_targets = Targets(label=labels.repeat_interleave(outputs.shape[1], 0))
        clips = super().evaluate(outputs.flatten(0, 1), clip_targets, calibration)
        probabilities = clips.probabilities.unflatten(0, outputs.shape[:2]).mean(1)  # as `decode` averages them
        return self.video_result(probabilities, labels, clips, calibration)

    @abstractmethod
    def video_result(
        self, probabilities: Tensor, labels: Tensor, clips: LabelResult, calibration: Calibration
    ) -> LabelResult:
        """Return the result of videos from their mean probabilities and the result of the clips."""

    def unreadable(self, source: str, error: str) -> VideoPrediction:
        return VideoPrediction(source, error)


def as_video(prediction: ClassPrediction) -> VideoPrediction:
    """Return the prediction of a video; its duration and moments are added by whoever knows them."""
    return VideoPrediction(prediction.source, prediction.error, prediction.probabilities, prediction.labels)


@register
@dataclass(frozen=True)
class VideoClassification(ClipTask, Classification):
    """One label for each video. Targets: label (n,) int64; of mixed clips also mixed (n, classes) float32."""

    name = "video classification"
    short_name = "video"

    def video_result(
        self, probabilities: Tensor, labels: Tensor, clips: LabelResult, calibration: Calibration
    ) -> LabelResult:
        assert isinstance(clips, ClassificationResult)
        return VideoResult(probabilities, labels, clips.loss, self.classes, clips)

    def predict(
        self, source: str, decoded: Tensor, calibration: Calibration, threshold: float | None = None
    ) -> VideoPrediction:
        return as_video(super().predict(source, decoded, calibration, threshold))


@register
@dataclass(frozen=True)
class MultilabelVideoClassification(ClipTask, MultilabelClassification):
    """Any number of labels for each video. Targets: label (n, classes) float32; of mixed clips also mixed."""

    name = "multi-label video classification"
    short_name = "multi-label-video"

    def video_result(
        self, probabilities: Tensor, labels: Tensor, clips: LabelResult, calibration: Calibration
    ) -> LabelResult:
        assert isinstance(clips, MultilabelResult)
        return MultilabelVideoResult(probabilities, labels, clips.loss, self.classes, clips.thresholds, clips)

    def predict(
        self, source: str, decoded: Tensor, calibration: Calibration, threshold: float | None = None
    ) -> VideoPrediction:
        return as_video(super().predict(source, decoded, calibration, threshold))
