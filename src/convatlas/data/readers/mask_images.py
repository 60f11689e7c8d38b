"""Masks as images: one file of object ids for each image, or one file for each object."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from convatlas.core.problems import Problems
from convatlas.data.annotation_faults import FaultLog
from convatlas.data.annotations import ONE_CLASS, AnnotatedImage, Annotation, Annotations
from convatlas.data.readers.image_files import images_in
from convatlas.data.splits import split_name
from convatlas.data.threads import map_in_threads
from convatlas.errors import DataError, foreign_errors
from convatlas.tasks.detection import masks

PAIRS = (("images", "masks"), ("PNGImages", "PedMasks"), ("imgs", "masks"), ("image", "mask"), ("img", "mask"))
"""Names of a folder of images and the folder of their masks beside it."""

SUFFIXES = ("", "_mask", "_masks", "_label", "_labels", "_instances", "_instance", "_ids", "_seg")
"""What is added to the name of an image in the name of its mask."""

MAX_OBJECTS = 10_000
"""Maximum number of ids in a mask: more are no ids, but gray values."""


def mask_folders(folder: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Return (images, masks) folders by split: in a folder, in those of splits, or one pair for each image."""
    if pairs := _pairs(folder):
        return {"train": pairs}
    inside = [each for each in sorted(folder.iterdir()) if each.is_dir()]
    splits = {split: pairs for each in inside if (split := split_name(each.name)) and (pairs := _pairs(each))}
    return splits if "train" in splits else {}


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    for images, within in PAIRS:
        if (folder / images).is_dir() and (folder / within).is_dir():
            return [(folder / images, folder / within)]
    first = next((each for each in sorted(folder.iterdir()) if each.is_dir()), None)
    if first and (first / "images").is_dir() and (first / "masks").is_dir():
        return [
            (each / "images", each / "masks") for each in sorted(folder.iterdir())
            if (each / "images").is_dir() and (each / "masks").is_dir()
        ]  # fmt: skip
    return []


def read_mask_images(location: Path, faults: FaultLog, problems: Problems) -> Annotations:
    """Read the folders of `mask_folders`.

    The mask of images/a.jpg is masks/a.png, or a_mask.png: each value except 0 is the id of an object. If masks/a/ is
    a folder, or each image has folders images/ and masks/ of its own, every file in it is the mask of one object.
    All objects are of one class. Images without a mask are not used.
    """
    images: dict[str, list[AnnotatedImage]] = {}
    for split, pairs in mask_folders(location).items():
        jobs: list[tuple[Path, list[Path]]] = []
        for image_folder, mask_folder in pairs:
            files = images_in(image_folder)
            for file in files:
                found = _masks_of(file, image_folder, mask_folder, alone=len(pairs) > 1)
                if found is None:
                    faults.add("unannotated_images", os.path.relpath(file, location))
                else:
                    jobs.append((file, found))
        read = partial(_read_image, location)
        images[split] = []
        for result in map_in_threads(read, jobs):
            with problems.of("invalid_annotations"):
                if isinstance(result, DataError):
                    raise result
                images[split].append(result)
    notes = [f"all objects are of one class, {ONE_CLASS}: masks do not state classes"]
    return Annotations(images, (ONE_CLASS,), notes=notes)


def _masks_of(file: Path, images: Path, masks_: Path, *, alone: bool) -> list[Path] | None:
    """Return the mask files of an image; None if there are none. alone: whether its folders are only for this image."""
    if alone:
        return images_in(masks_)
    relative = file.relative_to(images).with_suffix("")
    if (masks_ / relative).is_dir():
        return images_in(masks_ / relative)
    for suffix in SUFFIXES:
        for ending in (".png", ".tif", ".tiff", ".bmp", ".gif"):
            each = masks_ / relative.with_name(f"{relative.name}{suffix}{ending}")
            if each.is_file():
                return [each]
    return None


def _read_image(location: Path, job: tuple[Path, Sequence[Path]]) -> AnnotatedImage | DataError:
    """Return an image and its objects, or what is wrong with a mask."""
    file, files = job
    name = os.path.relpath(files[0] if len(files) == 1 else file, location)
    image = AnnotatedImage(str(file), name, name if len(files) == 1 else "")
    try:
        for each in files:
            place = os.path.relpath(each, location)
            values = _read_mask(each, place)
            image.size = (values.shape[0], values.shape[1])
            if len(files) > 1:  # one object in each file
                values = (values != 0).astype(np.uint8)
            ids = [int(value) for value in np.unique(values) if value]
            if len(ids) > MAX_OBJECTS:
                raise DataError(f"{place}: a mask must contain ids of objects, got {len(ids):,} different values")
            for number in ids:
                where = f"id {number}" if len(files) == 1 else place
                segment = masks.encode(torch.from_numpy(values == number)[None])[0]
                image.objects.append(Annotation(where, ONE_CLASS, segment=segment))
    except DataError as error:
        return error
    return image


def _read_mask(file: Path, place: str) -> np.ndarray:
    with foreign_errors(place, DataError), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file) as opened:
            values = np.asarray(opened)
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise DataError(f"{place}: a mask must have one channel of integers, got mode {opened.mode}")
    return values
