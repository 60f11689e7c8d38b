"""From an image to a network's input: one record, used by training, evaluation and prediction alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Literal, get_args, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.core.clips import ClipSampling
from convatlas.core.ragged import Inputs
from convatlas.core.record import Bounds, Record, above, at_least, between
from convatlas.core.resampling import resize, resize_part
from convatlas.errors import DataError, SpecError

Interpolation = Literal["nearest", "bilinear", "bicubic"]

Finite = Annotated[float, Bounds()]

TTA = Literal["none", "flip", "ten-crop"]
"""Test-time augmentation: the image alone, with its mirror image, or ten crops."""

CENTER = (0.5, 0.5)
FIVE_PLACES = ((0, 0), (0, 1), (1, 0), (1, 1), CENTER)
"""Places of crops, (vertical, horizontal): 0 is the first possible one, 1 the last."""

THIN, THIN_ROUNDED = 4, 64
"""Of images whose long side is more than this times the short side, only what the crop needs is resized: the same
values to the last bit, or, where `resize_part` rounds otherwise than `resize`, above the second limit."""


@dataclass(frozen=True)
class Preprocessing(Record):
    """How an image becomes the network's input.

    In this order: the short side is resized to `resize` pixels (antialiased), the central `crop` x `crop` is cut out, a
    border of `pad` pixels of value `fill` is put around it, values are divided by 255, `mean` is subtracted and the
    result divided by `std`, channel by channel. `len(mean)` is the number of channels: image files are converted to
    grayscale (1, luma of ITU-R 601) or RGB (3) after their EXIF orientation was applied.
    width: images are resized to `resize` x `width` pixels (height x width) instead, whatever their shape, as
        torchvision's preprocessing of videos does.
    sampling: of networks that read clips: which frames of a video they read. The steps apply to each frame.
    max_size: of detectors: images stay whole. Nothing is cropped; the network itself resizes the short side to `resize`
        pixels, or the long side to `max_size` pixels if that is smaller, and standardizes: mean is 0 and std 1 here.
    rotation: degrees by which the normalized input is rotated, for weights that are stored rotated.
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
    rotation: Literal[0, 180] = 0
    max_size: Annotated[int, at_least(1)] | None = None
    width: Annotated[int, at_least(1)] | None = None
    sampling: ClipSampling | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop > self.resize:
            raise SpecError(f"Preprocessing: crop must be <= resize, got {self.crop} > {self.resize}")
        if self.width is not None and self.crop > self.width:
            raise SpecError(f"Preprocessing: crop must be <= width, got {self.crop} > {self.width}")
        if self.max_size is not None and (self.width is not None or self.sampling is not None):
            raise SpecError("Preprocessing: with max_size, there must be no width and no sampling")
        if not self.mean or len(self.mean) != len(self.std):
            raise SpecError(
                f"Preprocessing: mean and std must have one value for each channel, got {self.mean} and {self.std}"
            )
        if self.window is not None and self.window[0] >= self.window[1]:
            raise SpecError(f"Preprocessing: window must be (low, high) with low < high, got {self.window}")
        if self.max_size is not None and (self.resize != self.crop or self.pad or self.rotation):
            raise SpecError("Preprocessing: with max_size, crop must be resize, and pad and rotation 0")
        if self.max_size is not None and (set(self.mean) != {0} or set(self.std) != {1}):
            raise SpecError(
                "Preprocessing: with max_size, mean must be 0 and std 1, because the network standardizes, got "
                f"{self.mean} and {self.std}; mean and std are cells of its spec"
            )

    @property
    def is_whole(self) -> bool:
        """Whether images stay whole: inputs are lists of tensors (channels, h, w) of any size, from 0 to 1."""
        return self.max_size is not None

    @property
    def resolution(self) -> int:
        """Height and width of the network's input, in pixels."""
        return self.crop + 2 * self.pad

    @property
    def reads(self) -> str:
        """What one input is; see `Spec.reads`."""
        return "images" if self.sampling is None else "clips"

    def misfit(self, shape: tuple[int, ...]) -> str:
        """Return in words why this is not the preprocessing of a network; empty if it is.

        shape: of its input, (channels, size, size) or (channels, frames, size, size); channels are not compared.
        """
        if self.resolution != shape[-1]:
            return f"must give the network's {shape[-1]} px, got {self.resolution} px"
        frames, own = shape[1:-2], () if self.sampling is None else (self.sampling.frames,)
        if frames == own:
            return ""
        needs, has = (f"clips of {each[0]} frames" if each else "images" for each in (frames, own))
        return f"must give the network's {needs}, got {has}"

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of the pixels of one input: (channels, size, size), or (frames, channels, size, size) of a clip."""
        image = (self.channels, self.resolution, self.resolution)
        return image if self.sampling is None else (self.sampling.frames, *image)

    @property
    def input_text(self) -> str:
        """The network's input in a few words, such as "3 x 224 px", or "short side 320 px, at most 640 px"."""
        if self.is_whole:
            return f"short side {self.resize} px, at most {self.max_size} px"
        image = f"{self.channels} x {self.resolution} px"
        return image if self.sampling is None else f"{image}, {self.sampling.text}"

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
        resize = max(crop, round(self.resize * crop / self.crop))
        max_size = None if self.max_size is None else max(resize, round(self.max_size * resolution / self.resolution))
        width = None if self.width is None else max(crop, round(self.width * crop / self.crop))
        return dataclasses.replace(self, pad=pad, crop=crop, resize=resize, max_size=max_size, width=width)

    def resize_and_crop(self, pixels: Tensor) -> Tensor:
        """Resize, crop and pad images of `dtype`: ([n,] channels, h, w) in, ([n,] channels, size, size) out.

        Whole images are returned as they are.
        """
        (view,) = self._crops(pixels, (CENTER,))
        return view

    def tta_views(self, pixels: Tensor, tta: TTA) -> Inputs:
        """Return the views of one image (channels, h, w) for test-time augmentation: (views, channels, size, size).

        "none": as `resize_and_crop` does. "flip": with its mirror image. "ten-crop": the four corners and the center,
        each with its mirror image, as in the tests of AlexNet (Krizhevsky et al. 2012, section 4.1).
        A whole image has one view: a list with the image itself.
        """
        if tta not in get_args(TTA):
            raise SpecError(f"tta must be one of {', '.join(get_args(TTA))}, got {tta!r}")
        if self.is_whole:
            if tta != "none":
                raise SpecError(f"tta must be none for networks that read whole images, got {tta!r}")
            return [self.resize_and_crop(pixels)]
        views = torch.stack(self._crops(pixels, FIVE_PLACES if tta == "ten-crop" else (CENTER,)))
        return views if tta == "none" else torch.cat([views, views.flip(-1)])

    def _crops(self, pixels: Tensor, places: Sequence[tuple[float, float]]) -> list[Tensor]:
        """Return crops of resized images, with a border around each."""
        height, width = size = self._resized_size(pixels)
        if self.is_whole:
            return [pixels.contiguous()]
        corners = [(round((height - self.crop) * down), round((width - self.crop) * right)) for down, right in places]
        if size != tuple(pixels.shape[-2:]) and self.width is None and max(size) > self._thin * self.resize:
            crops = [self._crop_of_thin(pixels, size, *corner) for corner in corners]
        else:
            if size != tuple(pixels.shape[-2:]):
                pixels = resize(
                    pixels, size, self.interpolation, antialias=self.antialias, in_float32=self.sampling is not None
                )
            crops = [self._crop(pixels, *corner) for corner in corners]
        return [self.add_border(crop) for crop in crops]

    @property
    def _thin(self) -> int:
        images = self.window is None and self.sampling is None
        exact = self.interpolation == "nearest" or (self.antialias and images)
        return THIN if exact else THIN_ROUNDED

    def _crop(self, pixels: Tensor, top: int, left: int) -> Tensor:
        return pixels[..., top : top + self.crop, left : left + self.crop]

    def _crop_of_thin(self, pixels: Tensor, size: tuple[int, int], top: int, left: int) -> Tensor:
        tall = size[0] > size[1]
        start = top if tall else left
        part = resize_part(pixels, size, start, self.crop, self.interpolation, antialias=self.antialias)
        return self._crop(part, 0 if tall else top, left if tall else 0)

    def _resized_size(self, pixels: Tensor) -> tuple[int, int]:
        """Return (height, width) of resized images; raises DataError for what is not an image of this network."""
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
        if self.max_size is not None and short * self.max_size <= max(height, width):
            raise DataError(
                f"the image is too narrow ({width} x {height} pixels): its long side is resized to {self.max_size} px, "
                "and no pixel of its short side is left"
            )
        if self.width is not None:
            return self.resize, self.width
        # as torchvision's Resize: the long side is cut down to a whole pixel
        return int(self.resize * height / short), int(self.resize * width / short)

    def add_border(self, pixels: Tensor) -> Tensor:
        """Pad images (..., h, w) by `pad` pixels of value `fill` on each side."""
        return F.pad(pixels, (self.pad,) * 4, value=self.fill) if self.pad else pixels.contiguous()

    def resize_to_square(self, pixels: Tensor) -> Tensor:
        """Resize whole images (batch, channels, h, w) to squares of `resize` pixels, antialiased."""
        side = (self.resize, self.resize)
        if pixels.shape[-2:] == side:
            return pixels
        return resize(pixels, side, "bilinear", antialias=True)

    @overload
    def normalize(self, pixels: Tensor) -> Tensor: ...
    @overload
    def normalize(self, pixels: list[Tensor]) -> list[Tensor]: ...
    def normalize(self, pixels: Inputs) -> Inputs:
        """Turn images (n, channels, h, w) of values from 0 to 255 into inputs: float32, standardized and rotated.

        Whole images, a list, become float32 from 0 to 1: their network standardizes them. Clips (n, frames, channels,
        h, w) become (n, channels, frames, h, w).
        """
        if not isinstance(pixels, Tensor):
            return [image.to(torch.float32, copy=True).div_(255) for image in pixels]
        mean, scale = self.scaling(pixels.device)
        return self.rotate(self.channels_first(pixels).to(torch.float32, copy=True).sub_(mean).mul_(scale))

    def scaling(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return the mean and the factor, 1 / std, of each channel for values from 0 to 255; shaped as inputs are."""
        mean, std = (torch.tensor(values, device=device).mul_(255) for values in (self.mean, self.std))
        shape = (-1, *[1] * (len(self.item_shape) - 1))
        return mean.view(shape), std.reciprocal_().view(shape)

    def channels_first(self, pixels: Tensor) -> Tensor:
        """Return clips (n, frames, channels, h, w) as (n, channels, frames, h, w), and back; images as they are."""
        return pixels if self.sampling is None else pixels.transpose(-3, -4)

    def denormalize(self, inputs: Tensor) -> Tensor:
        """Return the uint8 images (n, channels, h, w) of inputs: the inverse of `normalize`, rounded."""
        mean, std = (torch.tensor(values, device=inputs.device).view(-1, 1, 1) for values in (self.mean, self.std))
        inputs = self.channels_first(inputs)
        return (self.rotate(inputs) * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)

    def rotate(self, inputs: Tensor) -> Tensor:
        """Return normalized inputs (n, channels, h, w) rotated by `rotation` degrees."""
        return inputs.flip(-2, -1) if self.rotation else inputs
