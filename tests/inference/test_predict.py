"""Predictions: streams, files, bytes and arrays, test-time augmentation, thresholds, ensembles, URLs, the command."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from commands import Command, Outcome, check_refused
from convatlas.core.preprocessing import Preprocessing
from convatlas.errors import DataError, EngineError, SpecError
from convatlas.inference.contents import EncodedFile
from convatlas.inference.load import load
from convatlas.inference.model import Ensemble, Model
from convatlas.inference.options import PredictOptions
from convatlas.tasks.classification.base import UNKNOWN, ClassPrediction
from convatlas.tasks.known import Classification, MultilabelClassification
from convatlas.tasks.task import Task
from convatlas.train.run import Run
from server import Site

STEPS = Preprocessing(resize=8, crop=4, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def model(colored: Run) -> Model:
    return load(colored.model_file)


@pytest.fixture(scope="module")
def files(images: Path) -> list[Path]:
    return sorted((images / "val").rglob("*.*"))


def predict(model: Model | Ensemble, images: Any, **how: Any) -> list[ClassPrediction]:
    predictions = model.predict(images, **how)
    assert all(isinstance(prediction, ClassPrediction) for prediction in predictions)
    return predictions  # type: ignore[return-value]


def same(left: ClassPrediction, right: ClassPrediction) -> bool:
    return left.label == right.label and all(
        left.probabilities[name] == pytest.approx(p, abs=1e-5) for name, p in right.probabilities.items()
    )


def test_the_batch_does_not_change_predictions(model: Model, files: list[Path]) -> None:
    whole = predict(model, files, batch=64)
    assert [p.source for p in whole] == list(map(str, files))
    for batch in (1, 5):
        assert all(map(same, predict(model, files, batch=batch), whole))


def test_an_infinite_stream_is_read_one_batch_ahead(model: Model, files: list[Path]) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Path]:
        for i in itertools.count():
            taken.append(i)
            yield files[i % len(files)]

    stream = model.stream(endless(), PredictOptions(batch=4))
    assert [next(stream).source for _ in range(10)] == [str(file) for file in files[:10]]
    assert len(taken) <= 20
    stream.close()  # type: ignore[attr-defined]


def test_files_bytes_images_arrays_and_tensors_get_the_same_prediction(model: Model, files: list[Path]) -> None:
    file = next(file for file in files if file.suffix == ".png")
    image = Image.open(file)
    values = np.array(image)
    given = [
        file,
        str(file),
        EncodedFile("x", file.read_bytes()),
        image,
        values,
        torch.tensor(values).permute(2, 0, 1),
    ]
    first, *others = predict(model, given)
    assert all(same(other, first) for other in others)
    assert [p.source for p in others] == [str(file), "x", "image 3", "image 4", "image 5"]


def test_an_unreadable_image_is_an_error_among_the_predictions_of_the_others(model: Model, files: list[Path]) -> None:
    given = [
        files[0],
        Path("missing.png"),
        EncodedFile("half", files[1].read_bytes()[:50]),
        np.zeros((4, 4, 7)),
        files[1],
    ]
    found = predict(model, given, batch=2)
    assert [bool(p.error) for p in found] == [False, True, True, True, False]
    assert "missing.png: no such file" in found[1].error
    assert found[2].error.startswith("half: ")
    assert "7 channel(s)" in found[3].error
    assert found[1].text == ""


@pytest.mark.parametrize("extension", ["tiff", "png", "npy"])
def test_bytes_of_every_format_are_read_like_files(model: Model, tmp_path: Path, extension: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    path = tmp_path / f"x.{extension}"
    if extension == "npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    left, right = predict(model, [path, EncodedFile("x", path.read_bytes())])
    assert same(left, right)


def test_an_array_file_whose_header_has_a_too_large_shape_is_refused(model: Model) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 8, 3)})
    with pytest.raises(DataError, match="specifies more"):
        model.predict(EncodedFile("bomb.npy", file.getvalue()))


# --- test-time augmentation


def test_views_are_the_center_its_mirror_image_and_ten_crops() -> None:
    image = torch.arange(3 * 8 * 12, dtype=torch.uint8).view(3, 8, 12)
    (one,) = STEPS.tta_views(image, "none")
    assert torch.equal(one, STEPS.resize_and_crop(image))
    assert torch.equal(STEPS.tta_views(image, "flip"), torch.stack([one, one.flip(-1)]))
    ten = STEPS.tta_views(image, "ten-crop")
    corners = [image[:, :4, :4], image[:, :4, 8:], image[:, 4:, :4], image[:, 4:, 8:]]
    assert torch.equal(ten[:5], torch.stack([*corners, one]))
    assert torch.equal(ten[5:], ten[:5].flip(-1))
    with pytest.raises(SpecError, match="tta must be one of none, flip, ten-crop, got 'five'"):
        STEPS.tta_views(image, "five")  # type: ignore[arg-type]


def test_probabilities_are_the_mean_over_the_views(model: Model, files: list[Path]) -> None:
    (seen,) = predict(model, files[0], tta="flip")
    image = Image.open(files[0])
    both = predict(model, [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    for name, p in seen.probabilities.items():
        assert p == pytest.approx(sum(each.probabilities[name] for each in both) / 2, abs=2e-3)


# --- thresholds


def test_an_image_below_the_threshold_is_unknown(model: Model, files: list[Path]) -> None:
    for free, bound in zip(predict(model, files), predict(model, files, threshold=0.5), strict=True):
        assert free.labels == (free.label,)
        assert free.text == free.label
        assert free.probability is not None
        is_known = free.probability >= 0.5
        assert (bound.probability, bound.probabilities) == (free.probability, free.probabilities)
        assert bound.label == (free.label if is_known else None)
        assert bound.labels == (free.labels if is_known else ())
        assert bound.text == (free.text if is_known else UNKNOWN)
    assert {p.text for p in predict(model, files, threshold=1.0)} == {UNKNOWN}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"threshold": 1.5}, r"threshold must be a number in \[0, 1\] or null, got 1\.5"),
        ({"threshold": -0.1}, r"threshold must be a number in \[0, 1\] or null, got -0\.1"),
        ({"batch": 0}, "batch must be an integer >= 1 or null, got 0"),
        ({"tta": "five"}, "tta must be one of none, flip, ten-crop, got 'five'"),
    ],
)
def test_impossible_options_are_refused(model: Model, files: list[Path], how: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        model.predict(files, **how)


# --- ensembles


def test_an_ensemble_predicts_the_mean_of_its_members_by_class_name(model: Model, files: list[Path]) -> None:
    other = reordered(model)
    both = predict(Ensemble((model, other)), files)
    for p, one, two in zip(both, predict(model, files), predict(other, files), strict=True):
        for name in model.classes:
            mean = (one.probabilities[name] + two.probabilities[name]) / 2
            assert p.probabilities[name] == pytest.approx(mean, abs=1e-5)


def reordered(model: Model) -> Model:
    """Return a model with its classes in another order and another preprocessing."""
    steps = dataclasses.replace(model.header.preprocessing, fill=9, mean=(0.3,) * 3)
    header = dataclasses.replace(model.header, task=Classification(model.classes[::-1]), preprocessing=steps)
    return Model(model.network, header)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Classification(("ant", "bee", "dog")), r"other: its classes differ from those of .*: cat, dog"),
        (MultilabelClassification(("ant", "bee", "cat")), "other: multi-label classification and classification "),
    ],
)
def test_members_of_other_tasks_and_classes_are_refused(
    model: Model, files: list[Path], task: Task, message: str
) -> None:
    header = dataclasses.replace(model.header, task=task, name="other")
    with pytest.raises(DataError, match=message):
        Ensemble((model, Model(model.network, header))).predict(files)


# --- URLs, only if allowed


def test_urls_are_fetched_only_if_allowed(
    model: Model, files: list[Path], serve: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONVATLAS_OFFLINE", raising=False)
    site = serve({"/a.png": files[1].read_bytes(), "/b.png": b"nothing"})
    with pytest.raises(DataError, match=r"downloaded only with --fetch \(fetch=True in Python\)"):
        model.predict(f"{site.url}/a.png")
    (refused,) = predict(model, [f"{site.url}/a.png"])
    assert "fetch=True" in refused.error
    assert not site.requests
    good, bad, missing = predict(model, [f"{site.url}/{name}.png" for name in "abc"], fetch=True)
    assert same(good, predict(model, files[1])[0])
    assert "not an image" in bad.error
    assert "download failed" in missing.error
    monkeypatch.setenv("CONVATLAS_OFFLINE", "1")
    with pytest.raises(DataError, match="internet access is disabled"):
        model.predict(f"{site.url}/a.png", fetch=True)


# --- the command line


def read_from(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_standard_input_is_a_list_of_names_or_an_image(
    convatlas: Command,
    files: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    colored: Run,
) -> None:
    def predict_stdin() -> Outcome:
        return convatlas("predict", colored.model_file, "-", "--json", "--engine", "torch")

    expected = [p.label for p in predict(load(colored.model_file), files)]
    read_from(monkeypatch, "\n".join(map(str, files)).encode())
    lines = [json.loads(line) for line in predict_stdin().out.splitlines()]
    assert [line["label"] for line in lines] == expected
    read_from(monkeypatch, files[0].read_bytes())
    (line,) = [json.loads(line) for line in predict_stdin().out.splitlines()]
    assert (line["source"], line["label"]) == ("standard input", expected[0])
    read_from(monkeypatch, b"")
    assert predict_stdin().out == ""


def test_patterns_are_expanded(convatlas: Command, colored: Run, images: Path) -> None:
    lines = convatlas("predict", colored.model_file, f"{images}/val/*/0?.jpg", "--csv").out.splitlines()
    assert len(lines) == 1 + len(list(images.glob("val/*/0?.jpg")))


def test_what_contains_no_image_is_refused_before_engines_are_measured(
    convatlas: Command, colored: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Model, "choose")
    (tmp_path / "empty").mkdir()
    cases = {f"{images}/*.nothing": "*.nothing: nothing matches", str(tmp_path / "empty"): "no images in this folder"}
    cases[f"{images}/va?"] = "va?: nothing matches but folders"
    for given, message in cases.items():
        check_refused(convatlas("predict", colored.model_file, given), message)


def test_the_command_passes_all_options(
    convatlas: Command,
    colored: Run,
    images: Path,
    tmp_path: Path,
) -> None:
    sheet = tmp_path / "sheet.png"
    how = ("--threshold", 1, "--tta", "ten-crop", "--ensemble", colored.model_file, "--batch", 3, "--engine", "torch")
    outcome = convatlas("predict", colored.model_file, images / "val/ant", *how, "--sheet", sheet)
    assert outcome.code == 0
    assert UNKNOWN in outcome.out
    assert Image.open(sheet).size[0] > 500
    for wrong, named in ((("--tta", "nine"), "tta"), (("--engine", "fast"), "engine"),
                         (("--device", "tpu"), "tpu")):  # fmt: skip
        check_refused(convatlas("predict", colored.model_file, images / "val/ant", *wrong), named)
    check_refused(convatlas("predict", colored.model_file, "https://example.org/x.png"), "--fetch")


def test_an_engine_is_chosen_by_name(model: Model, files: list[Path]) -> None:
    assert isinstance(model.engine.outputs(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), Tensor)
    assert predict(model.using("torch", batch=2), files)[0].label == predict(model, files)[0].label
    with pytest.raises(EngineError, match="nothing"):
        model.using("nothing")
