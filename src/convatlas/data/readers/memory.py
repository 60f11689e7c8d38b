"""Data in memory: arrays (x, y), data sets of PyTorch, and a split of either."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from convatlas.data.readers.array_labels import class_names, read_labels
from convatlas.data.readers.arrays import array_source, task_of
from convatlas.data.readers.items import labels_array, read_items, stacked_or_none, to_array, to_pixels
from convatlas.data.readers.video_arrays import are_videos, video_array_source
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.data.splits import SPLIT_FOLDERS, split_name
from convatlas.errors import DataError, foreign_errors, listed
from convatlas.system.progress import Progress

Data = Any
"""What `open_data` takes: a name or a path; images and labels (x, y); a data set of PyTorch; two or three of these for
train, val and test, or a mapping of them by split; a `Source`."""

IN_MEMORY = "in memory: "
"""How the location of data in memory begins, where other data has its path; the name of the data follows."""

FORMS = "a name, a path, (images, labels), a torch Dataset, ((x, y), (x_val, y_val)) or {'train': ..., 'val': ...}"


@dataclass(frozen=True)
class _Part:
    """One split as it was given. images: an array, or a list of images of different sizes, which has no shape."""

    images: NDArray[Any] | list[NDArray[Any]]
    labels: NDArray[Any]
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def is_in_memory(data: Data) -> bool:
    """Return whether data is neither a name nor a path."""
    return not isinstance(data, str | os.PathLike)


def read_memory(data: Data, *, progress: Progress | None = None) -> Source:
    """Return the source of data in memory: see `Data`.

    Arrays are used as in an .npz file. Of a data set, every item (image, label) is read once, in order, and its image
    is stored as it is: a PIL image, an array or a tensor. Videos: see `video_array_source`. Raises DataError, in one
    line, for data of another form.
    """
    given = _splits(data)
    name = _name(given)
    if all(map(are_videos, given.values())):
        return video_array_source(name, IN_MEMORY + name, given)
    parts = {split: _read_part(part, split, name, progress) for split, part in given.items()}
    classes = next((part.classes for part in parts.values() if part.classes is not None), None)
    _check_classes(name, parts, classes)
    parts = _as_eight_bit(parts)
    notes = tuple(dict.fromkeys(note for part in parts.values() for note in part.notes))
    if all(isinstance(part.images, np.ndarray) for part in parts.values()):
        pairs = {split: (part.images, part.labels) for split, part in parts.items()}
        source = array_source(name, IN_MEMORY + name, pairs, name, classes)
    else:
        source = _source_of_sizes(name, parts, classes)
    return replace(source, notes=(*source.notes, *notes))


def _splits(data: Data) -> dict[str, Any]:
    """Return what was given for each split; data without splits is train."""
    if isinstance(data, Mapping):
        splits = {}
        for key, part in data.items():
            split = split_name(key) if isinstance(key, str) else ""
            if not split or split in splits:
                raise DataError(f"data: the splits must be {listed(SPLIT_FOLDERS)}, got {listed(map(repr, data))}")
            splits[split] = part
        return _with_train(splits)
    if isinstance(data, tuple | list) and 2 <= len(data) <= 3 and all(_is_data(part) for part in data):
        return dict(zip(SPLIT_FOLDERS, data, strict=False))
    return {"train": data}


def _with_train(splits: dict[str, Any]) -> dict[str, Any]:
    if len(splits) == 1:  # to evaluate on
        return {"train": next(iter(splits.values()))}
    if "train" not in splits:
        raise DataError(f"data: must have a train split, got {listed(splits) or 'no split'}")
    return splits


def _is_data(part: Any) -> bool:
    """Return whether a value is data by itself: a data set, or images and labels."""
    if _is_pair(part):
        return not _is_item(part) and (getattr(part[0], "ndim", 0) >= 3 or isinstance(part[0], tuple | list))
    return _is_data_set(part) and not isinstance(part, tuple | list)


def _is_item(part: Any) -> bool:
    """Return whether a value is one image and its label."""
    if not _is_pair(part):
        return False
    first, second = part
    is_image = isinstance(first, Image.Image) or getattr(first, "ndim", 0) >= 2
    return is_image and not isinstance(second, tuple | list) and getattr(second, "ndim", 0) == 0


def _is_pair(part: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(part, tuple | list) and len(part) == 2


def _is_data_set(part: Any) -> bool:
    known = isinstance(part, np.ndarray | torch.Tensor | str | bytes | Mapping)
    return not known and hasattr(part, "__getitem__") and hasattr(part, "__len__")


def _name(given: Mapping[str, Any]) -> str:
    train = given["train"]
    return "arrays" if isinstance(train, tuple | list) else type(train).__name__


def _read_part(part: Any, split: str, name: str, progress: Progress | None) -> _Part:
    where = f"{name}: {split}"
    no_notes: tuple[str, ...] = ()
    _refuse_other_kinds(part, where)
    if tensors := _tensors(part):
        part = tensors
    if _is_pair(part) and not all(map(_is_item, part)):
        images, labels = part
        classes, notes = None, no_notes
        if isinstance(images, tuple | list):
            if len(images) != len(labels):
                raise DataError(f"{where}: must hold one label for each of {len(images)} images, got {len(labels)}")
            images, labels, notes = read_items(list(zip(images, labels, strict=True)), where, progress)
    else:
        classes = _classes_of(part, where)
        images, labels, notes = read_items(part, where, progress)
    if isinstance(images, list):
        stacked = stacked_or_none(images)
        images = images if stacked is None else stacked
    else:
        images = to_array(images, where, "images")
    labels = to_array(labels, where, "labels")
    if labels.dtype == object:  # names or numbers, as in a column of a table
        labels = labels_array(labels.tolist(), where)
    return _Part(images, labels, classes, tuple(notes))


def _refuse_other_kinds(part: Any, where: str) -> None:
    """Raise DataError with the fix for what is nearly data."""
    kind = type(part).__name__
    if isinstance(part, np.ndarray | torch.Tensor):
        raise DataError(f"{where}: must be images and labels, (x, y), got an array of shape {tuple(part.shape)} alone")
    if isinstance(part, torch.utils.data.DataLoader):
        raise DataError(f"{where}: must be a data set, got a DataLoader; give its data set, loader.dataset")
    if isinstance(part, torch.utils.data.IterableDataset):
        raise DataError(f"{where}: must be a map-style data set with a length, got {kind}, which is iterable alone")
    if hasattr(part, "to_csv"):
        raise DataError(f"{where}: is a table in memory ({kind}); write it to a file, table.to_csv, and give its path")
    if not (_is_pair(part) or _is_data_set(part)) or (isinstance(part, tuple | list) and len(part) < 2):
        raise DataError(f"data must be {FORMS}, got {kind}")


def _tensors(part: Any) -> tuple[Any, Any] | None:
    """Return the images and labels of a TensorDataset, which needs no reading of items."""
    if type(part) is torch.utils.data.TensorDataset and len(part.tensors) == 2:
        return part.tensors[0], part.tensors[1]
    return None


def _classes_of(data_set: Any, where: str) -> tuple[str, ...] | None:
    """Return the names in the attribute `classes` of a data set, or of those that it consists of."""
    names = getattr(data_set, "classes", None)
    if names is not None and not isinstance(names, str | Mapping):
        with foreign_errors(where, DataError, "its attribute classes is not a list of names"):
            texts = [name[0] if isinstance(name, tuple | list) else name for name in names]
            array = np.array(texts if all(isinstance(text, str) for text in texts) else [str(text) for text in texts])
        return class_names(array, where)
    inner = getattr(data_set, "dataset", None)
    parts = getattr(data_set, "datasets", ()) if inner is None else (inner,)
    known = dict.fromkeys(_classes_of(part, where) for part in parts)
    if len(known) > 1:
        found = " and ".join(listed(names) if names else "none" for names in known)
        raise DataError(f"{where}: its data sets must have the same classes in the same order, got {found}")
    return next(iter(known), None)


def _check_classes(name: str, parts: Mapping[str, _Part], classes: tuple[str, ...] | None) -> None:
    for split, part in parts.items():
        if part.classes not in (None, classes):
            raise DataError(
                f"{name}: the {split} split must have the classes of train in the same order, got "
                f"{listed(part.classes or ())} instead of {listed(classes or ())}"
            )


def _as_eight_bit(parts: dict[str, _Part]) -> dict[str, _Part]:
    """Return floats that are k / 255 for whole numbers k, as torchvision's ToTensor makes them, as uint8."""
    images = {split: part.images if isinstance(part.images, list) else [part.images] for split, part in parts.items()}
    floats = [image for each in images.values() for image in each if image.dtype.kind == "f"]
    if not floats or not all(map(_has_steps_of_255, floats)):
        return parts
    note = "images are floats from 0 to 1 in steps of 1/255, and are read as uint8"
    changed = {}
    for split, part in parts.items():
        whole = [np.rint(image * 255).astype(np.uint8) if image.dtype.kind == "f" else image for image in images[split]]
        changed[split] = replace(
            part, images=whole if isinstance(part.images, list) else whole[0], notes=(*part.notes, note)
        )
    return changed


