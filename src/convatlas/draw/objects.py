"""Objects drawn on their image: boxes, masks, skeletons, and labels that can be read on images of any size.

An image is (channels, h, w) with values from 0 to 255: grayscale, RGB, or the first three of other channels. What is
drawn is (3, h, w) uint8; images with less than `MIN_SIDE` pixels on both sides are enlarged by a whole factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from convatlas.draw.style import INK, PAPER, fallback_fonts, font_has
from convatlas.errors import printable, shorten

Color = tuple[int, int, int]

PALETTE: tuple[Color, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0), (0, 114, 178),
)  # fmt: skip
"""Colors that people with a color vision deficiency can tell apart (Okabe and Ito 2008)."""

MIN_SIDE = 400
"""Images that are smaller are enlarged, because labels need this room."""

MASK_OPACITY = 0.45

MIN_LINE, MIN_TEXT = 2, 11
"""Minimum width of lines and height of text in pixels."""

LABEL_LENGTH = 32
"""Maximum number of characters of the name of a class."""


def class_color(index: int) -> Color:
    """Return the color of a class; after those of the palette come darker, and then lighter ones."""
    round_, place = divmod(index, len(PALETTE))
    color = np.array(PALETTE[place], float)
    shade = round_ % 3
    if shade:
        color = 0.6 * color if shade == 1 else 0.5 * color + 127
    red, green, blue = (int(value) for value in color)
    return red, green, blue


def draw_objects(
    pixels: Tensor, boxes: Any, labels: Sequence[str], *, colors: Sequence[Color], scores: Any = None,
    masks: Iterable[Any] = (), keypoints: Any = None, edges: Sequence[tuple[int, int]] = (),
) -> Tensor:  # fmt: skip
    """Return an image with the objects drawn on it; the first ones are drawn last, above the others.

    boxes: (k, 4), x1, y1, x2, y2 in pixels of the image. labels, colors: k texts and colors; see `class_color`. scores:
    (k,), from 0 to 1, written behind the labels. masks: k times (h, w), zero or not; one at a time is in memory.
    keypoints: (k, points, 3), x, y, and a number above 0 for the points that are drawn. edges: pairs of points that
    lines join, each in a color of its own.
    """
    image, factor = _as_rgb(pixels)
    corners = np.asarray(boxes, float).reshape(-1, 4) * factor
    canvas = _Canvas(image, _Scale(*image.shape[:2]).for_objects(corners))
    last_first = range(len(corners))[::-1]
    for mask, color in zip(masks, colors, strict=False):
        _blend(image, mask, color, factor, canvas.line)
    canvas.refresh()
    for i in last_first:
        canvas.box(corners[i], colors[i])
    if keypoints is not None:
        points = np.asarray(keypoints, float)
        for i in last_first:
            canvas.skeleton(points[i, :, :2] * factor + factor / 2, points[i, :, 2] > 0, edges, colors[i])
    for i in range(len(corners)):
        text = _fit(labels[i]) + ("" if scores is None else f" {float(scores[i]):.0%}")
        canvas.label(text, corners[i], colors[i])
    return torch.from_numpy(np.array(canvas.image)).permute(2, 0, 1).contiguous()


def draw_beside(images: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Return images (3, h, w) of one size side by side, each below its caption."""
    height, width = images[0][1].shape[-2:]
    scale = _Scale(height, width)
    gap, strip = max(2, scale.text // 3), round(1.7 * scale.text)
    whole = Image.new("RGB", (len(images) * (width + gap) - gap, height + strip), PAPER)
    for i, (caption, pixels) in enumerate(images):
        left = i * (width + gap)
        whole.paste(Image.fromarray(pixels.permute(1, 2, 0).numpy()), (left, strip))
        text, font = _font_for(_fit(caption), scale.text)
        ImageDraw.Draw(whole).text((left + gap, strip / 2), text, INK, font, anchor="lm")
    return torch.from_numpy(np.array(whole)).permute(2, 0, 1).contiguous()


def shrink(pixels: Tensor, side: int) -> Tensor:
    """Return an image (channels, h, w) with at most `side` pixels on its long side, uint8."""
    height, width = pixels.shape[-2:]
    factor = side / max(height, width)
    if factor < 1:
        size = max(1, round(factor * height)), max(1, round(factor * width))
        pixels = F.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True)[0].round()
    return pixels.clamp(0, 255).byte()


class _Scale:
    """Widths in pixels that grow with the image, and with its objects. line: of lines; text: height of text."""

    def __init__(self, height: int, width: int) -> None:
        side = math.sqrt(min(height, 2 * width) * min(width, 2 * height))  # of a strip, that of its short side
        self.line, self.text = max(MIN_LINE, round(side / 220)), max(MIN_TEXT, round(side / 42))

    def for_objects(self, boxes: NDArray[np.float64]) -> _Scale:
        """Return this scale, limited so that lines and labels do not cover objects (k, 4) of the median size."""
        if len(boxes):
            side = float(np.median(np.sqrt((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1))))
            if math.isfinite(side):
                self.line = max(MIN_LINE, min(self.line, round(side / 30)))
                self.text = max(MIN_TEXT, min(self.text, round(side / 4)))
        return self


