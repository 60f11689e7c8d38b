"""The prediction of an image is the same as table, JSON and CSV, over HTTP, and in Python."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from commands import Command
from convatlas.inference.functions import predict
from convatlas.inference.load import load
from convatlas.inference.model import Ensemble, Model
from convatlas.tasks.classification.base import UNKNOWN, ClassPrediction, LabelTask
from convatlas.tasks.known import Classification, MultilabelClassification
from convatlas.tasks.prediction import Predictions
from convatlas.tasks.task import Calibration
from convatlas.train.run import Run
from convatlas.weights.modelfile import write_model_file
from http_client import FORM, ask, form, running

KEYS = ["source", "label", "labels", "probability", "probabilities", "error"]
NAMES = st.lists(
    st.sampled_from(["label", "labels", "error", "source", "class_1", "probability_1", 'a "b", c', "\u9ce5", "=1"])
    | st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="|"), min_size=1, max_size=5),
    min_size=2, max_size=6, unique=True,
)  # fmt: skip


def check_meaning(plain: Mapping[str, Any], top: int | None, classes: int) -> None:
    """Check what the keys of a plain prediction mean."""
    assert list(plain) == KEYS
    if plain["error"] is not None:
        assert (plain["label"], plain["labels"], plain["probability"], plain["probabilities"]) == (None, [], None, {})
        return
    values = list(plain["probabilities"].values())
    assert values == sorted(values, reverse=True)
    assert len(values) == min(top or classes, classes)
    assert plain["probability"] == values[0]
    assert plain["label"] == next(iter(plain["labels"]), None)


def row_of(plain: Mapping[str, Any], top: int) -> dict[str, str]:
    """Return the cells of CSV that a plain prediction must have."""
    likely = list(plain["probabilities"].items()) + [(None, None)] * top
    pairs = {
        key: value
        for number, (name, p) in enumerate(likely[:top], 1)
        for key, value in ((f"class_{number}", name), (f"probability_{number}", p))
    }
    cells = {
        "source": plain["source"], "label": plain["label"], "labels": "|".join(plain["labels"]),
        "probability": plain["probability"], "error": plain["error"], **pairs,
    }  # fmt: skip
    return {key: "" if value is None else str(value) for key, value in cells.items()}


@given(
    st.sampled_from([Classification, MultilabelClassification]), NAMES, st.integers(1, 7),
    st.none() | st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.integers(0, 2**31), st.booleans(),
)  # fmt: skip
def test_every_form_is_the_same(
    kind: type[LabelTask], classes: list[str], top: int, threshold: float | None, seed: int, fails: bool
) -> None:
    task = kind(tuple(classes))
    outputs = torch.randn(1, len(classes), generator=torch.Generator().manual_seed(seed))
    full = task.predict("a.png", task.decode(outputs, Calibration())[0], Calibration(), threshold)
    prediction = task.unreadable("a.png", "a.png: not an image") if fails else full.with_top(top)
    plain = prediction.to_plain()
    check_meaning(plain, top, len(classes))
    assert json.loads(json.dumps(plain)) == plain
    schema = prediction.json_schema()
    assert (schema["required"], list(schema["properties"])) == (KEYS, KEYS)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(task.unreadable("", "").to_row(top)))
    writer.writeheader()
    writer.writerow(prediction.to_row(top))
    header, cells = list(csv.reader(io.StringIO(file.getvalue(), newline="")))
    assert len(set(header)) == len(header) == 5 + 2 * top
    assert dict(zip(header, cells, strict=True)) == row_of(plain, top)
    assert prediction.text == ("" if fails else ", ".join(plain["labels"]) or UNKNOWN)
    if not fails:
        assert isinstance(full, ClassPrediction)
        assert plain == full.to_plain() | {"probabilities": dict(list(full.probabilities.items())[:top])}


@pytest.fixture(scope="module", params=["classification", "multi-label"])
def model_file(colored: Run, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    if request.param == "classification":
        return colored.model_file
    model = load(colored.model_file)
    task = MultilabelClassification(("label", "error", "source"))
    header = dataclasses.replace(model.header, task=task, calibration=Calibration(1.0, (0.4, 0.5, 0.6)), metrics={})
    path = tmp_path_factory.mktemp("models") / "labels.safetensors"
    write_model_file(path, model.module, header)
    return path


@pytest.fixture(scope="module")
def port(model_file: Path) -> Iterator[int]:
    pytest.importorskip("fastapi")
    with running(load(model_file)) as found:
        yield found


@pytest.fixture(scope="module")
def files(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    unreadable = tmp_path_factory.mktemp("files") / "unreadable.png"
    unreadable.write_bytes(b"nothing")
    return [*(images / "val" / name / f"0{i}.png" for i in (1, 3) for name in ("ant", "bee", "cat")), unreadable]


@pytest.mark.parametrize(("top", "threshold"), [(None, None), (1, None), (2, 0.45), (9, 1.0)])
def test_commands_http_and_python_give_the_same(
    convatlas: Command, model_file: Path, port: int, files: list[Path], top: int | None, threshold: float | None
) -> None:
    chosen = {name: value for name, value in (("top", top), ("threshold", threshold)) if value is not None}
    shown = min(top or 3, 3)
    expected = predict(model_file, files, top=top or 3, threshold=threshold).to_plain()
    for plain in expected:
        check_meaning(plain, shown, 3)
    arguments = ["predict", model_file, *files, "--engine", "torch"]
    arguments += [part for name, value in chosen.items() for part in (f"--{name}", value)]
    printed = [json.loads(line) for line in convatlas(*arguments, "--json").out.splitlines()]
    assert printed == expected
    rows = list(csv.DictReader(io.StringIO(convatlas(*arguments, "--csv").out)))
    assert rows == [row_of(plain, shown) for plain in expected]
    table = convatlas(*arguments).out.splitlines()[1:]
    for line, plain in zip(table, [plain for plain in expected if not plain["error"]], strict=True):
        assert line == line.rstrip()
        likely = [f"{p:.2%} {name}" for name, p in plain["probabilities"].items()]
        text = ", ".join(plain["labels"]) or UNKNOWN
        assert line.split() == " ".join([plain["source"], text, *likely]).split()
    query = "&".join(f"{name}={value}" for name, value in chosen.items())
    body = form([(str(file), file.read_bytes()) for file in files])
    _, content = ask(port, f"/predict?{query}", body, kind=FORM)
    for served, plain in zip(content["predictions"], expected, strict=True):
        assert {**served, "probability": 0, "probabilities": 0} == {**plain, "probability": 0, "probabilities": 0}
        assert list(served["probabilities"]) == list(plain["probabilities"])
        assert served["probabilities"] == pytest.approx(plain["probabilities"], abs=1e-6)


def test_ensembles_have_the_same_form(convatlas: Command, model_file: Path, files: list[Path]) -> None:
    model = load(model_file)
    expected = Ensemble((model, model)).predict(files, top=2, threshold=0.5).to_plain()
    outcome = convatlas(
        "predict", model_file, *files, "--ensemble", model_file, "--top", 2, "--threshold", 0.5, "--json", "--engine",
        "torch",
    )  # fmt: skip
    assert [json.loads(line) for line in outcome.out.splitlines()] == expected


def test_predictions_print_as_a_table_that_fits_a_screen(model_file: Path, files: list[Path]) -> None:
    model = load(model_file)
    predictions = model.predict(files * 9)
    for text in (repr(predictions), repr(predictions[:3]), repr(predictions[0]), predictions._repr_html_()):
        assert "ant" in text
    lines = repr(predictions).splitlines()
    assert (len(lines), lines[-1]) == (14, "and 51 more")
    assert "not an image" in repr(predictions)
    assert isinstance(predictions[2:4], Predictions)
    names = tuple(f"class {i} " + "x" * 60 for i in range(1000))
    task = Classification(names)
    many = Predictions([task.predict("y" * 300, torch.rand(1000), Calibration())] * 500)
    assert len(repr(many)) < 2000
    assert max(map(len, repr(many).splitlines())) < 160
    assert len(repr(many[0])) < 400
    assert repr(Predictions()) == "no predictions"


def test_html_is_escaped() -> None:
    task = Classification(("<b>", "x"))
    prediction = task.predict("<script>", torch.tensor([0.9, 0.1]), Calibration())
    assert "<b>" not in prediction._repr_html_()
    assert "<script>" not in prediction._repr_html_()


def test_a_model_or_its_file_predicts(model_file: Path, files: list[Path]) -> None:
    model: Model = load(model_file)
    assert predict(model, files).to_plain() == predict(model_file, files).to_plain() == model.predict(files).to_plain()
