"""The report of a run: one HTML file with all metrics, figures and errors."""

from __future__ import annotations

import base64
import io
import os
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import convatlas as ca
from commands import Command
from conftest import write_images
from convatlas.tasks.classification.single_label import ClassificationResult
from convatlas.train import report
from convatlas.train.fit import fit, open_run
from convatlas.train.run import Run
from convatlas.train.settings import DataOptions, ExecutionOptions


class Page(HTMLParser):
    """The texts and addresses of a page; fails if a tag is not closed."""

    VOID = frozenset(("meta", "img", "br"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def page(run: Run) -> Page:
    return Page(run.report_file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["trained", "colored"])
def test_the_report_has_all_metrics_and_needs_no_other_file(name: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(name)
    shown = page(run)
    for split, result in run.results.items():
        assert split in shown.texts
        for key, value in result.summary().items():
            assert key in shown.texts
            assert (f"{value:,}" if isinstance(value, int) else f"{value:.4f}") in shown.texts
    split = "test" if name == "trained" else "val"  # `colored` has no test split
    assert f"{run.results[split].score:.2%}" in shown.texts
    assert run.results[split].text() in shown.text
    for row in run.results[split].table().texts():
        assert all(cell in shown.texts for cell in row)
    assert all(label in shown.texts for label in run.config.task.classes)
    assert run.config.fingerprint in shown.texts
    assert ("optimistically biased" in shown.text) == (split == "val")
    assert f"{run.calibration.temperature:.3f}" in shown.text
    for heading in ("Learning curves", "Confusion matrix", "Calibration", "Metrics by class", "Cost", "Recipe", "Data"):
        assert heading in shown.texts
    assert all(source.startswith("data:image/png;base64,") for source in shown.sources)
    for source in shown.sources:
        assert Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size > (7, 7)


@pytest.mark.parametrize("broken", ["curves.png", "report.html"])
def test_a_failing_report_is_noted_and_the_run_is_finished(
    broken: str, rows_of_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, convatlas: Command
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise MemoryError("no memory\nfor figures")

    module, name = (report.charts, "curves") if broken == "curves.png" else (report, "report")
    other, other_name = (report, "report") if broken == "curves.png" else (report.charts, "curves")
    note = f"{broken} cannot be written (MemoryError: no memory)"
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        patch.setattr(other, other_name, lambda *_, path=None: "page" if path is None else path.touch())
        outcome = convatlas("fit", rows_of_two, "--model", "lenet1", "--epochs", 1, "--out", tmp_path / "run")
        assert (outcome.code, outcome.err) == (0, f"convatlas: {note}\n")
        again = convatlas("resume", tmp_path / "run")
        assert (again.code, again.err) == (0, f"convatlas: {note}\n")
        assert "is finished" in again.out
    run = open_run(tmp_path / "run")
    assert (run.state.finished, run.state.notes) == (True, (note,))
    assert not (tmp_path / "run" / broken).exists()
    assert ca.load(run.model_file).header.metrics["val"]


NAMES = ["$$", "cost_$x_{1$", "$10-$20", "猫", "😀 cat", "_under", "\\frac{", "é" * 100]


def test_any_names_of_classes_and_files_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for number, name in enumerate(NAMES):
        write_images(folder / name, (30 * number, 99, 99), count=3, seed=number)
        (folder / name / "00.jpg").rename(folder / name / os.fsdecode(b"caf\xe9$\n.jpg"))
    (folder / "$$" / os.fsdecode(b"broken\xff.png")).write_bytes(b"no image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = fit(
            folder, "lenet5_modern", recipe="default", overrides={"epochs": 1}, out=tmp_path / "run",
            execution=ExecutionOptions(threads=1, device="cpu"), progress=False,
            data_options=DataOptions(max_unreadable=0.1, val_share=0.4),
        )  # fmt: skip
    assert run.state.notes == ()
    shown = page(run)
    assert set(NAMES) <= set(shown.texts)
    assert "\udcff" not in shown.text
    assert any(text.endswith(r"broken\xff.png") for text in shown.texts)
    assert (tmp_path / "run" / "unreadable.csv").read_bytes().count(b"\\udcff") >= 1
    assert open_run(tmp_path / "run").config == run.config


def test_the_most_confident_errors_are_shown(trained: Run) -> None:
    result = trained.results["test"]
    assert isinstance(result, ClassificationResult)
    shown = page(trained)
    assert len(shown.sources) == 3 + min(24, result.num_errors)
    confidences = [float(share) for share in re.findall(r"(\d+\.\d)%\s+is", shown.text)]
    assert len(confidences) == min(24, result.num_errors)
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[0] == pytest.approx(100 * float(result.confidence[result.wrong].max()), abs=0.06)


def test_names_are_escaped_and_unreadable_files_are_listed(own_images: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (own_images / split / "ant").rename(own_images / split / "<b>&ant")
    (own_images / "train" / "bee" / "00.jpg").write_bytes(b"no image")
    run = fit(
        own_images, "lenet5_modern", recipe="default", overrides={"epochs": 1}, out=tmp_path / "run",
        execution=ExecutionOptions(threads=1, device="cpu"), data_options=DataOptions(max_unreadable=0.1),
    )  # fmt: skip
    shown = page(run)
    assert "<b>&ant" in shown.texts
    assert "Skipped 1 unreadable image:" in shown.text
    assert str(own_images / "train" / "bee" / "00.jpg") in shown.texts
    assert any("not an image" in text for text in shown.texts)
