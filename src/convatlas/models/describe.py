"""Networks described and compared: cards, layer tables and the cells in which specs differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convatlas.core.cost import cost
from convatlas.core.spec import Spec, cells
from convatlas.core.summary import layer_table
from convatlas.core.table import Table
from convatlas.models.card import Card
from convatlas.models.catalog import build_fresh, measure, resolve, variant


def show(name: str, *, resolution: int | None = None, channels: int | None = None, classes: int | None = None) -> str:
    """Return a network's card, layer table and cost as text, for one image of `resolution` pixels."""
    card = variant(name).card
    measured = measure(name, resolution=resolution, channels=channels, classes=classes)
    return "\n".join([_describe(card), "", str(layer_table(measured)), "", str(measured.table())])


def _describe(card: Card) -> str:
    head = f"{card.title} ({card.year})"
    facts = {"category": ", ".join(card.categories), "paper": card.paper, "innovation": card.innovation}
    if card.reported is not None:
        metrics = {"top-1": card.reported.top1, "top-5": card.reported.top5}
        numbers = ", ".join(f"{metric} {value:g} %" for metric, value in metrics.items() if value is not None)
        facts["reported"] = f"{numbers} ({card.reported.conditions})"
    if card.note:
        facts["note"] = card.note
    return f"{head}\n{Table.of_pairs(facts)}"


@dataclass(frozen=True)
class ComparedNetwork:
    """One row of a comparison.

    top1, top5: reported accuracy in percent, None if there is none. reported_on: data set, source and protocol.
    resolution: of the image, in pixels.
    depth: number of layers with weights on the longest path from the image to the scores, without gates.
    parameters, macs, activations, receptive_field (px): counted for one image.
    """

    name: str
    title: str
    year: int
    category: str
    innovation: str
    top1: float | None
    top5: float | None
    reported_on: str
    resolution: int
    depth: int
    parameters: int
    macs: int
    activations: int
    receptive_field: int


@dataclass(frozen=True)
class Comparison:
    """Networks side by side.

    cells: the cells in which their specs differ, {path: values in the order of the rows}; None stands for a cell that
        a spec does not have. Empty if the networks are not of one spec type.
    """

    rows: tuple[ComparedNetwork, ...]
    cells: dict[str, tuple[Any, ...]]

    def to_plain(self) -> dict[str, Any]:
        """Return the comparison as dicts, lists, numbers and strings."""
        networks = [dataclasses.asdict(row) for row in self.rows]
        return {"networks": networks, "cells": {path: list(values) for path, values in self.cells.items()}}


def compare(*networks: str | Spec, resolution: int | None = None) -> Comparison:
    """Compare networks of the catalog, or specs; each at its own resolution unless one is given, in pixels."""
    resolved = [resolve(network) for network in networks]
    specs = [row.spec.scaled(resolution=resolution) for _, row in resolved]
    rows = []
    for (name, row), spec in zip(resolved, specs, strict=True):
        network = build_fresh(spec, classes=row.classes, channels=row.preprocessing.channels, device="meta")
        measured, card = cost(network), row.card
        rows.append(
            ComparedNetwork(
                name=name,
                title=card.title,
                year=card.year,
                category=", ".join(card.categories),
                innovation=card.innovation,
                top1=card.reported.top1 if card.reported else None,
                top5=card.reported.top5 if card.reported else None,
                reported_on=card.reported.conditions if card.reported else "",
                resolution=spec.resolution,
                depth=measured.output.depth,
                parameters=measured.parameters,
                macs=measured.macs,
                activations=measured.activations,
                receptive_field=max(measured.receptive_field),
            )
        )
    return Comparison(tuple(rows), _differing_cells(specs))


def _differing_cells(specs: Sequence[Spec]) -> dict[str, tuple[Any, ...]]:
    if len({type(spec) for spec in specs}) != 1:
        return {}
    tables = [{path: value for path, value, _ in cells(spec)} for spec in specs]
    paths = dict.fromkeys(path for table in tables for path in table)
    values = {path: tuple(table.get(path) for table in tables) for path in paths}
    return {path: row for path, row in values.items() if len(set(row)) > 1}
