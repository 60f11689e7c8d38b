"""The detection tasks: boxes, boxes with masks, boxes with keypoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from convatlas.core.spec import Spec
from convatlas.errors import DataError
from convatlas.tasks.detection import masks
from convatlas.tasks.detection.base import DetectionTask
from convatlas.tasks.detection.objects import Objects
from convatlas.tasks.detection.result import BoxResult, KeypointResult, MaskResult
from convatlas.tasks.detection.skeleton import PERSON, Skeleton, numbered_skeleton
from convatlas.tasks.registry import register
from convatlas.tasks.table import Column
from convatlas.tasks.targets import Targets
from convatlas.tasks.task import Task

BOX_TERMS = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")

BOX_COLUMNS = (
    Column("train_class_loss", "class", ".3f"), Column("train_box_loss", "box", ".3f"),
    Column("train_objectness_loss", "objectness", ".3f"), Column("train_rpn_box_loss", "RPN box", ".3f"),
)  # fmt: skip


@register
@dataclass(frozen=True)
class ObjectDetection(DetectionTask):
    """Boxes with classes."""

    name = "object detection"
    short_name = "detect"
    predicts = "boxes"
    loss_terms = BOX_TERMS
    progress_columns = (*BOX_COLUMNS, Column("val_box_ap", "val box AP", ".1%"))
    result_type = BoxResult


@register
@dataclass(frozen=True)
class InstanceSegmentation(DetectionTask):
    """Boxes with classes and masks."""

    name = "instance segmentation"
    short_name = "segment"
    predicts = "masks"
    loss_terms = (*BOX_TERMS, "loss_mask")
    progress_columns = (
        *BOX_COLUMNS, Column("train_mask_loss", "mask", ".3f"), Column("val_mask_ap", "val mask AP", ".1%"),
    )  # fmt: skip
    result_type = MaskResult

    def network_target(self, objects: Objects) -> dict[str, Tensor]:
        """Return boxes, labels and dense masks (k, h, w)."""
        return super().network_target(objects) | {"masks": masks.to_dense(objects.segments or (), objects.size)}


@register
@dataclass(frozen=True)
class KeypointDetection(DetectionTask):
    """Boxes with classes and the keypoints of one skeleton."""

    name = "keypoint detection"
    short_name = "keypoints"
    predicts = "keypoints"
    loss_terms = (*BOX_TERMS, "loss_keypoint")
    progress_columns = (
        *BOX_COLUMNS, Column("train_keypoint_loss", "keypoint", ".3f"),
        Column("val_keypoint_ap", "val keypoint AP", ".1%"),
    )  # fmt: skip
    result_type = KeypointResult

    skeleton: Skeleton = field(kw_only=True)

    @property
    def own_skeleton(self) -> Skeleton:
        return self.skeleton

    @classmethod
    def for_spec(cls, spec: Spec, classes: tuple[str, ...]) -> Self:
        """Return the task with the keypoints of COCO's persons, or numbered ones if the network has another number."""
        points = int(spec.to_plain()["points"])
        return cls(classes, skeleton=PERSON if points == PERSON.points else numbered_skeleton(points))

    def adapted(self, spec: Spec) -> Spec:
        """Return the spec with the number of keypoints of the skeleton."""
        return spec.replaced({"points": self.skeleton.points})

    @property
    def flip_order(self) -> tuple[int, ...]:
        return self.skeleton.flip_order

    def align(self, targets: Targets, source: Task, where: object) -> Targets:
        if isinstance(source, KeypointDetection) and source.skeleton.names != self.skeleton.names:
            raise DataError(
                f"{where}: the keypoints must be those of the model ({self.skeleton.points} points), got "
                f"{source.skeleton.points} points with other names or in another order"
            )
        return super().align(targets, source, where)

    def network_target(self, objects: Objects) -> dict[str, Tensor]:
        """Return boxes, labels and keypoints (k, points, 3)."""
        points = objects.keypoints
        if points is None:
            points = torch.zeros(len(objects), self.skeleton.points, 3)
        return super().network_target(objects) | {"keypoints": points}
