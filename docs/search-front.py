"""Draw the trials of a search that was run (docs/results.md): accuracy on val against latency."""

from __future__ import annotations

import csv
from pathlib import Path

from convatlas.core.pareto import pareto_front
from convatlas.draw.search import Tried, front_chart

TRIALS = Path(__file__).with_name("search-trials.csv")
LIMIT_MS = 4.0

networks: dict[str, Tried] = {}
with TRIALS.open(encoding="utf-8") as file:
    for row in sorted(csv.DictReader(file), key=lambda row: float(row["fidelity"])):
        name, _, final = row["name"].partition("-final-")
        if row["state"] == "complete" and not final:
            ms, percent = 1000 * float(row["latency_s"]), 100 * float(row["accuracy"])
            networks[name] = Tried(name, row["kind"], ms, percent, float(row["fidelity"]) == 1, {})
full = [each for each in networks.values() if each.is_full]
front = [full[i].name for i in pareto_front([each.y for each in full], [each.x for each in full])]
front_chart(list(networks.values()), front, "", limit=LIMIT_MS, path="search-front.png")
