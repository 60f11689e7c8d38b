"""How images are predicted."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from convatlas.core.preprocessing import TTA, Preprocessing
from convatlas.core.record import Record, above, at_least, between
from convatlas.errors import DataError, listed, nearest
from convatlas.tasks.task import Task

BATCH, CLIP_BATCH, WHOLE_BATCH = 16, 4, 1
"""Default number of images in a batch; of clips, which need the memory of as many images as they have frames; and of
whole images: in a batch they are padded to the size of the largest, so that objects would depend a little on the other
images."""


@dataclass(frozen=True)
class PredictOptions(Record):
    """How images or videos are predicted.

    batch: images, tiles or clips per forward pass; by default 16, 4 clips, or 1 for detectors. threshold: the minimum
    probability of a predicted class or object; by default the model's own. fetch: whether URLs may be fetched.

    Of classifiers: top: maximum number of classes in `probabilities`; all if None. tta: test-time augmentation (see
    `Preprocessing.tta_views`); the predictions of the views are averaged.

    Of detectors: classes: those of which objects are kept; all if empty. nms: of two objects of one class whose
    intersection over union is above it, the one with the lower score is dropped; the network itself does so above 0.5.
    tile: images larger than this number of pixels are also cut into square tiles, which are predicted one by one.
    overlap: of neighboring tiles, as a share of their side; it should be larger than the objects.

    Of networks that read clips: every: seconds from the start of one clip to that of the next, for predictions along
    time, beside that of the whole video.
    """

    error = DataError

    batch: Annotated[int, at_least(1)] | None = None
    tta: TTA = "none"
    threshold: Annotated[float, between(0, 1)] | None = None
    fetch: bool = False
    top: Annotated[int, at_least(1)] | None = None
    classes: tuple[str, ...] = ()
    nms: Annotated[float, between(0, 1)] | None = None
    tile: Annotated[int, at_least(32)] | None = None
    overlap: Annotated[float, between(0, 0.9)] = 0.2
    every: Annotated[float, above(0)] | None = None

    def batch_for(self, preprocessing: Preprocessing) -> int:
        """Return the number of images or clips in a batch."""
        return self.batch or default_batch(preprocessing)

    def items_for(self, preprocessing: Preprocessing) -> int:
        """Return the number of images, or of videos with their clips, that are read for a batch."""
        clips = 1 if preprocessing.sampling is None else preprocessing.sampling.clips
        return max(1, self.batch_for(preprocessing) // clips)

    def check(self, task: Task, *, members: int = 1) -> None:
        """Raise DataError for options that a task does not support. members: number of models of an ensemble."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in SOME and field.name not in task.options and value != field.default:
                raise refusal(task, field.name)
        if self.tile is None and self.overlap != type(self).overlap:
            raise DataError(f"predict: overlap needs the size of tiles, got no tile and overlap {self.overlap:g}")
        if members > 1 and "ensemble" not in task.options:
            raise refusal(task, "ensemble")
        for name in self.classes:
            if name not in task.classes:
                known = f"{listed(task.classes)}, got {name!r}{nearest(name, task.classes)}"
                raise DataError(f"predict: classes must be classes of the model, {known}")


SOME = ("top", "tta", "classes", "nms", "tile", "overlap", "every")
"""Options that only some tasks support; see `Task.options`."""


def refusal(task: Task, option: str) -> DataError:
    """Return the error for an option that a task does not support."""
    return DataError(f"predict: {option} must not be given, because the model is for {task.name}")


def default_batch(preprocessing: Preprocessing) -> int:
    """Return the default number of images or clips in a batch."""
    return WHOLE_BATCH if preprocessing.is_whole else BATCH if preprocessing.sampling is None else CLIP_BATCH
