"""Inspect the images of a split: their size, mode and contents, and whether training can read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.data.decode.array_values import Window
from convatlas.data.decode.files import read_bytes
from convatlas.data.decode.headers import Header, read_header
from convatlas.data.decode.pixels import read_image
from convatlas.data.manifest import Manifest
from convatlas.data.samples import Samples
from convatlas.data.threads import map_in_threads
from convatlas.errors import DataError, printable


@dataclass(frozen=True)
class CheckedImage:
    """The properties of one image.

    labels: its classes. size: (width, height). mode: how pixels are stored. digest: sha256 of the file, or of the
    pixels. dhash: see `difference_hash`. unreadable: the reason, if it is.
    """

    name: str
    split: str
    labels: tuple[int, ...]
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    rotated: bool = False
    high_bit_depth: bool = False
    digest: str = ""
    dhash: int = 0
    unreadable: str = ""


def inspect_files(
    samples: Samples,
    split: str,
    labels: Sequence[tuple[int, ...]],
    manifest: Manifest,
    channels: int,
    window: Window | None,
) -> Iterator[CheckedImage]:
    """Read the files of a split as training reads them: in the channels of a network, with its window of values."""
    unopened = manifest.look_up(samples.names, task=f"reading {split}").unopened

    def inspect(number: int) -> CheckedImage:
        name, classes = samples.names[number], labels[number]
        if number in unopened:
            return CheckedImage(name, split, classes, unreadable=unopened[number])
        try:
            data = manifest.contents(name, remove=True) or read_bytes(name)
            pixels = read_image(name, channels, window, data=data)
        except DataError as error:
            return CheckedImage(name, split, classes, unreadable=str(error).removeprefix(printable(f"{name}: ")))
        try:
            header = read_header(name, data=data)
        except DataError:  # training does not need it
            header = Header((pixels.shape[-1], pixels.shape[-2]), "unknown")
        return CheckedImage(
            name,
            split,
            classes,
            header.size,
            header.mode,
            header.rotated,
            header.high_bit_depth,
            hashlib.sha256(data).hexdigest(),
            difference_hash(pixels.mean(0, keepdim=True, dtype=torch.float32)),
        )

    return map_in_threads(inspect, range(len(samples)))


def inspect_pixels(
    samples: Samples, pixels: Tensor | Sequence[Tensor], split: str, labels: Sequence[tuple[int, ...]]
) -> Iterator[CheckedImage]:
    """Inspect the images in memory of a split."""
    for name, classes, image in zip(samples.names, labels, pixels, strict=True):
        channels, size = image.shape[0], (image.shape[2], image.shape[1])
        high_bit_depth = image.dtype != torch.uint8
        mode = f"{channels} x float32" if high_bit_depth else {1: "L", 3: "RGB"}.get(channels, f"{channels} x uint8")
        yield CheckedImage(
            name,
            split,
            classes,
            size,
            mode,
            high_bit_depth=high_bit_depth,
            digest=hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest(),
            dhash=difference_hash(image.float().mean(0, keepdim=True)),
        )


def difference_hash(gray: Tensor) -> int:
    """Return 64 bits of an image (1, h, w): whether each of 8 x 8 regions is brighter than the one to its left.

    Few bits change when an image is resized or compressed again.
    """
    small = F.interpolate(gray[None].float(), (8, 9), mode="area")[0, 0]
    bits = (small[:, 1:] > small[:, :-1]).flatten().tolist()
    return sum(bit << i for i, bit in enumerate(bits))
