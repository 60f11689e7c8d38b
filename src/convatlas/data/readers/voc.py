"""Pascal VOC: one XML file for each image."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from convatlas.core.problems import Problems
from convatlas.data.annotation_faults import FaultLog
from convatlas.data.annotations import AnnotatedImage, Annotation, Annotations
from convatlas.data.class_names import class_name
from convatlas.data.readers.image_places import images_near
from convatlas.data.readers.json_values import shown
from convatlas.data.readers.xml_values import MAX_LOOKS, begins_with, parse_xml, xml_number
from convatlas.data.splits import split_name
from convatlas.errors import DataError, foreign_errors, listed

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def annotation_folders(folder: Path) -> list[Path]:
    """Return the folders with annotations as XML files: a folder itself, or those in it that are named like that.

    The files of the latter may be in folders below them.
    """
    inside = [
        each for each in sorted(folder.iterdir())
        if each.is_dir() and (re.search(r"annot|xml|voc|pascal|label", each.name.lower()) or split_name(each.name))
    ]  # fmt: skip
    found = [folder.glob("*.xml"), *(each.rglob("*.xml") for each in inside)]
    return [each for each, files in zip((folder, *inside), found, strict=True) if _is_annotated(files)]


def _is_annotated(files: Iterable[Path]) -> bool:
    return any(begins_with(file, "annotation") for file in islice(files, MAX_LOOKS))


def read_voc(location: Path, faults: FaultLog, problems: Problems) -> Annotations:
    """Read the XML files of Annotations/, or beside the images; ImageSets/Main/*.txt name the images of the splits.

    The image of a.xml is a.jpg, or of another suffix, in JPEGImages/, images/ or beside it; the name that the file
    states counts only if there is none. Classes are in the order of their names. Images without an XML file are not
    used.
    """
    folders = annotation_folders(location)
    notes: list[str] = []
    splits = {split: each for each in folders if (split := split_name(each.name))}
    if "train" not in splits:
        splits = {"train": _choose(location, folders, notes)}
    images: dict[str, list[AnnotatedImage]] = {}
    for split, chosen in splits.items():
        images[split] = _read_folder(location, chosen, faults, problems)
    if len(splits) == 1:
        images = _in_image_sets(location, images["train"], notes, faults)
    classes = sorted({each.label for part in images.values() for image in part for each in image.objects})
    return Annotations(images, tuple(classes), None, 1, notes=notes)


def _choose(location: Path, folders: list[Path], notes: list[str]) -> Path:
    """Return the folder that is read: the only one, or Annotations."""
    if len(folders) == 1:
        return folders[0]
    chosen = next((each for each in folders if each.name.lower() == "annotations"), None)
    if chosen is None:
        names = listed(each.name for each in folders)
        raise DataError(f"{location}: the folders {names} contain XML files; give one of them")
    others = listed(each.name for each in folders if each != chosen)
    notes.append(f"annotations are read from {chosen.name}/; {others} not")
    return chosen


def _read_folder(location: Path, folder: Path, faults: FaultLog, problems: Problems) -> list[AnnotatedImage]:
    files = sorted(folder.glob("*.xml")) or sorted(folder.rglob("*.xml"))
    stems = {file: file.relative_to(folder).with_suffix("").as_posix() for file in files}
    found = images_near(folder, stems.values())
    images: list[AnnotatedImage] = []
    used: set[str] = set()
    invalid = problems.of("invalid_annotations")
    for file, stem in stems.items():
        name = str(file.relative_to(location))
        with invalid:
            stated, size, objects = _read_file(file, name, problems)
            path = found.get(stem) or found.get(Path(stated).stem) or str(folder / (stated or f"{stem}.jpg"))
            used.add(path)
            images.append(AnnotatedImage(path, name, name, size, objects))
    for path in dict.fromkeys(found.values()):
        if path not in used:
            faults.add("unannotated_images", f"{folder.name}: {os.path.relpath(path, location)}")
    return images


def _read_file(file: Path, name: str, problems: Problems) -> tuple[str, tuple[int, int], list[Annotation]]:
    """Return the file name and (height, width) that an XML file states, and its objects."""
    root = parse_xml(file, name)
    if root.tag != "annotation":
        raise DataError(f"{name}: must be an <annotation> of Pascal VOC, got <{shown(root.tag)[1:-1]}>")
    sides = [root.findtext(f"size/{side}") for side in ("height", "width")]
    height, width = (0 if text is None or not text.strip() else xml_number(text, name, "size") for text in sides)
    if min(height, width) < 0:
        raise DataError(f"{name}: size must be numbers >= 0, got {width:g} x {height:g}")
    size = (round(height), round(width))
    objects = []
    for i, each in enumerate(root.findall("object"), 1):
        where = f"object {i}"
        with problems.of("invalid_annotations"):
            label = class_name(each.findtext("name") or "", f"{name}: {where}")
            if not label:
                raise DataError(f"{name}: {where}: has no <name>")
            where = f"{where} ({label})"
            box = each.find("bndbox")
            if box is None:
                raise DataError(f"{name}: {where}: has no <bndbox>")
            corners = [xml_number(box.findtext(corner), f"{name}: {where}", corner) for corner in CORNERS]
            objects.append(Annotation(where, label, (corners[0], corners[1], corners[2], corners[3])))
    return (root.findtext("filename") or "").strip(), size, objects


def _in_image_sets(
    location: Path, images: list[AnnotatedImage], notes: list[str], faults: FaultLog
) -> dict[str, list[AnnotatedImage]]:
    """Return the images of the splits that ImageSets/Main names; all are train without it."""
    folder = location / "ImageSets" / "Main"
    lists = {file.stem: file for file in sorted(folder.glob("*.txt"))} if folder.is_dir() else {}
    names = {split: lists[split] for split in ("train", "val", "test") if split in lists}
    if "train" not in names and "trainval" in lists:
        names = {"train": lists["trainval"], **{split: names[split] for split in names if split == "test"}}
    if "train" not in names:
        return {"train": images}
    by_stem = {Path(image.where).stem: image for image in images}
    splits: dict[str, list[AnnotatedImage]] = {}
    used = set()
    for split, file in names.items():
        splits[split] = []
        with foreign_errors(file, DataError):
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            stem = line.split()[0]
            if stem in by_stem:
                splits[split].append(by_stem[stem])
                used.add(stem)
            else:
                faults.add("unannotated_images", f"{file.relative_to(location)}: line {number}: {stem}")
    if rest := len(by_stem) - len(used):
        notes.append(f"{rest:,} annotated images are in no split of ImageSets/Main and are not used")
    return splits
