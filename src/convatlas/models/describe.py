"""Networks listed, described and compared: cards, layer tables and the cells in which specs differ.

At their defaults, the networks of the catalog are read from its index, without torch; everything else is counted.
"""

from __future__ import annotations

import fnmatch
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convatlas.core.table import Table, Text
from convatlas.errors import InputError, SpecError, listed, nearest
from convatlas.models import index
from convatlas.models.index import Entry, NetworkFacts
from convatlas.system.quantities import COUNT, as_number

if TYPE_CHECKING:
    from convatlas.core.cost import Cost
    from convatlas.core.spec import Spec
    from convatlas.models.card import Card
    from convatlas.models.catalog import Stem


COUNTS_CONNECTIONS_BEFORE = 2000
"""Year before which papers report the number of connections."""


def list_models(pattern: str = "*", *, family: str | None = None, max_params: float | str | None = None) -> list[str]:
    """Return the catalog's names by year.

    pattern: a glob pattern, such as "resnet*". family: such as "mobilenet_v3"; the error for an unknown one names them.
    max_params: maximum number of parameters, a number or a text such as "5M".
    """
    return [row.name for row in list_networks(pattern, family=family, max_params=max_params)]


def list_networks(
    pattern: str = "*", *, family: str | None = None, max_params: float | str | None = None
) -> list[NetworkFacts]:
    """Return the facts of the networks of the catalog by year; arguments as in `list_models`."""
    for argument, value in (("pattern", pattern), ("family", family)):
        if not isinstance(value, str) and (argument, value) != ("family", None):
            raise InputError(f"list_models: {argument} must be a text, got {value!r}")
    families, entries = _families(), _entries(pattern.lower())
    if family is not None and (family := family.lower()) not in families:
        raise SpecError(f"unknown family {family!r}{nearest(family, families)}; known: {listed(families)}")
    limit = None if max_params is None else as_number(max_params, COUNT, "list_models: max_params")
    facts = [
        entry.facts
        for entry in entries
        if family in (None, entry.family) and (limit is None or entry.facts.parameters <= limit)
    ]
    return sorted(facts, key=lambda row: row.year)


def _families() -> Iterable[str]:
    if index.is_current():  # networks of the session belong to none
        return dict.fromkeys(entry.family for entry in index.read_entries().values())
    from convatlas.models.catalog import FAMILIES

    return FAMILIES


def _entries(pattern: str) -> Iterable[Entry]:
    """Yield the entries whose names match, from the index as far as it is up to date."""
    if index.is_complete():
        return (entry for name, entry in index.read_entries().items() if fnmatch.fnmatchcase(name, pattern))
    from convatlas.models.catalog import CATALOG, find_entry

    return (find_entry(name) for name in CATALOG if fnmatch.fnmatchcase(name, pattern))


def show(
    network: str | Spec,
    *,
    resolution: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    stem: Stem = "default",
) -> Text:
    """Return the card, the layer table and the cost of a network as text, for one image of `resolution` pixels.

    stem: "cifar" for images of up to 64 pixels.
    """
    plain = (resolution, channels, classes, stem) == (None, None, None, "default")
    if plain and isinstance(network, str) and index.is_complete():
        return Text(index.read_description(_find(network)))
    from convatlas.models.catalog import measure, resolve

    measured = measure(network, resolution=resolution, channels=channels, classes=classes, stem=stem)
    return Text(describe(resolve(network)[1].card, measured))


def network_facts(
    name: str,
    *,
    resolution: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    stem: Stem = "default",
) -> NetworkFacts:
    """Return the facts of a network, for one image of `resolution` pixels; arguments as in `show`."""
    if (resolution, channels, classes, stem) == (None, None, None, "default") and index.is_complete():
        return index.read_entries()[_find(name)].facts
    from convatlas.models.catalog import measure, resolve

    measured = measure(name, resolution=resolution, channels=channels, classes=classes, stem=stem)
    return NetworkFacts.of(*resolve(name), measured)


def _find(name: str) -> str:
    """Return the name of a network of the index as the catalog writes it."""
    found = index.find_name(name, index.read_entries())
    if found is None:
        raise index.unknown_network(name, index.read_entries())
    return found


