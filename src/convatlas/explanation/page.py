"""Pages of explanations: one self-contained file of HTML for many images."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, SupportsIndex, overload

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from convatlas.core.table import Table
from convatlas.draw.feature_maps import to_gray
from convatlas.draw.frame_strip import frame_strip
from convatlas.draw.heat_map import plot_curves
from convatlas.draw.page import (
    PageFigure,
    beside,
    document,
    figure,
    fold,
    header,
    image,
    listing,
    paragraph,
    section,
    summary_card,
    table,
)
from convatlas.draw.style import default_settings, lay_out, new_figure
from convatlas.errors import InputError, printable
from convatlas.explanation.explanation import Explanation
from convatlas.explanation.faithfulness import MARGIN, Faithfulness
from convatlas.explanation.feature_maps import StageMaps
from convatlas.explanation.figure import OUTLINED, curves_of
from convatlas.system.files import write_text
from convatlas.tasks.table import pluralize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READING = (
    "Confidence in the explained class while pixels are inserted into a blurred image, and while they are replaced by "
    "the mean color, the most important ones first. A faithful map has a high insertion and a low deletion curve."
)

PAGE = ".html"
"""Suffix of pages, which show any number of images."""

ROWS = 12
"""Maximum number of explanations in a `repr`."""

MAP_SIDE = 88
"""Height of a feature map on a page, in pixels."""

MAX_SIDE = 1600
"""Longest side of an image on a page, in pixels."""


class Explanations(list[Explanation]):
    """Explanations in the order of the images: a list that prints as a table, and is written as a page."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Explanation: ...

    @overload
    def __getitem__(self, index: slice) -> Explanations: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Explanation | Explanations:
        part = super().__getitem__(index)
        return Explanations(part) if isinstance(part, list) else part

    def page(self, path: str | Path, title: str = "Explanations") -> None:
        """Write a page of HTML with the heat map, the curves and the feature maps of each image."""
        page = ExplanationPage(title)
        for explanation in self:
            page.add(explanation)
        page.write(path)

    def __repr__(self) -> str:
        more = f"\nand {len(self) - ROWS:,} more" if len(self) > ROWS else ""
        return f"{table_of(self[:ROWS])}{more}" if self else "no explanations"

    def _repr_html_(self) -> str:
        return table_of(self[:ROWS])._repr_html_()


def table_of(explanations: Iterable[Explanation]) -> Table:
    """Return a table with a row for each image."""
    return as_table([row_of(each) for each in explanations])


def as_table(rows: Sequence[tuple[str, ...]]) -> Table:
    """Return rows of cells as a table, without the columns of numbers if nothing was measured."""
    columns = len(HEADINGS) if any(any(row[min(RIGHT) :]) for row in rows) else min(RIGHT)
    return Table(HEADINGS[:columns], tuple(row[:columns] for row in rows), right=RIGHT)


HEADINGS = ("image", "prediction", "explained", "method", "insertion", "deletion", "difference", "random", "edges")
RIGHT = frozenset(range(4, 9))
"""Columns of numbers: areas of the curves, and insertion minus deletion of the map and of the control maps."""


def row_of(explanation: Explanation) -> tuple[str, ...]:
    """Return the cells of an explanation under `HEADINGS`."""
    each = explanation
    if each.score is None:
        return (printable(each.source), each.error, *[""] * 7)
    method = f"{each.method} at {each.layer}" if each.layer else each.method
    measured, numbers = each.faithfulness, [""] * 5
    if measured is not None:
        own = measured.heatmap
        values = (own.insertion_area, own.deletion_area, own.difference, measured.random.difference,
                  measured.edges.difference)  # fmt: skip
        numbers = [f"{value:z.2f}" for value in values]
    return (*(printable(text) for text in (each.source, each.prediction.text, each.score.text)), method, *numbers)


