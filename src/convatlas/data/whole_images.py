"""Whole images: each has its own size, so they are lists of tensors; in memory, mapped from the cache, or in files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.pixels import load_image
from convatlas.data.threads import map_in_threads
from convatlas.errors import DataError

Size = tuple[int, int]
"""(height, width) of an image in pixels."""


class WholeImages:
    """Images (channels, h, w) of any sizes, with values from 0 to 255, as `Preprocessing.dtype` has them.

    images: tensors, or the names of files, which are decoded when they are indexed and not kept in memory. sizes: of
    the images, with their EXIF orientation applied.
    Indexing raises DataError if a file is no longer readable.
    """

    def __init__(self, images: Sequence[Tensor | str], sizes: Sequence[Size], preprocessing: Preprocessing) -> None:
        self.images, self.sizes, self.preprocessing = images, sizes, preprocessing

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, which: int) -> Tensor: ...
    @overload
    def __getitem__(self, which: Tensor) -> list[Tensor]: ...
    def __getitem__(self, which: int | Tensor) -> Tensor | list[Tensor]:
        """Return an image, or of a tensor of indices a list of images."""
        return self.batch(which) if isinstance(which, Tensor) else self.image(which)

    def image(self, number: int) -> Tensor:
        """Return one image; it may be a view of the cache, and must not be changed."""
        image = self.images[number]
        if isinstance(image, Tensor):
            return image
        pixels = load_image(image, self.preprocessing, for_random_crop=False)[0]
        check_size(pixels, self.sizes[number], image)
        return pixels

    def batch(self, numbers: Tensor) -> list[Tensor]:
        """Return images; files are decoded on all cores."""
        return list(map_in_threads(self.image, numbers.tolist()))

    @property
    def is_streamed(self) -> bool:
        """Whether an image is decoded whenever it is used."""
        return any(isinstance(image, str) for image in self.images)

    def subset(self, indices: Tensor) -> WholeImages:
        """Return the images with these indices; files are not decoded."""
        rows = indices.tolist()
        return WholeImages([self.images[i] for i in rows], [self.sizes[i] for i in rows], self.preprocessing)


def check_size(pixels: Tensor, size: Size, name: str) -> None:
    """Raise DataError unless an image has the (height, width) to which its annotations refer."""
    height, width = pixels.shape[-2:]
    if (height, width) != tuple(size):
        raise DataError(
            f"{name}: its annotations are for {size[1]} x {size[0]} pixels, the image has {width} x {height}; correct "
            "the size and the boxes in the annotations"
        )


def concatenate_whole(parts: Sequence[WholeImages]) -> WholeImages:
    """Return the images of several splits as one."""
    return WholeImages(
        [image for part in parts for image in part.images],
        [size for part in parts for size in part.sizes],
        parts[0].preprocessing,
    )


def view_images(flat: Tensor, sizes: Sequence[Size], channels: int) -> list[Tensor]:
    """Return the images (channels, h, w) that are stored one after another in a flat tensor, as views."""
    counts = [channels * height * width for height, width in sizes]
    parts = flat[: sum(counts)].split(counts)
    return [part.view(channels, *size) for part, size in zip(parts, sizes, strict=True)]


def count_values(sizes: Sequence[Size], channels: int) -> int:
    """Return the number of values of all images."""
    return sum(channels * height * width for height, width in sizes)
