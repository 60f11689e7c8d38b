"""Networks described and compared as text tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convatlas.core.cost import cost
from convatlas.core.spec import Spec, cells
from convatlas.core.summary import fields, layer_table, totals
from convatlas.models.catalog import build_fresh, measure, resolve, variant


def show(name: str, *, size: int | None = None, channels: int | None = None, classes: int | None = None) -> str:
    """Return a network's card, layer table and cost as text."""
    card, measured = variant(name).card, measure(name, size=size, channels=channels, classes=classes)
    told = {what: getattr(card, what) for what in ("paper", "innovation", "reported", "note")}
    head = f"{card.title} ({card.year}), {', '.join(card.taxonomy)}"
    return "\n".join([head, fields(told), "", layer_table(measured), "", fields(totals(measured))])


@dataclass(frozen=True)
class Row:
    """What is compared of one network.

    depth: layers with weights on the longest way from the image to the scores, gates aside.
    parameters, macs, activations, receptive_field (px): counted for one image of `resolution` px.
    """

    name: str
    title: str
    year: int
    taxonomy: str
    innovation: str
    reported: str
    resolution: int
    depth: int
    parameters: int
    macs: int
    activations: int
    receptive_field: int


@dataclass(frozen=True)
class Comparison:
    """The rows, and the cells in which the tables differ: {cell: values in order of the rows}.

    cells is empty where the networks are not of one family; None stands for a cell that a table does not have.
    """

    rows: tuple[Row, ...]
    cells: dict[str, tuple[Any, ...]]


def compare(*networks: str | Spec, size: int | None = None) -> Comparison:
    """Compare networks of the catalog, or specs; all at `size` pixels, or each at its own size."""
    found = [resolve(network) for network in networks]
    specs = [row.spec.scaled(resolution=size) if size is not None else row.spec for _, row in found]
    rows = []
    for (name, row), spec in zip(found, specs, strict=True):
        network = build_fresh(spec, classes=row.classes, channels=row.preprocessing.channels, device="meta")
        measured = cost(network)
        rows.append(Row(
            name, row.card.title, row.card.year, ", ".join(row.card.taxonomy), row.card.innovation, row.card.reported,
            spec.resolution, measured.output.depth, measured.parameters, measured.macs, measured.activations,
            max(measured.receptive_field),
        ))  # fmt: skip
    return Comparison(tuple(rows), _cells(specs))


def _cells(specs: Sequence[Spec]) -> dict[str, tuple[Any, ...]]:
    if len({type(spec) for spec in specs}) != 1:
        return {}
    tables = [{path: value for path, value, _ in cells(spec)} for spec in specs]
    paths = dict.fromkeys(path for table in tables for path in table)
    values = {path: tuple(table.get(path) for table in tables) for path in paths}
    return {path: row for path, row in values.items() if len(set(row)) > 1}
