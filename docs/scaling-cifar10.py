"""Draw a scale search that was run (docs/results.md): accuracy on val against MACs."""

from __future__ import annotations

from convatlas.draw.search import scaling_chart

BASE = (10.138240, 44.53)
FOUND = {
    "compound": (54.476648, 54.56), "fast": (60.035584, 46.66), "depth": (56.144512, 40.88),
    "width": (55.408032, 47.75), "resolution": (51.322240, 55.38),
}  # fmt: skip
"""Rule -> (million MACs, accuracy on val in percent, mean of two seeds)."""

scaling_chart({rule: [BASE, point] for rule, point in FOUND.items()}, path="scaling-cifar10.png")
