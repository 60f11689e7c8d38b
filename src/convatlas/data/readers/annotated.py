"""Data sets of images with annotated objects: the format is recognized, and faults are treated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from convatlas.core.problems import Problems
from convatlas.data.annotation_faults import FaultLog
from convatlas.data.annotation_treatment import Treater, count_one_based
from convatlas.data.annotations import Annotations
from convatlas.data.manifest import NO_FILE, Manifest
from convatlas.data.object_tasks import task_of_objects
from convatlas.data.readers.boxes_json import read_boxes_json
from convatlas.data.readers.boxes_table import folder_tables, is_boxes_table, read_boxes_table
from convatlas.data.readers.coco import read_coco
from convatlas.data.readers.cvat import cvat_file, read_cvat
from convatlas.data.readers.files import file_source
from convatlas.data.readers.labelme import read_labelme
from convatlas.data.readers.mask_images import mask_folders, read_mask_images
from convatlas.data.readers.recognize import OF_EACH_IMAGE, JsonFiles, format_of_json, json_files, siblings
from convatlas.data.readers.skeletons import numbered_note
from convatlas.data.readers.via import read_via
from convatlas.data.readers.voc import annotation_folders, read_voc
from convatlas.data.readers.yolo import read_yolo
from convatlas.data.readers.yolo_layout import has_yolo_folders, yolo_yaml
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.data.splits import SPLIT_FOLDERS
from convatlas.errors import DataError, listed
from convatlas.system.progress import Progress
from convatlas.tasks.detection.objects import Objects
from convatlas.tasks.detection.skeleton import read_skeleton
from convatlas.tasks.targets import Targets

SKELETON = "skeleton.yaml"
"""The file in a data set's folder that describes its keypoints, if it is there."""

Reader = Callable[[FaultLog, Problems], Annotations]


def reader_of(path: Path) -> Reader | None:
    """Return the reader of a folder or file with annotations; None for other data."""
    if path.is_dir():
        return _reader_of_folder(path)
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return lambda faults, problems: read_yolo(path, faults, problems)
    if suffix == ".xml":
        return lambda faults, problems: read_cvat(path, faults, problems)
    if suffix in (".csv", ".tsv") and is_boxes_table(path):
        return lambda faults, problems: read_boxes_table(path, faults, problems)
    if suffix == ".json":
        format = format_of_json(path)
        if not format:
            raise DataError(
                f"{path}: must be a JSON file of COCO or VIA (an object with images, annotations and categories); "
                "lists, such as the results of a detector, are not annotations"
            )
        return _reader_of_json(path.parent, siblings(path, format))
    return None


def _reader_of_folder(folder: Path) -> Reader | None:
    if file := yolo_yaml(folder):
        return lambda faults, problems: read_yolo(file, faults, problems)
    if files := json_files(folder):
        return _reader_of_json(folder, files)
    if cvat := cvat_file(folder):
        return lambda faults, problems: read_cvat(cvat, faults, problems)
    if annotation_folders(folder):
        return lambda faults, problems: read_voc(folder, faults, problems)
    if has_yolo_folders(folder):
        return lambda faults, problems: read_yolo(folder, faults, problems)
    if mask_folders(folder):
        return lambda faults, problems: read_mask_images(folder, faults, problems)
    if tables := folder_tables(folder):
        if len(tables) > 1:
            names = listed(table.name for table in tables)
            raise DataError(f"{folder}: contains the tables of boxes {names}; give one of them")
        return lambda faults, problems: read_boxes_table(tables[0], faults, problems)
    return None


def _reader_of_json(location: Path, found: JsonFiles) -> Reader:
    if found.format in OF_EACH_IMAGE:
        read_each = read_labelme if found.format == "labelme" else read_boxes_json
        return lambda faults, problems: read_each(location, found.files, faults, problems)
    read = read_coco if found.format == "coco" else read_via
    first = {split: files[0] for split, files in found.files.items()}
    return lambda faults, problems: read(location, first, faults, problems, found.notes)


def read_annotated(path: Path, read: Reader, problems: Problems, *, progress: Progress | None = None) -> Source:
    """Return the source of annotated images; see `reader_of`. Faults are counted and treated, see `FaultLog`.

    Raises DataError if no annotation file can be read, or none has an image.
    """
    faults = FaultLog()
    annotations = read(faults, problems)
    if not annotations.images.get("train"):
        raise DataError(f"{path}: no annotated image is of the split train")
    _use_own_skeleton(path if path.is_dir() else path.parent, annotations)
    location = str(path.resolve())
    manifest = Manifest(location)
    treater = Treater(annotations, faults, problems)
    splits: dict[str, Samples] = {}
    objects: dict[str, list[Objects]] = {}
    for split in (each for each in SPLIT_FOLDERS if annotations.images.get(each)):
        images = annotations.images[split]
        names = [image.file for image in images]
        info = manifest.look_up(names, progress=progress, task=f"reading {split}")
        for i, reason in info.unopened.items():
            if reason == NO_FILE:
                faults.add("missing_images", f"{images[i].where}: {names[i]}")
        sizes, orientations = info.sizes.tolist(), info.orientations.tolist()
        objects[split] = [
            treater.objects_of(image, tuple(size), orientation)
            for image, size, orientation in zip(images, sizes, orientations, strict=True)
        ]
        splits[split] = Samples(names, Targets(objects=objects[split]))
    count_one_based(annotations, objects, faults)
    faults.refuse(problems)
    if not annotations.classes:
        raise DataError(f"{path}: no object is annotated; annotate objects of at least one class")
    task = task_of_objects(treater.predicts, annotations.classes, annotations.skeleton)
    return file_source(
        path.resolve().stem if path.is_file() else path.resolve().name, location, task, splits,
        notes=annotations.notes, faults=tuple(faults), manifest=manifest, progress=progress,
    )  # fmt: skip


def _use_own_skeleton(folder: Path, annotations: Annotations) -> None:
    """Read the skeleton in `SKELETON`, if the data has keypoints and the folder has the file."""
    file = folder / SKELETON
    if annotations.skeleton is None or not file.is_file():
        return
    skeleton = read_skeleton(file)
    if skeleton.points != annotations.skeleton.points:
        points = annotations.skeleton.points
        raise DataError(f"{file}: names must be the {points} keypoints of the annotations, got {skeleton.points}")
    annotations.skeleton = skeleton
    annotations.notes = [note for note in annotations.notes if note != numbered_note(skeleton.points)]
    annotations.notes.append(f"the skeleton is that of {SKELETON}")
