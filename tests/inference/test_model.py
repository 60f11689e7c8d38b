"""Answers of a sealed model: one for each image, whatever it comes as, with the user's own class names."""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convatlas as ca
from convatlas.errors import DataError
from convatlas.inference.model import Model, load
from convatlas.inference.predict import Prediction
from convatlas.train.run import Run


@pytest.fixture(scope="module")
def digits(model_file: Path) -> Model:
    return load(model_file)


@pytest.fixture(scope="module")
def animals(colored: Run) -> Model:
    return load(colored.model_file)


def table(predictions: list[Prediction], model: Model) -> torch.Tensor:
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
def test_a_image_gets_the_same_answer_whatever_it_comes_as(
    animals: Model, images: Path, convert: Callable[[Path], Any]
) -> None:
    files = some_files(images)
    expected = table(animals.predict(files), animals)
    assert torch.equal(table(animals.predict([convert(file) for file in files]), animals), expected)


def test_gray_images_need_no_channel_axis_as_arrays(digits: Model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9), dtype=np.uint8)
    kinds = [pixels, pixels[..., None], torch.from_numpy(pixels)[None], Image.fromarray(pixels)]
    answers = table(digits.predict(kinds), digits)
    assert torch.allclose(answers, answers[:1].expand(4, -1), atol=1e-6)


def turned() -> Image.Image:
    """An image that EXIF turns by a quarter; its upper half is dark."""
    image = Image.new("RGB", (24, 24), (250, 250, 250))
    image.paste((200, 10, 10), (0, 0, 24, 12))
    image.getexif()[0x0112] = 6
    return image


def see_through() -> Image.Image:
    """An image whose left half is transparent black."""
    image = Image.new("RGBA", (24, 24), (200, 60, 40, 255))
    image.paste((0, 0, 0, 0), (0, 0, 12, 24))
    return image


