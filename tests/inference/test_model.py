"""Models: one prediction for each image of any kind, with the user's class names; and evaluation of data sets."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convatlas as ca
from convatlas.errors import DataError
from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.tasks.classification.base import ClassPrediction
from convatlas.tasks.classification.single_label import ClassificationResult
from convatlas.tasks.known import Classification
from convatlas.train.run import Run


@pytest.fixture(scope="module")
def digits(model_file: Path) -> Model:
    return load(model_file)


@pytest.fixture(scope="module")
def animals(colored: Run) -> Model:
    return load(colored.model_file)


def predict(model: Model, images: Any, **how: Any) -> list[ClassPrediction]:
    predictions = model.predict(images, **how)
    assert all(isinstance(prediction, ClassPrediction) for prediction in predictions)
    return predictions  # type: ignore[return-value]


def table(predictions: list[ClassPrediction], model: Model) -> torch.Tensor:
    """Return probabilities (images, classes)."""
    return torch.tensor([[p.probabilities[name] for name in model.classes] for p in predictions])


def some_files(folder: Path, count: int = 9) -> list[Path]:
    return sorted((folder / "val").rglob("*.*"))[::4][:count]


# --- kinds of images


def as_array(file: Path) -> np.ndarray:
    return np.array(Image.open(file))


@pytest.mark.parametrize(
    "convert",
    [str, Image.open, as_array, lambda file: torch.from_numpy(as_array(file)).permute(2, 0, 1)],
    ids=["text", "PIL", "array", "tensor"],
)
def test_files_and_arrays_of_an_image_get_the_same_prediction(
    animals: Model, images: Path, convert: Callable[[Path], Any]
) -> None:
    files = some_files(images)
    expected = table(predict(animals, files), animals)
    assert torch.equal(table(predict(animals, [convert(file) for file in files]), animals), expected)


def test_arrays_of_grayscale_images_need_no_channel_axis(digits: Model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9), dtype=np.uint8)
    kinds = [pixels, pixels[..., None], torch.from_numpy(pixels)[None], Image.fromarray(pixels)]
    probabilities = table(predict(digits, kinds), digits)
    assert torch.allclose(probabilities, probabilities[:1].expand(4, -1), atol=1e-6)


def rotated() -> Image.Image:
    """Return an image with an EXIF orientation of 90 degrees; its upper half is dark."""
    image = Image.new("RGB", (24, 24), (250, 250, 250))
    image.paste((200, 10, 10), (0, 0, 24, 12))
    image.getexif()[0x0112] = 6
    return image


def transparent() -> Image.Image:
    """Return an image whose left half is transparent black."""
    image = Image.new("RGBA", (24, 24), (200, 60, 40, 255))
    image.paste((0, 0, 0, 0), (0, 0, 12, 24))
    return image


@pytest.mark.parametrize("make", [rotated, transparent])
@pytest.mark.parametrize("model", ["digits", "animals"])
def test_a_pil_image_gets_the_prediction_of_its_file(
    make: Callable[[], Image.Image], model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    opened: Model = request.getfixturevalue(model)
    image = make()
    image.save(tmp_path / "file.png", exif=image.getexif())
    from_file, from_memory = predict(opened, [tmp_path / "file.png", Image.open(tmp_path / "file.png")])
    assert from_memory.probabilities == from_file.probabilities


def test_16_bit_images_are_rounded_for_a_network_of_8_bit_images(digits: Model, tmp_path: Path) -> None:
    high_bit_depth = np.arange(81, dtype=np.uint16).reshape(9, 9) * 800
    Image.fromarray(high_bit_depth).save(tmp_path / "deep.png")
    rounded = (high_bit_depth / 257).round().astype(np.uint8)
    floats = (high_bit_depth / 65535).astype(np.float32)
    kinds = [tmp_path / "deep.png", Image.open(tmp_path / "deep.png"), high_bit_depth, floats, rounded]
    predictions = predict(digits, kinds)
    assert all(prediction.probabilities == predictions[-1].probabilities for prediction in predictions)


def test_one_image_needs_no_list(digits: Model, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 90).save(tmp_path / "x.png")
    for one in (tmp_path / "x.png", str(tmp_path / "x.png"), np.full((8, 8), 90, np.uint8), Image.new("L", (8, 8), 90)):
        assert len(predict(digits, one)) == 1


def test_no_images_give_no_predictions(digits: Model) -> None:
    assert predict(digits, []) == []


# --- order, batches, names


def test_predictions_keep_the_order_with_unreadable_images_between(
    animals: Model, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    files = some_files(images)
    empty = tmp_path / "empty"
    empty.mkdir()
    mixed = [tmp_path / "text.jpg", *files[:4], tmp_path / "missing.png", empty, *files[4:], tmp_path / "text.jpg"]
    for batch in (1, 2, 64):
        predictions = predict(animals, mixed, batch=batch)
        assert [p.source for p in predictions] == [str(path) for path in mixed]
        assert [bool(p.error) for p in predictions] == [path not in files for path in mixed]
        good = [p for p in predictions if not p.error]
        assert torch.allclose(table(good, animals), table(predict(animals, files), animals), atol=1e-6)


def test_errors_of_unreadable_files_name_the_file_and_the_reason(animals: Model, images: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    whole = some_files(images)[0].read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    reasons = {
        "text.jpg": "not an image", "half.jpg": "truncated", "empty.png": "not an image", "no.png": "no such file",
    }  # fmt: skip
    for name, reason in reasons.items():
        (prediction,) = predict(animals, [tmp_path / name])
        assert prediction.error.startswith(f"{tmp_path / name}: ")
        assert reason in prediction.error
        assert (prediction.label, prediction.probability, prediction.probabilities) == (None, None, {})
        assert (prediction.text, prediction.labels) == ("", ())
        assert prediction.to_plain() == {
            "source": str(tmp_path / name), "label": None, "labels": [], "probability": None, "probabilities": {},
            "error": prediction.error,
        }  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_size_does_not_change_probabilities(animals: Model, images: Path, batch: int) -> None:
    files = some_files(images)
    alone, together = (table(predict(animals, files, batch=size), animals) for size in (batch, 64))
    assert torch.allclose(alone, together, rtol=0, atol=1e-6)


def test_probabilities_are_sorted_and_have_the_users_class_names(animals: Model, images: Path) -> None:
    for prediction in predict(animals, some_files(images)):
        assert set(prediction.probabilities) == {"ant", "bee", "cat"}
        values = list(prediction.probabilities.values())
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-6)
        assert (prediction.label, prediction.probability) == (next(iter(prediction.probabilities)), values[0])
        assert (prediction.text, prediction.labels) == (prediction.label, (prediction.label,))


def test_plain_predictions_list_the_most_probable_classes(animals: Model, images: Path) -> None:
    (prediction,) = predict(animals, some_files(images)[0])
    plain = prediction.to_plain()
    assert list(plain) == ["source", "label", "labels", "probability", "probabilities", "error"]
    assert plain["probabilities"] == prediction.probabilities
    (short,) = predict(animals, some_files(images)[0], top=2)
    assert short.to_plain() == plain | {"probabilities": dict([*prediction.probabilities.items()][:2])}


# --- values that are not an image

WRONG: dict[str, Any] = {
    "four channels": np.zeros((9, 9, 4), np.uint8),
    "tensor of two channels": torch.zeros(2, 9, 9, dtype=torch.uint8),
    "tensor with the channels last": torch.zeros(9, 9, 3, dtype=torch.uint8),
    "floats above 1": np.full((9, 9, 3), 80.5, np.float32),
    "no numbers": np.full((9, 9, 3), np.nan, np.float32),
    "objects": np.full((9, 9, 3), None),
    "negative floats": torch.full((3, 9, 9), -0.5),
    "one row": np.zeros(9, np.uint8),
    "a number": np.array(3, np.uint8),
    "a batch of arrays": np.zeros((1, 9, 9, 7), np.uint8),
    "a batch of tensors": torch.zeros(1, 7, 9, 9, dtype=torch.uint8),
    "two axes": torch.zeros(9, 9, dtype=torch.uint8),
    "no rows": np.zeros((0, 9, 3), np.uint8),
    "no columns": torch.zeros(3, 9, 0, dtype=torch.uint8),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_value_that_is_not_an_image_gives_an_error_and_changes_no_other_prediction(
    animals: Model, wrong: str
) -> None:
    good = np.full((9, 9, 3), 80, np.uint8)
    first, second, third = predict(animals, [good, WRONG[wrong], good])
    assert second.error.startswith("image 1: ")
    assert "\n" not in second.error
    assert second.probabilities == {}
    assert first.probabilities == third.probabilities != {}


def test_a_truncated_pil_image_gives_an_error(animals: Model, images: Path) -> None:
    whole = some_files(images)[0].read_bytes()
    (prediction,) = predict(animals, [Image.open(io.BytesIO(whole[: len(whole) // 2]))])
    assert prediction.error.startswith("image 0: ")


def test_a_network_of_other_channels_refuses_image_files(digits: Model, images: Path) -> None:
    header = dataclasses.replace(digits.header, preprocessing=digits.header.preprocessing.for_channels(2))
    (prediction,) = Model(digits.network, header).predict(some_files(images)[:1])
    assert "2" in prediction.error.removeprefix(str(some_files(images)[0]))
    assert prediction.error.startswith(f"{some_files(images)[0]}: ")


# --- evaluation


def evaluate(model: Model, data: object, **how: Any) -> tuple[str, ClassificationResult]:
    split, result, unreadable, remarks, *_ = model.evaluate(str(data), **how)
    assert isinstance(result, ClassificationResult)
    assert unreadable == remarks == ()
    return split, result


def reordered(model: Model, order: list[int]) -> Model:
    """Return the model with its classes in another order."""
    network, classes = copy.deepcopy(model.module), tuple(model.classes[i] for i in order)
    weights = network.state_dict()
    network.load_state_dict({name: w[order] if name.startswith("head.out.") else w for name, w in weights.items()})
    return Model(network, dataclasses.replace(model.header, task=Classification(classes)))


def test_evaluation_matches_classes_by_name_in_any_order(animals: Model, images: Path) -> None:
    order = [2, 0, 1]
    (_, first), (_, second) = evaluate(animals, images), evaluate(reordered(animals, order), images)
    assert first.num_errors == second.num_errors
    assert second.classes == ("cat", "ant", "bee")
    assert torch.equal(first.confusion[order][:, order], second.confusion)
    assert first.confusion.sum(1).tolist() == [12, 12, 12]


def test_data_that_is_too_small_to_be_split_is_evaluated_as_a_whole(trained: Run, tmp_path: Path) -> None:
    images = trained.dataset.train
    pixels, label = torch.as_tensor(images.pixels), images.targets.tensor("label")
    few = [int((label == number).nonzero()[0]) for number in range(10)]
    np.savez(tmp_path / "few.npz", x=pixels[few, 0].numpy(), y=np.arange(10))
    split, result = evaluate(ca.load(trained.model_file), tmp_path / "few.npz")
    assert (split, result.n) == ("all", 10)


def test_evaluation_equals_that_of_the_training(digits: Model, trained: Run) -> None:
    for wanted, expected in (("val", "val"), ("test", "test"), (None, "test")):
        split, result = evaluate(digits, "digits", split=wanted)
        assert split == expected
        assert result.summary() == pytest.approx(trained.results[split].summary(), abs=1e-6)
        assert digits.header.metrics[split] == trained.results[split].summary()


@pytest.mark.parametrize("split", ["tset", "classes", "name"])
def test_unknown_splits_are_refused(digits: Model, split: str) -> None:
    with pytest.raises(DataError, match=f"digits: split must be one of train, val, test, all, got '{split}'"):
        digits.evaluate("digits", split=split)


def test_a_split_that_the_data_lacks_is_refused(animals: Model, images: Path) -> None:
    with pytest.raises(DataError, match="split must be one of train, val, all, got 'test'"):
        animals.evaluate(images, split="test")


def test_other_classes_are_refused_by_name(digits: Model, images: Path) -> None:
    with pytest.raises(
        DataError, match=r"the data lacks 0, 1, .* and has classes that are not in the model: ant, bee, cat;"
    ):
        digits.evaluate(images)


def test_an_evaluation_is_plain_data(digits: Model) -> None:
    evaluation = digits.evaluate("digits")
    plain = json.loads(json.dumps(evaluation.to_plain()))
    assert plain["split"] == "test"
    assert plain["unreadable"] == []
    assert plain["accuracy"] == evaluation.result.score
    assert set(plain["classes"]) == set("0123456789")
    assert sum(row["n"] for row in plain["classes"].values()) == plain["n"] == 359
