"""The receptive field of one unit: the pixels it can depend on, and those it does depend on in one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from convatlas.core.cost import cost
from convatlas.core.network import Network, feature_map, taps
from convatlas.core.reach import Interval
from convatlas.core.signal import Signal
from convatlas.errors import InputError, SpecError
from convatlas.explanation.feature_maps import strength
from convatlas.tasks.explained import Explained

EFFECTIVE = 1 - 0.9545
"""Pixels whose gradient exceeds this share of the largest one belong to the effective receptive field: those within two
standard deviations, if it is a Gaussian (Luo et al. 2016, section 4.1)."""

Region = tuple[Interval, ...]
"""The first and last pixel along each axis: of rows and columns, of clips first of frames."""


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of a unit, on one image.

    layer, channel, unit: the unit; its position is (y, x), of clips (frame, y, x). shape: of the map. value: of the
    unit.
    size: of the theoretical receptive field away from borders, in pixels of the input; it can exceed the image.
    region: the theoretical receptive field in the input, cut where the image ends: exact, read off the layers.
    view_region, cell: the region, and the unit's cell of the map's grid, in pixels of the view, what is drawn.
    gradient: ([frames,] h, w) over the view: absolute derivative of the unit by each pixel, summed over color channels
        and divided by the largest one; all 0 if the unit does not depend on the image, as behind a ReLU that is off.
    """

    layer: str
    channel: int
    unit: tuple[int, ...]
    shape: tuple[int, ...]
    value: float
    size: tuple[int, ...]
    region: Region
    view_region: Region
    cell: Region
    gradient: Tensor

    @property
    def extent(self) -> tuple[int, ...]:
        """Number of pixels of the region along each axis."""
        return tuple(last - first + 1 for first, last in self.region)

    @property
    def effective_share(self) -> float:
        """Pixels of the effective receptive field divided by those of the theoretical one; see `EFFECTIVE`."""
        inside = prod(last - first + 1 for first, last in self.view_region)
        return int((self.gradient > EFFECTIVE).sum()) / max(1, inside)

    @property
    def is_off(self) -> bool:
        """Whether the unit does not depend on this image at all, as behind a ReLU whose input is negative."""
        return not bool(self.gradient.any())

    def lines(self) -> list[str]:
        """Return the receptive field in words."""
        unit = ", ".join(map(str, self.unit))
        shape = _by(self.shape)
        axes = ("frames", "rows", "columns")[-len(self.region) :]
        spans = ", ".join(f"{name} {first} to {last}" for name, (first, last) in zip(axes, self.region, strict=True))
        whole = "video" if len(self.size) > 2 else "image"
        cut = "" if self.extent == self.size else f"; the {whole} cuts it to {_by(self.extent)}"
        if self.is_off:
            effective = "the unit is off for this image: its gradient is 0"
        else:
            effective = f"effective: {self.effective_share:.1%} of it (gradient above {EFFECTIVE:.2%} of the largest)"
        return [
            f"receptive field of {self.layer}, channel {self.channel}, unit {unit} of {shape}, value {self.value:.3g}",
            f"theoretical: {_pixels(self.size)}{cut}: {spans} of the network's input",
            effective,
        ]

    def to_plain(self) -> dict[str, Any]:
        """Return the receptive field as plain data, without the gradient."""
        return {
            "layer": self.layer, "channel": self.channel, "unit": list(self.unit), "map": list(self.shape),
            "value": self.value, "size": list(self.size), "region": [list(each) for each in self.region],
            "view_region": [list(each) for each in self.view_region], "effective_share": self.effective_share,
            "is_off": self.is_off,
        }  # fmt: skip


def _pixels(size: Sequence[int]) -> str:
    *frames, height, width = size
    return "".join(f"{count} frame{'s' * (count != 1)} x " for count in frames) + f"{height} x {width} px"


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def layer_signal(network: Network, shape: Sequence[int], layer: str) -> Signal:
    """Return the signal of a layer for an input of `shape` = (channels, *space).

    Raises SpecError for a layer whose positions are not known.
    """
    signal = cost(network, tuple(shape)).signals[layer]
    if not signal.is_global and tuple(map(len, signal.reach.axes)) != signal.spatial:
        raise SpecError(f"features: the receptive field of {layer} is not known; a layer before it has no rule for it")
    return signal


def theoretical_region(signal: Signal, space: Sequence[int], unit: Sequence[int]) -> Region:
    """Return the pixels of an input of size `space` that a unit can depend on: the box around them.

    It is exact, position included: a window is cut where the map that it slides over ends. Global gates are ignored.
    signal: of the unit's layer for that input, see `layer_signal`.
    """
    if signal.is_global:
        return tuple((0, size - 1) for size in space)
    return tuple(axis[place] for axis, place in zip(signal.reach.axes, unit, strict=True))