@pytest.mark.parametrize("make", [turned, see_through])
@pytest.mark.parametrize("model", ["digits", "animals"])
def test_a_pil_image_gets_the_answer_of_its_file(
    make: Callable[[], Image.Image], model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    opened: Model = request.getfixturevalue(model)
    image = make()
    image.save(tmp_path / "file.png", exif=image.getexif())
    from_file, from_memory = opened.predict([tmp_path / "file.png", Image.open(tmp_path / "file.png")])
    assert from_memory.probabilities == from_file.probabilities


def test_deeper_pixels_are_rounded_to_8_bits_for_a_network_that_reads_those(digits: Model, tmp_path: Path) -> None:
    high_bit_depth = np.arange(81, dtype=np.uint16).reshape(9, 9) * 800
    Image.fromarray(high_bit_depth).save(tmp_path / "deep.png")
    rounded = (high_bit_depth / 257).round().astype(np.uint8)
    floats = (high_bit_depth / 65535).astype(np.float32)
    answers = digits.predict(
        [tmp_path / "deep.png", Image.open(tmp_path / "deep.png"), high_bit_depth, floats, rounded]
    )
    for answer in answers:
        assert answer.probabilities == answers[-1].probabilities


def test_one_image_needs_no_list(digits: Model, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 90).save(tmp_path / "x.png")
    for one in (tmp_path / "x.png", str(tmp_path / "x.png"), np.full((8, 8), 90, np.uint8), Image.new("L", (8, 8), 90)):
        assert len(digits.predict(one)) == 1


def test_no_images_give_no_answers(digits: Model) -> None:
    assert digits.predict([]) == []


# --- order, batches, names


def test_answers_keep_the_order_with_broken_images_between(animals: Model, images: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    files = some_files(images)
    mixed = [tmp_path / "text.jpg", *files[:4], tmp_path / "missing.png", tmp_path, *files[4:], tmp_path / "text.jpg"]
    for batch in (1, 2, 64):
        answers = animals.predict(mixed, batch=batch)
        assert [p.source for p in answers] == [str(path) for path in mixed]
        assert [bool(p.error) for p in answers] == [path not in files for path in mixed]
        good = [p for p in answers if not p.error]
        assert torch.allclose(table(good, animals), table(animals.predict(files), animals), atol=1e-6)


def test_broken_files_say_why_and_name_the_file(animals: Model, images: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    whole = some_files(images)[0].read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    for name, told in (
        ("text.jpg", "not an image"),
        ("half.jpg", "truncated"),
        ("empty.png", ""),
        ("no.png", "no su"),
    ):
        (answer,) = animals.predict(tmp_path / name)
        assert answer.error.startswith(str(tmp_path / name))
        assert told in answer.error
        assert (answer.label, answer.probability, answer.probabilities) == ("", 0.0, {})


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_size_does_not_change_probabilities(animals: Model, images: Path, batch: int) -> None:
    files = some_files(images)
    alone, together = (table(animals.predict(files, batch=size), animals) for size in (batch, 64))
    assert torch.allclose(alone, together, rtol=0, atol=1e-6)


def test_probabilities_are_sorted_and_have_the_users_class_names(animals: Model, images: Path) -> None:
    for answer in animals.predict(some_files(images)):
        assert set(answer.probabilities) == {"ant", "bee", "cat"}
        values = list(answer.probabilities.values())
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-6)
        assert (answer.label, answer.probability) == (next(iter(answer.probabilities)), values[0])


# --- what is no image

WRONG: dict[str, Any] = {
    "four channels": np.zeros((9, 9, 4), np.uint8),
    "tensor of two channels": torch.zeros(2, 9, 9, dtype=torch.uint8),
    "tensor with the channels last": torch.zeros(9, 9, 3, dtype=torch.uint8),
    "floats above 1": np.full((9, 9, 3), 80, np.float32),
    "no numbers": np.full((9, 9, 3), np.nan, np.float32),
    "objects": np.full((9, 9, 3), None),
    "negative floats": torch.full((3, 9, 9), -0.5),
    "one row": np.zeros(9, np.uint8),
    "a number": np.array(3, np.uint8),
    "a batch of arrays": np.zeros((2, 9, 9, 3), np.uint8),
    "a batch of tensors": torch.zeros(2, 3, 9, 9, dtype=torch.uint8),
    "two axes": torch.zeros(9, 9, dtype=torch.uint8),
    "no rows": np.zeros((0, 9, 3), np.uint8),
    "no columns": torch.zeros(3, 9, 0, dtype=torch.uint8),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_image_gives_an_error_and_spoils_no_other(animals: Model, wrong: str) -> None:
    good = np.full((9, 9, 3), 80, np.uint8)
    first, second, third = animals.predict([good, WRONG[wrong], good])
    assert second.error.startswith("image 1: ")
    assert "\n" not in second.error
    assert second.probabilities == {}
    assert first.probabilities == third.probabilities != {}


def test_a_truncated_pil_image_gives_an_error(animals: Model, images: Path) -> None:
    whole = some_files(images)[0].read_bytes()
    (answer,) = animals.predict(Image.open(io.BytesIO(whole[: len(whole) // 2])))
    assert answer.error.startswith("image 0: ")


def test_a_network_of_other_channels_refuses_image_files(digits: Model, images: Path) -> None:
    header = dataclasses.replace(digits.header, preprocessing=digits.header.preprocessing.for_channels(2))
    (answer,) = Model(digits.network, header).predict(some_files(images)[0])
    assert "2" in answer.error
    assert answer.error.startswith(str(some_files(images)[0]))


# --- evaluation


def reordered(model: Model, order: list[int]) -> Model:
    """Return a model that knows the same classes in another order."""
    network, classes = copy.deepcopy(model.network), tuple(model.classes[i] for i in order)
    weights = network.state_dict()
    network.load_state_dict({name: w[order] if name.startswith("head.out.") else w for name, w in weights.items()})
    return Model(network, dataclasses.replace(model.header, classes=classes))


def test_evaluation_matches_classes_by_name_in_any_order(animals: Model, images: Path) -> None:
    order = [2, 0, 1]
    (_, first, _), (_, second, _) = animals.evaluate(images), reordered(animals, order).evaluate(images)
    assert first.errors == second.errors
    assert torch.equal(first.confusion[order][:, order], second.confusion)
    assert first.confusion.sum(1).tolist() == [12, 12, 12]


def test_a_few_images_of_somebody_else_are_measured_whole(trained: Run, tmp_path: Path) -> None:
    """They cannot be split as those of the training were."""
    images = trained.dataset.train
    pixels = torch.as_tensor(images.pixels)
    few = [int((images.labels == label).nonzero()[0]) for label in range(10)]
    np.savez(tmp_path / "few.npz", x=pixels[few, 0].numpy(), y=np.arange(10))
    split, result, _ = ca.load(trained.model_file).evaluate(tmp_path / "few.npz")
    assert (split, len(result.labels)) == ("all", 10)


def test_evaluation_measures_what_training_measured(digits: Model, trained: Run) -> None:
    for wanted, expected in (("val", "val"), ("test", "test"), (None, "test")):
        split, result, _ = digits.evaluate("digits", split=wanted)
        assert split == expected
        assert result.summary() == pytest.approx(trained.results[split].summary(), abs=1e-6)
        assert digits.header.metrics[split] == trained.results[split].summary()


@pytest.mark.parametrize("split", ["tset", "classes", "name"])
def test_unknown_splits_are_refused(digits: Model, split: str) -> None:
    with pytest.raises(DataError, match="no split"):
        digits.evaluate("digits", split=split)


def test_a_split_that_the_data_lacks_is_refused(animals: Model, images: Path) -> None:
    with pytest.raises(DataError, match="no split 'test'; there are train, val, all"):
        animals.evaluate(images, split="test")


def test_other_classes_are_refused_by_name(digits: Model, images: Path) -> None:
    with pytest.raises(DataError, match=r"misses 0, 1, .*does not know: ant, bee, cat"):
        digits.evaluate(images)
