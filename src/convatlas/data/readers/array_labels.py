"""Labels of data sets that are arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.data.class_names import class_name
from convatlas.errors import DataError
from convatlas.tasks.classification.labels import check_known_classes

Arrays = Mapping[str, NDArray[Any]]


def class_names(names: NDArray[Any], where: object) -> tuple[str, ...]:
    """Return the class names (classes,) of a file: text, bytes of UTF-8, or integers."""
    if names.ndim != 1 or names.dtype.kind not in "USiu":
        raise DataError(f"{where}: classes: must be names (classes,), got {names.dtype} {names.shape}")
    return tuple(class_name(text, where) for text in _texts(names, "classes", where))


def read_labels(
    arrays: Arrays, classes: tuple[str, ...] | None, where: object
) -> tuple[Arrays, tuple[str, ...] | None]:
    """Return labels (n,) as class numbers, whatever their type, and the names of the classes, if there are any.

    (n, 1) are taken for (n,), unless there is one class. Text and bytes are names of classes, false and true are the
    two classes of these names, and floats must be whole numbers. Labels (n, classes) are returned as they are.
    """
    if all(array.ndim == 2 and array.shape[1] == 1 for array in arrays.values()) and (not classes or len(classes) > 1):
        arrays = {split: array[:, 0] for split, array in arrays.items()}
    kinds = {array.dtype.kind for array in arrays.values()}
    if any(array.ndim != 1 for array in arrays.values()):
        return arrays, classes
    if kinds <= {"U", "S"}:
        return _numbers_of_names(arrays, classes, where)
    if kinds == {"b"}:
        return {split: array.astype(np.int64) for split, array in arrays.items()}, classes or ("false", "true")
    return {split: _integers(array, split, where) for split, array in arrays.items()}, classes


def label_notes(labels: Sequence[NDArray[Any]]) -> Iterator[str]:
    """Yield a line if labels (n, classes) of all splits are one-hot: they could be meant for classification."""
    if all(part.ndim == 2 and part.shape[1] > 1 and (part.sum(1) == 1).all() for part in labels):
        yield (
            "labels (n, classes) are read for multi-label classification, but each image has exactly one; for "
            "classification give class numbers, y.argmax(1)"
        )


def _integers(array: NDArray[Any], split: str, where: object) -> NDArray[Any]:
    """Return floats that are whole numbers as integers; other arrays as they are."""
    if array.dtype.kind != "f":
        return array
    if not np.isfinite(array).all() or (array != np.rint(array)).any() or (np.abs(array) > 2**53).any():
        wrong = next(value for value in array.tolist() if not float(value).is_integer() or abs(value) > 2**53)
        raise DataError(f"{where}: {split}: labels must be class numbers, got {wrong:g}")
    return array.astype(np.int64)


def _numbers_of_names(arrays: Arrays, classes: tuple[str, ...] | None, where: object) -> tuple[Arrays, tuple[str, ...]]:
    names = {
        split: [class_name(text, where) for text in _texts(array, split, where)] for split, array in arrays.items()
    }
    if "" in {name for part in names.values() for name in part}:
        raise DataError(f"{where}: labels: the name of a class must not be empty")
    classes = classes or tuple(sorted(set(names["train"])))
    numbers = {name: number for number, name in enumerate(classes)}
    for split, part in names.items():
        check_known_classes(classes, set(part), split=split, where=where)
    return {split: np.array([numbers[name] for name in part], dtype=np.int64) for split, part in names.items()}, classes


def _texts(names: NDArray[Any], what: str, where: object) -> Sequence[str]:
    """Return names as text; raises DataError for bytes that are not UTF-8."""
    try:
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {what}: names must be UTF-8 text, got {error.object!r}") from error
