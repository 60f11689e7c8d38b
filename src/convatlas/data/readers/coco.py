"""COCO JSON: boxes, polygons, run lengths, keypoints and crowds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convatlas.core.problems import Problems
from convatlas.data.annotation_faults import FaultLog
from convatlas.data.annotations import AnnotatedImage, Annotation, Annotations
from convatlas.data.class_names import class_name
from convatlas.data.readers.image_places import ImagePlaces
from convatlas.data.readers.json_values import field_list, mapping, number, numbers, read_json, shown, side, text
from convatlas.data.readers.masks_json import read_segment
from convatlas.data.readers.skeletons import skeleton_of_categories
from convatlas.errors import DataError

INVALID = "invalid_annotations"
"""Kind of the errors of single annotations."""


def read_coco(
    location: Path, files: Mapping[str, Path], faults: FaultLog, problems: Problems, notes: Sequence[str] = ()
) -> Annotations:
    """Read one COCO file for each split; the images are beside it or in a folder near it.

    Classes are the categories in the order of their ids, those of train first. Categories that are the parents of
    others and have no annotations in any file are not classes.
    Raises DataError for a file that is no COCO file; `problems` collects invalid images and annotations.
    """
    parts = {split: _CocoFile(file, location, faults, problems) for split, file in files.items()}
    used = {name for part in parts.values() for name in part.used}
    parents = {name for part in parts.values() for name in part.parents} - used
    classes = dict.fromkeys(name for part in parts.values() for name in part.categories.values() if name not in parents)
    for part in parts.values():
        for name in part.categories.values():
            if name not in part.used:
                faults.add("parent_categories" if name in parents else "unused_categories", f"{part.name}: {name}")
    skeletons = [category for part in parts.values() for category in part.skeletons]
    remarks = list(notes)
    lengths = {len(each.keypoints) for part in parts.values() for image in part.images for each in image.objects
               if each.keypoints}  # fmt: skip
    skeleton = skeleton_of_categories(skeletons, lengths, next(iter(parts.values())).name, remarks)
    return Annotations(
        {split: part.images for split, part in parts.items()}, tuple(classes), skeleton, 0, True, remarks
    )


class _CocoFile:
    """The contents of one file. used: names of categories with annotations. parents: supercategories of others."""

    def __init__(self, file: Path, location: Path, faults: FaultLog, problems: Problems) -> None:
        self.name = str(file.relative_to(location)) if location in file.parents else file.name
        self.faults, self.problems, self.invalid = faults, problems, problems.of(INVALID)
        data = mapping(read_json(file), file)
        entries = [field_list(data, field, file) for field in ("categories", "images", "annotations")]
        self.skeletons: list[Mapping[str, Any]] = []
        self.parents: set[str] = set()
        self.categories = self._read_categories(entries[0])
        self.used: set[str] = set()
        self.by_id: dict[Any, AnnotatedImage] = {}
        self.images = self._read_images(entries[1], file)
        self._read_annotations(entries[2])

    def _read_categories(self, entries: Sequence[Any]) -> dict[int, str]:
        """Return {id: name} in the order of ids."""
        categories: dict[int, str] = {}
        names: dict[str, int] = {}
        for i, entry in enumerate(entries):
            where = f"{self.name}: category {i + 1} of the file"
            with self.invalid:
                entry = mapping(entry, where)
                number_ = entry.get("id")
                if type(number_) is not int:
                    raise DataError(f"{where}: id must be an integer, got {shown(number_)}")
                name = class_name(text(entry.get("name"), "name", where), where)
                if number_ in categories:
                    raise DataError(f"{where}: the id {number_} is that of {categories[number_]}, too")
                if name in names:
                    self.faults.add("duplicate_categories", f"{self.name}: {name} (ids {names[name]} and {number_})")
                names.setdefault(name, number_)
                categories[number_] = name
                if isinstance(parent := entry.get("supercategory"), str) and parent.strip() != name:
                    self.parents.add(parent.strip())
                if entry.get("keypoints") is not None:
                    self.skeletons.append(entry)
        return dict(sorted(categories.items()))

    def _read_images(self, entries: Sequence[Any], file: Path) -> list[AnnotatedImage]:
        stated: list[tuple[str, Any, AnnotatedImage]] = []
        for i, entry in enumerate(entries):
            where = f"{self.name}: image {i + 1} of the file"
            with self.invalid:
                entry = mapping(entry, where)
                id_ = entry.get("id")
                if type(id_) not in (int, str):
                    raise DataError(f"{where}: id must be an integer, got {shown(id_)}")
                where = f"{self.name}: image {id_}"
                name = text(entry.get("file_name"), "file_name", where)
                size = side(entry.get("height"), "height", where), side(entry.get("width"), "width", where)
                stated.append((name, id_, AnnotatedImage(name, where, self.name, size)))
        places = ImagePlaces(file, [name for name, _, _ in stated])
        images: dict[str, AnnotatedImage] = {}
        for name, id_, image in stated:
            image.file = places.find(name)
            if id_ in self.by_id and self.by_id[id_].file != image.file:
                with self.invalid:
                    raise DataError(f"{image.where}: another image has this id, too: {Path(self.by_id[id_].file).name}")
                continue
            if image.file in images:
                self.faults.add("duplicate_images", f"{image.where}: {name}")
            self.by_id[id_] = images.setdefault(image.file, image)
        return list(images.values())

    def _read_annotations(self, entries: Sequence[Any]) -> None:
        ids: set[Any] = set()
        empty: list[str] = []
        with_segment = 0
        for i, entry in enumerate(entries):
            id_ = entry.get("id") if isinstance(entry, dict) else None
            short = f"annotation {id_}" if type(id_) in (int, str) else f"annotation {i + 1} of the file"
            where = f"{self.name}: {short}"
            with self.invalid:
                entry = mapping(entry, where)
                image = self.by_id.get(_hashable(entry.get("image_id")))
                if image is None:
                    raise DataError(f"{where}: image_id {shown(entry.get('image_id'))} is the id of no image")
                label = self.categories.get(_hashable(entry.get("category_id")))
                if label is None:
                    known = f"category_id {shown(entry.get('category_id'))}"
                    self.faults.add("unknown_categories", f"{where}: {known}")
                    continue
                each = self._read_annotation(entry, where, short, label)
                image.objects.append(each)
                self.used.add(label)
                if each.segment:
                    with_segment += 1
                elif "segmentation" in entry and not each.crowd:
                    empty.append(where)
                if type(id_) is int and id_ == 0:
                    self.faults.add("zero_ids", f"{where} (image {Path(image.file).name})")
                if id_ is not None and (key := _hashable(id_)) in ids:
                    self.faults.add("duplicate_ids", where)
                else:
                    ids.add(key if id_ is not None else None)
        if empty and not with_segment:
            self.faults.add("no_polygons", f"{self.name}: every segmentation is an empty list")
        for where in empty if with_segment else ():
            self.faults.add("empty_polygons", where)

    def _read_annotation(self, entry: Mapping[str, Any], where: str, short: str, label: str) -> Annotation:
        if "score" in entry:
            raise DataError(f"{where}: has a score: it is the result of a detector, not an annotation")
        crowd = entry.get("iscrowd")
        if crowd is None:
            self.faults.add("missing_crowds", where)
        elif crowd not in (0, 1):
            raise DataError(f"{where}: iscrowd must be 0 or 1, got {shown(crowd)}")
        area = entry.get("area")
        if area is None:
            self.faults.add("missing_areas", where)
        elif number(area, "area", where) < 0:
            raise DataError(f"{where}: area must be a number >= 0, got {shown(area)}")
        box = None
        if entry.get("bbox") is None or entry["bbox"] == []:
            self.faults.add("missing_boxes", where)
        else:
            x, y, width, height = map(float, numbers(entry["bbox"], "bbox", where, 4))
            box = (x, y, x + width, y + height)
        keypoints = self._read_keypoints(entry, where)
        segment = read_segment(entry.get("segmentation"), where)
        return Annotation(short, label, box, segment, keypoints, bool(crowd), None if area is None else float(area))

    def _read_keypoints(self, entry: Mapping[str, Any], where: str) -> list[tuple[float, float, float]] | None:
        values = entry.get("keypoints")
        if values is None or values == []:
            return None
        if isinstance(values, list) and isinstance(values[0], list):
            rows = [numbers(row, "keypoints", where, 3) for row in values]
            self.faults.add("nested_keypoints", f"{where}: {len(rows)} points")
        else:
            flat = numbers(values, "keypoints", where)
            if len(flat) % 3:
                raise DataError(f"{where}: keypoints must be x, y and visibility of each, got {len(flat)} numbers")
            rows = [flat[i : i + 3] for i in range(0, len(flat), 3)]
        if wrong := [row[2] for row in rows if row[2] not in (0, 1, 2)]:
            raise DataError(f"{where}: visibility must be 0, 1 or 2, got {shown(wrong[0])}")
        labeled = sum(row[2] > 0 for row in rows)
        if entry.get("num_keypoints") != labeled:
            self.faults.add(
                "keypoint_counts", f"{where}: num_keypoints {shown(entry.get('num_keypoints'))}, labeled {labeled}"
            )
        return [(float(x), float(y), float(v)) for x, y, v in rows]


def _hashable(value: Any) -> Any:
    """Return an id, or None for what cannot be one."""
    return value if type(value) in (int, str) else None