class _Canvas:
    """An image that is drawn on, and the places of its labels."""

    def __init__(self, array: NDArray[np.uint8], scale: _Scale) -> None:
        self.array = array
        self.line, self.text = scale.line, scale.text
        self.labels: list[tuple[float, float, float, float]] = []
        self.refresh()

    def refresh(self) -> None:
        """Read the array again."""
        self.image = Image.fromarray(self.array)
        self.draw = ImageDraw.Draw(self.image)

    def box(self, box: NDArray[np.float64], color: Color) -> None:
        x1, y1, x2, y2 = (float(value) for value in box)
        halo = max(1, self.line // 3)
        outer = (x1 - halo, y1 - halo, max(x2, x1) + halo, max(y2, y1) + halo)
        self.draw.rectangle(outer, outline=_contrast(color), width=halo)
        self.draw.rectangle((x1, y1, max(x2, x1), max(y2, y1)), outline=color, width=self.line)

    def skeleton(
        self, points: NDArray[np.float64], shown: NDArray[np.bool_], edges: Sequence[tuple[int, int]], color: Color
    ) -> None:
        for number, (start, end) in enumerate(edges):
            if shown[start] and shown[end]:
                line = (*points[start], *points[end])
                self.draw.line(line, fill=(0, 0, 0), width=2 * self.line + 1)
                self.draw.line(line, fill=PALETTE[number % len(PALETTE)], width=self.line + 1)
        radius = 1.6 * self.line
        for x, y in points[shown]:
            around = (x - radius, y - radius, x + radius, y + radius)
            self.draw.ellipse(around, fill=color, outline=(255, 255, 255), width=max(1, self.line // 2))

    def label(self, text: str, box: NDArray[np.float64], color: Color) -> None:
        """Write a label at a corner of a box where no other one is; without such a place, not at all."""
        text, font = _font_for(text, self.text)
        left, top, right, bottom = font.getbbox(text)
        edge = max(1, self.text // 6)
        width, height = right - left + 2 * edge, bottom - top + 2 * edge
        whole_width, whole_height = self.image.size
        x1, y1, x2, y2 = (float(value) for value in box)
        for x, y in ((x1, y1 - height), (x1, y2), (x1, y1), (x2 - width, y1 - height), (x2 - width, y2)):
            x = min(max(0.0, x), max(0.0, whole_width - width))
            place = (x, y, x + width, y + height)
            if 0 <= y <= max(0, whole_height - height) and not any(_overlap(place, other) for other in self.labels):
                self.labels.append(place)
                self.draw.rectangle(place, fill=color)
                self.draw.text((x + edge - left, y + edge - top), text, _contrast(color), font)
                return


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _contrast(color: Color) -> Color:
    """Return black or white, whichever is easier to read on a color."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else (255, 255, 255)


def _as_rgb(pixels: Tensor) -> tuple[NDArray[np.uint8], int]:
    """Return an image as an array (h, w, 3) of its own memory, and the factor by which it is enlarged."""
    shown = pixels[:3] if pixels.shape[0] >= 3 else pixels[:1].expand(3, -1, -1)
    array = shown.round().clamp(0, 255).byte() if shown.is_floating_point() else shown.byte()
    factor = max(1, math.ceil(MIN_SIDE / max(array.shape[1:])))
    large = array.permute(1, 2, 0).cpu().numpy().repeat(factor, 0).repeat(factor, 1)
    return np.ascontiguousarray(large), factor


def _blend(image: NDArray[np.uint8], mask: Any, color: Color, factor: int, line: int) -> None:
    """Draw a mask (h, w) onto an image (h, w, 3): translucent, with an outline."""
    dense = np.asarray(mask) != 0
    rows, columns = dense.any(1).nonzero()[0], dense.any(0).nonzero()[0]
    if not len(rows):
        return
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    part = dense[inside].repeat(factor, 0).repeat(factor, 1)
    region = image[tuple(slice(factor * each.start, factor * each.stop) for each in inside)]
    tint = np.array(color)
    region[part] = ((1 - MASK_OPACITY) * region[part] + MASK_OPACITY * tint).astype(np.uint8)
    padded = F.pad(torch.from_numpy(part)[None, None].float(), (line,) * 4)
    eroded = -F.max_pool2d(-padded, 2 * line + 1, stride=1)
    region[part & ~eroded[0, 0].bool().numpy()] = color


def _fit(text: str) -> str:
    return shorten(printable(text), LABEL_LENGTH)


def _font_for(text: str, size: int) -> tuple[str, Any]:
    """Return a text in the characters of a font, and the font."""
    path = _default_font()
    if not text.isascii():
        known = (path, *fallback_fonts().values())
        path = next((each for each in known if font_has(each, text)), path)
        text = "".join(each if font_has(path, each) else each.encode("unicode_escape").decode() for each in text)
    return text, ImageFont.truetype(path, size)


@cache
def _default_font() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
