"""Write annotated objects as COCO JSON."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from convatlas._version import __version__
from convatlas.core.problems import Problems
from convatlas.data.object_tasks import FIELDS
from convatlas.data.open import open_data
from convatlas.data.readers.memory import Data
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.errors import DataError, InputError, MachineError
from convatlas.system.files import write_text
from convatlas.system.progress import Progress
from convatlas.tasks.detection.base import objects_of
from convatlas.tasks.detection.formats import areas_of
from convatlas.tasks.detection.objects import Objects
from convatlas.tasks.detection.skeleton import Skeleton

FORMATS = ("coco",)


@dataclass(frozen=True)
class Converted:
    """A file that was written, and how many images and objects it has; skipped: unreadable images."""

    path: Path
    images: int
    objects: int
    skipped: int = 0


def convert_data(
    data: Data, out: str | Path, *, to: str = "coco", copy_images: bool = False, progress: Progress | None = None
) -> list[Converted]:
    """Write every split of annotated data as a COCO file; faults are treated as in a training.

    out: a folder, in which annotations/instances_SPLIT.json is written, or a .json file, whose name gets the split if
        there are several. copy_images: copy the images into the folder SPLIT beside annotations/, or beside the file;
        otherwise file_name is their path relative to the file's folder. Unreadable images are skipped.
    Raises DataError for data without objects, InputError for another format or if a file of the data would be replaced,
    MachineError if a file cannot be written.
    """
    if to not in FORMATS:
        raise InputError(f"--to: must be one of {', '.join(FORMATS)}, got {to}")
    problems = Problems()
    source = open_data(data, progress=progress, problems=problems)
    problems.stop(data)
    if source.task.predicts not in FIELDS:
        raise DataError(f"{source.location}: has no annotated objects; it is for the task {source.task.short_name}")
    places = {split: _places(Path(out), split, single=len(source.splits) == 1) for split in source.splits}
    own = Path(source.location)
    for path, _ in places.values():
        if path.exists() and own in (path.resolve(), *path.resolve().parents):
            raise InputError(f"--out: {path} is a file of the data itself; give another file or folder")
    converted = []
    for split, samples in source.splits.items():
        path, folder = places[split]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            names = _copy(samples.names, folder) if copy_images else None
        except OSError as error:
            raise MachineError(f"{folder}: cannot be written: {error.strerror or error}") from error
        plain, skipped = _to_coco(source, samples, path.parent, names)
        write_text(path, json.dumps(plain, ensure_ascii=False))
        converted.append(Converted(path, len(plain["images"]), len(plain["annotations"]), skipped))
    return converted


def _places(out: Path, split: str, *, single: bool) -> tuple[Path, Path]:
    """Return the file of a split and the folder of its copied images."""
    if out.suffix.lower() == ".json":
        return (out if single else out.with_name(f"{out.stem}_{split}{out.suffix}")), out.parent / split
    return out / "annotations" / f"instances_{split}.json", out / split


def _copy(names: Sequence[str], folder: Path) -> dict[str, str]:
    """Copy images into a folder, below which they keep the folders they have in common; return their new paths."""
    paths = [os.path.abspath(name) for name in names]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    copied = {}
    for name, path in zip(names, paths, strict=True):
        target = folder / os.path.relpath(path, common)
        if os.path.isfile(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        copied[name] = str(target)
    return copied


def _to_coco(
    source: Source, samples: Samples, folder: Path, copied: dict[str, str] | None
) -> tuple[dict[str, Any], int]:
    """Return the contents of a COCO file, with images in the order of their names, and the number of unreadable ones.

    folder: that of the file. copied: name -> new path of an image.
    """
    sizes = source.manifest.look_up(samples.names).sizes
    order = sorted((i for i in range(len(samples)) if sizes[i, 0]), key=lambda i: samples.names[i])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, i in enumerate(order, 1):
        objects, name = objects_of(samples.targets)[i], samples.names[i]
        path = os.path.relpath(os.path.abspath(copied[name] if copied else name), os.path.abspath(folder))
        height, width = objects.size
        images.append({"id": image_id, "file_name": Path(path).as_posix(), "width": width, "height": height})
        for plain in _annotations(objects):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **plain})
    skeleton: Skeleton | None = getattr(source.task, "skeleton", None)
    more = {} if skeleton is None else _skeleton(skeleton)
    categories = [{"id": i, "name": name, **more} for i, name in enumerate(source.classes, 1)]
    info = {"description": source.name, "version": f"convatlas {__version__}"}
    contents = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    return contents, len(samples) - len(order)


def _skeleton(skeleton: Skeleton) -> dict[str, Any]:
    """Return the fields of a category: edges are pairs of numbers from 1; flip pairs and sigmas are ours, from 0."""
    return {
        "keypoints": list(skeleton.names),
        "skeleton": [[a + 1, b + 1] for a, b in skeleton.edges],
        "flip_pairs": list(map(list, skeleton.flip_pairs)),
        "sigmas": list(skeleton.sigmas),
    }


def _annotations(objects: Objects) -> Iterator[dict[str, Any]]:
    crowd = [False] * len(objects) if objects.crowd is None else objects.crowd.tolist()
    areas = _decimals(areas_of(objects))
    for i, ((x1, y1, x2, y2), label) in enumerate(zip(_decimals(objects.boxes), objects.labels.tolist(), strict=True)):
        plain = {
            "category_id": label + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": areas[i], "iscrowd": int(crowd[i]),
        }  # fmt: skip
        if objects.segments is not None:
            plain["segmentation"] = objects.segments[i]
        if objects.keypoints is not None:
            points = _decimals(objects.keypoints[i])
            plain["keypoints"] = [value for point in points for value in point]
            plain["num_keypoints"] = sum(point[2] > 0 for point in points)
        yield plain


def _decimals(values: Tensor) -> Any:
    """Return float32 values as the shortest decimal numbers that are read as the same values."""
    return (
        np.vectorize(lambda value: float(str(value)), otypes=[object])(values.numpy()).tolist() if len(values) else []
    )
