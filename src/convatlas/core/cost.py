"""The exact cost of a network, counted in one walk over its tree: shapes, parameters, MACs, receptive field."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from convatlas.core import cost_rules as cost_rules  # registers the rules of torch's layers
from convatlas.core.auxiliary import Auxiliary
from convatlas.core.compose import Chain, Concat, Join, Product, Sum
from convatlas.core.network import Network, named_layers
from convatlas.core.reach import Reach, unite
from convatlas.core.signal import LayerCost, PairSignal, Signal, Tally, count_parameters, rule, walk
from convatlas.core.table import Table, by_x
from convatlas.errors import CostError


@dataclass(frozen=True, repr=False)
class Cost:
    """The exact cost of one image or clip; totals are sums over `layers`, in the order of the walk. Prints as a table.

    auxiliary: layers that only training uses; their parameters count, their multiply-adds do not.
    signals: path on the main path -> output signal of that layer.
    """

    layers: tuple[LayerCost, ...]
    input: Signal
    output: Signal
    auxiliary: tuple[LayerCost, ...] = ()
    signals: Mapping[str, Signal] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in (*self.layers, *self.auxiliary))

    @property
    def macs(self) -> int:
        """Multiply-adds of convolutions, linear layers and matrix products (never "FLOPs")."""
        return sum(layer.macs for layer in self.layers)

    @property
    def activations(self) -> int:
        return sum(layer.activations for layer in self.layers)

    @property
    def connections(self) -> int:
        return sum(layer.connections for layer in self.layers)

    @property
    def receptive_field(self) -> tuple[int, ...]:
        """In input pixels along each axis: the largest of the layers before global pooling or flattening."""
        fields = [layer.output.receptive_field for layer in self.layers if not layer.output.is_global]
        return tuple(max(axis) for axis in zip(self.input.receptive_field, *fields, strict=True))

    @property
    def receptive_field_text(self) -> str:
        """The receptive field with units: "219 x 219 px", of networks that read clips "109 frames x 219 x 219 px"."""
        sizes = self.receptive_field
        frames = "".join(f"{size} frame{'s' * (size != 1)} x " for size in sizes[:-2])
        return f"{frames}{by_x(sizes[-2:])} px"

    @property
    def remark(self) -> str:
        """What to know if the image is too small to use every kernel; empty if it is large enough."""
        starved = [
            layer
            for layer in self.layers
            if set(layer.input.spatial) == {1}
            and not layer.input.is_global
            and layer.output.receptive_field > layer.input.receptive_field
        ]
        if not starved:
            return ""
        needed = max(max(layer.input.stride) for layer in starved) + 1
        larger = f"{needed} px or more" if needed > max(self.input.spatial) else "a larger one"
        return (
            f"the image is small: from {starved[0].path} on, maps have a single pixel; use {larger}, or the stem for "
            f"small images where the network has one"
        )

    def totals(self) -> dict[str, str]:
        """Return the totals as text with units."""
        return {
            "parameters": f"{self.parameters:,}",
            "MACs": f"{self.macs:,} for {_one_input(self.input.shape)}",
            "activations": f"{self.activations:,}",
            "receptive field": self.receptive_field_text,
            "remark": self.remark,
        }

    def table(self, *, connections: bool = False) -> Table:
        """Return the totals as a table. connections: count them, too, as the papers of the 1990s do."""
        *first, receptive_field, remark = self.totals().items()
        counted = f"{self.connections:,} (inputs and bias of every unit, as in the papers of the 1990s)"
        return Table.of_pairs(dict([*first, ("connections", counted if connections else ""), receptive_field, remark]))

    def to_plain(self) -> dict[str, Any]:
        """Return totals and layers as plain data.

        layers: number of layers with weights on the longest path, without gates. per_layer: counts of each layer;
        `output` is the shape (channels, *spatial) without the batch.
        """
        counts = ("parameters", "macs", "activations", "connections")
        per_layer = [
            {"path": layer.path, "kind": layer.kind, "output": list(layer.output.shape)}
            | {count: getattr(layer, count) for count in counts}
            for layer in self.layers
        ]
        totals = {count: getattr(self, count) for count in counts}
        shape = self.input.shape
        return {
            "input_px": shape[-1] if len(shape) > 1 else None, **totals,
            "receptive_field_px": max(self.receptive_field, default=None), "layers": self.output.depth,
            "per_layer": per_layer,
        }  # fmt: skip

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _one_input(shape: Sequence[int]) -> str:
    """Return "one image of 3x224x224", or "one clip of 3x16x112x112"."""
    return f"one {'clip' if len(shape) == 4 else 'image'} of {by_x(shape)}"


def cost(tree: nn.Module, shape: Sequence[int] | None = None) -> Cost:
    """Return the cost of one image of `shape` = (channels, *spatial) through `tree`.

    shape: by default the one a Network was built for. Raises CostError if it is not of integers >= 1; and one that
    names the layer if a layer has no rule, or if the image is too small or has another number of channels.
    """
    if shape is None:
        if not isinstance(tree, Network):
            if not isinstance(tree, nn.Module):
                raise CostError(f"a network must be a module, such as ca.build(name), got {tree!r}")
            raise CostError(f"the input shape of a {type(tree).__name__} is not known; give (channels, height, width)")
        shape = tree.input_shape
    if not isinstance(shape, Sequence) or not shape or not all(type(size) is int and size > 0 for size in shape):
        raise CostError(f"cost: the shape must be (channels, height, width), integers >= 1, got {shape!r}")
    ones = (1,) * (len(shape) - 1)
    x = Signal(tuple(shape), ones, ones, reach=Reach.of_input(shape[1:]))
    tally = Tally()
    y = walk(tree, x, tally)
    layers = len(tally.layers)
    if isinstance(tree, Network):
        for name, part in tree.auxiliary.items():
            with tally.inside("auxiliary"), tally.inside(name):
                walk(part, tally.signals[cast(Auxiliary, part).at], tally)
    result = Cost(tuple(tally.layers[:layers]), x, y, tuple(tally.layers[layers:]), tally.signals)
    parameters = count_parameters(tree, set())
    if result.parameters != parameters:
        raise CostError(
            f"{type(tree).__name__} has {parameters:,} parameters, but its layers have {result.parameters:,}"
        )
    return result


@dataclass(frozen=True)
class Totals:
    """What can be counted of every network: its parameters, and the multiply-adds of one image of `shape`."""

    parameters: int
    macs: int
    shape: tuple[int, ...]

    def totals(self) -> dict[str, str]:
        """Return the totals as text with units."""
        return {
            "parameters": f"{self.parameters:,}", "MACs": f"{self.macs:,} for {_one_input(self.shape)}",
        }  # fmt: skip


def totals_of(network: Network) -> Cost | Totals:
    """Return the cost of a network; if a layer has no cost rule, what torch counts while a copy of it runs."""
    try:
        return cost(network)
    except CostError:
        trial = copy.deepcopy(network).eval()
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, which takes half a second

    x = torch.zeros(1, *network.input_shape)
    weight = next((each for each in network.parameters() if each.is_floating_point()), None)
    if weight is not None:
        x = x.to(weight)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        trial(x)
    return Totals(count_parameters(network, set()), counter.get_total_flops() // 2, network.input_shape)


@rule.register(nn.Sequential)
@rule.register(Chain)
@rule.register(Network)
def _(chain: nn.Module, x: Signal, tally: Tally) -> Signal:
    for name, layer in named_layers(chain):
        with tally.inside(name):
            x = walk(layer, x, tally)
            tally.signals[tally.path] = x.now if isinstance(x, PairSignal) else x
    return x


@rule.register(Join)
@rule.register(Sum)
def _(join: Join, x: Signal, tally: Tally) -> Signal:
    outputs = []
    for name, branch in named_layers(join):
        with tally.inside(name):
            outputs.append(walk(branch, x, tally))
    # through a global gate every element depends on the whole image; the receptive field is that of the other branches
    local = [y for y in outputs if not y.is_global] or outputs
    return Signal(
        _shape_of_join(join, outputs, tally),
        tuple(max(axis) for axis in zip(*(y.receptive_field for y in local), strict=True)),
        local[0].stride,
        is_global=all(y.is_global for y in outputs),
        depth=(min if isinstance(join, Product) else max)(y.depth for y in outputs),
        reach=unite([y.reach for y in local]),
    )


def _shape_of_join(join: Join, outputs: Sequence[Signal], tally: Tally) -> tuple[int, ...]:
    """Return the shape of the joined outputs: stacked channels, or broadcast."""
    shapes = [y.shape for y in outputs]
    if isinstance(join, Concat):
        if len({y.spatial for y in outputs}) == 1:
            return (sum(y.channels for y in outputs), *outputs[0].spatial)
    elif len({len(shape) for shape in shapes}) == 1:
        longest = tuple(max(axis) for axis in zip(*shapes, strict=True))
        if all(size in (1, most) for shape in shapes for size, most in zip(shape, longest, strict=True)):
            return longest
    raise tally.error(join, f"branches of shapes {shapes} cannot be joined")
