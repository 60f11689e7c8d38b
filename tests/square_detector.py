"""A detector whose outputs are known: it finds the red, green and blue squares of images with a black background."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.ragged import Inputs
from convatlas.core.spec import Spec
from convatlas.inference.model import Model
from convatlas.models.catalog import resolve
from convatlas.models.detection.rows import BoxHead, KeypointHead, MaskHead, Proposals
from convatlas.models.families.rcnn import KINDS
from convatlas.tasks.detection.skeleton import Skeleton
from convatlas.tasks.known import InstanceSegmentation, KeypointDetection, ObjectDetection
from convatlas.tasks.task import Task
from convatlas.weights.modelfile import Header

CLASSES = ("red", "green", "blue")
CORNERS = Skeleton(("left", "right"), ((0, 1),), ((0, 1),))

SIZE = 64
PREPROCESSING = Preprocessing(resize=SIZE, crop=SIZE, max_size=2 * SIZE, mean=(0.0,) * 3, std=(1.0,) * 3)

TASKS: dict[str, Task] = {
    "boxes": ObjectDetection(CLASSES), "masks": InstanceSegmentation(CLASSES),
    "keypoints": KeypointDetection(CLASSES, skeleton=CORNERS),
}  # fmt: skip


def tiny_spec(kind: str = "fasterrcnn") -> Spec:
    """Return a small detector; its body has an eighth of the width of ResNet-18."""
    how: dict[str, Any] = {
        "fasterrcnn": {}, "maskrcnn": {"masks": MaskHead(convs=(16,), deconv=16)},
        "keypointrcnn": {"points": 2, "keypoints": KeypointHead(convs=(16,))},
    }[kind]  # fmt: skip
    return KINDS[kind](
        resolve("resnet18")[1].spec.scaled(width=0.125), width=16, resolution=SIZE, max_size=2 * SIZE,
        proposals=Proposals(before_nms=(50, 50), after_nms=(20, 20)),
        boxes=BoxHead(units=(16, 16), samples=8, min_score=0.0, detections=10), **how,
    )  # fmt: skip


def tiny_detector(kind: str = "fasterrcnn") -> Model:
    """Return a model with random weights."""
    spec = tiny_spec(kind)
    torch.manual_seed(0)
    network = spec.build(classes=len(CLASSES), channels=3).eval()
    return Model(network, Header("tiny", TASKS[spec.predicts], spec, PREPROCESSING))


class SquareEngine:
    """The engine: outputs in torchvision's form. A square is a rectangle of pixels of one color."""

    name = "torch"

    def __init__(self, predicts: str) -> None:
        self.predicts = predicts
        self.sizes: list[list[tuple[int, int]]] = []

    def outputs(self, pixels: Inputs) -> list[dict[str, Tensor]]:
        self.sizes.append([(image.shape[-2], image.shape[-1]) for image in pixels])
        return [self._find(image) for image in pixels]

    def _find(self, image: Tensor) -> dict[str, Tensor]:
        boxes, labels, masks = [], [], []
        for channel in range(3):
            bright = image[channel] > 0
            while bright.any():
                y1, x1 = (int(place) for place in bright.nonzero()[0])
                x2 = x1 + int(bright[y1, x1:].long().cumprod(0).sum())
                y2 = y1 + int(bright[y1:, x1].long().cumprod(0).sum())
                bright[y1:y2, x1:x2] = False
                mask = torch.zeros(1, *image.shape[1:])
                mask[:, y1:y2, x1:x2] = 1
                boxes.append([x1, y1, x2, y2])
                labels.append(channel + 1)
                masks.append(mask)
        corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
        found = {"boxes": corners, "labels": torch.tensor(labels, dtype=torch.int64)}
        found["scores"] = 0.9 - 0.01 * torch.arange(len(boxes))
        if self.predicts == "masks":
            found["masks"] = torch.stack(masks) if masks else torch.zeros(0, 1, *image.shape[1:])
        if self.predicts == "keypoints":
            points = torch.stack([corners[:, :2], corners[:, 2:]], 1)
            found["keypoints"] = torch.cat([points, torch.ones(len(boxes), 2, 1)], -1)
            found["keypoints_scores"] = torch.full((len(boxes), 2), 5.0)
        return found


def square_model(predicts: str = "boxes") -> Model:
    """Return a model that finds squares."""
    kind = {"boxes": "fasterrcnn", "masks": "maskrcnn", "keypoints": "keypointrcnn"}[predicts]
    return Model(None, Header("squares", TASKS[predicts], tiny_spec(kind), PREPROCESSING), SquareEngine(predicts))


def draw_squares(height: int, width: int, *squares: tuple[int, int, int, int, int]) -> Tensor:
    """Return an image (3, height, width) with squares (class, x1, y1, x2, y2)."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for label, x1, y1, x2, y2 in squares:
        image[label, y1:y2, x1:x2] = 255
    return image


def save_squares(path: Path, image: Tensor) -> Path:
    Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(path)
    return path
