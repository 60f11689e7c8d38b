"""The counted numbers of every network of the catalog: catalog.csv, read, computed and written."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TextIO

from convatlas.core.cost import Cost

STATS_CSV = files("convatlas.models") / "catalog.csv"
"""The stats of all networks, counted once, because counting all takes seconds; the tests count them again."""


@dataclass(frozen=True)
class CatalogStats:
    """Exact numbers of a network, for one image of its default resolution. receptive_field is in pixels."""

    parameters: int
    macs: int
    activations: int
    receptive_field: int

    @classmethod
    def of(cls, cost: Cost) -> CatalogStats:
        return cls(cost.parameters, cost.macs, cost.activations, max(cost.receptive_field))


@cache
def read_stats() -> dict[str, CatalogStats]:
    """Return network name -> stats from catalog.csv."""
    with STATS_CSV.open(encoding="utf-8") as table:
        return {
            row.pop("name"): CatalogStats(**{column: int(value) for column, value in row.items()})
            for row in csv.DictReader(table)
        }


def write_stats(table: TextIO, rows: Iterable[tuple[str, CatalogStats]]) -> None:
    """Write (network name, stats) as CSV."""
    columns = ["name", *(field.name for field in dataclasses.fields(CatalogStats))]
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"name": name, **dataclasses.asdict(stats)} for name, stats in rows)
