"""The image regions of a data set that excite one channel most."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convatlas.core.network import feature_map, taps
from convatlas.core.signal import Signal
from convatlas.explanation.receptive_field import (
    Region,
    cell_of,
    check_channel,
    layer_signal,
    theoretical_region,
    view_region,
)
from convatlas.tasks.explained import Explained
from convatlas.tasks.table import pluralize

TOP = 9
"""Default number of regions."""

Batch = tuple[Sequence[str], Any]
"""Names and pixels of images, as `Explained.inputs` takes them."""


@dataclass(frozen=True)
class ExcitingRegion:
    """The place of an image where a channel has its largest value.

    source: the image. value, unit: of the map there. region: the receptive field of that unit, in pixels of the view.
    cell: the unit's cell of the map's grid, in pixels of the crop. crop: the pixels of the region, ([frames,] channels,
    h, w).
    """

    source: str
    value: float
    unit: tuple[int, ...]
    region: Region
    cell: Region
    crop: Tensor


@dataclass(frozen=True)
class TopRegions:
    """The regions that excite a channel most, at most one of each image, the largest value first.

    images: number of images, or clips, that were searched. mean: of the largest value in each. noun: what they are.
    """

    layer: str
    channel: int
    regions: tuple[ExcitingRegion, ...]
    images: int
    mean: float
    noun: str = "image"

    @property
    def text(self) -> str:
        """What is shown, in one line."""
        return (
            f"receptive fields of the units of {self.layer}, channel {self.channel}, with the largest values in "
            f"{pluralize(self.images, self.noun)} (mean of the largest values {self.mean:.3g})"
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the regions as plain data, without pixels."""
        regions = [
            {
                "source": each.source,
                "value": each.value,
                "unit": list(each.unit),
                "region": [list(axis) for axis in each.region],
            }
            for each in self.regions
        ]
        return {
            "layer": self.layer, "channel": self.channel, f"{self.noun}s": self.images, "mean": self.mean,
            "regions": regions,
        }  # fmt: skip


def find_top_regions(
    explained: Explained, batches: Iterable[Batch], layer: str, channel: int, top: int = TOP, *, noun: str = "image"
) -> TopRegions:
    """Return the `top` regions of a data set that excite a channel most.

    Only the regions are kept: the memory does not depend on the number of images. Of equal values, the first image
    wins. noun: what the data consists of, "image" or "clip".
    Raises SpecError for a layer, InputError for a channel that is not there.
    """
    explained.check_paths([layer], where="features")
    best: list[tuple[float, int, ExcitingRegion]] = []
    number, total = 0, 0.0
    shape: tuple[int, ...] = ()
    for names, pixels in batches:
        inputs = explained.network.first_inputs(explained.inputs(pixels))
        with torch.no_grad():
            output = feature_map(taps(explained.network, [layer], inputs)[layer])
        check_channel(channel, output.shape[1], layer)
        if tuple(inputs.shape[1:]) != shape:  # whole images have different ones
            shape = tuple(inputs.shape[1:])
            signal = layer_signal(explained.network, shape, layer)
        maps = output[:, channel].float().cpu()
        for i, (name, own) in enumerate(zip(names, maps, strict=True)):
            value = float(own.max())
            number, total = number + 1, total + value
            if len(best) == top and (value, -number) <= best[0][:2]:
                continue
            unit = tuple(int(k) for k in torch.unravel_index(own.argmax(), own.shape))
            found = _region(explained, pixels[i : i + 1], signal, shape[1:], unit, name, value)
            (heapq.heappush if len(best) < top else heapq.heapreplace)(best, (value, -number, found))
    regions = tuple(found for _, _, found in sorted(best, key=lambda each: each[:2], reverse=True))
    return TopRegions(layer, channel, regions, number, total / max(1, number), noun)


def _region(
    explained: Explained, pixels: Any, signal: Signal, space: Sequence[int], unit: tuple[int, ...], name: str,
    value: float,
) -> ExcitingRegion:  # fmt: skip
    region = view_region(explained, pixels, space, theoretical_region(signal, space, unit))
    cell = cell_of(explained, pixels, signal.spatial, unit)
    inside = tuple(
        (max(first, low) - low, min(last, high) - low) for (first, last), (low, high) in zip(cell, region, strict=True)
    )
    return ExcitingRegion(name, value, unit, region, inside, crop(pixels[0], region))


def crop(pixels: Tensor, region: Region) -> Tensor:
    """Return the pixels of a region, ([frames,] channels, h, w); a copy, so that the whole image can be freed."""
    *frames, rows, columns = (slice(first, last + 1) for first, last in region)
    return pixels[(*frames, slice(None), rows, columns)].clone()
