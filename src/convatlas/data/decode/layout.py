"""The layout of the pixels in an image file, from its header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from convatlas.errors import DataError

MAX_VALUES = 2**30
"""Maximum number of values of an image; larger ones are refused before they are decoded."""

COLORS = {"gray": 1, "rgb": 3, "palette": 1, "cmyk": 4, "ycbcr": 3, "lab": 3, "icclab": 3}
"""Color of pixels -> number of samples; all but gray become RGB."""


@dataclass(frozen=True)
class Layout:
    """The meaning of the samples (height, width, samples) of an image.

    size: (width, height) as stored. color: one of COLORS. mode: name of the pixel format.
    kind: unsigned (u) and signed (i) integers or floats (f). bits: significant bits of a sample.
    maximum: the integer that is white; by default the largest one of `bits`.
    bands: samples behind the color that are neither color nor transparency.
    alpha: index of the sample that is the opacity. premultiplied: whether the colors are multiplied by it.
    transparent: the samples of the color that is transparent.
    inverted: whether 0 is white. palette: (n, 3) of uint8 or uint16.
    orientation: 1 to 8, see EXIF. nodata: values that mark missing data.
    """

    size: tuple[int, int]
    color: str
    mode: str
    kind: str = "u"
    bits: int = 8
    maximum: int = 0
    bands: int = 0
    alpha: int | None = None
    premultiplied: bool = False
    transparent: tuple[int, ...] = ()
    inverted: bool = False
    palette: NDArray[Any] | None = None
    orientation: int = 1
    nodata: tuple[float, ...] = ()

    @property
    def samples(self) -> int:
        return COLORS[self.color] + self.bands + (self.alpha is not None)

    @property
    def channels(self) -> int:
        """Channels without the transparency: 1 for grayscale, 3 for color, more with further bands."""
        return (1 if self.color == "gray" else 3) + self.bands

    @property
    def high_bit_depth(self) -> bool:
        return self.kind == "f" or self.bits > 8

    @property
    def white(self) -> int:
        """The integer that is white."""
        return self.maximum or 2 ** (self.bits - (self.kind == "i")) - 1

    def check_size(self, name: object) -> None:
        """Raise DataError if the image is empty or too large."""
        width, height = self.size
        if width < 1 or height < 1:
            raise DataError(f"{name}: cannot be read: width and height must be >= 1, got {width} x {height}")
        limit = MAX_VALUES // self.samples
        if Image.MAX_IMAGE_PIXELS is not None:
            limit = min(limit, 2 * Image.MAX_IMAGE_PIXELS)  # what Pillow refuses in its own formats
        if width * height > limit:
            raise DataError(f"{name}: cannot be read: {width * height} pixels, more than {limit}")
