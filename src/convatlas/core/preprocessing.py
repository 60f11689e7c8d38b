"""From an image to a network's input: one record, used by training, evaluation and prediction alike."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.errors import DataError, SpecError

Interpolation = Literal["nearest", "bilinear", "bicubic"]

Views = Literal["one", "flip", "ten"]
"""How often an image is looked at: once, with its mirror image, or in ten crops."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input.

    In this order: the short side is resized to `resize` pixels (antialiased), the central `crop` x `crop` is cut out, a
    border of `pad` pixels of value `fill` is put around it, values are divided by 255, `mean` is subtracted and the
    result divided by `std`, channel by channel. `len(mean)` is the number of channels: image files are turned into
    gray (1, by the luma of ITU-R 601) or RGB (3) after their EXIF orientation was applied.
    window: for images deeper than 8 bits, which values become 0 and 255, in shares of what their type can hold;
        floats are shares themselves. None: images have 8 bits, or are rounded to them.
    """

    resize: int
    crop: int
    pad: int = 0
    fill: int = 0
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise SpecError(f"preprocessing.crop: {self.crop} must lie between 1 and resize = {self.resize}")
        if self.pad < 0 or not 0 <= self.fill <= 255:
            raise SpecError(f"preprocessing: pad {self.pad} must be >= 0 and fill {self.fill} between 0 and 255")
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise SpecError("preprocessing: mean and std need one value for each channel, and std above 0")
        if self.window is not None and not -math.inf < self.window[0] < self.window[1] < math.inf:
            raise SpecError(f"preprocessing.window: {self.window} is not a lower and a higher number")
        if self.interpolation not in get_args(Interpolation):
            raise SpecError(
                f"preprocessing.interpolation: {self.interpolation!r} is not one of {get_args(Interpolation)}"
            )

    @property
    def size(self) -> int:
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
            raise SpecError(f"channels: a whole number from 1 on, not {channels}")
        if channels == self.channels:
            return self
        # kept between the extremes, so that equal values stay what they are to the last bit
        mean, std = (min(max(fmean(values), min(values)), max(values)) for values in (self.mean, self.std))
        return dataclasses.replace(self, mean=(mean,) * channels, std=(std,) * channels)

    def for_size(self, size: int) -> Preprocessing:
        """Return the same steps for an input of `size` pixels; border and resize keep their proportion."""
        if size == self.size:
            return self
        pad = round(self.pad * size / self.size)
        crop = size - 2 * pad
        return dataclasses.replace(self, pad=pad, crop=crop, resize=max(crop, round(self.resize * crop / self.crop)))

    def geometry(self, pixels: Tensor) -> Tensor:
        """Resize, crop and pad images of `dtype`: (..., channels, h, w) in, (..., channels, size, size) out."""
        pixels = self._resized(pixels)
        return self._cut(pixels, *(round((extent - self.crop) / 2) for extent in pixels.shape[-2:]))

    def views(self, pixels: Tensor, which: Views) -> Tensor:
        """Return one image (channels, h, w) as it is looked at: (views, channels, size, size).

        "one": as `geometry` does. "flip": with its mirror image. "ten": the four corners and the center, each with its
        mirror image, as AlexNet was tested (Krizhevsky et al. 2012, section 4.1).
        """
        if which not in get_args(Views):
            raise SpecError(f"views: {which!r} is not one of {', '.join(get_args(Views))}")
        if which != "ten":
            seen = self.geometry(pixels)[None]
        else:
            pixels = self._resized(pixels)
            down, right = (extent - self.crop for extent in pixels.shape[-2:])
            places = [(0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2))]
            seen = torch.stack([self._cut(pixels, *place) for place in places])
        return seen if which == "one" else torch.cat([seen, seen.flip(-1)])

    def _resized(self, pixels: Tensor) -> Tensor:
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

    def _cut(self, pixels: Tensor, top: int, left: int) -> Tensor:
        pixels = pixels[..., top : top + self.crop, left : left + self.crop]
        return F.pad(pixels, (self.pad,) * 4, value=self.fill) if self.pad else pixels.contiguous()

    def squeezed(self, pixels: Tensor) -> Tensor:
        """Resize whole images (batch, channels, h, w) to squares of `resize` pixels, antialiased."""
        side = (self.resize, self.resize)
        if pixels.shape[-2:] == side:
            return pixels
        return F.interpolate(pixels, side, mode="bilinear", align_corners=False, antialias=True)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Turn a batch (batch, channels, h, w) of values from 0 to 255 into float32 with `mean` and `std` taken out."""
        mean = torch.tensor(self.mean, device=pixels.device).mul_(255).view(-1, 1, 1)
        scale = torch.tensor(self.std, device=pixels.device).mul_(255).reciprocal_().view(-1, 1, 1)
        return pixels.float().sub_(mean).mul_(scale)

    def to_plain(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Preprocessing:
        """Read what `to_plain` wrote; raises SpecError that names an unknown or missing field or a wrong value."""
        if not isinstance(data, dict):
            raise SpecError("preprocessing: expected a table of fields")
        types = {
            "resize": int, "crop": int, "pad": int, "fill": int, "interpolation": str, "antialias": bool,
            "mean": list, "std": list, "window": list if data.get("window") is not None else type(None),
        }  # fmt: skip
        if set(data) != set(types):
            raise SpecError(f"preprocessing: expected exactly the fields {', '.join(types)}")
        for key, kind in types.items():
            if type(data[key]) is not kind:
                raise SpecError(f"preprocessing.{key}: expected {kind.__name__}, got {data[key]!r}")
        lists = ("mean", "std") if data["window"] is None else ("mean", "std", "window")
        for key in lists:
            if not all(type(value) in (int, float) for value in data[key]):
                raise SpecError(f"preprocessing.{key}: expected numbers, got {data[key]!r}")
        if data["window"] is not None and len(data["window"]) != 2:
            raise SpecError(f"preprocessing.window: expected two numbers, got {data['window']!r}")
        return cls(**data | {key: tuple(map(float, data[key])) for key in lists})
