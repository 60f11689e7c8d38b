"""Objects of small images for the tests of detection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from convatlas.tasks.detection.objects import Objects, Segment


def boxes(*rows: Sequence[float], labels: Sequence[int] | None = None, **more: Any) -> Objects:
    """Return objects in an image of 100 x 100 pixels; all of class 0 by default."""
    values = {name: torch.tensor(value) if name != "segments" else value for name, value in more.items()}
    size = tuple(values.pop("size", torch.tensor([100, 100])).tolist())
    return Objects(
        size, torch.tensor(rows, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels if labels is not None else [0] * len(rows), dtype=torch.int64), **values,
    )  # fmt: skip


def rectangle(x1: float, y1: float, x2: float, y2: float) -> Segment:
    """Return a polygon."""
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def objects_of_coco(ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]]) -> tuple[list[Objects], ...]:
    """Return (truths, detections) of each image of a file of annotations and a file of results in COCO's form."""
    numbers = {
        category["id"]: i for i, category in enumerate(sorted(ground_truth["categories"], key=lambda c: c["id"]))
    }
    sides = []
    for rows in (ground_truth["annotations"], detections):
        by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in ground_truth["images"]}
        for row in rows:
            by_image[row["image_id"]].append(row)
        sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
        sides.append([_objects(sizes[image], each, numbers) for image, each in by_image.items()])
    return tuple(sides)


def _objects(size: tuple[int, int], rows: Sequence[dict[str, Any]], numbers: dict[int, int]) -> Objects:
    corners = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    more: dict[str, Any] = {}
    if rows and "score" in rows[0]:
        more["scores"] = torch.tensor([row["score"] for row in rows])
    elif rows:
        more["crowd"] = torch.tensor([bool(row.get("iscrowd")) for row in rows])
        more["areas"] = torch.tensor([float(row["area"]) for row in rows])
    if rows and rows[0].get("segmentation"):
        more["segments"] = tuple(row["segmentation"] for row in rows)
    if rows and rows[0].get("keypoints"):
        more["keypoints"] = torch.tensor([row["keypoints"] for row in rows]).float().unflatten(1, (-1, 3))
    labels = torch.tensor([numbers[row["category_id"]] for row in rows], dtype=torch.int64)
    return Objects(size, corners.float(), labels, **more)
