"""The objects of one image as a prediction: text, JSON, and rows of CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from convatlas.tasks.detection.drawing import draw, read_thumbnail, to_address
from convatlas.tasks.detection.masks import to_runs
from convatlas.tasks.detection.objects import Objects
from convatlas.tasks.detection.skeleton import Skeleton
from convatlas.tasks.prediction import Prediction

NO_OBJECTS = "no objects"
"""The text of an image without objects."""

ROW_COLUMNS = ("source", "label", "score", "x1", "y1", "x2", "y2", "error")
"""Columns of a CSV of predictions: one row for each object, and one for an image without objects."""

_NUMBER = {"type": "number"}
_SCORE = {"type": "number", "minimum": 0, "maximum": 1}

OBJECT_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "label": {"type": "string", "description": "The class."},
        "score": {**_SCORE, "description": "The probability of the class."},
        "box": {
            "type": "array", "items": _NUMBER, "minItems": 4, "maxItems": 4,
            "description": "x1, y1, x2, y2 in pixels from the left and the top edge.",
        },
        "mask": {
            "type": "object", "description": "The mask as run lengths of COCO (compressed), of instance segmentation.",
            "properties": {
                "size": {"type": "array", "items": {"type": "integer"}, "description": "Height and width."},
                "counts": {"type": "string"},
            },
            "required": ["size", "counts"],
        },
        "keypoints": {
            "type": "array", "description": "The keypoints, of keypoint detection.",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"}, "x": _NUMBER, "y": _NUMBER,
                    "score": {**_NUMBER, "description": "The network's score, a logit: higher is more certain."},
                },
                "required": ["name", "x", "y", "score"],
            },
        },
    },
    "required": ["label", "score", "box"], "additionalProperties": False,
}  # fmt: skip
"""The JSON Schema of one object."""


@dataclass(frozen=True, repr=False)
class DetectionPrediction(Prediction):
    """The objects of an image whose scores reach the threshold, the highest score first.

    objects: None for an unreadable image. classes: names of the labels. skeleton: of the keypoints, if there are any.
    """

    objects: Objects | None = None
    classes: tuple[str, ...] = ()
    skeleton: Skeleton | None = None

    plain_fields: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "source": Prediction.plain_fields["source"],
        "width": {"type": ["integer", "null"], "description": "Width of the image in pixels; null with an error."},
        "height": {"type": ["integer", "null"], "description": "Height of the image in pixels; null with an error."},
        "objects": {
            "type": "array", "items": OBJECT_SCHEMA,
            "description": "The objects, the highest score first; empty if there are none, and with an error.",
        },
        "error": Prediction.plain_fields["error"],
    }  # fmt: skip

    @property
    def labels(self) -> tuple[str, ...]:
        """The class of each object."""
        return () if self.objects is None else tuple(self.classes[i] for i in self.objects.labels.tolist())

    @property
    def scores(self) -> tuple[float, ...]:
        """The score of each object."""
        if self.objects is None:
            return ()
        return (1.0,) * len(self.objects) if self.objects.scores is None else tuple(self.objects.scores.tolist())

    @property
    def boxes(self) -> tuple[tuple[float, float, float, float], ...]:
        """x1, y1, x2, y2 of each object in pixels."""
        return () if self.objects is None else tuple(tuple(box) for box in self.objects.boxes.tolist())

    @property
    def text(self) -> str:
        """How many objects of each class there are, such as "2 person, 1 dog"."""
        return "" if self.error else count_text(self.labels)

    @property
    def probability(self) -> float | None:
        """The highest score; None without objects."""
        return max(self.scores, default=None)

    def to_plain(self) -> dict[str, Any]:
        height, width = self.objects.size if self.objects is not None else (None, None)
        return {
            "source": self.source, "width": width, "height": height, "objects": self._plain_objects(),
            "error": self.error or None,
        }  # fmt: skip

    def _plain_objects(self) -> list[dict[str, Any]]:
        """Return the objects as plain data."""
        plain: list[dict[str, Any]] = [
            {"label": label, "score": score, "box": list(box)}
            for label, score, box in zip(self.labels, self.scores, self.boxes, strict=True)
        ]
        if self.objects is not None and self.objects.segments is not None:
            for each, segment in zip(plain, self.objects.segments, strict=True):
                each["mask"] = to_runs(segment, self.objects.size)
        if self.objects is not None and self.objects.keypoints is not None and self.skeleton is not None:
            for each, points in zip(plain, self.objects.keypoints.tolist(), strict=True):
                each["keypoints"] = [
                    {"name": name, "x": x, "y": y, "score": score}
                    for name, (x, y, score) in zip(self.skeleton.names, points, strict=True)
                ]
        return plain

    def to_row(self, top: int) -> dict[str, Any]:
        """Return the image as a row: how many objects of each class there are, and the highest score."""
        text = None if self.error else "|".join(f"{count} {name}" for name, count in Counter(self.labels).most_common())
        return {"source": self.source, "objects": text, "score": self.probability, "error": self.error or None}

    def to_rows(self, top: int) -> list[dict[str, Any]]:
        """Return one row for each object; one with empty cells for an image without objects."""
        rows = [
            dict(zip(ROW_COLUMNS, (self.source, label, score, *box, None), strict=True))
            for label, score, box in zip(self.labels, self.scores, self.boxes, strict=True)
        ]
        return rows or [dict.fromkeys(ROW_COLUMNS) | {"source": self.source, "error": self.error or None}]

    def annotated(self, pixels: Tensor) -> Tensor:
        """Return the image (channels, h, w) with boxes, masks and skeletons, (3, h, w) uint8."""
        return pixels if self.objects is None else draw(pixels, self.objects, self.classes, self.skeleton)

    def _repr_html_(self) -> str:
        """Return the image with its objects, if its file can be read, above the table."""
        pixels = None if self.objects is None else read_thumbnail(self.source)
        image = "" if pixels is None else f'<img alt="" src="{to_address(self.annotated(pixels))}">'
        return image + super()._repr_html_()

    def cells(self, top: int) -> tuple[str, ...]:
        best = self.probability
        return (self.text, "" if best is None else f"{best:7.2%}  {self.labels[self.scores.index(best)]}")

    @classmethod
    def headings(cls, top: int) -> tuple[str, ...]:
        return ("objects", "highest score")


def count_text(names: Sequence[str]) -> str:
    """Return how often each name occurs, the most frequent first: "3 RBC, 1 WBC"."""
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common()) or NO_OBJECTS
