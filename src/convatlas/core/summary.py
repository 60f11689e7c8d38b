"""Text drawings of a network: the layer table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from convatlas.core.cost import Cost, cost


@dataclass(frozen=True)
class Row:
    """One line of the layer table, as text."""

    layer: str
    kind: str
    output: str
    field: str
    parameters: str
    macs: str


COLUMNS = ("layer", "kind", "output", "sees", "parameters", "MACs")


def times(sizes: Sequence[int]) -> str:
    """Return "6 x 28 x 28" for (6, 28, 28)."""
    return " x ".join(map(str, sizes))


def table(measured: Cost) -> list[Row]:
    """Return the layers as text; "sees" is the receptive field in input pixels, "all" once the image is pooled away."""
    rows = [Row("input", "", times(measured.input.shape), times(measured.input.field), "", "")]
    for layer in measured.layers:
        if layer.output == layer.input and not layer.parameters:
            continue  # activations and dropout: nothing to tell
        seen = "all" if layer.output.whole else times(layer.output.field)
        numbers = [f"{n:,}" if n else "" for n in (layer.parameters, layer.macs)]
        rows.append(Row(layer.path, layer.kind, times(layer.output.shape), seen, *numbers))
    rows.append(Row("total", "", "", "", f"{measured.parameters:,}", f"{measured.macs:,}"))
    return rows


def totals(measured: Cost) -> dict[str, str]:
    """Return the sums of a network's cost, as text with units."""
    return {
        "parameters": f"{measured.parameters:,}",
        "MACs": f"{measured.macs:,} for one image of {times(measured.input.shape)}",
        "activations": f"{measured.activations:,}",
        "connections": f"{measured.connections:,} (inputs and bias of every unit, as in the papers of the 1990s)",
        "receptive field": f"{times(measured.receptive_field)} px",
    }


def fields(pairs: Mapping[str, str]) -> str:
    """Return names and values, one pair a line; empty values are left out."""
    kept = {name: value for name, value in pairs.items() if value}
    width = max(map(len, kept))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in kept.items())


def summary(tree: nn.Module, shape: Sequence[int] | None = None) -> str:
    """Return the layer table of `tree` for one image of `shape`, as plain text; shapes as in `cost`."""
    return layer_table(cost(tree, shape))


def layer_table(measured: Cost) -> str:
    """Return a measured network's layer table as plain text."""
    rows = [COLUMNS, *((r.layer, r.kind, r.output, r.field, r.parameters, r.macs) for r in table(measured))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    right = {4, 5}
    lines = [
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
