"""The annotations of images as their files state them: one form for all formats, before faults are treated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from convatlas.tasks.detection.objects import Segment
from convatlas.tasks.detection.skeleton import Skeleton

ONE_CLASS = "object"
"""The class of all objects of data that states none."""

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2."""


@dataclass
class Annotation:
    """One object.

    where: names it in its file, such as "line 3" or "annotation 1274". label: the name of its category. box: None if
    it is not stated; then it follows from the segment or the keypoints. keypoints: x, y, visibility of each.
    crowd: a group of objects. area: in pixels, if it is stated.
    """

    where: str
    label: str
    box: Box | None = None
    segment: Segment | None = None
    keypoints: Sequence[Sequence[float]] | None = None
    crowd: bool = False
    area: float | None = None


@dataclass
class AnnotatedImage:
    """One image and its objects.

    file: its path. where: names its entry, such as "a.json: image 17" or "labels/a.txt"; the `where` of an object
    completes `annotation_file`. size: (height, width), (0, 0) if it should be stated and is not; None in formats
    without it. relative: whether coordinates are shares of the
    image's width and height.
    """

    file: str
    where: str
    annotation_file: str
    size: tuple[int, int] | None = None
    objects: list[Annotation] = field(default_factory=list)
    relative: bool = False


@dataclass
class Annotations:
    """The images of each split, the names of the classes in their order, and what was understood.

    skeleton: of the keypoints, if the data has any. origin: the coordinate of the first pixel by the definition of the
    format, 1 in Pascal VOC.
    has_areas: whether the format states areas.
    """

    images: dict[str, list[AnnotatedImage]]
    classes: tuple[str, ...]
    skeleton: Skeleton | None = None
    origin: int = 0
    has_areas: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def objects(self) -> int:
        """The number of objects."""
        return sum(len(image.objects) for part in self.images.values() for image in part)
