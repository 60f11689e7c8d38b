"""How the objects that an exported detector finds compare with those of the model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convatlas.engines.onnxruntime import OnnxRuntimeEngine
from convatlas.errors import EngineError
from convatlas.inference.model import Model
from convatlas.tasks.detection import masks
from convatlas.tasks.table import pluralize

MAX_BOX_DIFFERENCE, MAX_SCORE_DIFFERENCE = 1e-2, 1e-4
"""Maximum differences, in pixels and in probability, between objects that are the same."""

MIN_SAME = 0.99
"""Minimum share of the objects that are the same: rounding may decide which of two boxes is suppressed."""

MIN_SAME_KEYPOINTS = 0.95
"""Minimum share of the keypoints: heatmaps of untrained networks have several maxima of nearly the same value."""

MAX_PIXEL_SHARE = 0.01
"""Maximum share of the pixels of masks that differ."""


@dataclass(frozen=True)
class DetectorParity:
    """How the objects of an exported detector compare with those of the model, on images of several sizes.

    num_same: objects with the same class, a box within `MAX_BOX_DIFFERENCE` px and a score within
    `MAX_SCORE_DIFFERENCE`; num_objects: all, of both sides. max_box_difference, max_score_difference: of the same ones.
    num_pixels, num_other_pixels: pixels of the masks of the same objects, and those that belong to one of both masks.
    num_keypoints, num_same_keypoints: keypoints of the same objects, and those within `MAX_BOX_DIFFERENCE` px.
    rounding: how the model in float64 compares with itself in float32, where fewer objects than `MIN_SAME` are the
    same: networks that were hardly trained magnify rounding.
    """

    num_images: int = 0
    num_objects: int = 0
    num_same: int = 0
    max_box_difference: float = 0.0
    max_score_difference: float = 0.0
    num_pixels: int = 0
    num_other_pixels: int = 0
    num_keypoints: int = 0
    num_same_keypoints: int = 0
    rounding: DetectorParity | None = None

    def is_same(self, rounding: DetectorParity | None = None) -> bool:
        """Return whether the objects are the same, but for twice the shares that differ by `rounding`."""
        objects, pixels, keypoints = (0.0, 0.0, 0.0) if rounding is None else rounding.other_shares
        other_objects, other_pixels, other_keypoints = self.other_shares
        return (
            self.num_same > 0
            and other_objects <= 2 * objects + 1 - MIN_SAME
            and other_pixels <= 2 * pixels + MAX_PIXEL_SHARE
            and other_keypoints <= 2 * keypoints + 1 - MIN_SAME_KEYPOINTS
        )

    @property
    def other_shares(self) -> tuple[float, float, float]:
        """The shares of objects, of pixels of masks and of keypoints that are not the same."""
        return (
            1 - self.num_same / self.num_objects if self.num_objects else 0.0,
            self.num_other_pixels / max(self.num_pixels, 1),
            1 - self.num_same_keypoints / self.num_keypoints if self.num_keypoints else 0.0,
        )

    def text(self) -> str:
        """Return the comparison in one line."""
        parts = [
            f"same class, box and score for {self.num_same:,} of {pluralize(self.num_objects, 'object')} in "
            f"{pluralize(self.num_images, 'image')}, within {self.max_box_difference:.1e} px and "
            f"{self.max_score_difference:.1e}"
        ]
        if self.num_pixels:
            parts.append(f"{self.num_other_pixels:,} of {self.num_pixels:,} pixels of masks differ")
        if self.num_keypoints:
            parts.append(f"same place for {self.num_same_keypoints:,} of {pluralize(self.num_keypoints, 'keypoint')}")
        if self.rounding:
            parts.append(
                f"the model in float64 has the same for {self.rounding.num_same:,} of "
                f"{pluralize(self.rounding.num_objects, 'object')}"
            )
        return "; ".join(parts)

    def to_plain(self) -> dict[str, Any]:
        plain = asdict(self)
        return {"n": plain.pop("num_images"), **plain}


def compare_detectors(model: Model, engine: OnnxRuntimeEngine, images: Sequence[Tensor]) -> DetectorParity:
    """Compare an exported detector with the model on images (channels, h, w).

    The first image is also cut in half, in both directions, and used once with a score threshold that no object
    reaches. Raises EngineError if objects differ, if there are none, or if some have a score above that threshold.
    """
    name, first = model.header.name, images[0]
    height, width = first.shape[-2:]
    halves = [first[:, : max(height // 2, 1)], first[:, :, : max(width // 2, 1)]]
    parity, views = DetectorParity(), [*images, *(half.contiguous() for half in halves)]
    for image in views:
        expected = _outputs(model, image)
        parity = add_image(parity, expected, engine.detect(image))
    if not parity.num_objects:
        raise EngineError(
            f"{name}: finds no object in {pluralize(len(images), 'image')}, so its export cannot be compared; pass "
            "other images with --check (in Python: check=)"
        )
    if not parity.is_same():
        parity = replace(parity, rounding=_compare_with_float64(model, views))
    if not parity.is_same(parity.rounding):
        raise EngineError(f"{name}: exported to onnx, its objects differ: {parity.text()}; nothing was written")
    nothing = engine.detect(first, score_threshold=1.0)
    if any(len(values) for values in nothing.values()):
        raise EngineError(f"{name}: exported to onnx, it finds objects above the score threshold; nothing was written")
    return replace(parity, num_images=parity.num_images + 1)


def _outputs(model: Model, image: Tensor) -> dict[str, Tensor]:
    """Return what the model finds in an image, with masks (k, 1, h, w) of 0 and 1."""
    found: dict[str, Tensor] = dict(model.engine.outputs([image])[0])
    if "masks_of_boxes" in found:
        size = image.shape[-2], image.shape[-1]
        runs = masks.paste(found.pop("masks_of_boxes"), found["boxes"], size)
        found["masks"] = masks.to_dense(runs, size)[:, None].float()
    return found


@torch.inference_mode()
def _compare_with_float64(model: Model, images: Sequence[Tensor]) -> DetectorParity:
    """Return how the model in float64 compares with itself in float32."""
    network = copy.deepcopy(model.module).double().eval()
    parity = DetectorParity()
    for image in images:
        expected = _outputs(model, image)
        (exact,) = network([image.double() / 255])
        parity = add_image(parity, expected, {name: values.to(expected[name].dtype) for name, values in exact.items()})
    return parity


def add_image(parity: DetectorParity, expected: dict[str, Tensor], got: dict[str, Tensor]) -> DetectorParity:
    """Return the comparison with another image in it."""
    pairs = _pairs(expected, got)
    ours, theirs = (
        {name: values[rows] for name, values in found.items()}
        for found, rows in zip((expected, got), pairs, strict=True)
    )
    same = len(pairs[0])
    more: dict[str, Any] = {
        "num_images": 1, "num_objects": len(expected["boxes"]) + len(got["boxes"]) - same, "num_same": same,
    }  # fmt: skip
    if "masks" in expected:
        mine, other = ours["masks"] >= 0.5, theirs["masks"] >= 0.5
        more["num_pixels"] = int((mine | other).sum())
        more["num_other_pixels"] = int((mine != other).sum())
    if "keypoints" in expected:
        distance = (ours["keypoints"] - theirs["keypoints"]).abs().amax(-1)
        more["num_keypoints"] = distance.numel()
        more["num_same_keypoints"] = int((distance <= MAX_BOX_DIFFERENCE).sum())
    sums = {name: getattr(parity, name) + value for name, value in more.items()}
    largest = {
        "max_box_difference": _largest(ours["boxes"] - theirs["boxes"]),
        "max_score_difference": _largest(ours["scores"] - theirs["scores"]),
    }
    return replace(parity, **sums, **{name: max(getattr(parity, name), value) for name, value in largest.items()})


def _pairs(expected: dict[str, Tensor], got: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the rows of the objects that are the same, each in one pair."""
    boxes = (expected["boxes"][:, None] - got["boxes"]).abs().amax(-1)
    scores = (expected["scores"][:, None] - got["scores"]).abs()
    same = (boxes <= MAX_BOX_DIFFERENCE) & (scores <= MAX_SCORE_DIFFERENCE)
    same &= expected["labels"][:, None] == got["labels"]
    rows, columns, used = [], [], set()
    for row in same.any(1).nonzero().flatten().tolist():
        for column in same[row].nonzero().flatten().tolist():
            if column not in used:
                used.add(column)
                rows.append(row)
                columns.append(column)
                break
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64)


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0