class ExplanationPage:
    """A page that is built image by image, so that no other image is in memory."""

    def __init__(self, title: str) -> None:
        self.title, self.noun = title, "image"
        self.rows: list[tuple[str, ...]] = []
        self.sections: list[str] = []
        self.errors: list[str] = []
        self.differences: list[tuple[float, float, float]] = []

    def add(self, explanation: Explanation) -> None:
        """Add an image; one without explanation is listed with its error."""
        if explanation.score is None:
            self.errors.append(explanation.error)
            return
        self.noun = explanation.prediction.noun
        self.rows.append(row_of(explanation))
        self.sections.append(_section(explanation))
        if (measured := explanation.faithfulness) is not None:
            maps = (measured.heatmap, measured.edges, measured.random)
            self.differences.append((maps[0].difference, maps[1].difference, maps[2].difference))

    def html(self) -> str:
        """Return the page."""
        lead = (
            "The last three columns are insertion minus deletion of the heat map, of a random map and of the edge map."
        )
        return document(self.title, [
            header(self.title, pluralize(len(self.rows), self.noun)),
            self._summary(),
            section("Overview", table(as_table(self.rows)), lead=lead if self.differences else "")
            if len(self.rows) > 1 else "",
            *self.sections,
            section("Without explanation", listing(self.errors)),
        ])  # fmt: skip

    def write(self, path: str | Path) -> None:
        """Write the page atomically. Raises InputError for another suffix than .html."""
        path = Path(path)
        if path.suffix.lower() != PAGE:
            raise InputError(f"{path}: the suffix of a page must be {PAGE}, got {path.suffix or 'none'}")
        write_text(path, self.html())

    def _summary(self) -> str:
        """Return the mean of insertion minus deletion, and whether it is above that of the control maps."""
        if not self.differences:
            return ""
        own, edges, noise = (fmean(values) for values in zip(*self.differences, strict=True))
        count = len(self.differences)
        better = sum(each[0] > max(each[1:]) + MARGIN for each in self.differences)
        worse = [name for name, value in (("edge maps", edges), ("random maps", noise)) if value >= own]
        return summary_card(
            f"{own:z.2f}", f"insertion minus deletion, mean of {pluralize(count, self.noun)}",
            warning=f"These maps are no better than {' and '.join(worse)}: do not rely on them." if worse else "",
            sentences=[f"{better:,} of {pluralize(count, 'map')} {'is' if better == 1 else 'are'} better than both "
                       "control maps of the same image.", READING],
            facts={"edge maps": f"{edges:z.2f}", "random maps": f"{noise:z.2f}"},
        )  # fmt: skip


def _section(explanation: Explanation) -> str:
    """Return the images, the curves and the feature maps of one explanation."""
    parts = explanation.parts
    both = torch.stack([parts.image(), parts.map()])
    is_clip = parts.view.ndim == 4
    caption = f"{'Frames' if is_clip else 'The image'}, and the heat map{OUTLINED * (not parts.is_fine)}."
    drawn = image(_jpeg(torch.cat(list(both), 1) if is_clip else frame_strip(both)), "jpeg", caption)
    curves = "" if parts.faithfulness is None else figure(PageFigure(_curves(parts.faithfulness), "", {}), "curves")
    maps = fold("Feature maps by stage", _feature_maps(parts.stages)) if parts.stages else ""
    title, *lines = parts.lines
    return section(title, "".join(map(paragraph, lines)), drawn + curves if is_clip else beside(drawn, curves), maps)


@default_settings()
def _curves(measured: Faithfulness) -> Figure:
    drawn = new_figure(6.2, 2.9)
    for number, (title, x, values) in enumerate(curves_of(measured)):
        plot_curves(drawn.add_subplot(1, 2, number + 1), values, title=title, x=x, legend=number > 0)
    lay_out(drawn)
    return drawn


def _feature_maps(stages: Sequence[StageMaps]) -> str:
    """Return the strongest maps of each stage side by side; figures of matplotlib would take a second an image."""
    drawn = []
    for stage in stages:
        maps = [torch.from_numpy(to_gray(each)) for each in stage.maps]
        size = (MAP_SIDE, round(MAP_SIDE * maps[0].shape[1] / maps[0].shape[0]))
        strip = frame_strip(F.interpolate(torch.stack(maps)[:, None] * 255, size))
        channels = ", ".join(map(str, stage.channels))
        caption = f"{stage.path}: channels {channels} of {stage.count:,}"
        drawn.append(image(_jpeg(strip.round().byte()), "jpeg", caption))
    lead = "Those with the largest standard deviation over the image; black is the smallest value of a map."
    return paragraph(lead) + beside(*drawn)


def _jpeg(pixels: Tensor) -> bytes:
    """Return an image, (3, h, w) or gray (1, h, w), as a file in which thin lines keep their color."""
    buffer = io.BytesIO()
    drawn = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())
    drawn.thumbnail((MAX_SIDE, MAX_SIDE))
    drawn.save(buffer, format="jpeg", quality=88, subsampling=0)
    return buffer.getvalue()
