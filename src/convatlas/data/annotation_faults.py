"""Faults of annotations: what is counted, how it is treated, and where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from convatlas.core.problems import Problems
from convatlas.core.record import Record, at_least
from convatlas.data.findings import Finding, Severity
from convatlas.errors import DataError, listed, printable

Treatment = Literal["clip", "drop", "keep", "merge", "rotate", "scale", "compute", "stop"]

MAX_EXAMPLES = 5
"""Maximum number of examples of a fault in the record of a training."""


@dataclass(frozen=True)
class FaultKind:
    """A kind of fault: its treatment, its severity, the text for one and for more of them, and what follows from it."""

    treatment: Treatment
    severity: Severity
    one: str
    many: str
    effect: str


KINDS = {
    # --- boxes
    "degenerate_boxes": FaultKind(
        "drop", "warning", "box has no area", "boxes have no area", "dropped; correct or delete them"
    ),
    "outside_boxes": FaultKind(
        "clip", "warning", "box reaches out of its image", "boxes reach out of their images",
        "clipped to the image; check that image and annotation belong together",
    ),
    "border_boxes": FaultKind(
        "clip", "note", "box reaches out of its image by at most a pixel",
        "boxes reach out of their images by at most a pixel", "clipped to the image",
    ),
    "lost_boxes": FaultKind(
        "drop", "warning", "box is entirely outside of its image", "boxes are entirely outside of their images",
        "dropped; check that image and annotation belong together",
    ),
    "duplicate_objects": FaultKind(
        "drop", "warning", "object is annotated twice", "objects are annotated twice", "the copies are dropped"
    ),
    "one_based_boxes": FaultKind(
        "keep",
        "note",
        "split has coordinates from 1, as Pascal VOC defines them",
        "splits have coordinates from 1, as Pascal VOC defines them",
        "kept, in every format; left and top edges are up to a pixel too far inside",
    ),
    "missing_boxes": FaultKind(
        "compute", "note", "object has no box", "objects have no box", "computed from the mask or the keypoints"
    ),
    # --- masks
    "empty_polygons": FaultKind(
        "keep", "warning", "object has no polygon", "objects have no polygon",
        "kept; where others have masks, its mask is its box",
    ),
    "no_polygons": FaultKind(
        "keep", "note", "file has nothing but empty polygons", "files have nothing but empty polygons",
        "kept; the boxes are used",
    ),
    "repeated_points": FaultKind(
        "keep", "note", "polygon repeats a point", "polygons repeat a point", "kept; they change nothing"
    ),
    "outside_points": FaultKind(
        "clip", "note", "polygon reaches out of its image", "polygons reach out of their images", "clipped to the image"
    ),
    # --- keypoints
    "outside_keypoints": FaultKind(
        "drop", "warning", "object has labeled keypoints outside of its image",
        "objects have labeled keypoints outside of their images", "these keypoints count as not labeled",
    ),
    "keypoint_counts": FaultKind(
        "compute", "note", "object has a wrong number of labeled keypoints",
        "objects have a wrong number of labeled keypoints", "counted again",
    ),
    "nested_keypoints": FaultKind(
        "keep", "note", "object has keypoints as a list of lists", "objects have keypoints as lists of lists",
        "read as they are meant",
    ),
    # --- fields and ids
    "missing_areas": FaultKind("compute", "note", "object has no area", "objects have no area", "computed"),
    "missing_crowds": FaultKind("compute", "note", "object has no iscrowd", "objects have no iscrowd", "0 is assumed"),
    "zero_ids": FaultKind(
        "keep", "note", "annotation has the id 0", "annotations have the id 0",
        "kept and counted as every other one (pycocotools would lose its match)",
    ),
    "duplicate_ids": FaultKind(
        "keep", "warning", "annotation has the id of another one", "annotations have the id of another one",
        "kept: all of them are used",
    ),
    # --- categories
    "unknown_categories": FaultKind(
        "stop", "error", "object is of an unknown category", "objects are of unknown categories",
        "add the category, or correct or delete the objects",
    ),
    "duplicate_categories": FaultKind(
        "stop", "error", "category has the name of another one", "categories have the name of another one",
        "rename or unite the categories",
    ),
    "unused_categories": FaultKind(
        "keep", "note", "category has no annotations in its file", "categories have no annotations in their file",
        "kept as classes",
    ),
    "parent_categories": FaultKind(
        "drop", "note", "category is the parent of others and has no annotations",
        "categories are parents of others and have no annotations", "they are not classes",
    ),
    # --- images
    "missing_images": FaultKind(
        "stop", "error", "annotated image does not exist", "annotated images do not exist",
        "restore them, or remove their annotations; a training skips at most a share of the images (--max-unreadable)",
    ),
    "duplicate_images": FaultKind(
        "merge", "warning", "image is listed twice", "images are listed twice",
        "they are one image; objects that are annotated twice are dropped",
    ),
    "unannotated_images": FaultKind(
        "drop", "warning", "image has no annotation file", "images have no annotation file",
        "not used, as it is unknown what they show; add a file without objects if they show none",
    ),
    "missing_label_files": FaultKind(
        "keep", "note", "image has no label file", "images have no label file", "kept as images without objects"
    ),
    "missing_sizes": FaultKind(
        "compute", "note", "image has no size in its annotation", "images have no size in their annotation",
        "that of the image file is used",
    ),
    "scaled_sizes": FaultKind(
        "scale", "warning", "image has another size than its annotation states, of equal proportions",
        "images have another size than their annotation states, of equal proportions",
        "the annotations are scaled to the image file",
    ),
    "wrong_sizes": FaultKind(
        "stop", "error", "image has other proportions than its annotation states",
        "images have other proportions than their annotation states",
        "restore the images that were annotated, or correct the sizes",
    ),
    "rotated_annotations": FaultKind(
        "rotate", "warning", "image is rotated by its EXIF orientation, and its annotation is not",
        "images are rotated by their EXIF orientation, and their annotations are not",
        "the annotations are rotated with the image",
    ),
}  # fmt: skip
"""The faults by name."""


@dataclass(frozen=True)
class AnnotationFault(Record):
    """How often a kind of fault occurs, how it was treated, and where it is."""

    error = DataError

    kind: str
    treatment: Treatment
    count: Annotated[int, at_least(1)]
    examples: tuple[str, ...] = ()

    def shortened(self, limit: int = MAX_EXAMPLES) -> AnnotationFault:
        """Return the fault with at most `limit` examples."""
        return replace(self, examples=self.examples[:limit])

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity

    def text(self) -> str:
        """Return one line, such as "2 boxes have no area: dropped (a.xml: object 3, b.xml: object 1)"."""
        kind = KINDS[self.kind]
        return printable(f"{self._what()}: {kind.effect.partition(';')[0]} ({listed(self.examples, 2)})")

    def finding(self) -> Finding:
        """Return the finding of a data check."""
        effect = KINDS[self.kind].effect
        fix = effect if self.treatment == "stop" else f"none needed: {effect}"
        return Finding(self.kind, self.severity, self._what(), self.count, self.examples, fix)

    def _what(self) -> str:
        kind = KINDS[self.kind]
        return f"{self.count:,} {kind.one if self.count == 1 else kind.many}"


class FaultLog:
    """Collects faults while annotations are read and treated."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}

    def add(self, kind: str, where: str) -> None:
        """Add a fault of a kind; where: its file, and the line or the id."""
        self._places.setdefault(kind, []).append(printable(where))

    def __iter__(self) -> Iterator[AnnotationFault]:
        """The faults of each kind, in the order of `KINDS`."""
        for kind, known in KINDS.items():
            if places := self._places.get(kind):
                yield AnnotationFault(kind, known.treatment, len(places), tuple(places))

    def refuse(self, problems: Problems) -> None:
        """Add the faults with which a training does not start to problems."""
        for fault in self:
            if fault.treatment == "stop" and fault.kind != "missing_images":  # `Source.load` counts missing images
                kind = KINDS[fault.kind]
                for place in fault.examples:
                    problems.add(DataError(f"{place}: {kind.one}; {kind.effect}", kind=fault.kind, subject=place))
