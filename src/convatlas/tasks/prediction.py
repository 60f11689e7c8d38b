"""Predictions: one for each image, in the same form for the command line, files, HTTP and Python."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, SupportsIndex, overload

from torch import Tensor

from convatlas.core.table import Table
from convatlas.errors import printable, shorten

REPR_CLASSES, REPR_ROWS = 2, 12
"""Maximum number of classes, and of images, in the `repr` of predictions."""

REPR_SOURCE, REPR_CELL = 36, 30
"""Maximum number of characters of the name of an image, and of other cells, in the `repr` of predictions."""


@dataclass(frozen=True, repr=False)
class Prediction:
    """The prediction for one image.

    source: the file of the image, or its number. error: why there is no prediction: an unreadable image, or outputs
    that are not finite; empty otherwise.
    """

    source: str
    error: str = ""

    noun: ClassVar[str] = "image"
    """What is predicted: an image or a video."""
    plain_fields: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "source": {"type": "string", "description": "File of the image, or its number."},
        "error": {"type": ["string", "null"], "description": "Why there is no prediction; null if there is one."},
    }
    """The keys of `to_plain`, each with its JSON Schema."""

    @property
    def text(self) -> str:
        """The prediction as short text; empty for an unreadable image."""
        return ""

    @property
    def probability(self) -> float | None:
        """The probability of `text`; None if the task has none, and with an error."""
        return None

    def with_top(self, top: int) -> Self:
        """Return the prediction with the `top` most probable classes, for tasks that have classes."""
        return self

    def to_plain(self) -> dict[str, Any]:
        """Return the prediction as plain data, with the keys of `plain_fields`; None for what is unknown."""
        return {"source": self.source, "error": self.error or None}

    def to_row(self, top: int) -> dict[str, Any]:
        """Return the prediction as a row of CSV, with the same keys for every image; None for empty cells.

        top: number of classes that have columns.
        """
        return self.to_plain()

    def to_rows(self, top: int) -> list[dict[str, Any]]:
        """Return the prediction as rows of CSV: one, or one for each object, and one for an image without any."""
        return [self.to_row(top)]

    def annotated(self, pixels: Tensor) -> Tensor:
        """Return an image (channels, h, w), at any scale, with what the prediction draws on it, such as boxes."""
        return pixels

    def cells(self, top: int) -> tuple[str, ...]:
        """Return the cells of a printed table after the source."""
        return (self.text,)

    def cell_rows(self, top: int) -> list[tuple[str, ...]]:
        """Return the rows of cells of a printed table: one, or several where parts have predictions of their own."""
        return [self.cells(top)]

    @classmethod
    def headings(cls, top: int) -> tuple[str, ...]:
        """Return the headings of `cells`."""
        return ("prediction",)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of `to_plain`."""
        return {
            "type": "object", "properties": {key: dict(field) for key, field in cls.plain_fields.items()},
            "required": list(cls.plain_fields), "additionalProperties": False,
        }  # fmt: skip

    def __repr__(self) -> str:
        source = _fit_end(self.source, 4 * REPR_SOURCE)
        return self.error or "  ".join([f"{source}:", *(cell.strip() for cell in self._short_cells())])

    def _repr_html_(self) -> str:
        return Predictions([self])._repr_html_()

    def _short_cells(self) -> list[str]:
        return [_fit(cell, REPR_CELL) for cell in self.cells(REPR_CLASSES)]


class Predictions(list[Prediction]):
    """Predictions in the order of the images: a list that prints as a table.

    remarks: on the images, such as files of a folder that are not used.
    """

    remarks: tuple[str, ...] = ()

    def to_plain(self) -> list[dict[str, Any]]:
        """Return each prediction as plain data."""
        return [prediction.to_plain() for prediction in self]

    @overload
    def __getitem__(self, index: SupportsIndex) -> Prediction: ...

    @overload
    def __getitem__(self, index: slice) -> Predictions: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Prediction | Predictions:
        part = super().__getitem__(index)
        return Predictions(part) if isinstance(part, list) else part

    def __repr__(self) -> str:
        return "\n".join([str(self._table()), *self._notes()]) if self else "no predictions"

    def _repr_html_(self) -> str:
        notes = (f"<p>{html.escape(note)}</p>" for note in self._notes())
        return "".join([self._table()._repr_html_(), *notes]) if self else "no predictions"

    def _table(self) -> Table:
        headings = (self[0].noun, *self[0].headings(REPR_CLASSES))
        rows: list[Sequence[str]] = []
        for prediction in self[:REPR_ROWS]:
            error = prediction.error.removeprefix(f"{printable(prediction.source)}: ")
            cells = [_fit(error, 2 * REPR_CELL)] if error else prediction._short_cells()
            rows.append([_fit_end(prediction.source, REPR_SOURCE), *cells])
        width = max(map(len, rows))
        return Table(headings[:width], tuple((*row, *[""] * (width - len(row))) for row in rows))

    def _notes(self) -> list[str]:
        more = [f"and {len(self) - REPR_ROWS:,} more"] if len(self) > REPR_ROWS else []
        return [*more, *(shorten(printable(remark), 120) for remark in self.remarks)]


def _fit(text: str, limit: int) -> str:
    return shorten(printable(text), limit)


def _fit_end(text: str, limit: int) -> str:
    """Return the end of a text, such as the file at the end of a path."""
    line = printable(text)
    return line if len(line) <= limit else f"...{line[3 - limit :]}"
