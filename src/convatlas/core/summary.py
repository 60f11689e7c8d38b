"""The layer table of a network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from convatlas.core.cost import Cost, cost
from convatlas.core.table import Table, by_x

COLUMNS = ("layer", "kind", "output", "RF (px)", "parameters", "MACs")


def summary(tree: nn.Module, shape: Sequence[int] | None = None) -> Table:
    """Return the layer table of `tree` for one image of `shape`, as in `cost`. It prints as text, in notebooks as HTML.

    RF (px) is the receptive field in input pixels: "all" once the image is pooled away.
    """
    return layer_table(cost(tree, shape))


def layer_table(network_cost: Cost) -> Table:
    """Return the layer table of a network whose cost is known."""
    rows = [("input", "", by_x(network_cost.input.shape), by_x(network_cost.input.receptive_field), "", "")]
    for layer in network_cost.layers:
        if layer.output == layer.input and not layer.parameters:
            continue  # an activation or dropout
        field = "all" if layer.output.is_global else by_x(layer.output.receptive_field)
        parameters, macs = (f"{n:,}" if n else "" for n in (layer.parameters, layer.macs))
        rows.append((layer.path, layer.kind, by_x(layer.output.shape), field, parameters, macs))
    rows.append(("total", "", "", "", f"{network_cost.parameters:,}", f"{network_cost.macs:,}"))
    return Table(COLUMNS, tuple(rows), right=frozenset({4, 5}))
