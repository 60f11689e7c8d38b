"""Tiles of large images: a detector sees small objects at the size at which it was trained."""

from __future__ import annotations

import math

from torch import Tensor

Corner = tuple[int, int]
"""(x, y) of the left upper pixel of a tile in its image."""


def cut_tiles(pixels: Tensor, tile: int | None, overlap: float) -> tuple[list[Tensor], tuple[Corner, ...]]:
    """Return the views of an image (channels, h, w), and where they are: the image itself, followed by its tiles.

    The tiles are `tile` x `tile` pixels, or as large as a smaller side. They cover the image, and neighbors overlap by
    at least the share `overlap` of their side. An image that is not larger than a tile, and every image if `tile` is
    None, has one view, itself. The views share the memory of the image.
    """
    height, width = pixels.shape[-2:]
    if tile is None or max(height, width) <= tile:
        return [pixels], ((0, 0),)
    corners = [(x, y) for y in tile_starts(height, tile, overlap) for x in tile_starts(width, tile, overlap)]
    views = [pixels, *(pixels[..., y : y + tile, x : x + tile] for x, y in corners)]
    return views, ((0, 0), *corners)


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return where the tiles of an axis of `length` pixels start: at equal distances, the last one at the border."""
    if length <= tile:
        return [0]
    count = 1 + math.ceil((length - tile) / max(1, int(tile * (1 - overlap))))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]