def _has_steps_of_255(images: NDArray[Any]) -> bool:
    """Return whether all values are k / 255, up to rounding; the first values of most other arrays show it."""
    flat = images.reshape(-1)
    for start in range(0, len(flat), 2**20):
        values = flat[start : start + 2**20]
        if not (values.min() >= 0 and values.max() < 1.002):  # false for NaN, too
            return False
        values = values.astype(np.float32) * 255
        if not (np.abs(values - np.rint(values)) < 1e-3).all():
            return False
    return len(flat) > 0


def _source_of_sizes(name: str, parts: Mapping[str, _Part], classes: tuple[str, ...] | None) -> Source:
    """Return the source of 8-bit images of different sizes."""
    lists = {split: list(part.images) for split, part in parts.items()}
    pixels = to_pixels(lists, name)
    for split, part in parts.items():
        if part.labels.shape[:1] != (len(pixels[split]),):
            raise DataError(
                f"{name}: {split}: must hold one label for each of {len(pixels[split])} images, got "
                f"{part.labels.dtype} {part.labels.shape}"
            )
    labels, classes = read_labels({split: part.labels for split, part in parts.items()}, classes, name)
    task, rows = task_of(name, labels, classes)
    samples = {
        split: Samples([f"{split}/{i}" for i in range(len(images))], rows[split], images)
        for split, images in pixels.items()
    }
    return Source(name, IN_MEMORY + name, task, samples, len(pixels["train"][0]))