def describe(card: Card, measured: Cost) -> str:
    """Return the text of `show`: a card, the layer table and the totals of a cost."""
    from convatlas.core.summary import layer_table

    head = f"{card.title} ({card.year})"
    facts = {"category": ", ".join(card.categories), "paper": card.paper, "innovation": card.innovation}
    if card.reported is not None:
        numbers = ", ".join(f"{metric} {value:g} %" for metric, value in card.reported.percentages.items())
        facts["reported"] = f"{numbers} ({card.reported.conditions})"
    if card.note:
        facts["note"] = card.note
    parts = (f"{head}\n{Table.of_pairs(facts)}", layer_table(measured), totals(card, measured))
    return "\n\n".join(map(str, parts))


def totals(card: Card, measured: Cost) -> Table:
    """Return the totals of a cost, with the connections for the networks whose papers count them."""
    return measured.table(connections=card.year < COUNTS_CONNECTIONS_BEFORE)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Networks side by side; prints as tables.

    cells: the cells in which their specs differ, {path: values in the order of the rows}; None stands for a cell that
        a spec does not have. Empty if the networks are not of one spec type.
    """

    rows: tuple[NetworkFacts, ...]
    cells: dict[str, tuple[Any, ...]]

    def to_plain(self) -> dict[str, Any]:
        """Return the comparison as dicts, lists, numbers and strings."""
        return {
            "networks": [row.to_plain() for row in self.rows],
            "cells": {path: list(values) for path, values in self.cells.items()},
        }

    def facts_table(self) -> Table:
        """Return the table of history and exact numbers."""
        numbers = ("year", "input px", "layers", "parameters", "MACs", "activations", "RF px")
        reported = self._reported()
        columns = ("name", *numbers, *reported, "category")
        rows = [
            (
                row.name, str(row.year), str(row.input_px), str(row.layers), f"{row.parameters:,}", f"{row.macs:,}",
                f"{row.activations:,}", f"{row.receptive_field_px:,}",
                *(_percent(values[i]) for values in reported.values()), row.category,
            )
            for i, row in enumerate(self.rows)
        ]  # fmt: skip
        return Table(columns, tuple(rows), right=frozenset(range(1, len(columns) - 1)))

    def _reported(self) -> dict[str, list[float | None]]:
        """Return heading -> values of the reported metrics: accuracy, unless all are detectors; AP where one has it."""
        accuracy = {
            "reported top-1": [row.top1_percent for row in self.rows], "top-5": [row.top5_percent for row in self.rows],
        }  # fmt: skip
        precision = {
            "reported box AP": [row.box_ap_percent for row in self.rows],
            "mask AP": [row.mask_ap_percent for row in self.rows],
            "keypoint AP": [row.keypoint_ap_percent for row in self.rows],
        }
        known = {name: values for name, values in precision.items() if any(values)}
        return known if all("detection" in row.category for row in self.rows) else accuracy | known

    def cells_table(self) -> Table:
        """Return the table of the cells in which the specs differ; without rows if there are none."""
        rows = ((cell, *("" if v is None else str(v) for v in values)) for cell, values in self.cells.items())
        return Table(("cell", *(row.name for row in self.rows)), tuple(rows))

    def innovations(self) -> list[str]:
        """Return what was new in each network, a line each."""
        return list(dict.fromkeys(f"{row.title}: {row.innovation}" for row in self.rows))

    def __str__(self) -> str:
        cells = [str(self.cells_table())] if self.cells else []
        return "\n\n".join([str(self.facts_table()), "\n".join(self.innovations()), *cells])

    def __repr__(self) -> str:
        return repr(Text(self))

    def _repr_html_(self) -> str:
        innovations = "".join(f"<p>{html.escape(line)}</p>" for line in self.innovations())
        cells = self.cells_table()._repr_html_() if self.cells else ""
        return self.facts_table()._repr_html_() + innovations + cells


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:g} %"


def compare(*networks: str | Spec, resolution: int | None = None) -> Comparison:
    """Compare networks of the catalog, or specs; each at its own resolution unless one is given, in pixels."""
    if not networks:
        raise InputError("compare: give at least one network")
    entries = [_entry(network, resolution) for network in networks]
    return Comparison(tuple(entry.facts for entry in entries), _differing_cells([entry.cells for entry in entries]))


def _entry(network: str | Spec, resolution: int | None) -> Entry:
    if isinstance(network, str) and resolution is None and index.is_complete():
        return index.read_entries()[_find(network)]
    from convatlas.models.catalog import count_entry, resolve

    return count_entry(*resolve(network), resolution=resolution)


def _differing_cells(tables: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    if len({table["type"] for table in tables}) != 1:
        return {}
    paths = dict.fromkeys(path for table in tables for path in table)
    values = {path: tuple(table.get(path) for table in tables) for path in paths}
    return {path: row for path, row in values.items() if len(set(row)) > 1}
