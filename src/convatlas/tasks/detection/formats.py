"""Objects in the forms of other tools: annotations and results of COCO, lines of YOLO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from convatlas.tasks.detection import masks
from convatlas.tasks.detection.objects import Objects
from convatlas.tasks.detection.prediction import DetectionPrediction

Plain = dict[str, Any]


def areas_of(objects: Objects) -> Tensor:
    """Return (k,) the areas in pixels: those of the annotation, else those of the masks, else those of the boxes."""
    if objects.areas is not None:
        return objects.areas
    if objects.segments is not None:
        return torch.tensor([float(masks.area(segment, objects.size)) for segment in objects.segments])
    return (objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(1)


def to_annotations(objects: Objects, image_id: int, category_ids: Sequence[int]) -> list[Plain]:
    """Return the objects of an image as annotations of COCO without ids. category_ids: the id of each class."""
    plain = _plain(objects, image_id, category_ids)
    crowd = [False] * len(objects) if objects.crowd is None else objects.crowd.tolist()
    for each, area, is_crowd in zip(plain, areas_of(objects).tolist(), crowd, strict=True):
        each |= {"area": area, "iscrowd": int(is_crowd)}
    return plain


def to_results(objects: Objects, image_id: int, category_ids: Sequence[int]) -> list[Plain]:
    """Return detections in an image as results of COCO. category_ids: the id of each class."""
    plain = _plain(objects, image_id, category_ids)
    for each, score in zip(plain, score_list(objects), strict=True):
        each["score"] = score
    return plain


def score_list(objects: Objects) -> list[float]:
    """Return the score of each object, 1 for ground truth."""
    return [1.0] * len(objects) if objects.scores is None else objects.scores.tolist()


def to_coco_results(
    predictions: Sequence[DetectionPrediction], image_ids: Sequence[int], category_ids: Mapping[str, int]
) -> list[Plain]:
    """Return predictions as a result file of COCO. category_ids: class -> id."""
    results: list[Plain] = []
    for prediction, image_id in zip(predictions, image_ids, strict=True):
        if prediction.objects is not None:
            ids = [category_ids[name] for name in prediction.classes]
            results += to_results(prediction.objects, image_id, ids)
    return results


def to_yolo_lines(prediction: DetectionPrediction) -> list[str]:
    """Return a prediction as lines of YOLO: class (from 0), center x, center y, width, height, score.

    Coordinates are shares of the image's width and height. Keypoints, if any, are x, y, score after the box.
    """
    objects = prediction.objects
    if objects is None:
        return []
    height, width = objects.size
    lines = []
    for i, (label, score, (x1, y1, x2, y2)) in enumerate(
        zip(objects.labels.tolist(), prediction.scores, prediction.boxes, strict=True)
    ):
        values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        if objects.keypoints is not None:
            for x, y, certainty in objects.keypoints[i].tolist():
                values += [x / width, y / height, certainty]
        lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values), f"{score:.6f}"]))
    return lines


def _plain(objects: Objects, image_id: int, category_ids: Sequence[int]) -> list[Plain]:
    """Return what annotations and results share: ids, box, mask as compressed run lengths, and keypoints."""
    pairs = zip(objects.labels.tolist(), masks.with_sides(objects.boxes).tolist(), strict=True)
    plain: list[Plain] = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box} for label, box in pairs
    ]
    if objects.segments is not None:
        for each, segment in zip(plain, objects.segments, strict=True):
            each["segmentation"] = masks.to_runs(segment, objects.size)
    if objects.keypoints is not None:
        labeled = (objects.keypoints[..., 2] > 0).sum(1).tolist()
        points = objects.keypoints.double().flatten(1).tolist()
        for each, row, count in zip(plain, points, labeled, strict=True):
            each |= {"keypoints": row, "num_keypoints": count}
    return plain
