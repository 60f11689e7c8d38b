"""What `predict` takes: one image of every kind, and collections of images, folders and patterns."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from convatlas.errors import DataError
from convatlas.inference.contents import EncodedFile
from convatlas.inference.model import Ensemble, Model
from convatlas.inference.options import PredictOptions


@pytest.fixture(scope="module")
def folder(images: Path) -> Path:
    return images / "val" / "bee"


def probabilities(model: Model, images: Any) -> list[Any]:
    predictions = model.predict(images)
    assert not any(each.error for each in predictions), predictions
    return [each.to_plain()["probabilities"] for each in predictions]


class Column:
    """A column of a table: iterable, with an array, as those of pandas and polars."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        column = np.empty(len(self.items), object)
        column[:] = self.items
        return column


class Foreign:
    """A tensor of another library."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


class MapStyle(Dataset[Any]):
    def __init__(self, image: Any) -> None:
        self.image = image

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return self.image, index


class Endless(IterableDataset[Any]):
    def __init__(self, image: Any) -> None:
        self.image = image

    def __iter__(self) -> Iterator[Any]:
        return iter([(self.image, "a label"), (self.image, "another")])


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values).permute(2, 0, 1)


ONE: dict[str, Callable[[Path, Any], Any]] = {
    "text": lambda file, values: str(file),
    "path": lambda file, values: file,
    "bytes": lambda file, values: file.read_bytes(),
    "BytesIO": lambda file, values: io.BytesIO(file.read_bytes()),
    "PIL": lambda file, values: Image.open(file),
    "array": lambda file, values: values,
    "floats": lambda file, values: values / 255,
    "nested lists": lambda file, values: values.tolist(),
    "tensor": lambda file, values: tensor(values),
    "another library": lambda file, values: Foreign(values),
}

MANY: dict[str, Callable[[Path, Any], Any]] = {
    "list": lambda file, values: [file, values],
    "tuple": lambda file, values: (file, str(file)),
    "generator": lambda file, values: (each for each in [file, values]),
    "dict values": lambda file, values: {"a": file, "b": values}.values(),
    "array (n, h, w, 3)": lambda file, values: np.stack([values] * 2),
    "array (n, 3, h, w)": lambda file, values: np.stack([values] * 2).transpose(0, 3, 1, 2),
    "tensor (n, 3, h, w)": lambda file, values: torch.stack([tensor(values)] * 2),
    "nested lists (n, h, w, 3)": lambda file, values: np.stack([values] * 2).tolist(),
    "foreign batch": lambda file, values: Foreign(np.stack([values] * 2)),
    "batches in a list": lambda file, values: [np.stack([values]), torch.stack([tensor(values)])],
    "array of names": lambda file, values: np.array([str(file)] * 2),
    "column": lambda file, values: Column([str(file), file]),
    "map-style dataset": lambda file, values: MapStyle(Image.open(file).copy()),
    "iterable dataset": lambda file, values: Endless(values),
    "tensor dataset": lambda file, values: TensorDataset(torch.stack([tensor(values)] * 2), torch.zeros(2)),
    "data loader": lambda file, values: DataLoader(
        TensorDataset(torch.stack([tensor(values)] * 2), torch.zeros(2)), batch_size=1
    ),
    "bytes in a list": lambda file, values: [file.read_bytes(), io.BytesIO(file.read_bytes())],
}


@pytest.mark.parametrize("kind", ONE)
def test_one_image_is_one_prediction(model: Model, file: Path, values: Any, kind: str) -> None:
    expected = probabilities(model, file)
    (found,) = probabilities(model, ONE[kind](file, values))
    assert found == pytest.approx(expected[0], abs=1e-6)


@pytest.mark.parametrize("kind", MANY)
def test_collections_are_many_images(model: Model, file: Path, values: Any, kind: str) -> None:
    (expected,) = probabilities(model, file)
    found = probabilities(model, MANY[kind](file, values))
    assert len(found) == 2
    assert all(each == pytest.approx(expected, abs=1e-6) for each in found)


@pytest.mark.parametrize("empty", [[], (), iter(()), np.zeros((0, 9, 9, 3), np.uint8), torch.zeros(0, 3, 9, 9)])
def test_no_images_give_no_predictions(model: Model, empty: Any) -> None:
    assert model.predict(empty) == []


def test_folders_and_patterns_are_their_images(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(path) for path in sorted(folder.iterdir())]
    assert [each.source for each in model.predict(str(folder))] == names
    assert [each.source for each in model.predict(f"{folder}/*.png")] == [name for name in names if "png" in name]
    assert [each.source for each in model.predict(folder.parent / "**" / "01.png")] == [
        str(folder.parent / name / "01.png") for name in ("ant", "bee", "cat")
    ]
    mixed = [names[0], folder, f"{folder}/0[01].*"]
    assert [each.source for each in model.predict(mixed)] == [names[0], *names, *names[:2]]
    assert len(model.predict(os.scandir(folder.parent))) == 36
    assert [each.source for each in model.stream(folder, PredictOptions(batch=5))] == names
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [each.source for each in model.predict("~/photos")] == [str(tmp_path / "photos" / "a.png")]


WRONG: dict[str, Any] = {
    "missing.jpg": r"missing\.jpg: no such file", "missing/*.jpg": r"missing/\*\.jpg: nothing matches",
    "": "image 0: the name of the file is empty",
    "a text file": io.StringIO("text"), "no image": b"rubbish", "nothing": None, "a number": 7, "an object": object(),
    "an array without channels": np.zeros((9, 9, 7), np.uint8), "one axis": np.zeros(9, np.uint8),
    "ragged lists": [[1, 2], [3]], "floats above 1": np.full((9, 9, 3), 80.5),
    "encoded": EncodedFile("x.png", b"nothing"), "an empty file": io.BytesIO(),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_single_image_that_is_unreadable_raises(model: Model, wrong: str) -> None:
    given, message = (wrong, WRONG[wrong]) if isinstance(WRONG[wrong], str) else (WRONG[wrong], None)
    for predictor in (model, Ensemble((model, model))):
        with pytest.raises(DataError, match=message) as refused:
            predictor.predict(given)
        assert "\n" not in str(refused.value)
    (prediction,) = model.predict(iter([given]))
    assert prediction.error


def test_an_output_that_is_not_finite_raises_for_a_single_image(model: Model, values: Any) -> None:
    class Broken:
        name = "broken"

        def outputs(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.full((len(pixels), 3), torch.nan)

    with pytest.raises(DataError, match="NaN or infinity"):
        Model(model.network, model.header, Broken()).predict(values)


def test_ignored_files_of_folders_are_remarks(model: Model, file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(file.read_bytes())
    (tmp_path / "b.mp4").write_bytes(b"x")
    for given in (tmp_path, [file, tmp_path]):
        predictions = model.predict(given)
        (remark,) = predictions.remarks
        assert "mp4" in remark
        assert remark in repr(predictions)
    assert model.predict(file).remarks == ()


def test_folders_without_images_tables_and_mappings_are_refused(model: Model, file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in this folder"):
        model.predict(tmp_path)
    first, second = model.predict([file, tmp_path])
    assert (first.error, second.error) == ("", f"{tmp_path}: no images in this folder")

    class Frame(Column):
        columns = ("file",)

    for wrong, kind in (({"a": file}, "dict"), (Frame([file]), "Frame")):
        with pytest.raises(DataError, match=f"images: must be an image or an iterable of images, got {kind}; give its"):
            model.predict(wrong)


def test_a_missing_value_of_a_column_is_an_error_of_its_image(model: Model, file: Path) -> None:
    predictions = model.predict(Column([str(file), float("nan"), None, ""]))
    assert [bool(each.error) for each in predictions] == [False, True, True, True]
