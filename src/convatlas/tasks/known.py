"""The tasks of convatlas; importing this module registers them."""

from convatlas.core.spec import Spec
from convatlas.tasks.classification.multilabel import MultilabelClassification
from convatlas.tasks.classification.single_label import Classification
from convatlas.tasks.detection.detectors import InstanceSegmentation, KeypointDetection, ObjectDetection
from convatlas.tasks.registry import TASKS, check_loss, known_losses
from convatlas.tasks.task import Task
from convatlas.tasks.video.classification import MultilabelVideoClassification, VideoClassification

__all__ = [
    "TASKS", "Classification", "InstanceSegmentation", "KeypointDetection", "MultilabelClassification",
    "MultilabelVideoClassification", "ObjectDetection", "VideoClassification", "check_loss", "known_losses", "task_for",
]  # fmt: skip


def task_for(spec: Spec, classes: tuple[str, ...]) -> Task:
    """Return the task of a network that was trained elsewhere, from its class names."""
    tasks: tuple[type[Task], ...] = (
        Classification, VideoClassification, ObjectDetection, InstanceSegmentation, KeypointDetection,
    )  # fmt: skip
    return next(task for task in tasks if task.fits(spec)).for_spec(spec, classes)