def _full_size(signal: Signal, region: Region) -> tuple[int, ...]:
    """Return the size away from borders; branches that are shifted against each other make it larger."""
    return tuple(
        max(size, last - first + 1) for size, (first, last) in zip(signal.receptive_field, region, strict=True)
    )


def unit_gradient(network: Network, inputs: Tensor, layer: str, channel: int, unit: Sequence[int]) -> Tensor:
    """Return the absolute derivative of a unit by each input pixel (1, *space), summed over the input's channels.

    inputs: (1, channels, *space), those of the first layer.
    """
    x = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = feature_map(taps(network, [layer], x)[layer])[0, channel][tuple(unit)]
        (gradient,) = torch.autograd.grad(value, x)
    return gradient.abs().sum(1)


def measure_receptive_field(
    explained: Explained, pixels: Any, layer: str | None = None, channel: int | None = None,
    unit: Sequence[int] | None = None,
) -> ReceptiveField:  # fmt: skip
    """Return the receptive field of a unit on one image.

    pixels: a batch of one, as `Explained.inputs` takes it. layer: by default the last one with a map. channel: by
    default the strongest one on this image. unit: position in the map; by default that of the largest value.
    Raises SpecError that suggests the nearest layer, InputError that states the valid channels and units.
    """
    network, layer = explained.network, layer or explained.default_layer
    explained.check_paths([layer], where="features")
    inputs = explained.network.first_inputs(explained.inputs(pixels))
    with torch.no_grad():
        maps = feature_map(taps(network, [layer], inputs)[layer])[0].float()
    channel = check_channel(channel, len(maps), layer)
    channel = int(strength(maps).argmax()) if channel is None else channel
    place = check_unit(unit, tuple(maps.shape[1:]), layer)
    if place is None:
        place = tuple(int(i) for i in torch.unravel_index(maps[channel].argmax(), maps.shape[1:]))
    shape = tuple(inputs.shape[1:])
    signal = layer_signal(network, shape, layer)
    region = theoretical_region(signal, shape[1:], place)
    gradient = explained.on_view(unit_gradient(network, inputs, layer, channel, place), pixels)[0].float().cpu()
    return ReceptiveField(
        layer, channel, place, tuple(maps.shape[1:]), float(maps[channel][place]), _full_size(signal, region), region,
        view_region(explained, pixels, shape[1:], region), cell_of(explained, pixels, maps.shape[1:], place),
        gradient / gradient.max().clamp(min=torch.finfo(gradient.dtype).tiny),
    )  # fmt: skip


def view_region(explained: Explained, pixels: Any, space: Sequence[int], region: Region) -> Region:
    """Return a region of the network's input of size `space` as one of the view: rotated, or resized, as that is."""
    inside = torch.zeros(1, *space, device=explained.device)
    place = tuple(slice(first, last + 1) for first, last in region)
    inside[0][place] = 1
    return _box(explained.on_view(inside, pixels)[0] >= 0.5)


def cell_of(explained: Explained, pixels: Any, space: Sequence[int], unit: Sequence[int]) -> Region:
    """Return the cell of a unit in the grid of its map, stretched over the view."""
    whole = _box(explained.on_view(torch.ones(1, *space, device=explained.device), pixels)[0] >= 0.5)
    rotated = [0] * (len(space) - 2) + [explained.preprocessing.rotation] * 2
    cell = []
    for (_, last), size, place, turned in zip(whole, space, unit, rotated, strict=True):
        at = size - 1 - place if turned else place
        first = at * (last + 1) // size
        cell.append((first, max(first, -(-(at + 1) * (last + 1) // size) - 1)))
    return tuple(cell)


def _box(inside: Tensor) -> Region:
    """Return the smallest box around what is true."""
    places = inside.nonzero()
    if not len(places):
        return tuple((0, 0) for _ in inside.shape)
    return tuple(zip(places.amin(0).tolist(), places.amax(0).tolist(), strict=True))


def check_channel(channel: int | None, count: int, layer: str) -> int | None:
    """Raise InputError unless a channel is one of the layer's, or None."""
    if channel is not None and not (type(channel) is int and 0 <= channel < count):
        raise InputError(f"features: channel must be an integer in [0, {count - 1}] for {layer}, got {channel}")
    return channel


def check_unit(unit: Sequence[int] | None, space: tuple[int, ...], layer: str) -> tuple[int, ...] | None:
    """Raise InputError unless a unit is a position of the layer's map, or None."""
    if unit is None:
        return None
    given, names = tuple(unit), ("T", "Y", "X")[-len(space) :]
    fits = len(given) == len(space) and all(
        type(i) is int and 0 <= i < size for i, size in zip(given, space, strict=True)
    )
    if not fits:
        ranges = ", ".join(f"{name} in [0, {size - 1}]" for name, size in zip(names, space, strict=True))
        got = ",".join(map(str, given))
        raise InputError(f"features: unit must be {','.join(names)} with {ranges} for {layer}, got {got}")
    return given
