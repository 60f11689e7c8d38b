"""How many objects a split has, and how large they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from convatlas.tasks.detection.objects import Objects
from convatlas.tasks.table import pluralize

SMALL, LARGE = 32, 96
"""Side in pixels of a square whose area a small box is below, and a large one at or above, as in COCO's metrics."""


@dataclass(frozen=True)
class ObjectCounts:
    """Numbers of objects: by the size of their boxes, crowds, with masks and with labeled keypoints; and of images."""

    images: int
    images_without_objects: int
    objects: int
    small: int
    medium: int
    large: int
    crowds: int
    masks: int
    with_keypoints: int

    def text(self) -> str:
        """Return one line, such as "470 objects in 50 images: 200 small, 150 medium, 120 large boxes; 4 crowds"."""
        text = (
            f"{pluralize(self.objects, 'object')} in {pluralize(self.images, 'image')}: {self.small:,} small, "
            f"{self.medium:,} medium, {self.large:,} large boxes"
        )
        more = (("crowds", self.crowds), ("with masks", self.masks), ("with keypoints", self.with_keypoints))
        return text + "".join(f"; {number:,} {what}" for what, number in more if number)

    def to_plain(self) -> dict[str, int]:
        return asdict(self)


def count_objects(parts: Sequence[Objects]) -> ObjectCounts:
    """Return the numbers of the objects of images."""
    areas = torch.cat([(each.boxes[:, 2:] - each.boxes[:, :2]).prod(1) for each in parts] or [torch.zeros(0)])
    small, large = int((areas < SMALL**2).sum()), int((areas >= LARGE**2).sum())
    return ObjectCounts(
        len(parts), sum(not len(each) for each in parts), len(areas), small, len(areas) - small - large, large,
        sum(int(each.crowd.sum()) for each in parts if each.crowd is not None),
        sum(len(each) for each in parts if each.segments is not None),
        sum(int((each.keypoints[..., 2] > 0).any(1).sum()) for each in parts if each.keypoints is not None),
    )  # fmt: skip
