"""Data in memory: arrays, data sets of PyTorch, and splits of either."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.transforms import ToTensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.check import check_data
from convatlas.data.open import open_data
from convatlas.data.source import Source
from convatlas.errors import DataError

Y = np.arange(24) % 4
X = (np.random.default_rng(0).random((24, 10, 12, 3)) * 60 + 60 * Y[:, None, None, None]).astype(np.uint8)
STEPS = Preprocessing(resize=8, crop=8, mean=(0.5,) * 3, std=(0.5,) * 3)
NAMES = ("cat", "dog", "eel", "fox")


class Images(Dataset[Any]):
    """A data set of PIL images, of different sizes if `sizes`, or of what `transform` makes of them."""

    classes = NAMES

    def __init__(self, transform: Any = None, *, sizes: bool = False) -> None:
        self.transform, self.sizes = transform, sizes

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        image: Any = Image.fromarray(X[number])
        if self.sizes:
            image = image.resize((9 + number % 3, 11))
        return (self.transform(image) if self.transform else image), int(Y[number])


class Reversed(Images):
    classes = NAMES[::-1]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield X[0], 0


def fingerprint(data: Any) -> str:
    return open_data(data).load(STEPS, val_share=0.25).fingerprint()


@pytest.mark.parametrize(
    "data",
    [
        (list(X), list(Y)),
        (torch.from_numpy(X), torch.from_numpy(Y)),
        (torch.from_numpy(X).permute(0, 3, 1, 2), Y),
        (X / 255, Y),
        (torch.from_numpy(X / np.float32(255)).requires_grad_(), Y),
        ([Image.fromarray(image) for image in X], Y.tolist()),
        TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
        {"training": (X, Y)},
        [{"image": image, "label": label} for image, label in zip(X, Y, strict=True)],
        {"test": (X, Y)},
    ],
    ids=["lists", "tensors", "channels first", "double", "float", "PIL", "TensorDataset", "dict", "items", "one split"],
)
def test_forms_of_the_same_images_give_the_same_data(data: Any) -> None:
    assert fingerprint(data) == fingerprint((X, Y))


@pytest.mark.parametrize(
    "data",
    [Images(), Images(ToTensor()), ConcatDataset([Subset(Images(), range(12)), Subset(Images(), range(12, 24))])],
    ids=["PIL", "ToTensor", "subsets"],
)
def test_data_sets_of_torch(data: Any) -> None:
    source = open_data(data)
    assert (source.classes, source.channels, source.high_bit_depth) == (NAMES, 3, False)
    named = (X, [NAMES[label] for label in Y])
    assert source.load(STEPS).train.fingerprint() == open_data(named).load(STEPS).train.fingerprint()


def test_images_of_different_sizes() -> None:
    source = open_data({"train": Images(sizes=True), "val": Images()})
    assert source.splits["train"].sizes == {(11, 9), (11, 10), (11, 11)}
    dataset = source.load(STEPS)
    assert isinstance(dataset.train.pixels, torch.Tensor)
    assert dataset.train.pixels.shape == (24, 3, 8, 8)
    assert check_data(Images(sizes=True), progress=False).findings == ()
    assert len(open_data([(X[0], 0), (X[1], 1)]).splits["train"]) == 2
    mixed = ([X[0], X[1, :5, :, 0]], [0, 1])
    assert [image.shape for image in open_data(mixed).splits["train"].pixels or ()] == [(3, 10, 12), (3, 5, 12)]


@pytest.mark.parametrize(
    ("labels", "classes", "task"),
    [
        ([NAMES[label] for label in Y], NAMES, "Classification"),
        (np.array([NAMES[label] for label in Y], dtype=object), NAMES, "Classification"),
        (Y.astype(object), ("0", "1", "2", "3"), "Classification"),
        (np.eye(4)[Y] + np.eye(4)[0] * (Y != 0)[:, None], ("0", "1", "2", "3"), "MultilabelClassification"),
        (Y.astype(np.float32), ("0", "1", "2", "3"), "Classification"),
    ],
)
def test_labels(labels: Any, classes: tuple[str, ...], task: str) -> None:
    source = open_data((X, labels))
    assert (source.classes, type(source.task).__name__) == (classes, task)


def test_splits() -> None:
    pairs = ((X, Y), (X[:8], Y[:8]), (X[8:16], Y[8:16]))
    assert {name: len(part) for name, part in open_data(pairs).splits.items()} == {"train": 24, "val": 8, "test": 8}
    assert list(open_data([Images(), Images()]).splits) == ["train", "val"]


def test_normalized_floats_keep_their_range_as_arrays_of_files_do() -> None:
    source = open_data(((X / 255 - 0.5) / 0.2, Y))
    assert source.high_bit_depth
    assert "will not read image files" in source.notes[0]


def test_huge_floats_are_read_without_warnings() -> None:
    assert open_data((X.astype(np.float32) * 1e36, Y)).high_bit_depth


def test_random_transforms_are_reported() -> None:
    source = open_data(Images(lambda image: ToTensor()(image) * torch.rand(())))
    assert "returns other pixels each time" in source.notes[-1]


def test_sources_are_data_and_their_location_says_that_there_is_no_file() -> None:
    source = open_data((X, Y))
    assert isinstance(source, Source)
    assert open_data(source) is source
    with pytest.raises(DataError, match="arrays: was in memory in Python, and is in no file; give it again"):
        open_data(source.location)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ((X, Y[:9]), "one target for each of 24 images"),
        ((list(X), Y[:9]), "one label for each of 24 images, got 9"),
        ((X, Y + 100), "class numbers from 0"),
        ((X, Y - 1), r"integers in \[0, 2\], got -1 to 2"),
        (((X, Y), (X, Y + 1)), r"val: labels must be integers in \[0, 3\], got 1 to 4"),
        ((X.astype(np.float32) * np.nan, Y), "contain NaN"),
        ((X[:0], Y[:0]), "images must be numbers"),
        ((np.array([None] * 24), Y), "images must be numbers"),
        (X, "alone"),
        (None, "data must be a name, a path"),
        ([], "data must be a name, a path"),
        (DataLoader(Images()), "loader.dataset"),
        (Stream(), "map-style"),
        (TensorDataset(torch.zeros(4, 3, 4, 4)), r"item 0 must be \(image, label\), got 1 values"),
        ({"train": (X, Y), "other": (X, Y)}, "splits must be train, val, test"),
        ({"val": (X, Y), "test": (X, Y)}, "must have a train split"),
        ((list(X), ["a", *Y[1:]]), "all names or all numbers"),
        ([(X[0], {"boxes": []})] * 4, "item 0: the label must be"),
        ([("a.jpg", 0)] * 4, "item 0: the image must be a PIL image, an array or a tensor, got str"),
        (([X[0] / 3, X[1, :5] / 3], [0, 1]), "images of different sizes must have 8 bits"),
        (ConcatDataset([Images(), Reversed()]), "same order, got cat, dog, eel, fox and fox, eel, dog, cat"),
        (Images(lambda image: 1 / 0), "item 0: cannot be read"),
    ],
)
def test_what_is_refused_in_one_line(data: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        open_data(data)


def test_large_data_sets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convatlas.data.readers.items.MEMORY_LIMIT", 1000)
    with pytest.raises(DataError, match=r"more than 0 GiB of memory \(3 of 24\); save them as files"):
        open_data(Images())
