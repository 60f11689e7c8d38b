"""The result of a task on one split: its metrics, tables and figures, and what it must be better than."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from convatlas.tasks.prediction import Prediction
from convatlas.tasks.table import MetricTable, pluralize

if TYPE_CHECKING:
    from convatlas.draw.page import PageFigure


@dataclass(frozen=True)
class Baseline:
    """What a model must be better than: a prediction that does not depend on the image.

    text: such as "always predicting dog, the largest class". score: its score, as `Result.score`. upper_bound: a
    higher score is no chance: `score` plus two standard deviations of its estimate.
    """

    text: str
    score: float
    upper_bound: float


class Result(ABC):
    """The predictions and targets of one split, and their metrics."""

    headline: ClassVar[str]
    """The metric of `summary` by which epochs and runs are compared."""
    noun: ClassVar[str] = "image"
    """What is counted: images or videos."""
    headline_name: ClassVar[str] = ""
    """Display name of the headline; the key by default."""
    worst_heading: ClassVar[str] = "Most confident errors"
    worst_lead: ClassVar[str] = "Incorrect predictions, the most confident first, with true class and file."
    """Heading of the worst images on a page, and what they are."""
    loss: float | None
    """The mean loss over the images; None if the task does not compute it in evaluation: then the score alone ranks."""

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of images."""

    @property
    @abstractmethod
    def score(self) -> float:
        """The headline metric as a number; higher is better."""

    @property
    def value(self) -> float:
        """The headline metric as reported, such as an error for which lower is better."""
        return self.score

    @property
    def value_text(self) -> str:
        """`value` as text."""
        return f"{self.value:.2%}"

    @property
    def note(self) -> str:
        """What limits the result, such as "850 of 1,000 classes present"; usually empty."""
        return ""

    def verdict(self, baseline: Baseline | None) -> str:
        """Return in words that the result is no better than a baseline; empty if it is better."""
        if baseline is None or self.score > baseline.upper_bound:
            return ""
        text = f"{baseline.text} ({baseline.score:.2%})"
        if self.score <= baseline.score:
            return f"no better than {text}"
        limit = min(1.0, baseline.upper_bound)
        return f"not clearly better than {text}: on {pluralize(self.n, self.noun)}, up to {limit:.1%} can be chance"

    def epoch_metrics(self) -> dict[str, float]:
        """Return the metrics that are computed after every epoch."""
        return {self.headline: self.value}

    @abstractmethod
    def summary(self) -> dict[str, float | int]:
        """Return the metrics by name, for model files, tables and JSON."""

    @abstractmethod
    def text(self) -> str:
        """Return the headline in one line, such as "accuracy 93.46%, 10 of 153 images wrong"."""

    @abstractmethod
    def table(self) -> MetricTable:
        """Return the metrics of each class, or of each output."""

    def more_tables(self) -> dict[str, MetricTable]:
        """Return further tables by their heading on a page, such as one of keypoints."""
        return {}

    def figures(self) -> dict[str, PageFigure]:
        """Return figures by their heading on a page."""
        return {}

    def annotated(self, image: int, pixels: Tensor) -> Tensor:
        """Return the pixels (channels, h, w) of an image with what is drawn on it, such as boxes."""
        return pixels

    def worst(self, limit: int) -> list[tuple[int, str, str]]:
        """Return (number of the image, prediction, what is right) of the worst images, the worst first."""
        return []

    def image_rows(self, sources: Sequence[str]) -> list[tuple[Prediction, str, bool]]:
        """Return (prediction, target, correct) of each image; several labels of a target are separated by |.

        Predictions have the probability of the most probable class alone.
        """
        raise NotImplementedError(f"{type(self).__name__} does not list its images")

    def to_plain(self) -> dict[str, Any]:
        """Return the metrics and the table as plain data."""
        more = {heading.lower(): rows.to_plain() for heading, rows in self.more_tables().items()}
        return {**self.summary(), "note": self.note or None, "classes": self.table().to_plain(), **more}

    def __repr__(self) -> str:
        return f"{self.text()}\n{self.table()}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.text())}</p>{self.table()._repr_html_()}"
