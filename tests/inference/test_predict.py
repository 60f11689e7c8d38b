"""Predictions: streamed, from files, bytes and values, in several views, by several networks, or none of these."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import convatlas as ca
from commands import Command, check_refused
from convatlas.core.preprocessing import Preprocessing
from convatlas.errors import ConvatlasError, DataError, SpecError
from convatlas.inference.model import Ensemble, Model, load
from convatlas.inference.predict import NONE, EncodedImage, PredictOptions
from convatlas.train.run import Run
from server import Site

ROWS = Preprocessing(resize=8, crop=4, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def model(colored: Run) -> Model:
    return load(colored.model_file)


@pytest.fixture(scope="module")
def files(images: Path) -> list[Path]:
    return sorted((images / "val").rglob("*.*"))


def same(left: ca.model.Prediction, right: ca.model.Prediction) -> bool:  # type: ignore[name-defined]
    return left.label == right.label and all(
        left.probabilities[name] == pytest.approx(p, abs=1e-5) for name, p in right.probabilities.items()
    )


def test_batches_of_any_size_give_the_same(model: Model, files: list[Path]) -> None:
    whole = model.predict(files, batch=64)
    assert [p.source for p in whole] == list(map(str, files))
    for batch in (1, 5):
        assert all(map(same, model.predict(files, batch=batch), whole))


def test_a_stream_without_end_is_answered_as_it_comes(model: Model, files: list[Path]) -> None:
    options: list[int] = []

    def endless() -> Iterator[Path]:
        for i in itertools.count():
            options.append(i)
            yield files[i % len(files)]

    stream = model.stream(endless(), PredictOptions(batch=4))
    assert [next(stream).source for _ in range(10)] == [str(file) for file in files[:10]]
    assert len(options) <= 20
    stream.close()  # type: ignore[attr-defined]


def test_files_bytes_images_arrays_and_tensors_are_the_same_image(model: Model, files: list[Path]) -> None:
    file = next(file for file in files if file.suffix == ".png")
    image = Image.open(file)
    values = np.array(image)
    given = [
        file,
        str(file),
        EncodedImage("x", file.read_bytes()),
        image,
        values,
        torch.tensor(values).permute(2, 0, 1),
    ]
    first, *others = model.predict(given)
    assert all(same(other, first) for other in others)
    assert [p.source for p in others] == [str(file), "x", "image 3", "image 4", "image 5"]


def test_one_broken_image_is_an_error_and_the_others_are_answered(model: Model, files: list[Path]) -> None:
    given = [
        files[0],
        Path("missing.png"),
        EncodedImage("half", files[1].read_bytes()[:50]),
        np.zeros((4, 4, 7)),
        files[1],
    ]
    found = model.predict(given, batch=2)
    assert [bool(p.error) for p in found] == [False, True, True, True, False]
    assert "missing.png: no such file" in found[1].error
    assert found[2].error.startswith("half")
    assert "7 channel(s)" in found[3].error
    assert found[1].text == ""


@pytest.mark.parametrize("kind", ["tiff", "png", "npy"])
def test_bytes_of_every_kind_are_read_like_files(model: Model, tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    path = tmp_path / f"x.{kind}"
    if kind == "npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    left, right = model.predict([path, EncodedImage("x", path.read_bytes())])
    assert same(left, right)


def test_an_array_file_that_promises_more_than_it_holds_is_refused(model: Model) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 8, 3)})
    (found,) = model.predict(EncodedImage("bomb.npy", file.getvalue()))
    assert "promises more" in found.error


# --- views


def test_views_are_the_centre_its_mirror_image_and_ten_crops() -> None:
    image = torch.arange(3 * 8 * 12, dtype=torch.uint8).view(3, 8, 12)
    (one,) = ROWS.tta_views(image, "none")
    assert torch.equal(one, ROWS.resize_and_crop(image))
    assert torch.equal(ROWS.tta_views(image, "flip"), torch.stack([one, one.flip(-1)]))
    ten = ROWS.tta_views(image, "ten-crop")
    corners = [image[:, :4, :4], image[:, :4, 8:], image[:, 4:, :4], image[:, 4:, 8:]]
    assert torch.equal(ten[:5], torch.stack([*corners, one]))
    assert torch.equal(ten[5:], ten[:5].flip(-1))
    with pytest.raises(SpecError, match="views: 'five' is not one of one, flip, ten"):
        ROWS.tta_views(image, "five")  # type: ignore[arg-type]


def test_probabilities_are_the_mean_over_the_views(model: Model, files: list[Path]) -> None:
    (seen,) = model.predict(files[0], tta="flip")
    image = Image.open(files[0])
    both = model.predict([image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    for name, p in seen.probabilities.items():
        assert p == pytest.approx(sum(each.probabilities[name] for each in both) / 2, abs=2e-3)


# --- thresholds


def test_below_the_threshold_a_image_is_none_of_these(model: Model, files: list[Path]) -> None:
    for free, bound in zip(model.predict(files), model.predict(files, threshold=0.5), strict=True):
        assert free.labels == (free.label,) and free.text == free.label  # noqa: PT018
        assert bound.label == free.label
        assert bound.text == (free.label if free.probability >= 0.5 else NONE)
    assert {p.text for p in model.predict(files, threshold=1.0)} == {NONE}


@pytest.mark.parametrize("how", [{"threshold": 1.5}, {"threshold": -0.1}, {"batch": 0}])
def test_impossible_wishes_are_refused(model: Model, files: list[Path], how: dict[str, float]) -> None:
    with pytest.raises(DataError, match=next(iter(how))):
        model.predict(files, **how)  # type: ignore[arg-type]


# --- ensembles


def test_an_ensemble_is_the_mean_of_its_members_by_the_names_of_classes(model: Model, files: list[Path]) -> None:
    other = turned(model)
    both = Ensemble((model, other)).predict(files)
    for p, one, two in zip(both, model.predict(files), other.predict(files), strict=True):
        for name in model.classes:
            mean = (one.probabilities[name] + two.probabilities[name]) / 2
            assert p.probabilities[name] == pytest.approx(mean, abs=1e-5)


def turned(model: Model) -> Model:
    """Return another network whose classes are the same in another order, and which reads smaller images."""
    steps = model.header.preprocessing
    header = dataclasses.replace(
        model.header, classes=model.classes[::-1], preprocessing=dataclasses.replace(steps, fill=9, mean=(0.3,) * 3)
    )
    return Model(model.network, header)


def test_members_of_other_classes_are_refused(model: Model, files: list[Path]) -> None:
    header = dataclasses.replace(model.header, classes=("ant", "bee", "dog"), name="other")
    with pytest.raises(DataError, match=r"other: its classes are not those of .*cat, dog"):
        Ensemble((model, Model(model.network, header))).predict(files)


# --- from the network, only if asked for


def test_addresses_are_fetched_only_if_asked_for(
    model: Model, files: list[Path], serve: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONVATLAS_OFFLINE", raising=False)
    site = serve({"/a.png": files[1].read_bytes(), "/b.png": b"nothing"})
    (unasked,) = model.predict(f"{site.url}/a.png")
    assert "no such file" in unasked.error
    assert not site.requests
    good, bad, missing = model.predict([f"{site.url}/{name}.png" for name in "abc"], fetch=True)
    assert same(good, model.predict(files[1])[0])
    assert "not an image" in bad.error
    assert "download failed" in missing.error
    monkeypatch.setenv("CONVATLAS_OFFLINE", "1")
    (offline,) = model.predict(f"{site.url}/a.png", fetch=True)
    assert "internet access is disabled" in offline.error


# --- the command


def read_from(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_standard_input_holds_names_or_a_image(
    convatlas: Command,
    model_file: Path,
    files: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    colored: Run,
) -> None:
    expected = [p.label for p in load(colored.model_file).predict(files)]
    read_from(monkeypatch, "\n".join(map(str, files)).encode())
    told = [json.loads(line) for line in convatlas("predict", colored.model_file, "-", "--json").out.splitlines()]
    assert [line["label"] for line in told] == expected
    read_from(monkeypatch, files[0].read_bytes())
    (told,) = [json.loads(line) for line in convatlas("predict", colored.model_file, "-", "--json").out.splitlines()]
    assert (told["source"], told["label"]) == ("standard input", expected[0])
    read_from(monkeypatch, b"")
    assert convatlas("predict", colored.model_file, "-", "--json").out == ""


def test_patterns_name_files(convatlas: Command, colored: Run, images: Path) -> None:
    told = convatlas("predict", colored.model_file, f"{images}/val/*/0?.jpg", "--csv").out.splitlines()
    assert len(told) == 1 + len(list(images.glob("val/*/0?.jpg")))
    none = convatlas("predict", colored.model_file, f"{images}/*.nothing")
    check_refused(none, "*.nothing", "no such file")


def test_the_command_has_all_options(
    convatlas: Command,
    colored: Run,
    images: Path,
    tmp_path: Path,
) -> None:
    sheet = tmp_path / "sheet.png"
    how = ("--threshold", 1, "--tta", "ten-crop", "--ensemble", colored.model_file, "--batch", 3, "--engine", "torch")
    outcome = convatlas("predict", colored.model_file, images / "val/ant", *how, "--sheet", sheet)
    assert outcome.code == 0
    assert NONE in outcome.out
    assert Image.open(sheet).size[0] > 500
    for wrong, named in ((("--tta", "nine"), "views"), (("--engine", "fast"), "engine"),
                         (("--device", "tpu"), "tpu")):  # fmt: skip
        check_refused(convatlas("predict", colored.model_file, images / "val/ant", *wrong), named)
    check_refused(convatlas("predict", colored.model_file, "https://example.org/x.png"), "--fetch")


def test_several_answers_on_one_device(model: Model, files: list[Path]) -> None:
    assert isinstance(model.engine.outputs(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), Tensor)
    assert model.using("torch", batch=2).predict(files)[0].label == model.predict(files)[0].label
    with pytest.raises(ConvatlasError):
        model.using("nothing")
