"""The evaluation of a model on one split: metrics, the prediction of every image or video, a table and a page."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from convatlas.core.table import fit_screen
from convatlas.data.dataset import Images, UnreadableImage
from convatlas.draw.page import document, fold, header, listing, pairs, paragraph, section
from convatlas.system.files import write_text
from convatlas.tasks.prediction import Prediction
from convatlas.tasks.result import Baseline, Result
from convatlas.tasks.result_page import (
    as_sentence,
    metrics_table,
    result_sections,
    result_summary,
    unreadable_files,
)
from convatlas.tasks.table import pluralize
from convatlas.weights.describe import describe_preprocessing
from convatlas.weights.modelfile import Header


@dataclass(frozen=True)
class EvaluatedImage:
    """An image or video of an evaluation; target and correct are None for an unreadable one.

    prediction: its source is the file, or the name in the data; it has the probability of the most probable class
    alone. target: the true class; several are separated by |.
    """

    prediction: Prediction
    target: str | None = None
    correct: bool | None = None

    @property
    def source(self) -> str:
        return self.prediction.source

    def to_row(self) -> dict[str, Any]:
        """Return the image or video as a row of CSV; correct is 1 or 0."""
        correct = None if self.correct is None else int(self.correct)
        return {"source": self.source, "target": self.target, **self.prediction.to_row(0), "correct": correct}


class Evaluation(NamedTuple):
    """The result on one split. unreadable, remarks: of the whole data set; see `Dataset`.

    baseline: a prediction that does not depend on the image, on the same images. header: of the model. data: name of
    the data. prepared: the images or videos.
    """

    split: str
    result: Result
    unreadable: tuple[UnreadableImage, ...]
    remarks: tuple[str, ...]
    baseline: Baseline | None
    header: Header
    data: str
    prepared: Images

    @property
    def verdict(self) -> str:
        """In words, that the result is no better than the baseline; empty if it is better."""
        return self.result.verdict(self.baseline)

    @property
    def images(self) -> list[EvaluatedImage]:
        """Every image or video of the split in the order of the names, then the unreadable ones of the data set."""
        rows = (EvaluatedImage(*row) for row in self.result.image_rows(self.prepared.names))
        errors = (EvaluatedImage(self.header.task.unreadable(each.path, each.reason)) for each in self.unreadable)
        return [*sorted(rows, key=_natural), *errors]

    def to_plain(self) -> dict[str, Any]:
        """Return the evaluation as plain data, without the single images."""
        unreadable = [asdict(image) for image in self.unreadable]
        return {
            "split": self.split, **self.result.to_plain(), "unreadable": unreadable, "remarks": list(self.remarks),
        }  # fmt: skip

    def write_csv(self, path: str | Path) -> None:
        """Write `images` as CSV; cells of what is unknown are empty."""
        rows = [image.to_row() for image in self.images]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(Path(path), text.getvalue())

    def write_report(self, path: str | Path) -> None:
        """Write a page of HTML: the result first, then figures, metrics by class and the most confident errors."""
        write_text(Path(path), self.report())

    def report(self) -> str:
        """Return the page that `write_report` writes."""
        title = f"{self.header.name} on {self.data}"
        classes, noun = pluralize(len(self.header.classes), "class"), self.result.noun
        sentences = [self.result.text()]
        if self.split == "all":
            sentences.append(f"all {noun}s: optimistically biased if the network was trained on some of them")
        training, steps = self.header.training, self.header.preprocessing
        clip = "" if steps.sampling is None else f", {steps.sampling.text}"
        facts = {
            "split": self.split, "trained on": training.data or "unknown",
            "input": f"{steps.channels} x {steps.resolution} px{' on the short side' * steps.is_whole}{clip}",
            "license": self.header.license or "not stated",
        }  # fmt: skip
        return document(title, [
            header(title, f"{classes}; {pluralize(self.result.n, noun)}"),
            result_summary(
                self.result, "" if self.split == "all" else self.split, baseline=self.baseline,
                sentences=[as_sentence(each) for each in sentences], facts=facts,
            ),
            *result_sections(
                self.result, self.prepared.pixels, self.prepared.names,
                more=section("Metrics", metrics_table({self.split: self.result})),
            ),
            section(
                "Data", listing(self.remarks),
                unreadable_files([(image.path, image.reason) for image in self.unreadable]),
                fold("Preprocessing", paragraph(describe_preprocessing(steps))),
                fold("Training of the model", pairs({**training.to_plain(), "recipe": ""})),
            ),
        ])  # fmt: skip

    def __repr__(self) -> str:
        return fit_screen(f"{self._headline()}\n{self.result.table()!r}")

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self._headline())}</p>{self.result.table()._repr_html_()}"

    def _headline(self) -> str:
        parts: Sequence[str] = [f"{self.split}: {self.result.text()}", self.verdict]
        if self.unreadable:
            parts = [*parts, f"{pluralize(len(self.unreadable), f'unreadable {self.result.noun}')} skipped"]
        return "; ".join(filter(None, parts))


def _natural(image: EvaluatedImage) -> list[str | int]:
    """Return the key of the order of names in which 2 comes before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", image.source)]
