"""The report of a run: one HTML file with all metrics, figures and errors."""

from __future__ import annotations

import base64
import io
import os
import re
import shlex
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

import convatlas as ca
from commands import Command
from conftest import write_images
from convatlas.draw import charts, style
from convatlas.draw.page import PageFigure, document, figure
from convatlas.tasks.classification.single_label import Classification, ClassificationResult
from convatlas.tasks.result_page import as_sentence, metric_name, result_sections, result_summary
from convatlas.tasks.targets import Targets
from convatlas.train import report
from convatlas.train.fit import fit
from convatlas.train.fit_command import nearest_recipe
from convatlas.train.recipe import RECIPES
from convatlas.train.resume import open_run
from convatlas.train.run import Run
from convatlas.train.settings import DataOptions, ExecutionOptions, read_config


class Page(HTMLParser):
    """The texts, tags and addresses of a page; fails if a tag is not closed."""

    VOID = frozenset(("meta", "img", "br"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        self.tags.append(tag)
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
            assert metric_name(key) in shown.texts
            assert (f"{value:,}" if isinstance(value, int) else f"{value:.4f}") in shown.texts
    split = "test" if name == "trained" else "val"  # `colored` has no test split
    assert f"{run.results[split].score:.2%}" in shown.texts
    assert as_sentence(run.results[split].text()) in shown.texts
    for row in run.results[split].table().texts():
        assert all(cell in shown.texts for cell in row if cell)
    assert all(label in shown.texts for label in run.config.task.classes)
    assert run.config.fingerprint in shown.texts
    assert ("optimistically biased" in shown.text) == (split == "val")
    assert f"{run.calibration.temperature:.3f}" in shown.text
    for heading in ("Learning curves", "Confusion matrix", "Calibration", "Metrics by class", "Data", "Recipe"):
        assert heading in shown.texts
    assert "script" not in shown.tags
    assert all(source.startswith("data:image/") for source in shown.sources)
    assert not re.search(r"(?<!data:image/svg\+xml;)(https?:)?//\w", shown.text)
    for source in shown.sources:
        kind, _, content = source.removeprefix("data:image/").partition(";base64,")
        if kind == "svg+xml":
            assert "prefers-color-scheme" in ElementTree.fromstring(base64.b64decode(content)).find(".//{*}style").text
        else:
            assert Image.open(io.BytesIO(base64.b64decode(content))).size > (7, 7)


def test_the_report_begins_with_the_result_and_the_next_commands(trained: Run) -> None:
    shown, result = page(trained), trained.results["test"]
    places = [
        shown.texts.index(text)
        for text in (
            result.value_text, as_sentence(result.text()), f"convatlas predict {trained.model_file} IMAGES",
            f"convatlas export {trained.model_file} --to onnx", f"convatlas serve {trained.model_file}",
            "Learning curves", "Metrics by class", "Most confident errors", "Data", "Recipe",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    low, high = result.summary()["accuracy_low"], result.summary()["accuracy_high"]
    assert f"95 % interval {low:.1%} to {high:.1%}" in shown.texts
    assert f"{trained.model_file.stat().st_size / 2**20:.2f} MiB" in shown.texts
    assert trained.config.data in shown.texts
    for split, images in trained.dataset.splits.items():
        assert split in shown.texts
        for count in images.targets.tensor("label").bincount().tolist():
            assert str(count) in shown.texts
    assert len(trained.report_file.read_bytes()) < 1_000_000


def test_the_command_in_the_report_starts_the_same_run(
    colored: Run, tmp_path: Path, convatlas: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = (text for text in page(colored).texts if text.startswith("convatlas fit "))
    monkeypatch.setattr(Run, "steps", lambda _: (event for event in ()))
    assert convatlas(*shlex.split(command)[1:], "--out", tmp_path / "again").code == 0
    again, first = read_config(tmp_path / "again"), colored.config
    for field in ("data", "model", "weights", "task", "spec", "preprocessing", "recipe", "seed", "data_options"):
        assert getattr(again, field) == getattr(first, field)


def test_the_recipe_is_shown_as_differences() -> None:
    assert nearest_recipe(RECIPES["finetune"]) == ("finetune", {})
    changed = RECIPES["imagenet"].replaced({"epochs": 90, "mixup": 0.8})
    assert nearest_recipe(changed) == ("imagenet", {"epochs": (100, 90), "mixup": (0.2, 0.8)})


def test_a_result_no_better_than_the_largest_class_is_called_so() -> None:
    labels = torch.tensor([0] * 9 + [1])
    result = ClassificationResult(torch.tensor([[0.9, 0.1]] * 10), labels, 0.5, ("cat", "<dog>"))
    baseline = Classification(("cat", "<dog>")).baseline(Targets(label=labels))
    summary = result_summary(result, "test", baseline=baseline, sentences=[], facts={})
    shown = Page(document("title", [summary, *result_sections(result, torch.zeros(10, 3, 8, 8), ["a"] * 10)]))
    assert any(line.startswith("The result is no better than always predicting cat") for line in shown.texts)
    assert 'class="summary doubtful"' in summary
    assert "<dog>" in shown.texts
    assert "top5" not in shown.text  # of two classes


def test_many_classes_have_a_table_of_confused_pairs() -> None:
    n = 30
    classes = tuple(f"class {i}" for i in range(n))
    probabilities = torch.eye(n).repeat(4, 1)
    probabilities[0] = torch.eye(n)[7]
    result = ClassificationResult(probabilities, torch.arange(n).repeat(4), 0.5, classes)
    shown = Page(document("title", result_sections(result, torch.zeros(4 * n, 1, 8, 8), ["a/b.png"] * 4 * n)))
    at = shown.texts.index("of the true class")
    assert [text for text in shown.texts[at + 1 :] if text.strip()][:4] == ["class 0", "class 7", "1", "25.0%"]
    assert "b.png" in shown.texts
    perfect = ClassificationResult(torch.eye(n), torch.arange(n), 0.0, classes)
    shown = Page(document("title", result_sections(perfect, torch.zeros(n, 1, 8, 8), ["a"] * n)))
    assert "Most confused classes" not in shown.texts
    assert "95 % interval 88.6% to 100.0%" in result_summary(perfect, "test", baseline=None, sentences=[], facts={})
    assert "Most confident errors" not in shown.texts


def test_a_figure_explains_only_the_numbers_that_it_shows() -> None:
    names = {f"#{i}": f"猫{i}" for i in range(1, 100)}
    drawn = charts.precision_recall(
        torch.rand(9, 40), torch.ones(9, 40), torch.arange(40), [f"猫{i}" for i in range(40)]
    )
    shown = Page(document("title", [figure(PageFigure(drawn, "how to read it", names), "title")]))
    assert sum(text.count(" = ") for text in shown.texts) == 10


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


def test_any_names_of_classes_and_files_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "FALLBACK_FONTS", ())
    folder = tmp_path / "data"
    for number, name in enumerate(NAMES):
        write_images(folder / name, (30 * number, 99, 99), count=3, seed=number)
        (folder / name / "00.jpg").rename(folder / name / os.fsdecode(b"caf\xe9$\n.jpg"))
    (folder / "$$" / os.fsdecode(b"broken\xff.png")).write_bytes(b"no image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = fit(
            folder, "lenet5_modern", recipe="default", epochs=1, out=tmp_path / "run",
            execution=ExecutionOptions(threads=1, device="cpu"), progress=False,
            data_options=DataOptions(max_unreadable=0.1, val_share=0.4),
        )  # fmt: skip
    assert run.state.notes == ()
    shown = page(run)
    assert set(NAMES) <= set(shown.texts)
    assert re.search(r"#\d = 猫", shown.text)
    assert "\udcff" not in shown.text
    assert any(text.endswith(r"broken\xff.png") for text in shown.texts)
    assert (tmp_path / "run" / "unreadable.csv").read_bytes().count(b"\\udcff") >= 1
    assert open_run(tmp_path / "run").config == run.config


def test_the_most_confident_errors_are_shown(trained: Run) -> None:
    result = trained.results["test"]
    assert isinstance(result, ClassificationResult)
    shown = page(trained)
    assert shown.tags.count("figure") == len(shown.sources) == 4 + min(24, result.num_errors)
    confidences = [float(share) for share in re.findall(r"(\d+\.\d)%\s+is", shown.text)]
    assert len(confidences) == min(24, result.num_errors)
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[0] == pytest.approx(100 * float(result.confidence[result.wrong].max()), abs=0.06)


def test_names_are_escaped_and_unreadable_files_are_listed(own_images: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (own_images / split / "ant").rename(own_images / split / "<b>&ant")
    (own_images / "train" / "bee" / "00.jpg").write_bytes(b"no image")
    run = fit(
        own_images, "lenet5_modern", recipe="default", epochs=1, out=tmp_path / "run",
        execution=ExecutionOptions(threads=1, device="cpu"), data_options=DataOptions(max_unreadable=0.1),
    )  # fmt: skip
    shown = page(run)
    assert "<b>&ant" in shown.texts
    assert "1 unreadable image skipped:" in shown.text
    assert str(own_images / "train" / "bee" / "00.jpg") in shown.texts
    assert any("not an image" in text for text in shown.texts)
