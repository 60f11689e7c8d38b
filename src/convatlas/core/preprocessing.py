"""From an image to a network's input: one record, used by training, evaluation and prediction alike."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.core.record import Bounds, Record, above, at_least, between
from convatlas.errors import DataError, SpecError

Interpolation = Literal["nearest", "bilinear", "bicubic"]

Finite = Annotated[float, Bounds()]

TTA = Literal["none", "flip", "ten-crop"]
"""Test-time augmentation: the image alone, with its mirror image, or ten crops."""


@dataclass(frozen=True)
class Preprocessing(Record):
    """How an image becomes the network's input.

    In this order: the short side is resized to `resize` pixels (antialiased), the central `crop` x `crop` is cut out, a
    border of `pad` pixels of value `fill` is put around it, values are divided by 255, `mean` is subtracted and the
    result divided by `std`, channel by channel. `len(mean)` is the number of channels: image files are converted to
    grayscale (1, luma of ITU-R 601) or RGB (3) after their EXIF orientation was applied.
    window: for images with more than 8 bits, the values that become 0 and 255, as fractions of the largest value of
        their type; floats are used as they are. None: images have 8 bits, or are rounded to them.
    """

    resize: Annotated[int, at_least(1)]
    crop: Annotated[int, at_least(1)]
    pad: Annotated[int, at_least(0)] = 0
    fill: Annotated[int, between(0, 255)] = 0
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    mean: tuple[Finite, ...] = (0.5,)
    std: tuple[Annotated[float, above(0)], ...] = (0.5,)
    window: tuple[Finite, Finite] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop > self.resize:
            raise SpecError(f"Preprocessing: crop must be <= resize, got {self.crop} > {self.resize}")
        if not self.mean or len(self.mean) != len(self.std):
            raise SpecError(
                f"Preprocessing: mean and std must have one value for each channel, got {self.mean} and {self.std}"
            )
        if self.window is not None and self.window[0] >= self.window[1]:
            raise SpecError(f"Preprocessing: window must be (low, high) with low < high, got {self.window}")

    @property
    def resolution(self) -> int:
        """Height and width of the network's input, in pixels."""
        return self.crop + 2 * self.pad

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def dtype(self) -> torch.dtype:
        """The type of pixels before they are normalized."""
        return torch.uint8 if self.window is None else torch.float32

    def for_channels(self, channels: int) -> Preprocessing:
        """Return the same steps for another number of channels; each gets the average statistics."""
        if channels < 1:
            raise SpecError(f"channels: must be an integer >= 1, got {channels}")
        if channels == self.channels:
            return self
        # clamped to the extremes, so that the mean of equal values equals them to the last bit
        mean, std = (min(max(fmean(values), min(values)), max(values)) for values in (self.mean, self.std))
        return dataclasses.replace(self, mean=(mean,) * channels, std=(std,) * channels)

    def for_resolution(self, resolution: int) -> Preprocessing:
        """Return the same steps for another input resolution in pixels; border and resize keep their proportion."""
        if resolution == self.resolution:
            return self
        pad = round(self.pad * resolution / self.resolution)
        crop = resolution - 2 * pad
        return dataclasses.replace(self, pad=pad, crop=crop, resize=max(crop, round(self.resize * crop / self.crop)))

    def resize_and_crop(self, pixels: Tensor) -> Tensor:
        """Resize, crop and pad images of `dtype`: (..., channels, h, w) in, (..., channels, size, size) out."""
        pixels = self._resize(pixels)
        return self._crop_and_pad(pixels, *(round((extent - self.crop) / 2) for extent in pixels.shape[-2:]))

    def tta_views(self, pixels: Tensor, tta: TTA) -> Tensor:
        """Return the views of one image (channels, h, w) for test-time augmentation: (views, channels, size, size).

        "none": as `resize_and_crop` does. "flip": with its mirror image. "ten-crop": the four corners and the center,
        each with its mirror image, as in the tests of AlexNet (Krizhevsky et al. 2012, section 4.1).
        """
        if tta not in get_args(TTA):
            raise SpecError(f"tta must be one of {', '.join(get_args(TTA))}, got {tta!r}")
        if tta != "ten-crop":
            views = self.resize_and_crop(pixels)[None]
        else:
            pixels = self._resize(pixels)
            down, right = (extent - self.crop for extent in pixels.shape[-2:])
            corners = [(0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2))]
            views = torch.stack([self._crop_and_pad(pixels, *corner) for corner in corners])
        return views if tta == "none" else torch.cat([views, views.flip(-1)])

    def _resize(self, pixels: Tensor) -> Tensor:
        if pixels.dtype != self.dtype:
            raise DataError(f"pixels are {self.dtype} from 0 to 255, got {pixels.dtype}")
        if pixels.ndim not in (3, 4):
            raise DataError(f"an image is (channels, height, width), got shape {tuple(pixels.shape)}")
        if pixels.shape[-3] != self.channels:
            raise DataError(f"this network reads {self.channels} channel(s), the image has {pixels.shape[-3]}")
        height, width = pixels.shape[-2:]
        short = min(height, width)
        if short == 0:
            raise DataError(f"the image is empty ({width} x {height} pixels)")
        if short != self.resize:
            # as torchvision's Resize: the long side is cut down to a whole pixel
            size = [int(self.resize * height / short), int(self.resize * width / short)]
            smooth = self.interpolation != "nearest"
            batch = F.interpolate(
                pixels if pixels.ndim == 4 else pixels[None],
                size,
                mode=self.interpolation,
                align_corners=False if smooth else None,
                antialias=self.antialias and smooth,
            )
            pixels = batch if pixels.ndim == 4 else batch[0]
        return pixels

    def _crop_and_pad(self, pixels: Tensor, top: int, left: int) -> Tensor:
        return self.add_border(pixels[..., top : top + self.crop, left : left + self.crop])

    def add_border(self, pixels: Tensor) -> Tensor:
        """Pad images (..., h, w) by `pad` pixels of value `fill` on each side."""
        return F.pad(pixels, (self.pad,) * 4, value=self.fill) if self.pad else pixels.contiguous()

    def resize_to_square(self, pixels: Tensor) -> Tensor:
        """Resize whole images (batch, channels, h, w) to squares of `resize` pixels, antialiased."""
        side = (self.resize, self.resize)
        if pixels.shape[-2:] == side:
            return pixels
        return F.interpolate(pixels, side, mode="bilinear", align_corners=False, antialias=True)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Turn images (n, channels, h, w) of values from 0 to 255 into float32, standardized by `mean` and `std`."""
        mean = torch.tensor(self.mean, device=pixels.device).mul_(255).view(-1, 1, 1)
        scale = torch.tensor(self.std, device=pixels.device).mul_(255).reciprocal_().view(-1, 1, 1)
        return pixels.float().sub_(mean).mul_(scale)
