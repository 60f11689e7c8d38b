"""What the detection tasks share: targets, losses, and how outputs of networks become objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from convatlas.core.auxiliary import Criterion
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.ragged import Inputs, to_device
from convatlas.errors import DataError
from convatlas.tasks.classification.labels import class_indices
from convatlas.tasks.detection import masks
from convatlas.tasks.detection.drawing import draw
from convatlas.tasks.detection.explained import ExplainedBox
from convatlas.tasks.detection.matching import best_thresholds
from convatlas.tasks.detection.merge import DEFAULT_NMS, merge
from convatlas.tasks.detection.objects import Objects
from convatlas.tasks.detection.prediction import DetectionPrediction, count_text
from convatlas.tasks.detection.result import DetectionResult
from convatlas.tasks.detection.skeleton import Skeleton
from convatlas.tasks.explained import Explained
from convatlas.tasks.score import Score, check_class, score_of
from convatlas.tasks.targets import Targets
from convatlas.tasks.task import Calibration, Task

DEFAULT_THRESHOLD = 0.5
"""Minimum score of a detection that is drawn and counted, of a model without calibration."""

MIN_CALIBRATION_OBJECTS = 20
"""Number of val objects of a class from which its threshold is its own; others have that of all classes together."""


@dataclass(frozen=True)
class DetectionTask(Task):
    """A detection task. Targets have a column `objects`, one `Objects` for each image.

    Those of a training batch may also have `short_side` and `seed`, one number for each image: the short side in pixels
    to which the network resizes it, and the seed of its random anchors and proposals.
    Outputs of a network are lists of dicts in torchvision's form, whose labels begin at 1; they become `Objects`, whose
    labels begin at 0.
    """

    losses = ("detection",)
    needs_every_class = False
    options = frozenset(("classes", "nms", "tile", "overlap", "save", "coco", "yolo", "object"))
    unused_fields = frozenset((
        "label_smoothing", "class_weight_power", "dropout", "drop_path", "min_crop_area", "max_shift", "policy",
        "magnitude", "random_erasing", "mixup", "cutmix",
    ))  # fmt: skip

    loss_terms: ClassVar[tuple[str, ...]]
    """The terms of the loss, as torchvision names them, in the order of `progress_columns`."""

    result_type: ClassVar[type[DetectionResult]]

    @property
    def own_skeleton(self) -> Skeleton | None:
        """The skeleton of the objects, if they have keypoints."""
        return None

    # --- targets

    def strata(self, targets: Targets) -> Tensor:
        """Return (n, classes): 1 for a class that has an object in the image."""
        present = torch.zeros(len(targets), self.outputs)
        for row, objects in zip(present, objects_of(targets), strict=True):
            row[objects.labels] = 1
        return present

    def class_counts(self, targets: Targets) -> Tensor:
        """Return the number of objects of each class (classes,), without crowds."""
        labels = [each.labels[~crowds(each)] for each in objects_of(targets)]
        return torch.bincount(torch.cat(labels), minlength=self.outputs)

    def describe(self, targets: Targets, image: int) -> str:
        return count_text([self.classes[i] for i in objects_of(targets)[image].labels.tolist()])

    def annotated(self, targets: Targets, image: int, pixels: Tensor) -> Tensor:
        return draw(pixels, objects_of(targets)[image], self.classes, self.own_skeleton)

    def check_split(self, targets: Targets, split: str, where: object, *, all_classes: bool = True) -> None:
        if not int(self.class_counts(targets).sum()):
            lacking = "learned" if split == "train" else "measured"
            raise DataError(f"{where}: no image of the {split} split has an object; nothing can be {lacking}")

    def align(self, targets: Targets, source: Task, where: object) -> Targets:
        if type(source) is not type(self):
            return super().align(targets, source, where)
        objects = objects_of(targets)
        used = torch.cat([each.labels for each in objects]).unique()  # files list categories that have no object
        numbers = torch.full((source.outputs,), -1)
        names = [source.classes[i] for i in used.tolist()]
        numbers[used] = class_indices(self.classes, names, where, complete=False).long()
        return Targets(objects=[replace(each, labels=numbers[each.labels]) for each in objects])

    # --- training

    def labels(self, targets: Targets) -> Tensor:
        raise TypeError(f"{self.name}: the network computes the loss from objects, not from labels")

    def criterion(self, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> Criterion:
        """Return a function that is not called: the network computes its loss."""
        return _no_criterion

    def training_loss(
        self, network: Network, forward: Callable[..., Any], inputs: Any, targets: Targets, criterion: Criterion
    ) -> tuple[Tensor, Tensor]:
        """Return (rows (n, terms), loss) of a batch: the terms of the batch, once for each of its images; their sum."""
        if not len(inputs):
            zero = sum((parameter.sum() * 0 for parameter in network.parameters()), torch.zeros(()))
            return torch.zeros(0, len(self.loss_terms), device=zero.device), zero
        terms = forward(list(inputs), to_device(self.network_targets(targets), inputs[0].device))
        values = torch.stack([terms[name] for name in self.loss_terms])
        return values.detach().expand(len(inputs), -1), values.sum()

    def network_targets(self, targets: Targets) -> list[dict[str, Any]]:
        """Return targets in torchvision's form, without crowds and without boxes of no area."""
        more = {name: targets[name] for name in ("short_side", "seed") if name in targets}
        return [
            self.network_target(_trainable(objects)) | {name: int(column[i]) for name, column in more.items()}
            for i, objects in enumerate(objects_of(targets))
        ]

    def network_target(self, objects: Objects) -> dict[str, Tensor]:
        """Return the objects of an image in torchvision's form: its labels begin at 1, because 0 is its background."""
        return {"boxes": objects.boxes, "labels": objects.labels + 1}

    def train_metric(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Return the terms of the loss."""
        return outputs

    # --- evaluation and prediction

    def collect(self, outputs: Sequence[dict[str, Tensor]], inputs: Inputs) -> list[Objects]:
        """Return outputs in torchvision's form as objects, with masks as run lengths."""
        return [_collect(each, (image.shape[-2], image.shape[-1])) for each, image in zip(outputs, inputs, strict=True)]

    def decode(self, outputs: list[Objects], calibration: Calibration) -> list[Objects]:
        """Return the objects as they are: their scores are probabilities already."""
        return outputs

    def merge(self, views: Sequence[Objects], corners: Sequence[tuple[int, int]], nms: float | None = None) -> Objects:
        """Return the objects of tiles of an image as those of the image; see `merge.merge`.

        nms: IoU above which the object with the lower score is removed; by default `DEFAULT_NMS` for several tiles.
        """
        if len(views) == 1 and nms is None:
            return views[0]
        return merge(views, corners, DEFAULT_NMS if nms is None else nms)

    def keep_classes(self, decoded: Objects, classes: Sequence[str]) -> Objects:
        numbers = torch.tensor([self.classes.index(name) for name in classes], dtype=torch.int64)
        return decoded.take(torch.isin(decoded.labels, numbers))

    def thresholds(self, calibration: Calibration) -> Tensor:
        """Return (classes,): the minimum score of a detection that counts."""
        return torch.tensor(calibration.thresholds or (DEFAULT_THRESHOLD,) * self.outputs)

    def evaluate(
        self, outputs: Sequence[Objects], targets: Targets, calibration: Calibration | None = None
    ) -> DetectionResult:
        thresholds = self.thresholds(calibration or Calibration())
        return self.result_type(outputs, objects_of(targets), self.classes, thresholds, self.own_skeleton)

    def calibrate(self, outputs: Sequence[Objects], targets: Targets) -> Calibration:
        """Return for each class the threshold of the score with the best F1 on the val split."""
        matching = self.evaluate(outputs, targets).matching
        thresholds = best_thresholds(
            matching, self.outputs, default=DEFAULT_THRESHOLD, min_objects=MIN_CALIBRATION_OBJECTS
        )
        return Calibration(thresholds=tuple(thresholds))

    def predict(
        self, source: str, decoded: Objects, calibration: Calibration, threshold: float | None = None
    ) -> DetectionPrediction:
        """Return the objects whose score is at least the threshold, by default that of their class."""
        limits = self.thresholds(calibration)[decoded.labels] if threshold is None else threshold
        scores = torch.ones(len(decoded)) if decoded.scores is None else decoded.scores
        order = scores.argsort(descending=True, stable=True)
        objects = decoded.take(order[(scores >= limits)[order]])
        return DetectionPrediction(source, objects=objects, classes=self.classes, skeleton=self.own_skeleton)

    def unreadable(self, source: str, error: str) -> DetectionPrediction:
        return DetectionPrediction(source, error, classes=self.classes, skeleton=self.own_skeleton)

    # --- explanation

    def score(self, decoded: Objects, label: str | None = None, against: str | None = None, object: int = 0) -> Score:
        """Return the score of an object: number `object` of those of class `label`, the most probable one first.

        label: by default all objects are counted. Raises DataError for a class, and for an object, that is not there.
        """
        check_class(label, self.classes)
        number = object
        chosen = decoded if label is None else self.keep_classes(decoded, [label])
        if not 0 <= number < len(chosen):
            found = count_text([self.classes[i] for i in decoded.labels.tolist()])
            kind = "" if label is None else f" of the class {label}"
            raise DataError(f"explain: object must be the number of an object{kind}, got {number}; there are {found}")
        scores = torch.ones(len(chosen)) if chosen.scores is None else chosen.scores
        place = int(scores.argsort(descending=True, stable=True)[number])
        left, top, right, bottom = chosen.boxes[place].tolist()
        score = score_of(self.classes, int(chosen.labels[place]), None, against)
        return replace(score, box=(left, top, right, bottom), size=decoded.size)

    def explained(self, network: Network, preprocessing: Preprocessing, score: Score | None = None) -> Explained:
        """Return the network as the class logits of the box of a score."""
        if score is None or score.box is None or score.size is None:
            raise TypeError(f"{self.name}: the outputs depend on the box of a score")
        return ExplainedBox(network, preprocessing, score.box, score.size)

    def logit(self, outputs: Tensor, score: Score) -> Tensor:
        return score.logit(outputs[:, 1:])

    def confidence(self, outputs: Tensor, score: Score, calibration: Calibration) -> Tensor:
        """Return the probability of the class of the box; of a difference, its share of both probabilities."""
        return score.probability(outputs.softmax(1)[:, 1:])


def objects_of(targets: Targets) -> Sequence[Objects]:
    """Return the objects of each image."""
    objects: Sequence[Objects] = targets["objects"]  # type: ignore[assignment]  # the column is a list
    return objects


def crowds(objects: Objects) -> Tensor:
    """Return (k,): whether an object is a crowd."""
    return torch.zeros(len(objects), dtype=torch.bool) if objects.crowd is None else objects.crowd


def _no_criterion(outputs: Any, labels: Any) -> Tensor:
    raise TypeError("detection has no criterion: the network computes its loss")


def _trainable(objects: Objects) -> Objects:
    boxes = objects.boxes
    return objects.take(~crowds(objects) & (boxes[:, 2:] > boxes[:, :2]).all(1))


def _collect(output: dict[str, Tensor], size: tuple[int, int]) -> Objects:
    tensors = {name: tensor.detach().cpu() for name, tensor in output.items() if name != "masks"}
    segments = keypoints = None
    if "masks" in output:
        segments = masks.encode(output["masks"].detach()[:, 0] >= masks.MASK_THRESHOLD)
    if "masks_of_boxes" in tensors:
        segments = masks.paste(tensors["masks_of_boxes"].float(), tensors["boxes"].float(), size)
    if "keypoints" in tensors:
        keypoints = torch.cat([tensors["keypoints"][..., :2], tensors["keypoints_scores"][..., None]], -1).float()
    return Objects(
        size, tensors["boxes"].float(), tensors["labels"].long() - 1, tensors["scores"].float(), segments, keypoints
    )
