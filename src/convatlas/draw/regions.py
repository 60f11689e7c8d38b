"""Images and strips of frames with the outlines of regions, and grids of filters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convatlas.draw.frame_strip import frame_strip
from convatlas.draw.heat_map import enlarge, enlargement
from convatlas.draw.style import NOTE, label

Region = Sequence[tuple[int, int]]
"""First and last pixel of rows and columns; of clips first of frames."""


def show(axes: Any, image: Tensor, title: str = "", *, note: str = "") -> None:
    """Show an image (3, h, w) uint8 without axes; title above, note below."""
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="antialiased")
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=7.5, color=NOTE, pad=3)
    if note:
        axes.text(0, -0.03, note, transform=axes.transAxes, fontsize=6, color=NOTE, va="top", linespacing=1.25)


def with_regions(pixels: Tensor, *regions: Region) -> Tensor:
    """Return an image, or a strip of the frames of a clip, with the outlines of regions: (3, h, w) uint8.

    pixels: ([frames,] channels, h, w), from 0 to 255; small images are enlarged. Of clips, a region is drawn on its
    frames only.
    """
    frames = pixels.reshape(-1, *pixels.shape[-3:])
    factor = enlargement(frames[0])
    drawn = [enlarge(as_rgb(frame), factor) for frame in frames]
    for region in regions:
        *times, rows, columns = region
        first, last = times[0] if times else (0, len(drawn) - 1)
        box = [(low * factor, (high + 1) * factor - 1) for low, high in (rows, columns)]
        for i in range(first, last + 1):
            drawn[i] = outline(drawn[i], box)
    return frame_strip(torch.stack(drawn)) if len(drawn) > 1 else drawn[0]


def as_rgb(pixels: Tensor) -> Tensor:
    """Return an image (channels, h, w) from 0 to 255 as (3, h, w) uint8: the first three channels, or the first one."""
    shown = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    return shown.round().clamp(0, 255).byte() if shown.is_floating_point() else shown


def outline(image: Tensor, box: Region) -> Tensor:
    """Return a copy of an image (3, h, w) uint8 with a white line between two black ones inside the edge of a box."""
    image = image.clone()
    width = max(1, round(max(image.shape[-2:]) / 160))
    (top, bottom), (left, right) = box
    rows, columns = torch.arange(image.shape[-2])[:, None], torch.arange(image.shape[-1])[None]
    depth = torch.minimum(torch.minimum(rows - top, bottom - rows), torch.minimum(columns - left, right - columns))
    image[:, (depth >= 0) & (depth < 3 * width)] = 0
    image[:, (depth >= width) & (depth < 2 * width)] = 255
    return image


def gray_strip(values: Tensor) -> Tensor:
    """Return values ([frames,] h, w) in [0, 1] as pixels ([frames,] 1, h, w): white is 0, black is 1."""
    return ((1 - values.clamp(0, 1)) * 255).round().byte().unsqueeze(-3)


def filter_image(values: Tensor) -> Tensor:
    """Return a filter (channels, [frames,] h, w) of values in [0, 1] as one image (3, h, w) uint8.

    Three channels are red, green and blue; others are shown side by side, as frames are.
    """
    pixels = (values * 255).round().clamp(0, 255).byte()
    channels, height, width = len(pixels), *pixels.shape[-2:]
    parts = pixels.reshape(channels, -1, height, width)
    if channels == 3:
        images = [parts[:, i] for i in range(parts.shape[1])]
    else:
        images = [part[None].expand(3, -1, -1) for channel in parts for part in channel]
    gap = pixels.new_full((3, height, 1), 255)
    return torch.cat([piece for image in images for piece in (gap, image)][1:], -1)


def plot_filters(area: Any, filters: Sequence[Tensor], *, title: str, width: float, height: float) -> None:
    """Draw filters (3, h, w) uint8 in a grid into a subfigure of that width and height in inches."""
    head = 0.3
    rows, columns = _grid(len(filters), width, height - head, filters[0].shape[-1] / filters[0].shape[-2])
    side = min(width / columns, (height - head) / rows * filters[0].shape[-1] / filters[0].shape[-2], 0.9)
    tall = side * filters[0].shape[-2] / filters[0].shape[-1]
    for i, image in enumerate(filters):
        row, column = divmod(i, columns)
        axes = area.add_axes((
            (0.05 + column * side) / width, 1 - (head + (row + 1) * tall - 0.04) / height,
            (side - 0.06) / width, (tall - 0.06) / height,
        ))  # fmt: skip
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_axis_off()
    area.text(0.05 / width, 1 - 0.13 / height, label(title, 110), fontsize=7.5, color=NOTE, va="center")


def _grid(count: int, width: float, height: float, aspect: float) -> tuple[int, int]:
    """Return the rows and columns in which images of that aspect are largest."""
    best = max(range(1, count + 1), key=lambda columns: min(width / columns, height * aspect / -(-count // columns)))
    return -(-count // best), best
